"""Keys, dtypes, the chunked loop, the store and progress: what sampling and training share."""
