"""A rule per operator: how ids travel through it. Importing this package registers them all in flow.RULES."""

from . import elementwise, linear, normalise, reduce, views

__all__ = ["elementwise", "linear", "normalise", "reduce", "views"]
