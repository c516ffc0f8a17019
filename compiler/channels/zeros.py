"""Which slices of constants are zero, without reading what need not be read: most are not, and one number says so."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir

from ..weights import release_tensor
from .masked import Masked

FEW = 8
_known: MutableMapping[ir.TensorProtocol, dict[tuple[tuple[int, ...], ...], np.ndarray]] = WeakKeyDictionary()
"""What was found of tensors that still exist. Nobody writes to a tensor."""


def alive_in(tensor: ir.TensorProtocol, axes: Sequence[int], view: Sequence[int] | None = None) -> np.ndarray:
    """`alive` of a tensor, seen in the shape `view`, looked at once however many ask."""
    seen, shape = _known.setdefault(tensor, {}), tuple(tensor.shape.numpy() if view is None else view)
    if (key := (shape, tuple(axes))) not in seen:
        masked = Masked.of(tensor)
        found = None if masked is None else masked.alive(axes, shape)
        seen[key] = alive(tensor.numpy().reshape(shape), axes) if found is None else found
        seen[key].flags.writeable = False
        release_tensor(tensor)
    return seen[key]


def alive(array: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """For all positions on `axes`, in that order: whether anything there is not zero."""
    k = len(axes)
    front = np.moveaxis(array, axes, range(k))
    rest = front.shape[k:]
    if not rest or 0 in rest:
        return np.asarray(front.reshape(*front.shape[:k], -1).any(-1))
    found = np.zeros(front.shape[:k], bool)
    for at in (tuple(0 for _ in rest), tuple(n // 2 for n in rest), tuple(n - 1 for n in rest)):
        found |= front[(*(slice(None) for _ in axes), *at)] != 0
        if found.all():
            return found
    left = np.argwhere(~found)
    if len(left) <= FEW:
        for position in left:
            found[tuple(position)] = bool(front[tuple(position)].any())
        return found
    return np.asarray((front != 0).any(tuple(range(k, front.ndim))))
