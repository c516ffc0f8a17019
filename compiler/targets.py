"""What each target can express. A row per target; every fact about a Core ML version with where it comes from.

Sources: coremltools 9.0 registers each MIL operator with the opset that introduced it
(`coremltools/converters/mil/mil/ops/defs/iOS15 … iOS18`); the specification version and the opset string of a target
are those that coremltools writes (`coremltools/__init__.py`, `_OPSET`).
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UsageError

OPSET = 25
"""The one ONNX opset of the IR. Not the newest: onnxruntime has no QuantizeLinear/DequantizeLinear kernel at 28."""


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
        weight_bits: integer widths that the target stores natively, dequantised while loading or running.
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
        _ios(16, 7, "CoreML6", weight_bits=(8,), fp16_rnn=False),
        _ios(17, 8, "CoreML7", weight_bits=(8,)),
        _ios(18, 9, "CoreML8", weight_bits=(4, 8), attention=True),
        _ios(26, 10, "CoreML9", weight_bits=(4, 8), attention=True),
        Target("onnx", "onnx", ".onnx", "ONNX model for any runtime", weight_bits=(4, 8), attention=True),
    )
}

ALIASES = {"ios": "ios18"}


def find_target(name: str) -> Target:
    """The target of that name. Raises UsageError, with the list, for an unknown one."""
    found = TARGETS.get(ALIASES.get(name.lower(), name.lower()))
    if found is None:
        raise UsageError(f"unknown target '{name}'. Targets: {', '.join([*ALIASES, *TARGETS])}")
    return found
