"""Sorting and what depends on it."""

from __future__ import annotations

from typing import Any

from .build import I32
from .call import Call
from .registry import lowers


@lowers("TopK", exact=True, floats=(0,))
def _topk(c: Call) -> list[Any]:
    axis = c.axis(-1)
    k = int(c.number(1))
    values, where = c.op("topk", x=c.x(), k=k, axis=axis, ascending=not c.attr("largest", 1))
    return [values, c.cast(where, I32)]
