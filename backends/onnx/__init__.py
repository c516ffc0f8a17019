"""Writes the model after the passes as an .onnx file, so that edgec is an optimiser on its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from ...compiler import graph as g
from ...compiler.backend import EmitOptions, Emitted
from ...compiler.errors import Missing, UnsupportedOp
from ...compiler.session import slim_proto
from ...compiler.targets import OPSET, Target
from .blocks import as_function, troublesome
from .spelling import respell
from .writer import renamed, write

Tensors = dict[str, ir.TensorProtocol]

IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
"""Opset → the IR version of the onnx release that introduced it (onnx/helper.py, VERSION_TABLE).

Newer ones: 11, which more runtimes read; all that came after it are element types, of which only integers of two bits
are written here.
"""
NEWEST_IR = 11
TWO_BITS_IR = 13
"""The IR version that introduced integers of two bits (onnx.proto: TensorProto.DataType)."""


class OnnxBackend:
    """ONNX at the pinned opset, or at the one that `--opset` names."""

    def check(self, model: ir.Model, target: Target, options: EmitOptions) -> Sequence[Missing]:
        """ONNX expresses every model at the pinned opset; at another, what it lacks."""
        return _converted(model, options)[2]

    def emit(self, model: ir.Model, target: Target, path: Path, options: EmitOptions) -> Emitted:
        """Write `model` to `path`; weights over 2 GB go into a second file beside it, `<name>.data`.

        Raises UnsupportedOp with all that the opset can't express, OSError when the files can't be written.
        """
        proto, tensors, missing = _converted(model, options)
        if missing:
            raise UnsupportedOp(
                f"the model can't be written at opset {options.opset}:", missing, "Choose a newer opset."
            )
        proto.producer_name, proto.producer_version = "edgec", ""
        sidecar = write(proto, tensors, path)
        emitted = Emitted(
            path,
            {v.name or "": v.name or "" for v in model.graph.inputs},
            {v.name or "": v.name or "" for v in model.graph.outputs},
        )
        if sidecar is not None:
            emitted.sidecars.append(sidecar)
            emitted.contract.append(f"weights over 2 GB lie in {sidecar.name}; keep it beside {path.name}")
            emitted.renamed = lambda other: renamed(emitted.path, other)
        return emitted


def _converted(model: ir.Model, options: EmitOptions) -> tuple[onnx.ModelProto, Tensors, list[Missing]]:
    """The model at the opset that was asked for, big weights apart, and what that opset can't express."""
    opset = options.opset or OPSET
    missing: list[Missing] = []
    if troublesome(model):
        model = model.clone()
        for node in troublesome(model):
            g.replace_node(node, as_function(model, node))
    if opset != OPSET:
        model = _without_functions(model.clone())
    if opset < OPSET:
        missing = respell(model, opset)
    proto, tensors = slim_proto(model)
    proto.ir_version = IR_VERSIONS.get(opset, NEWEST_IR)
    if any(t.data_type in (onnx.TensorProto.INT2, onnx.TensorProto.UINT2) for t in proto.graph.initializer):
        proto.ir_version = TWO_BITS_IR
    if opset > OPSET:
        proto, missing = _newer(proto, opset)
    if opset != OPSET and not missing:
        missing = _faults(proto, opset)
    return proto, tensors, missing


def _without_functions(model: ir.Model) -> ir.Model:
    """Local functions inlined: converters of opsets, ours included, lose them."""
    InlinePass()(model)
    model.functions.clear()  # Those that nothing called.
    for domain in set(model.graph.opset_imports) - {"", *(n.domain for n in model.graph.all_nodes())}:
        del model.graph.opset_imports[domain]
    return model


def _newer(proto: onnx.ModelProto, opset: int) -> tuple[onnx.ModelProto, list[Missing]]:
    """onnx's own converter, which knows the way up."""
    try:
        converted = onnx.version_converter.convert_version(proto, opset)
    except RuntimeError as e:
        return proto, [Missing("", "model", f"onnx's converter to opset {opset}: {_last_line(e)}")]
    converted.ir_version = proto.ir_version
    return converted, []


def _faults(proto: onnx.ModelProto, opset: int) -> list[Missing]:
    """What strict inference at that opset finds wrong: types and attributes that no table here knows of."""
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as e:
        return [Missing("", "model", f"not valid at opset {opset}: {_last_line(e)}")]
    return []


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


BACKEND = OnnxBackend()
