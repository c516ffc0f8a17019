"""What an analysis found: plain data that the tables, the JSON document, the CSV file and the page show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..dims import Dim

Shape = Sequence[Dim | None] | None
"""Dimensions: a number, a polynomial in the symbols, or None where it can't be told. None for an unknown rank."""


@dataclass
class Layer:
    """One node and what it costs in one run of the model, with the graphs inside it apart (they are layers, too).

    Attributes:
        name: the node's. op: `Conv`, or `domain::Name` outside the standard.
        path: the module that it came from, outermost first: ("blocks", "0", "attn"); () where the model doesn't say.
        inputs, outputs: shapes, in the node's order.
        runs: how often it runs in one run of the model: trip counts of the loops around it; 0 for the branch of an If
            that costs less. All counts below are for all its runs together.
        macs: multiply-accumulates.
        flops: floating-point operations but the transcendental ones; 2 per MAC.
        special: transcendental functions evaluated (exp, log, tanh, erf, sin, power ...).
        int_ops: operations on integers.
        read, written: bytes of activations and weights read, and of results written; nothing for what only names
            the same bytes otherwise (Reshape, Identity).
        parameters: weights that it is the first to read.
        weight_bits: bits of these as stored, scales and tables included.
        zeros: how many of its weights are zero; None where that was not looked at.
        effective_macs: MACs but those with a weight that is zero; equal to macs where that was not looked at.
        bops: bit operations: effective MACs times the bit widths of both factors.
        unknown: why nothing was counted here; "" where it was.
        seconds: measured time in onnxruntime of all runs together; None where it was not measured.
    """

    name: str
    op: str
    path: tuple[str, ...] = ()
    inputs: list[Shape] = field(default_factory=list)
    outputs: list[Shape] = field(default_factory=list)
    runs: Dim = 1
    macs: Dim = 0
    flops: Dim = 0
    special: Dim = 0
    int_ops: Dim = 0
    read: Dim = 0
    written: Dim = 0
    parameters: int = 0
    weight_bits: int = 0
    zeros: int | None = None
    effective_macs: Dim = 0
    bops: Dim = 0
    unknown: str = ""
    seconds: float | None = None


@dataclass
class Memory:
    """Activations over the steps of the best order that was found; bytes.

    Attributes:
        peak: the largest sum of live activations, inputs and outputs included, weights not. With symbols: the maximum
            over the steps of this order at every size; of a network with many different steps, the sum of what is live
            where most is at the sizes that the order was chosen for.
        peak_given: the same in the order in which the model lists its nodes.
        order: indices of the main graph's nodes, in the order found.
        live: what is live at each step of that order.
        at_peak: names of the values that are live at the peak, the largest first.
        optimal: whether no order has a lower peak (proven by exhaustive search), else the best of those tried.
        at: the sizes of the symbols that the order was chosen for.
        unsized: activations whose size is not known, counted as nothing.
        layers: the layer that runs at each step, by its index; None for a node that is none (a Constant).
    """

    peak: Dim = 0
    peak_given: Dim = 0
    order: list[int] = field(default_factory=list)
    live: list[Dim] = field(default_factory=list)
    at_peak: list[str] = field(default_factory=list)
    optimal: bool = False
    at: dict[str, int] = field(default_factory=dict)
    unsized: list[str] = field(default_factory=list)
    layers: list[int | None] = field(default_factory=list)


@dataclass
class Totals:
    """Sums over the layers; see Layer for the units. `bytes` are those of all constants as stored, shared ones once."""

    macs: Dim = 0
    flops: Dim = 0
    special: Dim = 0
    int_ops: Dim = 0
    read: Dim = 0
    written: Dim = 0
    parameters: int = 0
    bytes: int = 0
    zeros: int | None = None
    effective_macs: Dim = 0
    bops: Dim = 0
    peak_activation_bytes: Dim = 0
    nodes: int = 0


@dataclass
class Analysis:
    """What a model costs, and where.

    Attributes:
        source: the file, or the class of the object.
        symbols: free dimensions that the counts are polynomials in, in order of appearance, with where each is read
            off: {"T": "input 'ids', axis 1"}. Those that only a run can tell begin with '#'.
        inputs, outputs: name → (element type, shape).
        layers: every node of the model, in the model's order.
        unknown: nodes of which nothing could be counted, a line each with name, operator and reason.
        warnings: other things that a reader must know.
        limits: the most that a symbol with '#' can be, where that is known.
    """

    source: str = ""
    symbols: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, tuple[str, Shape]] = field(default_factory=dict)
    outputs: dict[str, tuple[str, Shape]] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    memory: Memory = field(default_factory=Memory)
    unknown: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    limits: dict[str, Dim] = field(default_factory=dict)
