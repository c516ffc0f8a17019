"""How much a residual block does: by its weights alone, by how far it turns the stream, or by what the output loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..channels.rules.elementwise import ZERO_TO_ZERO
from ..graph import attr, const, const_tensor, insert_before
from ..session import Session
from .find import Block

Runs = Sequence[Mapping[str, np.ndarray]]

SCALES = {
    "BatchNormalization": 1, "GroupNormalization": 1, "InstanceNormalization": 1, "LayerNormalization": 1,
    "RMSNormalization": 1,
}  # fmt: skip
"""Operators that normalise → their scale; a shift, where there is one, is the next input."""
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
CARRY = frozenset({
    "AveragePool", "Concat", "Expand", "Flatten", "Gather", "GlobalAveragePool", "MaxPool", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze", *ZERO_TO_ZERO,
})  # fmt: skip


def by_weights(model: ir.Model, blocks: Sequence[Block]) -> np.ndarray:
    """The power of what each branch adds, relative to that of the stream, as far as weights tell.

    What a normalisation makes has the power of its scale and shift; a linear layer is taken to read independent
    numbers of power 1 behind a normalisation, and of what its own input has elsewhere.
    """
    power = _Powers()
    for node in model.graph:
        power.visit(node)
    return np.array([power.of(b.branch) / max(power.of(b.stream), 1e-30) for b in blocks])


class _Powers:
    """The mean square of values, from constants alone."""

    def __init__(self) -> None:
        self._found: dict[ir.Value, float] = {}

    def of(self, value: ir.Value | None) -> float:
        """1 where nothing is known."""
        if value is None:
            return 0.0
        found = self._found.get(value)
        if found is None:
            array = _numbers(value)
            found = self._found[value] = 1.0 if array is None else _mean_square(array)
        return found

    def visit(self, node: ir.Node) -> None:
        op = node.op_type if node.domain == "" else ""
        inputs, power = node.inputs, 1.0
        if op in SCALES:
            power = sum(self.of(v) for v in inputs[1:3])
        elif op in LINEAR and len(inputs) > 1:
            power = self._product(node) + (self.of(inputs[2]) if len(inputs) > 2 else 0.0)
        elif op in ("Add", "Sub", "Sum"):
            power = sum(self.of(v) for v in inputs)
        elif op == "Mul":
            power = self.of(inputs[0]) * self.of(inputs[1])
        elif op in CARRY and inputs:
            power = self.of(inputs[0])
        for out in node.outputs:
            self._found[out] = min(power, 1e30)

    def _product(self, node: ir.Node) -> float:
        """Per output, the sum of squares of the weights that make it, times the power of what they read."""
        a, b = node.inputs[:2]
        weight = b if const_tensor(b) is not None else a if const_tensor(a) is not None else None  # type: ignore[arg-type]
        if weight is None:
            return self.of(a) * self.of(b)
        array = _numbers(weight)
        assert array is not None
        outputs = _outputs(node, array, weight is b)
        return self.of(a if weight is b else b) * float(np.square(array, dtype=np.float32).sum()) / max(outputs, 1)


def _outputs(node: ir.Node, weight: np.ndarray, second: bool) -> int:
    """How many outputs a weight has, seen as a matrix."""
    if node.op_type == "Conv":
        return int(weight.shape[0])
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1]) * int(attr(node, "group", 1))
    turned = node.op_type == "Gemm" and attr(node, "transB" if second else "transA", 0)
    if weight.ndim < 2:
        return 1
    last = second != bool(turned)
    return int(weight.size // weight.shape[-2 if last else -1])


def _numbers(value: ir.Value) -> np.ndarray | None:
    tensor = const_tensor(value)
    if tensor is None or tensor.size == 0 or not tensor.dtype.is_floating_point():
        return None
    return const(value)


def _mean_square(array: np.ndarray) -> float:
    # A mask of attention may hold the lowest number that there is.
    return float(np.mean(np.square(np.clip(array.astype(np.float32, copy=False), -1e15, 1e15))))


def by_similarity(model: ir.Model, blocks: Sequence[Block], runs: Runs) -> np.ndarray:
    """1 - the cosine between the stream before and after each block, averaged over positions.

    X. Men et al., "ShortGPT: layers in large language models are more redundant than you expect", 2024. A position is
    a token or a pixel: where the channels lie can't be told, the whole sample is taken as one.
    """
    seen = model.clone()
    outputs = {v.name: v for n in seen.graph for v in n.outputs}
    wanted = list(dict.fromkeys(str(v.name) for b in blocks for v in (b.stream, b.add.outputs[0])))
    inputs = {v.name for v in seen.graph.inputs}
    present = {v.name for v in seen.graph.outputs}
    for name in wanted:
        if name not in present and name not in inputs:
            seen.graph.outputs.append(outputs[name])
    session, total = Session(seen), np.zeros(len(blocks))
    for feeds in runs:
        found = session.run(feeds, [n for n in wanted if n not in inputs])
        values = {**feeds, **found}
        for k, b in enumerate(blocks):
            axis = _channels(b)
            total[k] += _angle(values[str(b.stream.name)], values[str(b.add.outputs[0].name)], axis)
    return total / max(len(runs), 1)


def _angle(before: np.ndarray, after: np.ndarray, axis: int | None) -> float:
    if axis is None or axis >= before.ndim:
        a, b = (x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1) for x in (before, after))
    else:
        a, b = (np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]) for x in (before, after))
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    alive = norms > 0
    return float((1 - (a * b).sum(1)[alive] / norms[alive]).mean()) if alive.any() else 0.0


def _channels(block: Block) -> int | None:
    """The axis that the branch's last linear layer writes, followed to the sum; None where it is lost."""
    at: int | None = None
    value: ir.Value | None = block.branch
    turns: list[Sequence[int]] = []
    while value is not None:
        node = value.producer()
        if node is None or node.domain:
            return None
        op = node.op_type
        if op in LINEAR or op in SCALES:
            rank = len(value.shape) if value.shape is not None else 0
            at = 1 if op.startswith("Conv") or op in ("BatchNormalization", "InstanceNormalization") else rank - 1
            break
        if op == "Transpose":
            turns.append(attr(node, "perm"))
        elif op == "Reshape" and not _same_last(node):
            return None
        if op not in CARRY and op not in ("Add", "Mul", "Div"):
            return None
        value = next((v for v in node.inputs if v is not None and const_tensor(v) is None), None)
    for perm in reversed(turns):
        at = list(perm).index(at) if at is not None and at < len(perm) else None
    return at


def _same_last(node: ir.Node) -> bool:
    before, after = node.inputs[0], node.outputs[0]
    if before is None or not before.shape or not after.shape:
        return False
    # What lay last still does; it is counted from the end of the new shape.
    return before.shape[-1] == after.shape[-1] and len(before.shape) == len(after.shape)


class Skipping:
    """The model with a switch on every block: one session for all combinations."""

    def __init__(self, model: ir.Model, blocks: Sequence[Block], runs: Runs) -> None:
        gated = model.clone()
        sums = {n.outputs[0].name: n for n in gated.graph}
        self._names = []
        for k, b in enumerate(blocks):
            node = sums[b.add.outputs[0].name]
            index = next(i for i, v in enumerate(b.add.inputs) if v is b.branch)
            branch = node.inputs[index]
            assert branch is not None
            gate = ir.Value(name=f"edgec.block.{k}", shape=ir.Shape([]), type=branch.type)
            gated.graph.inputs.append(gate)
            node.replace_input_with(index, insert_before(node, "Mul", [branch, gate], like=branch).outputs[0])
            self._names.append(gate.name)
        self._session, self._runs = Session(gated), runs
        self._kinds = [b.branch.dtype.numpy() if b.branch.dtype is not None else np.float32 for b in blocks]
        self._wanted = self.outputs(())

    def outputs(self, skipped: Sequence[int]) -> list[dict[str, np.ndarray]]:
        gates = {
            str(n): np.array(0 if k in skipped else 1, kind)
            for k, (n, kind) in enumerate(zip(self._names, self._kinds, strict=True))
        }
        return [self._session.run({**feeds, **gates}) for feeds in self._runs]

    def error(self, skipped: Sequence[int]) -> float:
        """Without these blocks: the squared error of every output, relative to its own square, on average."""
        errors = []
        for wanted, got in zip(self._wanted, self.outputs(skipped), strict=True):
            for name, array in wanted.items():
                if array.dtype.kind == "f" and array.size:
                    a, b = array.astype(np.float64), got[name].astype(np.float64)
                    errors.append(float(np.square(a - b).sum() / max(np.square(a).sum(), 1e-30)))
        return float(np.mean(errors)) if errors else 0.0


def least(
    scores: np.ndarray, enough: Callable[[list[int]], bool], fits: Callable[[list[int]], bool]
) -> list[int]:
    """Blocks in order of their score until there are enough; one that goes too far is passed over."""
    chosen: list[int] = []
    for k in np.argsort(scores, kind="stable").tolist():
        if enough(chosen):
            break
        if fits([*chosen, k]):
            chosen.append(k)
    return chosen


def greedy(
    model: Skipping, count: int, enough: Callable[[list[int]], bool], fits: Callable[[list[int]], bool]
) -> list[int]:
    """One block at a time, whichever the outputs lose least by: a run per block that is left, and step."""
    chosen: list[int] = []
    left = set(range(count))
    while left and not enough(chosen):
        left = {k for k in left if fits([*chosen, k])}
        if not left:
            break
        errors = {k: model.error([*chosen, k]) for k in sorted(left)}
        best = min(errors, key=lambda k: (errors[k], k))
        chosen.append(best)
        left.discard(best)
    return chosen
