"""Keys and random numbers, dtypes, compilations, progress, and the store of a run."""
