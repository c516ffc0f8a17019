"""One wrong number in a packed weight of a trained model: a bit of a scale, an entry, an index, a place in a mask."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from packedforms import stored

import edgec
from edgec.compiler import driver, freeze, proof
from edgec.compiler.errors import EdgecError
from edgec.compiler.reference import Reference
from edgec.formats.mlpackage import Blob

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
MASK = "mask-weights{ratio=0.6,spread=global}"
CASES = {
    "sparse table": ("ios18", f"{MASK},round-weights{{bits=4}},pack-weights"),
    "sparse int8": ("ios18", f"{MASK},round-weights{{bits=8,min_snr=0}},pack-weights"),
    "int4 in blocks": ("ios18", "round-weights{bits=4,block=16,symmetric=false},pack-weights"),
    "tables of groups": ("ios18", "round-weights{bits=3,group=8},pack-weights"),
    "vectors": ("ios18", "round-weights{bits=4,vector=2},pack-weights"),
    "table": ("ios16", "round-weights{bits=6},pack-weights"),
    "sparse floats": ("ios16", f"{MASK},pack-weights"),
}


@dataclass(frozen=True)
class Stored:
    """A parameter of a constexpr operator, and where its bytes lie."""

    op: str
    parameter: str
    blob: Blob

    def __str__(self) -> str:
        return f"{self.op}.{self.parameter} ({self.blob.dtype}, {self.blob.length} bytes)"


def changed(data: np.ndarray, part: Stored) -> np.ndarray:
    """The bytes with one number changed: as little as there is in a table or a scale, but for its last bits."""
    data = data.copy()
    if "mask" in part.parameter:  # One element moves to a place that was zero: their number stays.
        bits = np.unpackbits(data, bitorder="little")
        ones = np.flatnonzero(bits)
        one = ones[len(ones) // 2]
        zero = one + int(np.argmin(bits[one:]))
        assert bits[one] and not bits[zero]
        bits[[one, zero]] = 0, 1
        return np.packbits(bits, bitorder="little")
    middle = data.size // 2
    if part.blob.dtype in ("fp16", "fp32"):
        numbers = data.view(np.float16 if part.blob.dtype == "fp16" else np.float32)
        largest = int(np.abs(numbers).argmax())
        numbers[largest] *= numbers.dtype.type(1.0625)
        return data
    data[middle] ^= 1 if "zero" not in part.parameter and "offset" not in part.parameter else 17
    return data


@pytest.mark.parametrize("name", CASES)
def test_one_wrong_number_fails_the_proof(name: str, tmp_path: Path) -> None:
    target, passes = CASES[name]
    original = driver.load(DIGITS)
    freeze.fix(original, {"N": 1})
    reference = Reference.of(original, None, "end")
    with edgec.compile(
        DIGITS, level="O1", passes=passes, target=target, verify="end", precision="fp32", shapes={"N": 1}
    ) as made:
        assert proof.prove(made.emitted, made.model, reference, None, None, driver.load).ok
        # Of each kind the one in the largest weight, where a single number counts least.
        found = [Stored(f"{op} {of}", *where) for op, of, *where in stored(made.path)]
        by_size = sorted(found, key=lambda p: p.blob.length)
        parts = list({(p.op.split()[0], p.parameter): p for p in by_size}.values())
        assert len(parts) >= 2
        survived = []
        for i, part in enumerate(parts):
            broken = tmp_path / f"{i}.mlpackage"
            shutil.copytree(made.path, broken)
            file = broken / part.blob.path.relative_to(made.path)
            raw = bytearray(file.read_bytes())
            own = slice(part.blob.offset, part.blob.offset + part.blob.length)
            before = np.frombuffer(bytes(raw[own]), np.uint8)
            after = changed(before, part)
            assert after.size == before.size and not np.array_equal(after, before)
            raw[own] = after.tobytes()
            file.write_bytes(raw)
            try:
                ok = proof.prove(replace(made.emitted, path=broken), made.model, reference, None, None, driver.load).ok
            except EdgecError:
                ok = False
            if ok:
                survived.append(str(part))
            shutil.rmtree(broken)
        assert not survived, "not caught: " + "; ".join(survived)
