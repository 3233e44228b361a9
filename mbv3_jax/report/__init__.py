"""What people look at: tables, plots and pages made from specs and run folders."""
