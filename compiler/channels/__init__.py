"""Structured pruning: which channels live and die together, what may go, masking it and removing it."""
