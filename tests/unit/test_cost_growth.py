"""Arithmetic of sizes is right at every size; what is written down and tabled is what it says."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler import dims as d
from edgec.compiler.cost import bounds
from edgec.compiler.cost.analyze import analyze
from edgec.compiler.cost.growth import at, bind, columns, growth, parse_range, tendency
from edgec.compiler.cost.polynomial import ascii, degree, evaluate, symbols, text
from edgec.compiler.cost.records import Analysis
from edgec.compiler.cost.tidying import is_intricate, tidy
from edgec.compiler.dims import Dim
from edgec.compiler.errors import UsageError
from passcheck import load

B, T, H, N = (d.atom(name) for name in ("B", "T", "H", "#n"))
SIZES = st.fixed_dictionaries({"T": st.integers(1, 40), "H": st.integers(1, 40), "#n": st.integers(0, 40)})

Made = tuple[Dim, Callable[[dict[str, int]], int]]
"""A size, and what it must be for given sizes of its symbols."""


def _combined(children: st.SearchStrategy[Made]) -> st.SearchStrategy[Made]:
    by = st.integers(1, 9)
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: (d.add(p[0][0], p[1][0]), lambda s: p[0][1](s) + p[1][1](s))),
        pairs.map(lambda p: (d.sub(p[0][0], p[1][0]), lambda s: p[0][1](s) - p[1][1](s))),
        pairs.map(lambda p: (d.mul(p[0][0], p[1][0]), lambda s: p[0][1](s) * p[1][1](s))),
        pairs.map(lambda p: (bounds.maximum([p[0][0], p[1][0]]), lambda s: max(p[0][1](s), p[1][1](s)))),
        pairs.map(lambda p: (bounds.minimum([p[0][0], p[1][0]]), lambda s: min(p[0][1](s), p[1][1](s)))),
        st.tuples(children, by).map(lambda p: (bounds.floor_div(p[0][0], p[1]), lambda s: p[0][1](s) // p[1])),
        st.tuples(children, by).map(lambda p: (bounds.ceil_div(p[0][0], p[1]), lambda s: -(-p[0][1](s) // p[1]))),
        st.tuples(children, by).map(lambda p: (bounds.modulo(p[0][0], p[1]), lambda s: p[0][1](s) % p[1])),
    )


def _symbol(name: str) -> Made:
    return d.atom(name), lambda s: s[name]


LEAVES = st.sampled_from(["T", "H", "#n"]).map(_symbol) | st.integers(-5, 20).map(lambda n: (n, lambda _: n))
MADE = st.recursive(LEAVES, _combined, max_leaves=6)


@settings(max_examples=300, deadline=None)
@given(made=MADE, sizes=SIZES)
def test_every_operation_is_right_at_every_size(made: Made, sizes: dict[str, int]) -> None:
    size, wanted = made
    assert evaluate(size, sizes) == evaluate(tidy(size), sizes) == wanted(sizes)
    low, high = bounds.interval(size)
    assert (low is None or low <= wanted(sizes)) and (high is None or high >= wanted(sizes))


@settings(max_examples=300, deadline=None)
@given(a=MADE, b=MADE, sizes=SIZES)
def test_what_is_said_to_be_larger_is(a: Made, b: Made, sizes: dict[str, int]) -> None:
    if bounds.covers(a[0], b[0]):
        assert a[1](sizes) >= b[1](sizes)
    for number in (-3, 0, 1, 2):
        assert not bounds.at_least(a[0], number) or a[1](sizes) >= number


@settings(max_examples=200, deadline=None)
@given(made=MADE, sizes=SIZES)
def test_ascii_is_an_expression_of_the_same_value(made: Made, sizes: dict[str, int]) -> None:
    size, _ = made
    expression = ascii(size).replace("^", "**").replace("#n", "n")
    names = {**sizes, "n": sizes["#n"], "floor": math.floor, "ceil": math.ceil, "max": max, "min": min}
    assert eval(expression, {"__builtins__": {}}, names) == evaluate(size, sizes)
    assert symbols(size) <= set(sizes)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (5_000_000, "5,000,000"),
        (d.mul(d.mul(d.mul(2, B), d.mul(T, T)), 768), "1,536·B·T²"),
        (d.mul(B, d.add(d.mul(d.mul(T, T), 1536), d.mul(T, 85_018_368))), "768·B·T·(2·T + 110,701)"),
        (d.sub(T, 1), "T - 1"),
        (d.mul(-1, T), "-T"),
        (bounds.ceil_div(H, 32), "⌈H/32⌉"),
        (bounds.floor_div(d.add(H, 3), 32), "⌊(H + 3)/32⌋"),
        (bounds.minimum([T, 1024]), "min(1024, T)"),
        (bounds.modulo(T, 7), "T - 7·⌊T/7⌋"),
    ],
)
def test_text(size: Dim, wanted: str) -> None:
    assert text(size) == wanted


def test_halves_are_put_together() -> None:
    half = bounds.certain(bounds.floor_div(T, 2))
    quarter = bounds.certain(bounds.floor_div(H, 4))
    assert tidy(d.add(half, bounds.ceil_div(T, 2))) == T
    assert tidy(d.mul(B, d.sub(T, half))) == d.mul(B, bounds.ceil_div(T, 2))
    # Padded to an even number: what merging patches does with a row of them.
    padded = d.add(quarter, bounds.certain(bounds.modulo(quarter, 2)))
    assert text(tidy(padded)) == "2·⌊(H + 4)/8⌋"


def test_a_question_with_too_many_cases_is_not_answered() -> None:
    """Each maximum doubles the cases: with thirty of them, the answer would take minutes."""
    size: Dim = 0
    for i in range(30):
        size = d.add(size, d.sub(d.atom(("max", T, d.atom(f"S{i}"))), d.atom(("max", H, d.atom(f"R{i}")))))
    assert not bounds.at_least(size, 0)
    assert is_intricate(size) and not is_intricate(bounds.maximum([T, H]))


# --- growth ----------------------------------------------------------------------------------------------------------

MATRIX = ", ".join(["0.1"] * 96 * 96)
ATTENTION = f"""<ir_version: 10, opset_import: ["" : 25]> agraph (float[B,T,96] q) => (float[a,b,c] y)
    <float[96,96] w = {{{MATRIX}}}> {{ k = MatMul(q, w) kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) p = Softmax(s)
      y = MatMul(p, q) }}"""


@pytest.fixture(scope="module")
def attention() -> Analysis:
    return analyze(load(ATTENTION))


def test_cost_of_attention_by_length(attention: Analysis) -> None:
    """T rows times a square matrix, and twice T by T dot products: the square overtakes at 2 · 96 · T = 96 · 96."""
    assert text(attention.totals.macs) == "192·B·T·(T + 48)"
    assert tendency(attention.totals.macs, "T") == "quadratic in T from T = 48 on, linear before"
    assert tendency(attention.totals.macs, "B") == "linear in B"
    assert tendency(7, "T") == "constant in T"
    rows = growth(attention, "T", parse_range("T=16:64")[1], {"B": 2})
    assert [n for n, _ in rows] == [16, 32, 64]
    assert columns(rows)["macs"] == [2 * (2 * 96 * n * n + 96 * 96 * n) for n in (16, 32, 64)]


def test_the_peak_is_that_of_the_worst_step_at_each_size(attention: Analysis) -> None:
    """Of short sequences the input and what the matrix makes of it, of long ones the weights of attention."""
    for n, totals in growth(attention, "T", (1, 8, 64, 512), {"B": 1}):
        fixed = analyze(load(ATTENTION), shapes={"B": 1, "T": n})
        assert totals.peak_activation_bytes >= fixed.memory.peak > 0
        assert totals.peak_activation_bytes == max(evaluate(x, {"B": 1, "T": n}) for x in attention.memory.live)


def test_an_analysis_at_a_size_holds_numbers_only(attention: Analysis) -> None:
    found = at(attention, {"q": (2, 32, 96)})
    assert found.symbols == {} and found.inputs["q"] == ("float", [2, 32, 96])
    assert found.totals.macs == evaluate(attention.totals.macs, {"B": 2, "T": 32})
    assert sum(int(layer.macs) for layer in found.layers if isinstance(layer.macs, int)) == found.totals.macs
    assert isinstance(found.memory.peak, int) and all(isinstance(x, int) for x in found.memory.live)


def test_what_only_a_run_can_tell_is_taken_at_its_limit() -> None:
    body = "(bool[T,4] x) => (float[a,b] y) { n = NonZero(x) f = Cast<to=1>(n) y = Relu(f) }"
    found = analyze(load('<ir_version: 10, opset_import: ["" : 25]> agraph ' + body))
    told = at(found, {"T": 8})
    assert told.outputs["y"][1] == [2, 32]
    assert any("#n[1]" in w and "32" in w for w in told.warnings)


@pytest.mark.parametrize(
    ("given_shapes", "says"),
    [
        ({"q": (2, 32)}, "2 dimensions given, the model has 3"),
        ({"q": (2, 32, 95)}, "95 contradicts the model's 96"),
        ({"q": (2, 32, 96), "T": 31}, "can't be both 32 and 31"),
        ({"z": 3}, "no such input or free dimension"),
        ({"T": 0}, "at least 1"),
    ],
)
def test_sizes_that_can_not_be(attention: Analysis, given_shapes: dict[str, int | tuple[int, ...]], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        bind(attention, given_shapes)


def test_missing_sizes_are_asked_for(attention: Analysis) -> None:
    with pytest.raises(UsageError, match="--shape T:<size>"):
        at(attention, {"B": 1})
    with pytest.raises(UsageError, match="no free dimension 'S'"):
        growth(attention, "S", [1])


@pytest.mark.parametrize(
    ("given_range", "values"),
    [
        ("T=16:512", [16, 32, 64, 128, 256, 512]),
        ("T=3:20", [3, 6, 12, 20]),
        ("T=8:24:8", [8, 16, 24]),
        ("T=5,1", [5, 1]),
        ("T=4", [4]),
    ],
)
def test_ranges(given_range: str, values: list[int]) -> None:
    assert parse_range(given_range) == ("T", values)


@pytest.mark.parametrize("wrong", ["T", "T=", "=1:2", "T=a:b", "T=0:4", "T=4:2", "T=1:2:3:4", "T=1:9:0", "T=-1"])
def test_wrong_ranges(wrong: str) -> None:
    with pytest.raises(UsageError, match="not a range"):
        parse_range(wrong)


def test_degrees() -> None:
    assert degree(d.mul(B, bounds.certain(bounds.floor_div(d.mul(T, T), 4))), "T") == 2
    assert degree(bounds.minimum([T, 512]), "T") == 0
    assert degree(bounds.maximum([T, 512]), "T") == 1
