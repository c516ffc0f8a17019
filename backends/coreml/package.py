"""The .mlpackage folder: model file, weight file, manifest. The same program gives the same bytes."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from ...compiler.targets import Target
from ...formats.coremlproto import feature_types_pb2, model_pb2
from .build import F16, F32
from .lower import Lowering
from .serialise import Writer

MODEL = "com.apple.CoreML/model.mlmodel"
WEIGHTS = "com.apple.CoreML/weights"
_NAMESPACE = uuid.UUID("6b1f9bd6-6cf0-5f3a-9a41-3c1d4b7e2f10")


def write(lowering: Lowering, target: Target, path: Path) -> dict[str, str]:
    """Write the package to `path`, which must not exist; returns ONNX value → its name in the program.

    Raises OSError when the disk is full or not writable.
    """
    # A program built for one opset and written for another may hold operators in a form that the other doesn't read.
    assert lowering.function.opset_version == lowering.builder.mil.opset(target.version)
    data = path / "Data"
    (data / MODEL).parent.mkdir(parents=True)
    weights = data / WEIGHTS / "weight.bin"
    writer = Writer(lowering.builder, lowering.interface.names, weights)
    model = model_pb2().Model(specificationVersion=target.spec)
    writer.program(lowering.function, target.opset, model.mlProgram)
    names = lowering.builder.names
    for name, var in lowering.function.inputs.items():
        _feature(model.description.input.add(), lowering, name, var)
    for var in lowering.function.outputs:
        _feature(model.description.output.add(), lowering, names[var], var)
    (data / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    _manifest(path, [MODEL, *([WEIGHTS] if weights.exists() else [])])
    return {value: name for value, var in lowering.held() if (name := writer.name(var)) is not None}


def _feature(out: Any, lowering: Lowering, name: str, var: Any) -> None:
    kinds = feature_types_pb2().ArrayFeatureType
    dtype = lowering.builder.dtype(var)
    array = out.type.multiArrayType
    array.dataType = {F16: kinds.FLOAT16, F32: kinds.FLOAT32}.get(dtype, kinds.INT32)
    array.shape.extend(int(d) for d in var.shape)
    out.name = name


def _manifest(path: Path, items: list[str]) -> None:
    describe = {MODEL: "CoreML Model Specification", WEIGHTS: "CoreML Model Weights"}
    identifiers = {item: str(uuid.uuid5(_NAMESPACE, item)).upper() for item in items}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            identifiers[item]: {
                "author": "com.apple.CoreML",
                "description": describe[item],
                "name": Path(item).name,
                "path": item,
            }
            for item in sorted(items, key=identifiers.__getitem__)
        },
        "rootModelIdentifier": identifiers[MODEL],
    }
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4))
