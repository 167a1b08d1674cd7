"""Samplers of densities, and the driver that runs them."""
