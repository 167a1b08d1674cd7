"""Maps, couplings and distances between data sets."""
