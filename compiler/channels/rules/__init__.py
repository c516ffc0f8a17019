"""A rule per operator: how ids travel through it. Importing this package registers them all in flow.RULES."""

from . import (
    attention,
    contraction,
    elementwise,
    experts,
    indexing,
    linear,
    normalise,
    quantised,
    recurrent,
    reduce,
    resizing,
    views,
)

__all__ = [
    "attention", "contraction", "elementwise", "experts", "indexing", "linear", "normalise", "quantised", "recurrent",
    "reduce", "resizing", "views",
]  # fmt: skip
