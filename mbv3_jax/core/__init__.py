"""What all other packages use: argument checks, errors, atomic files, optional packages."""
