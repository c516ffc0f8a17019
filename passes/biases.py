"""The bias that makes up for the mean of what a change of a layer's weight takes from its outputs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..compiler.calibration.linear_layers import Layer
from ..compiler.calibration.sums import Sums
from ..compiler.channels.shrink import replace_tensor
from ..compiler.graph import attr, const, is_const, rank, sole_user, used_once
from ..compiler.weights import Scratch


def own_bias(layer: Layer) -> ir.Value | None:
    """The constant that is added to each output, if nothing else reads it: the node's own, or of an Add behind it."""
    node = layer.node
    bias: ir.Value | None = None
    match node.op_type:
        case "Conv" | "ConvTranspose":
            bias = node.inputs[2] if len(node.inputs) > 2 else None
        case "Gemm" if node.inputs[0] is layer.reads[0] and attr(node, "beta", 1.0) == 1.0:
            bias = node.inputs[2] if len(node.inputs) > 2 else None
        case "MatMul" if node.inputs[0] is layer.reads[0] and layer.sizes[0] == 1:
            add = sole_user(node.outputs[0], "Add")
            bias = next((v for v in add.inputs if v is not node.outputs[0]), None) if add is not None else None
    if bias is None or not is_const(bias) or not used_once(bias) or bias.dtype != ir.DataType.FLOAT:
        return None
    outputs = layer.sizes[0] * layer.sizes[1]
    return bias if rank(bias) == 1 and bias.shape is not None and bias.shape.numpy() == (outputs,) else None


def make_up(layer: Layer, before: np.ndarray, after: np.ndarray, seen: Sums, scratch: Scratch | None) -> None:
    """Give the bias of a layer what its outputs lose in the mean when its weight becomes `after`."""
    bias = own_bias(layer) if used_once(layer.weight) else None
    if bias is None:
        return
    lost = np.subtract(layer.matrix(before), layer.matrix(after), dtype=np.float64)
    groups, _, inputs = layer.sizes
    shift = np.einsum("goi,gi->go", lost, np.broadcast_to(seen.mean, (groups, inputs))) * layer.scale
    old = const(bias)
    assert old is not None
    replace_tensor(bias, (old + shift.reshape(old.shape)).astype(np.float32), scratch)


def about_mean(layer: Layer, seen: Sums) -> np.ndarray | None:
    """E[x x'], without what a bias can make up for where the layer has one; None where it is not known."""
    if seen.gram is None or not used_once(layer.weight) or own_bias(layer) is None:
        return seen.gram
    outer = seen.mean[..., :, None] * seen.mean[..., None, :]
    return np.asarray(seen.gram - outer.astype(seen.gram.dtype))
