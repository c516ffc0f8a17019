from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec.compiler import dims as d
from edgec.compiler import graph
from edgec.passes.fold_shapes import FoldShapes
from passcheck import check_pass, ops

HEAD = '<ir_version: 10, opset_import: ["" : 25]> agraph '
INDICES = "int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2}, int64[1] a0 = {0}, int64[1] a1 = {1}"


def test_torch_view_of_heads_with_two_symbols() -> None:
    body = f"""(float[B,T,96] x) => (float[B,T,12,8] y) <{INDICES}, int64 twelve = {{12}}, int64[1] h = {{12}}> {{
        s0 = Shape(x) b = Gather(s0, i0) s1 = Shape(x) t = Gather(s1, i1) s2 = Shape(x) c = Gather(s2, i2)
        q = Div(c, twelve) q1 = Cast<to=7>(q)
        ub = Unsqueeze(b, a0) ut = Unsqueeze(t, a0) uq = Unsqueeze(q1, a0)
        target = Concat<axis=0>(ub, ut, h, uq)
        y = Reshape(x, target) }}"""
    m = check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [3, 5, 96]})
    assert ops(m) == {"Reshape": 1} and graph.ints(m.graph[0].inputs[1]) == [0, 0, 12, 8]


def test_symbol_that_moves_becomes_minus_one() -> None:
    body = f"""(float[5,B,96] x) => (float[5,C,8] y) <{INDICES}, int64 twelve = {{12}}, int64[1] five = {{5}},
        int64[1] e = {{8}}> {{
        s = Shape(x) b = Gather(s, i1) n = Mul(b, twelve) u = Unsqueeze(n, a0) t = Concat<axis=0>(five, u, e)
        y = Reshape(x, t) }}"""
    m = check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [5, 3, 96]})
    assert ops(m) == {"Reshape": 1} and graph.ints(m.graph[0].inputs[1]) == [5, -1, 8]


def test_sizes_are_followed_through_an_anonymous_symbol() -> None:
    """[5,B,96] → [5,12·B,8] → back to [5,B,96]: the second target is provable only by knowing what 12·B is."""
    body = f"""(float[5,B,96] x) => (float[5,B,96] y) <{INDICES}, int64 twelve = {{12}}, int64[3] first = {{5, -1, 8}},
            int64[1] five = {{5}}, int64[1] n = {{96}}> {{
        a = Reshape(x, first) r = Sin(a) s = Shape(r) m = Gather(s, i1) b = Div(m, twelve) u = Unsqueeze(b, a0)
        t = Concat<axis=0>(five, u, n) y = Reshape(r, t) }}"""
    m = check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [5, 3, 96]})
    assert ops(m) == {"Reshape": 2, "Sin": 1}


def test_two_symbols_that_both_move_stay_computed() -> None:
    body = f"""(float[A,B,4] x) => (float[B,A,4] y) <{INDICES}, int64[1] four = {{4}}> {{
        s = Shape(x) a = Gather(s, i0) b = Gather(s, i1) ua = Unsqueeze(a, a0) ub = Unsqueeze(b, a0)
        t = Concat<axis=0>(ub, ua, four) y = Reshape(x, t) }}"""
    m = check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [2, 3, 4]})
    assert ops(m)["Concat"] == 1


def test_static_shapes_are_numbers() -> None:
    body = f"""(float[2,3,4] x) => (float[6,4] y) <{INDICES}, int64[1] m = {{-1}}> {{
        s = Shape<start=-1>(x) n = Size(x) k = Cast<to=1>(n) t = Concat<axis=0>(m, s) r = Reshape(x, t) y = Mul(r, k)
        }}"""
    m = check_pass(HEAD + body, FoldShapes())
    assert ops(m) == {"Reshape": 1, "Mul": 1}  # the Cast of a number that became known is folded, too


def test_torch_expand() -> None:
    """The legacy exporter's `expand(B, -1, 4)`: Where(Equal(shape, -1), ones, shape)."""
    body = f"""(float[B,3,4] x, float[1,5,4] c) => (float[B,5,4] y) <{INDICES}, int64[1] m = {{-1}},
        int64[1] three = {{3}}, int64 minus = {{-1}}> {{
        s = Shape(x) b = Gather(s, i0) u = Unsqueeze(b, a0) shape = Concat<axis=0>(u, m, m)
        ones = ConstantOfShape<value=int64[1] {{1}}>(three) negative = Mul(ones, minus)
        is = Equal(shape, negative) wanted = Where(is, ones, shape) y = Expand(c, wanted) }}"""
    m = check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [2, 3, 4], "c": [1, 5, 4]})
    assert ops(m) == {"Shape": 1, "Concat": 1, "Expand": 1}


def test_expand_to_its_own_shape_goes() -> None:
    body = "(float[B,3] x) => (float[B,3] y) { s = Shape(x) e = Expand(x, s) y = Sin(e) }"
    assert ops(check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [2, 3]})) == {"Sin": 1}


def test_expand_that_keeps_a_symbol() -> None:
    body = """(float[B,1] x) => (float[B,7] y) <int64[1] n = {7}> {
        s = Shape<start=0, end=1>(x) t = Concat<axis=0>(s, n) y = Expand(x, t) }"""
    m = check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [2, 1]})
    assert ops(m) == {"Expand": 1} and graph.ints(m.graph[0].inputs[1]) == [1, 7]


def test_range_over_a_symbol_is_read_off_directly() -> None:
    body = f"""(int64[B,T] x) => (int64[B,T] y) <{INDICES}, int64 zero = {{0}}, int64 one = {{1}}> {{
        s = Shape(x) t = Gather(s, i1) u = Unsqueeze(t, a0) v = Concat<axis=0>(u) w = Squeeze(v, a0) n = Cast<to=7>(w)
        r = Range(zero, n, one) p = Unsqueeze(r, a0) y = Add(x, p) }}"""
    m = check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [2, 5]})
    assert ops(m) == {"Shape": 1, "Squeeze": 1, "Range": 1, "Unsqueeze": 1, "Add": 1}


def test_slice_up_to_the_whole_dimension() -> None:
    body = f"""(float[B,T] x) => (float[B,T] y) <{INDICES}> {{
        s = Shape(x) t = Gather(s, i1) u = Unsqueeze(t, a0) z = Slice(x, a0, u, a1) y = Sin(z) }}"""
    m = check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [2, 5]})
    assert ops(m) == {"Slice": 1, "Sin": 1}


def test_condition_on_a_shape() -> None:
    body = f"""(float[B,1] x) => (float[B,1] y) <{INDICES}> {{
        s = Shape(x) n = Gather(s, i1) c = Equal(n, i1)
        y = If (c) <then_branch = t () => (float[B,1] u) {{ u = Sin(x) }}, else_branch = e () => (float[B,1] v) {{
        v = Cos(x) }}>
    }}"""
    assert ops(check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [2, 1]})) == {"Sin": 1}


def test_condition_on_a_symbol_stays() -> None:
    body = f"""(float[B,1] x) => (float[B,1] y) <{INDICES}> {{
        s = Shape(x) n = Gather(s, i0) c = Equal(n, i1)
        y = If (c) <then_branch = t () => (float[B,1] u) {{ u = Sin(x) }}, else_branch = e () => (float[B,1] v) {{
        v = Cos(x) }}>
    }}"""
    for batch in (1, 2):
        assert ops(check_pass(HEAD + body, FoldShapes(), rewrites=0, input_shapes={"x": [batch, 1]}))["If"] == 1


def test_dimensions_without_a_name_are_not_equal() -> None:
    body = """(float[?,3] x, float[?,3] u) => (float[C,3] y) { s = Shape(u) e = Expand(x, s) y = Sin(e) }"""
    text = HEAD + body.replace("?", "N1", 1).replace("?", "N2", 1)
    check_pass(text, FoldShapes(), rewrites=0, input_shapes={"x": [1, 3], "u": [4, 3]})


def test_shape_as_an_output_stays() -> None:
    body = "(float[2,3] x) => (int64[2] y) { y = Shape(x) }"
    check_pass(HEAD + body, FoldShapes(), rewrites=0)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_allowzero_with_a_copied_symbol(batch: int) -> None:
    body = f"""(float[B,6] x) => (float[B,2,3] y) <{INDICES}, int64[2] n = {{2, 3}}> {{
        s = Shape(x) b = Gather(s, i0) u = Unsqueeze(b, a0) t = Concat<axis=0>(u, n) y = Reshape<allowzero=1>(x, t)
        }}"""
    m = check_pass(HEAD + body, FoldShapes(), input_shapes={"x": [batch, 6]})
    assert ops(m) == {"Reshape": 1} and not graph.attr(m.graph[0], "allowzero", 0)


NUMBERS = st.integers(-6, 6)


@st.composite
def polynomials(draw: st.DrawFn) -> tuple[d.Dim, dict[str, int]]:
    """A random sum of products of two symbols, and numbers for them."""
    total: d.Dim = draw(NUMBERS)
    for _ in range(draw(st.integers(0, 3))):
        term: d.Dim = draw(NUMBERS)
        for symbol in draw(st.lists(st.sampled_from("ab"), max_size=2)):
            term = d.mul(term, d.atom(symbol))
        total = d.add(total, term)
    return total, {s: draw(st.integers(0, 5)) for s in "ab"}


def value(p: d.Dim, at: dict[str, int]) -> int:
    if isinstance(p, int):
        return p
    return sum(c * int(np.prod([at[str(s)] for s in m])) for m, c in p.terms)


@settings(max_examples=200, deadline=None)
@given(polynomials(), polynomials())
def test_polynomials_agree_with_numbers(one: tuple[d.Dim, dict[str, int]], two: tuple[d.Dim, dict[str, int]]) -> None:
    (p, at), (q, _) = one, two
    a, b = value(p, at), value(q, at)
    assert value(d.add(p, q), at) == a + b and value(d.sub(p, q), at) == a - b and value(d.mul(p, q), at) == a * b
    assert (p == q) <= (a == b)
    assert d.less(p, q) in (None, a < b) and d.equal(p, q) in (None, a == b)
    exact = d.exact_div(d.mul(p, q), q) if q != 0 else None
    if exact is not None and b:
        assert value(exact, at) == a


def test_what_becomes_constant_tells_further_shapes() -> None:
    """Two rounds: only once the Expand is folded, Shape knows what it reads."""
    body = """(float[2,12] x) => (float[4,6] y) <int64[1] one = {1}, float[1] unit = {1.0}> {
        s = Shape(x) w = Expand(unit, s) k = NonZero(w) n = Shape<start=1>(k)
        six = Constant<value = int64[1] {6}>() rows = Div(n, six) t = Concat<axis=0>(rows, six) y = Reshape(x, t) }"""
    m = check_pass(HEAD + body, FoldShapes())
    assert ops(m) == {"Reshape": 1}


STRIDED = """(float[B,3,2] x) => (float[C,3,2,1] y) <int64 zero = {0}, int64 one = {1}, int64 row = {ROW},
    int64[3] ones = {1, 2, 3}, int64[1,3,2,1] rest = {REST}, int64[1] all = {-1}> {
    n = Shape<end=1>(x) count = Squeeze(n) r = Range(zero, count, one) rows = Mul(r, row)
    first = Unsqueeze(rows, ones) positions = Add(first, rest) flat = Reshape(x, all) y = Gather(flat, positions) }"""


def _strided(row: int, rest: str) -> str:
    return HEAD + STRIDED.replace("ROW", str(row)).replace("REST", rest)


def test_elements_at_their_own_positions_are_not_looked_up() -> None:
    """What torch.export writes for as_strided of a contiguous tensor with a free batch (ConvNeXt's pooled features)."""
    m = check_pass(_strided(6, "0, 1, 2, 3, 4, 5"), FoldShapes(), input_shapes={"x": [4, 3, 2]})
    assert ops(m) == {"Reshape": 1} and graph.ints(m.graph[0].inputs[1]) == [-1, 3, 2, 1]


@pytest.mark.parametrize(("row", "rest"), [(5, "0, 1, 2, 3, 4, 5"), (6, "0, 1, 2, 3, 5, 4"), (6, "0, 0, 0, 0, 0, 0")])
def test_elements_at_other_positions_are_looked_up(row: int, rest: str) -> None:
    m = check_pass(_strided(row, rest), FoldShapes(), rewrites=0, input_shapes={"x": [4, 3, 2]})
    assert ops(m)["Gather"] == 1


def test_elements_of_some_samples_are_looked_up() -> None:
    """One row less than there are."""
    less = _strided(6, "0, 1, 2, 3, 4, 5").replace(
        "r = Range(zero, count, one)", "m = Sub(count, one) r = Range(zero, m, one)"
    )
    m = check_pass(less, FoldShapes(), rewrites=None, input_shapes={"x": [4, 3, 2]})
    assert ops(m)["Gather"] == 1
