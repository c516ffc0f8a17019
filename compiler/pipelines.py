"""The levels: which passes run, in order, on one page. A level is a list of specs; passes do not know levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .errors import UsageError
from .passbase import Pass, split_specs
from .plugins import find_pass
from .targets import OPSET, Target

# What lowering needs: one way to write a constant, and shapes that are numbers.
PREPARE = ("canonicalize", "fold-constants", "fold-shapes", "remove-dead-code")

# Before patterns are looked for: no node between those of a pattern, one value for what is computed twice, and no
# reader but those that count.
CLEAN = (
    "remove-no-ops",
    "simplify-casts",
    "simplify-reshapes",
    "simplify-transposes",
    "fold-constants",
    "merge-common-subexpressions",
    "remove-dead-code",
)

# Before affine folding: an activation or a normalisation is recognised by the constants around it.
RECOGNISE = (
    "fuse-dequantize",
    "fuse-gelu",
    "fuse-activations",
    "fuse-normalization",
    "fuse-softmax",
    "fuse-global-pool",
    "fuse-depth-to-space",
    "fuse-attention",
    "simplify-transposes",
)

FOLD = (
    "fuse-pad",
    "fold-affine",
    "fold-batch-norm",
    "merge-parallel-linear",
    "flatten-linear",
    "fuse-gemm",
)

# What fusing and folding leave: transposes that meet now, constants and computations that have become alike, dead ones.
TIDY = (
    "simplify-transposes",
    "merge-common-subexpressions",
    "remove-dead-code",
)

O0 = PREPARE
O1 = (*PREPARE, *CLEAN, *RECOGNISE, *FOLD, *TIDY)

# Channels that are provably dead go: zero filters, batch-norm scales of zero, what no weight reads.
SHRINK = ("remove-channels", "remove-dead-code")

# Eight bits where nothing has been decided yet, then whatever lies on a grid is stored as integers.
STORE = ("round-weights{bits=8}", "pack-weights")

O2 = (*O1, *SHRINK, *STORE)
# As much as the budget allows: channels, with a share of what may be lost, then bits with the rest of it, of small
# weights, too. -O3 takes those channels that cost most time, -Os those that cost most bytes.
BITS = ("quantize{min_size=512,asked=true}", "round-weights{bits=8}", "pack-weights{min_size=512}")

O3 = (*O1, *SHRINK, "mask-within-budget", *SHRINK, *BITS)
Os = (*O1, *SHRINK, "mask-within-budget{of=bytes}", *SHRINK, *BITS)

LEVELS: dict[str, tuple[str, ...]] = {"O0": O0, "O1": O1, "O2": O2, "O3": O3, "Os": Os}

# A lossy level computes in the target's own precision; an exact one in float32 unless asked.
HALF = "round-activations"
LOSSY_LEVELS = frozenset({"O2", "O3", "Os"})

# Half precision's counterpart in onnxruntime, which has integer kernels: what may be computed in 8-bit integers is
# rounded, convolutions by ranges that only given inputs tell; the backend then takes what it measures to be faster.
INTEGERS = (
    "quantize-activations{keep=Gemm+MatMul,min_snr=20}",
    "quantize-activations{calibrate=dynamic,min_snr=20}",
)

# Integer operators of models that came with them, as rounding and operators that every pass knows.
LIFT = "lift-integers"

# What the target has no operator for is written out in those it has.
LEGALIZE = ("unpack-weights", "legalize", "fold-constants", "remove-dead-code")


def precision_of(level: str, target: Target, precision: str | None) -> str:
    """`fp16` or `fp32`: what was asked, else what the level and the target imply."""
    if precision not in (None, "fp16", "fp32"):
        raise UsageError(f"unknown precision '{precision}'; choose fp16 or fp32")
    return precision or ("fp16" if level in LOSSY_LEVELS and target.float16 else "fp32")


# What an older opset lacks is written out, with axes that are computed; the constants are then alike in all layers.
OLDER = ("fold-constants", "fold-shapes", "merge-common-subexpressions", "remove-dead-code")

OPSETS = range(13, 29)
"""The opsets that `--opset` may name."""


def check_options(target: Target, io: str, opset: int | None) -> None:
    """Raise UsageError for a type of inputs or an opset that there is not, or that the target's files don't have."""
    if io not in ("fp32", "fp16"):
        raise UsageError(f"unknown type of inputs and outputs '{io}'; choose fp32 or fp16")
    if target.backend == "coreml":
        if opset is not None:
            raise UsageError(f"--opset is for --target onnx; {target.name} has no ONNX opset")
        return
    if io != "fp32":
        raise UsageError(f"--io {io} is for Core ML targets; an ONNX file keeps its input and output types")
    if opset is not None and opset not in OPSETS:
        raise UsageError(f"--opset {opset}: choose one from {OPSETS[0]} to {OPSETS[-1]}")


def pipeline(
    level: str, target: Target, precision: str, passes: str | None = None, opset: int | None = None
) -> list[str]:
    """The specs of a level for a target; `passes` (a list of specs) replaces the level's own.

    Legalisation for a target, or an older opset, that has few operators comes last, and half precision before it.
    Raises UsageError for an unknown level.
    """
    if level not in LEVELS:
        raise UsageError(f"unknown level '{level}'; choose one of {', '.join(LEVELS)}")
    specs = [*PREPARE, *split_specs(passes)] if passes is not None else list(LEVELS[level])
    if target.backend in ("coreml", "onnxruntime"):
        specs.insert(1, LIFT)
    if target.backend == "onnxruntime" and passes is None and level in LOSSY_LEVELS:
        specs[-1:] = [*INTEGERS, *specs[-1:]]
    if target.backend == "onnxruntime":
        specs.append("unpack-weights")
    if target.backend == "coreml":
        specs += LEGALIZE
    elif opset is not None and opset < OPSET:
        specs += [f"unpack-weights{{opset={opset}}}", f"legalize{{opset={opset}}}", *OLDER]
    if precision == "fp16":
        specs.append(HALF)
    return specs


LATE = frozenset({
    "legalize", "pack-weights", "quantize", "quantize-activations", "round-activations", "round-weights",
    "unpack-weights",
})  # fmt: skip
"""Behind the first of these weights are rounded, packed, half, or in the target's own operators."""
ROUNDING = frozenset({"quantize", "round-weights"})
"""What says how many bits weights have. A user's takes the place of the level's own."""
STORING = ROUNDING | {"pack-weights"}
"""What rounds and packs weights, before they are written as the target has them: half, or in operators of its own."""
WRITING = frozenset({"legalize", "round-activations", "unpack-weights"})
"""Behind the first of these weights are as the target has them."""


@dataclass(frozen=True)
class Plan:
    """The passes of one compilation, in order. `notes` says of some of them, by place, what they have displaced."""

    steps: list[Pass]
    notes: dict[int, str] = field(default_factory=dict)


def plan(
    level: str,
    target: Target,
    precision: str,
    passes: str | None = None,
    extra: Sequence[Pass] = (),
    opset: int | None = None,
) -> Plan:
    """The passes of a level for a target, or those of the specs `passes`, with `extra` ones of the user."""
    return placed(build(pipeline(level, target, precision, passes, opset)), extra, "" if passes is not None else level)


def placed(steps: Sequence[Pass], extra: Sequence[Pass], level: str = "") -> Plan:
    """The passes of a level with those that a user adds: at the end, but for those that would be of no use there.

    What prunes, and what the user has before it, unless this rounds or packs, comes before the first of `LATE`. What
    rounds or packs weights comes next, before the first of `WRITING`; what rounds them replaces the rounding of the
    `level`, if it is one's. The user's order stays.
    """
    early = _up_to(extra, [p.prunes for p in extra], [p.lossy or p.name in LATE for p in extra])
    storing = [p.name in STORING for p in extra]
    middle = early + _up_to(extra[early:], storing[early:], [p.lossy for p in extra[early:]])
    late, writing = (_first(steps, names) for names in (LATE, WRITING))
    before, between, behind = [*steps[:late], *extra[:early]], steps[late:writing], [*steps[writing:], *extra[middle:]]
    packing = early + _first(extra[early:middle], frozenset({"pack-weights"}))
    own = [p for p in between if p.name in ROUNDING]
    first = early + _first(extra[early:packing], ROUNDING)
    if not level or not own or first == packing:
        return Plan([*before, *between, *extra[early:middle], *behind])
    found = [*before, *extra[early:packing], *(p for p in between if p not in own), *extra[packing:middle], *behind]
    names = " and ".join(p.spec for p in own)
    note = f"-{level} leaves out its own {names}: {extra[first].spec} rounds the weights"
    return Plan(found, {len(before) + first - early: note})


def _up_to(passes: Sequence[Pass], wanted: Sequence[bool], stops: Sequence[bool]) -> int:
    """How many from the start on go up to the last one wanted that no stop comes before."""
    count = 0
    for i in range(len(passes)):
        if wanted[i]:
            count = i + 1
        elif stops[i]:
            break
    return count


def _first(steps: Sequence[Pass], names: frozenset[str]) -> int:
    return next((i for i, p in enumerate(steps) if p.name in names), len(steps))


def build(specs: list[str]) -> list[Pass]:
    """The passes of these specs. Raises UsageError for an unknown pass or option."""
    return [find_pass(s) for s in specs]
