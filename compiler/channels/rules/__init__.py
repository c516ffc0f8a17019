"""A rule per operator: how ids travel through it. Importing this package registers them all in flow.RULES."""

from . import attention, elementwise, linear, normalise, recurrent, reduce, views

__all__ = ["attention", "elementwise", "linear", "normalise", "recurrent", "reduce", "views"]
