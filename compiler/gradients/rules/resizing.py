"""Resize: linear in its input, one axis after the other, so it is a matrix for each."""

from __future__ import annotations

from ..step import Grads, Refused, Rule, Step
from ..terms import Term
from .views import numbers


def _resize(s: Step) -> Grads:
    """dy times each axis's matrix, which is what the operator makes of the identity."""
    if s.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Refused("it crops")
    if s.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refused("it keeps the aspect ratio")
    if s.wants(1) or s.wants(2):
        raise Refused("its scales depend on what is differentiated by")
    rank, found = s.rank(), s.dy
    axes = list(s.attr("axes") or range(rank))
    for i, axis in enumerate(axes):
        a, b = s.x.dim(axis % rank), s.y.dim(axis % rank)
        if isinstance(a, int) and a == b and not s.has(2):
            continue
        if _scale(s, i) == 1:
            continue
        found = _along(s, found, i, axis % rank, rank)
    return [found]


def _scale(s: Step, i: int) -> float | None:
    value = s.node.inputs[2].const_value if s.has(2) else None  # type: ignore[union-attr]
    return float(value.numpy()[i]) if value is not None and value.size else None


def _along(s: Step, dy: Term, i: int, axis: int, rank: int) -> Term:
    tape = s.tape
    places = numbers(s.x, axis)
    identity = places.ints("Unsqueeze", [1]).equals(places).op("Cast", to=int(dy.dtype))
    modes = (
        "antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "extrapolation_value",
        "mode", "nearest_mode",
    )  # fmt: skip
    how = {k: s.attr(k) for k in modes}
    cut = [tape.const([i]), tape.const([i + 1]), tape.const([0])]
    scales = sizes = None
    if _given(s, 2):
        scales = tape.op("Concat", tape.const([1.0]), s.input(2).op("Slice", *cut), axis=0)
    else:
        sizes = tape.op("Concat", s.x.size(axis), s.input(3).op("Slice", *cut), axis=0)
    # Row j: what becomes of a one at position j.
    matrix = identity.op("Resize", None, scales, sizes, **how)
    order = [*(a for a in range(rank) if a != axis), axis]
    product = dy.transpose(*order).op("MatMul", matrix.transpose(1, 0))
    return product.transpose(*sorted(range(rank), key=lambda a: order[a]))


def _given(s: Step, i: int) -> bool:
    if not s.has(i):
        return False
    dims = s.input(i).dims
    return dims is None or dims[0] != 0


RULES: dict[str, Rule] = {"Resize": _resize}
