"""Grids that weights are rounded to: choosing them, rounding, and what packed weights look like in a model."""
