"""What each target can express. A row per target; every fact about a Core ML version with where it comes from.

Sources: coremltools 9.0 registers each MIL operator with the opset that introduced it
(`coremltools/converters/mil/mil/ops/defs/iOS15 … iOS18`); the specification version and the opset string of a target
are those that coremltools writes (`coremltools/__init__.py`, `_OPSET`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .errors import UsageError

OPSET = 25
"""The one ONNX opset of the IR. Not the newest: onnxruntime has no QuantizeLinear/DequantizeLinear kernel at 28."""


@dataclass(frozen=True)
class Storage:
    """What packed weights a target stores, and unpacks itself while it loads or runs a model.

    Sources: coremltools 9.0, `ops/defs/iOS16/constexpr_ops.py` and `iOS18/compression.py` (types and docstrings);
    for ONNX, what onnxruntime 1.32 runs at the pinned opset, by the tests. docs/storage.md shows the forms.

    Attributes:
        integers: bits of integers with a scale, and perhaps a zero point, per tensor or per channel.
        blocks: whether a few elements may share a scale; else all of a channel do.
        tables: bits of indices into a table of numbers.
        groups: whether groups of channels may have tables of their own, and entries be vectors.
        scaled: whether what is looked up may be multiplied by a scale per channel or block.
        sparse: whether zeros may be left out, marked in a bitmap.
        joint: whether what is left may be integers or indices, as above.
        formats: short floats that are stored as they are.
        remainders: whether the last block or group may be smaller than the others.
    """

    integers: tuple[int, ...] = ()
    blocks: bool = False
    tables: tuple[int, ...] = ()
    groups: bool = False
    scaled: bool = False
    sparse: bool = False
    joint: bool = False
    formats: tuple[str, ...] = ("float16",)
    remainders: bool = False


IOS16 = Storage((8,), tables=(1, 2, 4, 6, 8), sparse=True)
"""constexpr_affine_dequantize, constexpr_lut_to_dense, constexpr_sparse_to_dense: one of them for each weight."""

IOS18 = Storage((2, 3, 4, 6, 8), True, (1, 2, 3, 4, 6, 8), groups=True, scaled=True, sparse=True, joint=True)
"""Forms of iOS 18 read each other's results. Integers of 2, 3 and 6 bits are indices into a table of integers."""

ANY_ONNX = Storage(
    IOS18.integers, True, IOS18.tables, True, True, True, True,
    ("float16", "bfloat16", "float8e4m3", "float8e5m2"), True,
)  # fmt: skip
"""DequantizeLinear, Cast, and the local functions of functions.py."""

ONNXRUNTIME = replace(ANY_ONNX, sparse=False, joint=False)
"""What onnxruntime 1.32 unpacks while it loads: not a bitmap, whose NonZero it computes in every run."""


@dataclass(frozen=True)
class Target:
    """A place where the model will run.

    Attributes:
        name: what the user types.
        backend: the entry point (group `edgec.backends`) that writes for it.
        suffix: the file suffix of what is written.
        version: Core ML: the iOS version as an integer (15 … 18, 26); 0 elsewhere.
        spec: Core ML: specificationVersion of the model file.
        opset: Core ML: the name of the MIL opset (`CoreML5` … `CoreML9`).
        weight_bits: integer types that the target stores natively, dequantised while loading or running.
        storage: all packed forms of a weight that it stores.
        activation_bits: integer types that activations can be rounded to. Sources: coremltools 9.0,
            `ops/defs/iOS17/quantization_ops.py`; for ONNX, what onnxruntime 1.32 runs, by the tests.
        dynamic: whether ranges of activations may be found in every run.
        float16: whether computing in float16 is the target's default.
        attention: whether the target has a fused scaled-dot-product attention.
        fp16_rnn: whether recurrent operators accept float16 (iOS 17 and later).
        fp16_io: whether inputs and outputs may be float16 (iOS 16 and later).
    """

    name: str
    backend: str
    suffix: str
    summary: str
    version: int = 0
    spec: int = 0
    opset: str = ""
    weight_bits: tuple[int, ...] = ()
    storage: Storage = Storage()
    activation_bits: tuple[int, ...] = ()
    dynamic: bool = False
    float16: bool = False
    attention: bool = False
    fp16_rnn: bool = True
    fp16_io: bool = True


def _ios(version: int, spec: int, opset: str, **facts: object) -> Target:
    return Target(
        f"ios{version}",
        "coreml",
        ".mlpackage",
        f"Core ML package for iOS {version} and later",
        version,
        spec,
        opset,
        float16=True,
        **facts,  # type: ignore[arg-type]
    )


TARGETS: dict[str, Target] = {
    t.name: t
    for t in (
        _ios(15, 6, "CoreML5", fp16_rnn=False, fp16_io=False),
        _ios(16, 7, "CoreML6", weight_bits=(8,), storage=IOS16, fp16_rnn=False),
        _ios(17, 8, "CoreML7", weight_bits=(8,), storage=IOS16, activation_bits=(8,)),
        _ios(18, 9, "CoreML8", weight_bits=(4, 8), storage=IOS18, activation_bits=(8,), attention=True),
        _ios(26, 10, "CoreML9", weight_bits=(4, 8), storage=IOS18, activation_bits=(8,), attention=True),
        Target(
            "onnx",
            "onnx",
            ".onnx",
            "ONNX model for any runtime",
            weight_bits=(2, 4, 8),
            storage=ANY_ONNX,
            activation_bits=(4, 8, 16),
            dynamic=True,
            attention=True,
        ),
        Target(
            "onnxruntime",
            "onnxruntime",
            ".onnx",
            "ONNX model in the form that onnxruntime runs fastest on this machine's processor",
            weight_bits=(2, 4, 8),
            storage=ONNXRUNTIME,
            activation_bits=(8,),
            dynamic=True,
            attention=True,
        ),
    )
}

ALIASES = {"ios": "ios18"}


def find_target(name: str) -> Target:
    """The target of that name. Raises UsageError, with the list, for an unknown one."""
    found = TARGETS.get(ALIASES.get(name.lower(), name.lower()))
    if found is None:
        raise UsageError(f"unknown target '{name}'. Targets: {', '.join([*ALIASES, *TARGETS])}")
    return found
