"""The numbers of normalisations that lose channels, in masks and in removal, and of what writes their streams."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..graph import const, const_tensor, initializer, insert_before, remove, replace_value
from ..weights import Scratch, release_value
from .coupling import Coupling
from .feasible import feasible
from .masked import Masked
from .means import Mean
from .norms import Norm
from .shrink import Shrinking, replace_tensor, zero_classes
from .solve import Flags, Solution, solve
from .width import Stream, coupled
from .writers import Leaf


def sizes(coupling: Coupling, found: Solution, dead: Flags, stream: Stream) -> tuple[int, int]:
    """How many channels the first normalisation of a stream has, and how many are left of them."""
    gone = dead[found.of[coupling.opened[stream.norms[0].looks[0]]]]
    return gone.size, int((~gone).sum())


Means = dict[ir.Value, list[Mean]]
"""Constants that write filled streams → what of them is to be the mean of the rest."""


def settle(
    coupling: Coupling, found: Solution, dead: Flags, scratch: Scratch | None = None
) -> tuple[set[ir.Value], Means]:
    """Put the numbers right for a mask of `dead` classes; returns the constants that changed, and those to be filled.

    In every writer of a filled stream what goes is to be the mean of what stays. Scale and eps of normalisations
    become those of the narrower one: over n of N channels, mean of squares, eps and the square of the scale are n / N
    of what they were. Where some have gone before, n is compared with what was left then.
    """
    changed: set[ir.Value] = set()
    means: Means = {}
    if not any(dead[found.of[coupling.opened[n.looks[0]]]].any() for s in coupling.streams for n in s.norms):
        return changed, means
    before = masked(coupling, found)
    now = dead | before
    for stream in coupling.streams:
        narrower = False
        for norm in stream.norms:
            classes = found.of[coupling.opened[norm.looks[0]]]
            was, left = int((~before[classes]).sum()), int((~now[classes]).sum())
            if left < was:
                norm.rescale(left / was, scratch)
                changed.add(norm.scale)
                narrower = True
        if narrower:
            changed |= _even_scales(coupling, found, stream, now, scratch)
            for leaf in stream.leaves:
                means.setdefault(leaf.value, []).append(_mean(coupling, found, leaf, now))
    return changed, means


def masked(coupling: Coupling, found: Solution) -> Flags:
    """Per class, whether it has been masked: is zero, or the mean of what stays."""
    dead = feasible(found, zero_classes(coupling, found))
    for stream in unbalanced(coupling, found, dead):
        for norm in stream.norms:
            dead[found.of[coupling.opened[norm.looks[0]]]] = False
    return dead


def _even_scales(
    coupling: Coupling, found: Solution, stream: Stream, dead: Flags, scratch: Scratch | None
) -> set[ir.Value]:
    """Set what goes of scales on the way to a stream to the mean size of what stays, as it will divide. Idempotent."""
    changed: set[ir.Value] = set()
    for leaf in stream.leaves:
        gone = dead[_classes(coupling, found, leaf.value, leaf.axis)]
        for v in set(leaf.scales) - changed:
            array = np.array(const(v))
            array[..., gone] = np.abs(array[..., ~gone]).mean() or 1
            replace_tensor(v, array, scratch)
            changed.add(v)
    return changed


def _classes(coupling: Coupling, found: Solution, value: ir.Value, axis: int) -> np.ndarray:
    return next(found.of[h.grid.ids] for h in coupling.holds[value] if h.grid.axes == (axis,))


def _mean(coupling: Coupling, found: Solution, leaf: Leaf, dead: Flags) -> Mean:
    gone = dead[_classes(coupling, found, leaf.value, leaf.axis)]
    return Mean(leaf.axis, gone, _scale(leaf, gone.size) if leaf.scales else None)


def _scale(leaf: Leaf, size: int) -> np.ndarray:
    scale = np.ones(size)
    for v in leaf.scales:
        array = const(v)
        assert array is not None
        scale *= array.reshape(-1)
    return scale


def removable(model: ir.Model) -> tuple[Coupling, Solution, Flags, bool]:
    """A model's coupling, solved, the largest part that can go of what is masked, and whether that is all of it."""
    unlike: set[ir.Node] = set()
    while True:
        coupling = coupled(model, "padded", unlike)
        found = solve(coupling)
        zero = zero_classes(coupling, found)
        dead = feasible(found, zero)
        wrong = unbalanced(coupling, found, dead)
        if not wrong:
            return coupling, found, dead, not unlike and not (zero & ~dead).any()
        unlike.update(n.node for s in wrong for n in s.norms)


def unbalanced(coupling: Coupling, found: Solution, dead: Flags) -> list[Stream]:
    """The filled streams in which what is dead is not the mean of what stays, in some writer."""
    return [s for s in coupling.streams if not all(_balanced(coupling, found, leaf, dead) for leaf in s.leaves)]


def _balanced(coupling: Coupling, found: Solution, leaf: Leaf, dead: Flags) -> bool:
    mean, tensor = _mean(coupling, found, leaf, dead), const_tensor(leaf.value)
    assert tensor is not None
    masked = Masked.of(tensor)
    if not mean.gone.any() or (masked is not None and masked.fills(mean)):
        return True
    holds = mean.holds(tensor.numpy())
    release_value(leaf.value)
    return holds


def narrow(s: Shrinking) -> None:
    """At removal: the same normalisation, of fewer channels."""
    for stream in s.coupling.streams:
        for norm in stream.norms:
            if not (stream.padded and norm.centred) and (left := _left(s, norm)) is not None:
                norm.rescale(left[1] / left[0], s.scratch)


def padded(s: Shrinking) -> None:
    """At removal, where the mean of what stays isn't the mean: zeros in the place of what is gone, as in the mask.

    `y = LayerNormalization(x)` becomes `y = Slice(LayerNormalization(Pad(x)))`.
    """
    for stream in s.coupling.streams:
        for norm in stream.norms:
            if stream.padded and norm.centred and (left := _left(s, norm)) is not None:
                _pad(norm, *left, s.scratch)


def _left(s: Shrinking, norm: Norm) -> tuple[int, int] | None:
    """Of how many channels how many are left: those, then all. None where all are."""
    gone = s.gone[s.coupling.opened[norm.looks[0]]]
    return (int((~gone).sum()), gone.size) if gone.any() else None


def _pad(norm: Norm, left: int, size: int, scratch: Scratch | None) -> None:
    node, graph, y = norm.node, norm.node.graph, norm.node.outputs[0]
    assert isinstance(graph, ir.Graph)
    depth, zeros = norm.axis + 1, size - left

    def numbers(*given: int) -> ir.Value:
        return initializer(graph, np.array(given, np.int64), f"{node.name}_padding", scratch)

    inputs = []
    for v in node.inputs[1:]:
        array = const(v)
        if v is not None and array is not None:
            replace_tensor(v, np.concatenate([array.reshape(-1), np.zeros(zeros, array.dtype)]), scratch)
        inputs.append(v)
    x = node.inputs[0]  # not `norm.x`: that was another's result, before it was padded
    assert x is not None
    wide = insert_before(node, "Pad", [x, numbers(*[0] * (2 * depth - 1), zeros)], hint=f"{x.name}_padded")
    normed = insert_before(
        node, node.op_type, [wide.outputs[0], *inputs], {k: a.value for k, a in node.attributes.items()},
        hint=f"{y.name}_padded",
    )  # fmt: skip
    cut = insert_before(
        node, "Slice", [normed.outputs[0], numbers(0), numbers(left), numbers(norm.axis)], like=y, hint=f"{y.name}_left"
    )
    for v in (wide.outputs[0], normed.outputs[0]):
        v.type = y.type
        if y.shape is not None:
            v.shape = ir.Shape([*list(y.shape)[: norm.axis], size])
    is_output = y.is_graph_output()
    replace_value(y, cut.outputs[0])
    remove([node])
    if not is_output:
        cut.outputs[0].name, y.name = y.name, cut.outputs[0].name
