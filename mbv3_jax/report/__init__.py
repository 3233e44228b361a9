"""Tables, plots and pages made from specs and run folders."""
