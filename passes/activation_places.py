"""Which activations become integers: what linear operators read, and what convolutions give."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..compiler.graph import attr, is_const, sole_user, users
from ..compiler.quantization.packed import decoders
from ..compiler.rounding import FLOAT, HALF, is_stored_half, pair_source
from .half import VIEWS

DATA = {"Conv": (0,), "ConvTranspose": (0,), "Gemm": (0, 1), "MatMul": (0, 1)}
"""Linear operators → the inputs that may be activations."""

CONVOLUTIONS = ("Conv", "ConvTranspose")

MERGED = {
    "onnx": ("Relu", "Clip"),
    "onnxruntime": ("Relu", "Clip"),
    "coreml": (
        "Relu", "Clip", "PRelu", "LeakyRelu", "Sigmoid", "HardSigmoid", "Swish", "Elu", "Celu", "Selu", "Mish", "Gelu",
        "Tanh", "HardSwish",
    ),
}  # fmt: skip
"""Backend → activations that its convolutions apply before they give integers, so that nothing is rounded in between.

Sources: onnxruntime 1.32, whose selectors drop a Relu or Clip between convolution and QuantizeLinear; coremltools
9.0, `optimize/torch/quantization/_backend_config.py`, `_mod_activations`.
"""

SAME = VIEWS | {"MaxPool"}
"""Operators whose results are among the numbers of their first input: the levels of the one are those of the other."""

KEPT = "edgec.activation"
"""Metadata of a value that this pass left in floating point, so that a second run leaves it as well."""


@dataclass(frozen=True)
class Places:
    """How activations are chosen.

    Attributes:
        merged: operators behind a convolution that come before rounding.
        outputs: whether what convolutions give is rounded, and for all readers; else for linear operators only.
        keep: globs of names of nodes, operators and values that stay as they are.
        weighted: whether only what MatMul and Gemm multiply with a weight is rounded, for them alone.
    """

    merged: Sequence[str]
    outputs: bool
    keep: Sequence[str] = ()
    weighted: bool = False

    def values(self, model: ir.Model) -> list[ir.Value]:
        """The activations of the main graph that are to be rounded and aren't yet, each once."""
        found: dict[ir.Value, None] = {}
        for node in model.graph:
            if node.domain or node.op_type not in DATA or self._keeps(node) or not self._fits(node):
                continue
            read = [node.inputs[i] for i in DATA[node.op_type][: 1 if self.weighted else None] if i < len(node.inputs)]
            found.update((v, None) for v in read if v is not None)
            if self.outputs and node.op_type in CONVOLUTIONS:
                found[self._behind(node.outputs[0])] = None
        return [v for v in found if self._open(v)]

    def readers(self, value: ir.Value) -> list[ir.Node]:
        """The nodes that are to read `value` rounded, and don't yet."""
        wanted = [n for n in users(value) if n.op_type != "QuantizeLinear" and not self._keeps(n)]
        return wanted if self.outputs else [n for n in wanted if _reads_as_data(n, value) and self._fits(n)]

    def _fits(self, node: ir.Node) -> bool:
        """Whether a linear operator is one of those that are wanted."""
        if not self.weighted:
            return True
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
        return weight is not None and _is_weight(weight) and not is_const(node.inputs[0])

    def _behind(self, value: ir.Value) -> ir.Value:
        """What a convolution's output is once the activations that merge with it, and half precision, are applied."""
        while (node := sole_user(value)) is not None and not node.domain and node.inputs[0] is value:
            half = node.op_type == "Cast" and HALF in (attr(node, "to"), value.dtype)
            if not half and (node.op_type not in self.merged or self._keeps(node)):
                break
            value = node.outputs[0]
        return value

    def _keeps(self, node: ir.Node) -> bool:
        return any(fnmatch.fnmatchcase(name or "", k) for k in self.keep for name in (node.name, node.op_type))

    def _open(self, value: ir.Value) -> bool:
        if value.dtype != FLOAT or value.metadata_props.get(KEPT) or _is_weight(value) or _is_rounded(value):
            return False
        return bool(self.readers(value)) and not any(fnmatch.fnmatchcase(value.name or "", k) for k in self.keep)


def origin(value: ir.Value, among: set[ir.Value]) -> ir.Value:
    """The farthest of `among` upwards that `value` is made of by operators that only pick and place numbers."""
    found = value
    while (node := value.producer()) is not None and not node.domain and node.op_type in SAME:
        source = node.inputs[0]
        if source is None:
            break
        value = source
        found = value if value in among else found
    return found


def _reads_as_data(node: ir.Node, value: ir.Value) -> bool:
    return not node.domain and any(node.inputs[i] is value for i in DATA.get(node.op_type, ()) if i < len(node.inputs))


def _is_weight(value: ir.Value) -> bool:
    """Whether `value` is a constant, packed or transposed perhaps."""
    while (node := value.producer()) is not None:
        if decoders(value) is not None or is_stored_half(node):
            return True
        source = node.inputs[0] if node.inputs and not node.domain and node.op_type in SAME else None
        if source is None:
            return False
        value = source
    return is_const(value)


def _is_rounded(value: ir.Value) -> bool:
    """Whether integers make `value`, rounded to half precision perhaps."""
    while (node := value.producer()) is not None and (source := pair_source(node)) is not None:
        if node.op_type == "DequantizeLinear":
            return True
        value = source
    return False
