"""Normalisations: per-channel ones go with their channels; an axis that statistics are taken over can't shrink."""

from __future__ import annotations

from ...graph import attr
from ..flow import Step, rule
from ..gates import gate
from ..grids import Grid


@rule("BatchNormalization")
def _batch_norm(s: Step) -> None:
    """Scale and bias are masked, so the output is zero; mean and variance are not, but go with their channel."""
    ids = s.ids_at(0, 1)
    if ids is None:
        ids = s.atoms.fresh(int(s.dims(0)[1]))  # type: ignore[arg-type]
        s.atoms.freeze(ids)
    for i in (1, 2, 3, 4):
        value = s.const(i)
        if value is None:
            s.atoms.freeze(ids)
        else:
            s.coupling.hold(value, ids, [0], masked=i < 3)
    rest = s.keep(but=[1], zero=False)
    s.emit([*rest, Grid(ids, (1,), True)])


@rule("InstanceNormalization")
def _instance_norm(s: Step) -> None:
    _per_channel(s, s.ids_at(0, 1))


@rule("GroupNormalization")
def _group_norm(s: Step) -> None:
    """Statistics are over the channels of a group: only whole groups can go."""
    ids = s.ids_at(0, 1)
    if ids is not None:
        groups = attr(s.node, "num_groups")
        grid = ids.reshape(groups, -1)
        if grid.shape[1] > 1:
            s.atoms.freeze(s.atoms.slab(grid, [1]))
        s.atoms.lay(grid)
    _per_channel(s, ids)


def _per_channel(s: Step, ids: object) -> None:
    rest = s.carry(0, {0: 0}, zero=False)
    if ids is None:
        for i in (1, 2):
            s.const(i)
        s.emit(rest)
        return
    grid = Grid(ids, (1,), True)  # type: ignore[arg-type]
    for i in (1, 2):
        value = s.const(i)
        if value is None:
            s.coupling.veto(grid, 1)
        else:
            s.coupling.hold(value, grid.ids, [0])
    s.emit([*rest, grid])


@rule("LayerNormalization", "RMSNormalization")
def _layer_norm(s: Step) -> None:
    """The normalised axes stay, but for one that it is planned to make narrower: scale and bias go with it."""
    rank = len(s.dims(0))
    first = attr(s.node, "axis", -1) % rank
    grid = s.opened(0, first) if first == rank - 1 else None
    rest = s.keep(but=range(first, rank), zero=False)
    for i in (1, 2):
        value = s.const(i)
        if grid is not None and value is not None:
            s.coupling.hold(value, grid.ids, [len(s.dims(i)) - 1])
    if grid is not None:
        return s.emit([*rest, Grid(grid.ids, (first,), True)])
    for axis in range(first, rank):
        s.veto(0, axis)
    return s.emit(rest)


@rule("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "MeanVarianceNormalization")
def _over_an_axis(s: Step) -> None:
    rank = len(s.dims(0))
    if s.node.op_type == "MeanVarianceNormalization":
        axes = [a % rank for a in attr(s.node, "axes", None) or (0, 2, 3)]
    else:
        axes = [attr(s.node, "axis", -1) % rank]
    if s.node.op_type == "Softmax" and (g := gate(s, 0, axes[0])) is not None:
        s.coupling.gates[s.node.outputs[0]] = g.ids
        return s.emit([*s.keep(but=axes, zero=False), g])
    for axis in axes:
        s.veto(0, axis)
    keeps = s.node.op_type in ("LpNormalization", "MeanVarianceNormalization")
    return s.emit(s.keep(but=axes, zero=None if keeps else False))


@rule("LRN")
def _lrn(s: Step) -> None:
    s.veto(0, 1)
    s.emit(s.keep(but=[1]))
