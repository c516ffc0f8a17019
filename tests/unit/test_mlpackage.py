"""Core ML packages on disk: private protobuf classes, opening, weight files, bad input, reproducible bytes."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.compiler.errors import ModelError
from edgec.formats import coremlproto
from edgec.formats.mlpackage import open_package

WEIGHT = np.arange(64, dtype=np.float32).reshape(8, 8)
SPEC = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def save(path: Path) -> Path:
    """A package with one linear operator, its weights in the weight file."""
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb

    spec = mb.TensorSpec((2, 8))
    program = mb.program(input_specs=[spec], opset_version=ct.target.iOS16)(lambda x: mb.linear(x=x, weight=WEIGHT))
    model = ct.convert(
        program, source="milinternal", minimum_deployment_target=ct.target.iOS16, skip_model_load=True,
        compute_precision=ct.precision.FLOAT32,
    )
    model.user_defined_metadata["com.github.apple.coremltools.conversion_date"] = "2024-01-01"
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("package") / "m.mlpackage")


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy.mlpackage"))


def test_protobuf_classes_need_no_coremltools_and_agree_with_it() -> None:
    script = (
        "import sys\n"
        "from edgec.formats import coremlproto as p\n"
        "model, program, library = p.model_pb2().Model, p.mil_pb2().Program, p.blob_library()\n"
        "assert p.feature_types_pb2().ArrayFeatureType.FLOAT32\n"
        "assert 'coremltools' not in sys.modules\n"
        "import coremltools as ct\n"
        "from coremltools.converters.mil.backend.mil.load import BlobWriter\n"
        "assert model is ct.proto.Model_pb2.Model and program is ct.proto.MIL_pb2.Program\n"
        "assert BlobWriter is library._BlobStorageWriter\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_blob_types_are_those_of_apples_writer(tmp_path: Path, package: Path) -> None:
    """Every type that Apple's library writes is read back as that type, with the right number of bytes."""
    writer = coremlproto.blob_library()._BlobStorageWriter(str(package / WEIGHTS))
    kinds = {
        "fp16": np.uint16, "float": np.float32, "int32": np.int32, "uint32": np.uint32, "int16": np.int16,
        "uint16": np.uint16, "int8": np.int8, "uint8": np.uint8, "int4": np.int8, "uint4": np.uint8, "uint6": np.uint8,
        "uint3": np.uint8, "uint2": np.uint8, "uint1": np.uint8,
    }
    offsets = {k: getattr(writer, f"write_{k}_data")(np.ones(11, dtype)) for k, dtype in kinds.items()}
    del writer
    opened = open_package(package)
    for kind, offset in offsets.items():
        blob = opened.blob("@model_path/weights/weight.bin", offset)
        name = "fp32" if kind == "float" else kind
        bits = {"fp16": 16, "fp32": 32}.get(name) or int(name.lstrip("uint"))
        assert (blob.dtype, blob.length) == (name, -(-11 * bits // 8))
        stored = blob.path.read_bytes()[blob.offset : blob.offset + blob.length]
        assert stored[0] & ((1 << min(bits, 8)) - 1) == np.ones(1, kinds[kind]).tobytes()[0]


def test_open_reads_the_specification_and_only_describes_weights(package: Path) -> None:
    opened = open_package(str(package))
    assert opened.spec.specificationVersion == 7
    values = [
        op.attributes["val"].blobFileValue
        for op in opened.spec.mlProgram.functions["main"].block_specializations["CoreML6"].operations
        if op.type == "const" and op.attributes["val"].WhichOneof("value") == "blobFileValue"
    ]
    blob = next(b for v in values if (b := opened.blob(v.fileName, v.offset)).length == WEIGHT.nbytes)
    mapped = np.memmap(blob.path, np.float32, "r", blob.offset, WEIGHT.shape)
    assert np.array_equal(mapped, WEIGHT)
    assert blob.dtype == "fp32"


def _edit_manifest(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = package / "Manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def _point_root_at(path: str) -> Callable[[Path], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path

    return lambda package: _edit_manifest(package, change)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda p: (p / "Manifest.json").unlink(), "not a Core ML package"),
    "manifest is no JSON": (lambda p: (p / "Manifest.json").write_text("{"), "does not name a root model"),
    "manifest is a list": (lambda p: (p / "Manifest.json").write_text("[]"), "does not name a root model"),
    "no root": (lambda p: _edit_manifest(p, lambda m: m.pop("rootModelIdentifier")), "does not name a root model"),
    "path upwards": (_point_root_at("../../outside.mlmodel"), "outside the package"),
    "absolute path": (_point_root_at("/etc/passwd"), "outside the package"),
    "number as path": (_point_root_at(7), "does not name a root model"),  # type: ignore[arg-type]
    "missing model": (lambda p: (p / SPEC).unlink(), "model.mlmodel, named by Manifest.json, is missing"),
    "truncated model": (lambda p: (p / SPEC).write_bytes((p / SPEC).read_bytes()[:-7]), "or is truncated"),
    "other bytes": (lambda p: (p / SPEC).write_bytes(b"\xff" * 99), "not a Core ML model specification"),
    "empty model": (lambda p: (p / SPEC).write_bytes(b""), "states no version"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_packages_say_what_is_wrong_and_what_to_do(package: Path, name: str) -> None:
    damage, expected = BROKEN[name]
    damage(package)
    with pytest.raises(ModelError) as caught:
        open_package(package)
    message = str(caught.value)
    assert expected in message and package.name in message
    assert "\n" not in message


def test_a_file_and_a_missing_path_are_not_packages(tmp_path: Path) -> None:
    file = tmp_path / "m.mlmodel"
    file.write_bytes(b"x")
    with pytest.raises(ModelError, match="not a Core ML package"):
        open_package(file)
    with pytest.raises(ModelError, match="does not exist"):
        open_package(tmp_path / "none.mlpackage")


def test_a_link_out_of_the_package_is_not_followed(package: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.mlmodel"
    shutil.move(package / SPEC, outside)
    (package / SPEC).symlink_to(outside)
    with pytest.raises(ModelError, match="outside the package"):
        open_package(package)


STORED = "@model_path/weights/weight.bin"
WEIGHT_FAULTS: dict[str, tuple[Callable[[Path], Any], str, str, int]] = {
    "missing": (lambda w: w.unlink(), "is missing", STORED, 64),
    "truncated header": (lambda w: w.write_bytes(b"\x01"), "truncated", STORED, 64),
    "other version": (lambda w: w.write_bytes(struct.pack("<II56x", 1, 1)), "version 1", STORED, 64),
    "truncated data": (lambda w: w.write_bytes(w.read_bytes()[:200]), "needs bytes", STORED, 64),
    "offset beyond": (lambda w: None, "outside the file", STORED, 1 << 40),
    "no metadata": (lambda w: None, "no valid metadata", STORED, 128),
    "path upwards": (lambda w: None, "outside the package", "@model_path/../../../../etc/hostname", 64),
}


@pytest.mark.parametrize("name", WEIGHT_FAULTS)
def test_bad_weight_files_are_refused(package: Path, name: str) -> None:
    damage, expected, file_name, offset = WEIGHT_FAULTS[name]
    damage(package / WEIGHTS)
    with pytest.raises(ModelError, match=expected):
        open_package(package).blob(file_name, offset)
