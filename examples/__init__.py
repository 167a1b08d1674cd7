"""Short programs on real data; the tests run them."""
