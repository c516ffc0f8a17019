"""The API as a program calls it: wrong arguments are refused in words, before any work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

import edgec
from edgec.backends.coreml import serialise
from edgec.formats.coremlproto import blob_library


def model() -> ir.Model:
    text = '<ir_version: 10, opset_import: ["" : 25]> agraph (float[N,3] x) => (float[N,3] y) { y = Relu(x) }'
    return ir.from_proto(parser.parse_model(text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verify": "always"}, "unknown mode 'always' of verify; choose one of each, end, off"),
        ({"io": "int8"}, "unknown type of inputs and outputs 'int8'"),
        ({"level": "O9"}, "unknown level 'O9'"),
        ({"precision": "fp8"}, "unknown precision 'fp8'"),
        ({"shapes": {"N": 0}}, "a dimension must be at least 1, not 0"),
        ({"extra_passes": [edgec.Pass]}, "is neither a pass nor the spec of one"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(edgec.UsageError, match=message):
        edgec.compile(model(), **options)


@pytest.mark.parametrize("extra", ["fuse-gelu,remove-no-ops", ("fuse-gelu", "remove-no-ops")])
def test_passes_as_one_text_or_several(extra: str | tuple[str, ...]) -> None:
    with edgec.compile(model(), level="O0", target="onnx", extra_passes=extra, latency=False) as compiled:
        assert compiled.report.pipeline[-2:] == ["fuse-gelu", "remove-no-ops"]


@pytest.mark.parametrize("size", [2, (2,)])
def test_the_size_of_a_symbol(size: int | tuple[int]) -> None:
    with edgec.compile(model(), level="O0", shapes={"N": size}) as compiled:
        assert list(compiled.model.graph.inputs[0].shape or ()) == [2, 3]
        assert compiled.proof is not None and compiled.proof.ok


def test_weights_that_coremltools_can_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library reports a full disk as a RuntimeError without a reason."""

    def fail(_: np.ndarray) -> int:
        raise RuntimeError("[MIL FileWriter]: Unknown error occurred while writing data to the file.")

    library = SimpleNamespace(_BlobStorageWriter=lambda _: SimpleNamespace(write_float_data=fail))
    monkeypatch.setattr(serialise, "blob_library", lambda: library)
    with pytest.raises(edgec.EdgecError, match=r"can't write the weights: .*FileWriter.*; nothing was written"):
        edgec.compile(with_constant(), level="O0", shapes={"N": 64}, workdir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verify", ["off", "end"])
def test_weights_that_are_cut_off_when_the_file_is_closed(
    verify: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may be found full only then; without a proof nobody reads the file again."""
    real = blob_library()

    class Writer:
        def __init__(self, path: str) -> None:
            self.path, self.inner = Path(path), real._BlobStorageWriter(path)

        def write_float_data(self, array: np.ndarray) -> int:
            return int(self.inner.write_float_data(array))

        def __del__(self) -> None:
            del self.inner
            with self.path.open("r+b") as file:
                file.truncate(self.path.stat().st_size - 1)

    monkeypatch.setattr(serialise, "blob_library", lambda: SimpleNamespace(_BlobStorageWriter=Writer))
    with pytest.raises(edgec.EdgecError, match=r"can't write the weights: weight.bin is cut off; nothing was written"):
        edgec.compile(with_constant(), level="O0", shapes={"N": 64}, verify=verify, workdir=tmp_path)
    assert not list(tmp_path.iterdir())


def with_constant() -> ir.Model:
    """A model with a weight that lies in the weight file."""
    m = model()
    constant = ir.Value(name="c", const_value=ir.Tensor(np.ones((64, 3), np.float32), name="c"))
    m.graph.register_initializer(constant)
    m.graph.append(ir.node("Add", [m.graph.outputs[0], constant], outputs=[ir.Value(name="z")]))
    m.graph.outputs[:] = [m.graph[-1].outputs[0]]
    return m
