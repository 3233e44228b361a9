"""What every room uses: argument checks, errors, atomic files, optional packages."""
