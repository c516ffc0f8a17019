"""A rule per operator: how ids travel through it. Importing this package registers them all in flow.RULES."""

from . import attention, contraction, elementwise, linear, normalise, quantised, recurrent, reduce, views

__all__ = [
    "attention", "contraction", "elementwise", "linear", "normalise", "quantised", "recurrent", "reduce", "views",
]  # fmt: skip
