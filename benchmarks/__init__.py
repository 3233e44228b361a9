"""Comparisons of speed with the alternatives. Results and machines: RESULTS.md."""
