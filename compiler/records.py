"""What a compilation found out: plain data that the terminal summary, report.json and report.html show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .verify import Comparison

if TYPE_CHECKING:
    from .cost.records import Analysis
    from .guard.layers import Layer
    from .guard.task import Score
    from .tradeoff import Tradeoff

NOISE = 1.03
"""How many times slower is still called the same: medians of two runs of one model differ by as much."""

Status = Literal["ok", "unchanged", "undone", "skipped"]


@dataclass
class PassRecord:
    """One pass that was run.

    Attributes:
        spec: the pass spec with its options.
        lossy: whether it may change numbers.
        status: `ok`; `unchanged` (nothing to rewrite); `undone` (it broke its promise and was taken back);
            `skipped` (--bisect-limit).
        rewrites: how many rewrites it made.
        seconds: time in the pass. `check_seconds`: time in checking it.
        nodes: how many nodes there are after it, a local function counted as its body.
        exact: for exact passes, how far outputs moved, rounding stripped; None where it was not run.
        loss: for lossy passes, how far outputs are from the original model's.
        notes: what almost fired and why it didn't; what was kept.
        score: for lossy passes, the task's metric behind it, where there is one.
        kept: the tensors that got their old numbers back, since the pass was over the budget.
        retreat: what was taken back of a pass, and why, in words; nothing where it is as it was.
        tradeoff: what a search for the bits of weights found, where the pass made one.
        layers: for lossy passes, where the damage arises, where somebody asked; None where it was not measured.
        why: for an undone pass, what it broke.
        reproducer: for an undone pass, the folder with model, inputs and command.
    """

    spec: str
    lossy: bool = False
    status: Status = "unchanged"
    rewrites: int = 0
    seconds: float = 0.0
    check_seconds: float = 0.0
    nodes: int = 0
    exact: Comparison | None = None
    loss: Comparison | None = None
    notes: list[str] = field(default_factory=list)
    score: Score | None = None
    kept: tuple[str, ...] = ()
    retreat: list[str] = field(default_factory=list)
    layers: list[Layer] | None = None
    tradeoff: Tradeoff | None = None
    why: str = ""
    reproducer: str = ""


@dataclass
class Stats:
    """What a model weighs.

    Attributes:
        nodes: operators in all graphs, a local function counted as its body; see `cost.op_counts` for what isn't one.
        parameters: elements of all constants that are weights (floating-point, or integers that are dequantised).
        weight_bytes: bytes of all constants as stored.
        file_bytes: bytes on disk of the whole file, folder, or file with its external data; 0 where there is none.
        macs: multiply-accumulates of one run; None where a shape is symbolic.
        ops: operator → count.
    """

    nodes: int = 0
    parameters: int = 0
    weight_bytes: int = 0
    file_bytes: int = 0
    macs: int | None = None
    ops: dict[str, int] = field(default_factory=dict)


@dataclass
class Proof:
    """What the file on disk computes, read back and run in onnxruntime.

    Attributes:
        exact: the file against the model before lowering, rounding stripped from both; within `exact_tolerance`.
        loss: the file, rounding emulated, against the original model; within `max_error` or `min_snr` when given.
        problems: structural faults, and operators that differ when probed on inputs made to show it; empty when sound.
        ran: how the file was run, a plain sentence (Apple's compiler does not run here, and it says so).
        seconds: time that the proof took.
        probed: how many operators were probed.
        accuracy: with labelled inputs, top-1 of the original and of the file, 0 to 1.
        score: the task's metric of the original and of the file, where the user named one.
    """

    exact: Comparison | None = None
    loss: Comparison | None = None
    problems: list[str] = field(default_factory=list)
    ran: str = ""
    ok: bool = False
    exact_tolerance: float = 0.0
    seconds: float = 0.0
    probed: int = 0
    accuracy: tuple[float, float] | None = None
    score: Score | None = None


@dataclass(frozen=True)
class Latency:
    """Processor seconds of one run in onnxruntime, on one thread, before and after a model was changed for speed.

    Attributes:
        runs: how often each was run, in turn.
    """

    before: float
    after: float
    runs: int

    @property
    def faster(self) -> bool:
        """Whether it is, or at least as fast."""
        return self.after <= self.before * NOISE


@dataclass
class Report:
    """Everything about one compilation. `report.to_json` gives it as a versioned, documented JSON document."""

    source: str = ""
    output: str = ""
    level: str = ""
    target: str = ""
    precision: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    pipeline: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    """The interface as loaded: a line per input. `given_inputs` says whether numbers were the user's or synthesised."""
    outputs: list[str] = field(default_factory=list)
    given_inputs: bool = False
    before: Stats = field(default_factory=Stats)
    after: Stats = field(default_factory=Stats)
    passes: list[PassRecord] = field(default_factory=list)
    contract: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """Model input or output → its name in the file, where it differs."""
    warnings: list[str] = field(default_factory=list)
    proof: Proof | None = None
    accuracy: tuple[float, float] | None = None
    """With labelled inputs: top-1 of the original and of the file, 0 to 1, and how many samples (`samples`)."""
    samples: int = 0
    latency: Latency | None = None
    """Where passes removed parts of the model: whether it runs faster. None where none did, or nobody measured."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Step (load, passes, checks, lower, proof …) → seconds."""
    peak_bytes: int = 0
    """Peak resident memory of the process."""
    analyses: list[Analysis] = field(default_factory=list)
    """What the model cost before and after, for the page; empty unless somebody had it counted."""
