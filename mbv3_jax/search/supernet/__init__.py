"""One network whose weights all networks of a space share (TuNAS, arXiv 2008.06120)."""
