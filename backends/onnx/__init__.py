"""Writes the model after the passes as an .onnx file, so that edgec is an optimiser on its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir

from ...compiler.backend import EmitOptions, Emitted
from ...compiler.errors import Missing, UsageError
from ...compiler.session import slim_proto
from ...compiler.targets import OPSET, Target
from .writer import write

IR_VERSIONS = {25: 11, 24: 11, 23: 11, 22: 10, 21: 10, 20: 9, 19: 9}
"""Opset → the IR version of the onnx release that introduced it (onnx/helper.py, VERSION_TABLE); older ones: 8."""
OLDEST = 13


class OnnxBackend:
    """ONNX at the pinned opset, or down to opset 13 with `--opset`."""

    def check(self, model: ir.Model, target: Target, options: EmitOptions) -> Sequence[Missing]:
        """ONNX expresses every model at the pinned opset; at an older one, what can't be converted down."""
        self._converted(model, options)
        return []

    def emit(self, model: ir.Model, target: Target, path: Path, options: EmitOptions) -> Emitted:
        """Write `model` to `path`; weights over 2 GB go into a second file beside it, `<name>.data`."""
        if options.io != "fp32":
            raise UsageError("--io fp16 is for Core ML targets; an ONNX file keeps its input and output types")
        proto, tensors = self._converted(model, options)
        sidecar = write(proto, tensors, path)
        emitted = Emitted(
            path,
            {v.name or "": v.name or "" for v in model.graph.inputs},
            {v.name or "": v.name or "" for v in model.graph.outputs},
        )
        if sidecar is not None:
            emitted.sidecars.append(sidecar)
            emitted.contract.append(f"weights over 2 GB lie in {sidecar.name}; keep it beside {path.name}")
        return emitted

    def _converted(self, model: ir.Model, options: EmitOptions) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
        proto, tensors = slim_proto(model)
        proto.producer_name, proto.producer_version = "edgec", ""
        proto.ir_version = IR_VERSIONS[OPSET]
        if options.opset is None or options.opset == OPSET:
            return proto, tensors
        if not OLDEST <= options.opset <= OPSET:
            raise UsageError(f"--opset {options.opset}: choose one from {OLDEST} to {OPSET}")
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        try:
            proto = onnx.version_converter.convert_version(proto, options.opset)
        except Exception as e:
            why = str(e).strip().splitlines()[-1]
            raise UsageError(
                f"--opset {options.opset}: the model can't be written at this opset: {why}. "
                "Choose a newer one, or -O0, which uses fewer new operators."
            ) from e
        proto.ir_version = IR_VERSIONS.get(options.opset, 8)
        return proto, tensors


BACKEND = OnnxBackend()
