"""Whole residual branches: finding them, making them zero, what they are worth, and leaving them out."""
