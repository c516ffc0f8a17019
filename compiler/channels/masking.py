"""Masking: what a set of dead classes means for the numbers of weights."""

from __future__ import annotations

import onnx_ir as ir

from ..graph import const_tensor
from ..weights import Scratch
from .balance import settle
from .coupling import Coupling
from .masked import Masked
from .shrink import replace_tensor
from .solve import Flags, Solution


def mask(model: ir.Model, coupling: Coupling, found: Solution, dead: Flags, scratch: Scratch | None = None) -> int:
    """Set every slice of these classes to zero, where masking may; returns how many weights changed.

    Big ones are written when somebody reads them. Normalisations that lose channels are put right: see `balance`.
    """
    changed, means = settle(coupling, found, dead, scratch)
    gone = dead[found.of]
    for value in coupling.holds:
        cuts = [(h, flags) for h in coupling.zeroed(value) if (flags := gone[h.grid.ids]).any()]
        if not cuts and value not in means:
            continue
        tensor = const_tensor(value)
        assert tensor is not None
        made = Masked(tensor, cuts, means.get(value, ()))
        later = made.later(scratch, value.name or "") if scratch is not None else None
        if later is None:
            replace_tensor(value, made(), scratch)
        else:
            value.const_value = later
        changed.add(value)
    return len(changed)
