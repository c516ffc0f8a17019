"""Core ML's protobuf classes and blob writer, taken from coremltools' files without importing coremltools.

`import coremltools` costs up to five seconds and 750 MB where torch is installed; its generated protobuf modules alone
cost 0.03 s and 16 MB. They register the same descriptors under any module name, so these classes and those of a later
`import coremltools` are interchangeable.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ..compiler.errors import EdgecError

_PACKAGE = f"{__package__}._coremltools_proto"
_BLOB_LIBRARY = "coremltools.libmilstoragepython"


def coremltools_folder() -> Path:
    """Where coremltools is installed; nothing of it is executed. Raises EdgecError if it is not installed."""
    spec = importlib.util.find_spec("coremltools")
    if spec is None or not spec.submodule_search_locations:
        raise EdgecError("Core ML packages need coremltools' protobuf files: pip install 'coremltools>=9.0'")
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _proto_module(name: str) -> Any:
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(coremltools_folder() / "proto")]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")


def model_pb2() -> Any:
    """`Model_pb2`: `Model`, the whole file, with `description` and `mlProgram`."""
    return _proto_module("Model_pb2")


def mil_pb2() -> Any:
    """`MIL_pb2`: `Program`, `Operation`, `Value`, the enumeration `DataType`."""
    return _proto_module("MIL_pb2")


def feature_types_pb2() -> Any:
    """`FeatureTypes_pb2`: `ArrayFeatureType`, `FeatureType`: the types of a model's inputs and outputs."""
    return _proto_module("FeatureTypes_pb2")


@cache
def blob_library() -> Any:
    """`libmilstoragepython`: Apple's reader and writer of weight.bin (`_BlobStorageWriter`, `_BlobStorageReader`).

    Loaded under the name that coremltools gives it, because a second copy under another name can't register its types.
    """
    if _BLOB_LIBRARY in sys.modules:
        return sys.modules[_BLOB_LIBRARY]
    file = coremltools_folder() / "libmilstoragepython.so"
    loader = importlib.machinery.ExtensionFileLoader(_BLOB_LIBRARY, str(file))
    spec = importlib.util.spec_from_file_location(_BLOB_LIBRARY, file, loader=loader)
    if spec is None or not file.exists():
        raise EdgecError(f"{file} is missing: this coremltools has no blob writer; reinstall it from a wheel")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[_BLOB_LIBRARY] = module
    return module
