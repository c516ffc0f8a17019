"""Others' optimisers as passes: checked like ours, so that their silent faults are caught and undone.

They work on protobufs that hold all weights, so they take the memory that edgec saves elsewhere.
"""

from __future__ import annotations

import abc
import hashlib
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from ..compiler.errors import ModelError, UsageError
from ..compiler.passbase import Context, Pass
from ..compiler.session import slim_proto
from ..compiler.targets import OPSET
from ..compiler.weights import SMALL, Scratch

LARGEST = (1 << 31) - (1 << 20)
"""Bytes of weights that fit into one protobuf, which must stay under 2 GiB."""


@dataclass(frozen=True)
class Peer(Pass):
    """An optimiser of somebody else. Its result is brought back to the form that passes expect.

    Before:  any model

    After:   what the tool makes of it, constants as initializers, unchanged weights still mapped from disk
    """

    @abc.abstractmethod
    def optimise(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """The tool's result for `proto`. Raises UsageError when the tool is not installed."""

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Replace the content of `model`. Returns the change in the number of nodes, at least 1 if anything changed.

        Raises ModelError when the tool fails, UsageError when it is not installed.
        """
        size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
        if size > LARGEST:
            ctx.note(f"{self.name} needs the model in one protobuf, and its weights are {size / 2**30:.1f} GiB")
            return 0
        before, nodes = _digest(model), len(list(model.graph.all_nodes()))
        try:
            new = ir.from_proto(self.optimise(_whole(model)))
        except (UsageError, MemoryError):
            raise
        except Exception as e:
            raise ModelError(f"{self.name} failed: {type(e).__name__}: {e}") from e
        if new.opset_imports.get("") != OPSET:
            raise ModelError(f"{self.name} changed the opset to {new.opset_imports.get('')}")
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(new)
        common.RemoveInitializersFromInputsPass()(new)
        common.NameFixPass()(new)
        _keep_mapped(model, new, ctx.scratch)
        if _digest(new) == before:
            return 0
        model.graph = new.graph
        model.functions.clear()
        model.functions.update(new.functions)
        return max(1, abs(nodes - len(list(model.graph.all_nodes()))))


@dataclass(frozen=True)
class Onnxsim(Peer):
    """onnx-simplifier.

    Before:  `s = Shape(x)  y = Reshape(x, Concat(Gather(s, 0), -1))`

    After:   `y = Reshape(x, [1, -1])`
    """

    name: ClassVar[str] = "onnxsim"

    def optimise(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """See Peer."""
        return _tool("onnxsim", self.name).simplify(proto)[0]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Onnxslim(Peer):
    """OnnxSlim.

    Before:  `a = Identity(x)  b = Pad(a, p)  y = Conv(b, w)`

    After:   `y = Conv<pads = p>(x, w)`
    """

    name: ClassVar[str] = "onnxslim"

    def optimise(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """See Peer."""
        return _tool("onnxslim", self.name).slim(proto)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Onnxscript(Peer):
    """onnxscript's optimizer, its rewriter rules included.

    Before:  `a = Cast<to = FLOAT>(x)  b = Reshape(a, s)  y = Reshape(b, t)`, x float

    After:   `y = Reshape(x, t)`
    """

    name: ClassVar[str] = "onnxscript-optimizer"

    def optimise(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """See Peer."""
        optimised = _tool("onnxscript.optimizer", self.name).optimize(proto)
        return _tool("onnxscript.rewriter", self.name).rewrite(optimised)  # type: ignore[no-any-return]


def _tool(module: str, name: str) -> ModuleType | Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UsageError(f"pass '{name}' needs {module.partition('.')[0]}: pip install 'edgec[peers]' ({e})") from e


def _whole(model: ir.Model) -> onnx.ModelProto:
    """The model as a protobuf that holds all weights: files on disk are not the tools' business."""
    whole = model.clone()
    for graph in whole.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                mapped = value.const_value
                value.const_value = ir.Tensor(mapped.numpy(), dtype=mapped.dtype, name=value.name)
    return ir.to_proto(whole)


def _keep_mapped(old: ir.Model, new: ir.Model, scratch: Scratch) -> None:
    """Let unchanged weights of `new` be the tensors of `old` again, and move changed big ones to disk."""
    known = old.graph.initializers
    for name, value in new.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= SMALL or tensor.dtype == ir.DataType.STRING:
            continue
        same = known[name].const_value if name in known else None
        array = tensor.numpy()
        if same is not None and same.dtype == tensor.dtype and _equal(same.numpy(), array):
            value.const_value = same
        else:
            value.const_value = scratch.tensor(array, name, tensor.dtype)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes() if a.size < SMALL else np.array_equal(a, b)


def _digest(model: ir.Model) -> str:
    """What tells two models apart: nodes, names, attributes, small constants, and which tensors the big ones are."""
    proto, big = slim_proto(model)
    del proto.graph.value_info[:]
    text = proto.SerializeToString(deterministic=True)
    return hashlib.sha256(text + repr({n: id(t) for n, t in big.items()}).encode()).hexdigest()
