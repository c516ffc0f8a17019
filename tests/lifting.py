"""Helpers for tests of the Core ML frontend: save a program of coremltools' builder, lift the package, run it."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgec.formats.mlpackage import open_package
from edgec.frontends import coreml

TARGETS = {5: "iOS15", 6: "iOS16", 7: "iOS17", 8: "iOS18", 9: "iOS26"}
"""Opset of MIL → the deployment target that it came with."""


def coremltools() -> Iterator[Any]:
    """coremltools, with the garbage collector (which `convert` runs every time) spared what is alive already."""
    import coremltools

    gc.collect()
    gc.freeze()
    yield coremltools
    gc.unfreeze()


def save(ct: Any, program: Any, target: str, path: Path) -> Path:
    """A program as a package, with none of coremltools' passes run over it."""
    model = ct.convert(
        program, source="milinternal", pass_pipeline=ct.PassPipeline.EMPTY, compute_units=ct.ComputeUnit.CPU_ONLY,
        minimum_deployment_target=ct.target[target], skip_model_load=True,
    )
    model.save(str(path))
    return path


def session_of(path: Path) -> ort.InferenceSession:
    """A package, lifted, in onnxruntime without that one's own optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    folder = str(open_package(path).spec_path.parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return ort.InferenceSession(ir.to_proto(coreml.load(path)).SerializeToString(), options)


def run(path: Path, feeds: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
    """The outputs of a package."""
    return [np.asarray(v) for v in session_of(path).run(None, dict(feeds))]


def as_half(value: Any) -> Any:
    """Every float in a structure as float16."""
    return _cast(value, (np.float32, np.float64), np.float16)


def as_full(value: Any) -> Any:
    """Every float16 in a structure as float32."""
    return _cast(value, (np.float16,), np.float32)


def _cast(value: Any, old: tuple[type, ...], new: type) -> Any:
    if isinstance(value, dict):
        return {k: _cast(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_cast(v, old, new) for v in value]
    return value.astype(new) if isinstance(value, np.ndarray | np.generic) and value.dtype in old else value
