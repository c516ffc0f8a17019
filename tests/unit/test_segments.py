"""Running a model in parts gives what the whole gives, bit for bit, wherever it is cut."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from layercases import build

from edgec.compiler.parallel import cores, each
from edgec.compiler.segments import Ahead, Segments
from edgec.compiler.session import Session
from passcheck import load, run

TEXT = """(float[N,8] x, float[N,8] z) => (float[N,8] y, float[N,8] early, float[N] top) <int64[1] last = {1}> {
    early = Add(x, z)
    a = MatMul(x, w0)
    b = Relu(a)
    n = Shape(x)
    c = MatMul(b, w1)
    d = Add(c, x)
    e = Reshape(d, n)
    y = Mul(e, early)
    top = ReduceMax<keepdims=0>(y, last)
}"""
BRANCHES = """
<ir_version: 10, opset_import: ["" : 25]>
agraph (float[2,4] x, bool c) => (float[2,4] y) <float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> {
    a = MatMul(x, w)
    b = Neg(a)
    d = If(c) <
        then_branch = one () => (float[2,4] p) { p = MatMul(b, w) },
        else_branch = two () => (float[2,4] q) { q = Abs(a) }
    >
    y = Sub(d, x)
}"""


def network() -> ir.Model:
    rng = np.random.default_rng(0)
    return build(TEXT, w0=rng.normal(size=(8, 8)), w1=rng.normal(size=(8, 8)))


def inputs(count: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=(count, 8)).astype(np.float32) for n in ("x", "z")}


def behind(model: ir.Model, ahead: Ahead, segments: Segments) -> list[dict[str, np.ndarray]]:
    session = Session(segments.part(ahead.at))
    return [session.run(feeds) for feeds in ahead]


def test_what_lies_behind_any_place_gives_what_the_whole_gives() -> None:
    model = network()
    runs = [inputs(3, 0), inputs(5, 1)]
    wanted = [run(model, feeds) for feeds in runs]
    segments = Segments(model)
    stepping = Ahead(segments, runs)
    for cut in range(len(segments)):
        jumping = Ahead(segments, runs)
        assert stepping.go(cut)
        assert jumping.go(cut)
        for ahead in (stepping, jumping):
            for found, whole in zip(behind(model, ahead, segments), wanted, strict=True):
                assert set(found) == {n for n, place in (("early", 0), ("y", 7), ("top", 8)) if place >= cut}
                for name, array in found.items():
                    np.testing.assert_array_equal(array, whole[name])


def test_a_weight_is_first_read_where_a_body_reads_it() -> None:
    model = load(BRANCHES)
    segments = Segments(model)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert segments.reader(model.graph.initializers["w"]) == 0
    for c in (False, True):
        feeds = {"x": x, "c": np.array(c)}
        ahead = Ahead(segments, [feeds])
        assert ahead.go(2)
        assert set(next(iter(ahead))) == {"x", "c", "a", "b"}
        (found,) = behind(model, ahead, segments)
        np.testing.assert_array_equal(found["y"], run(model, feeds)["y"])


def test_only_what_is_still_read_is_kept() -> None:
    segments = Segments(network())
    ahead = Ahead(segments, [inputs(3, 0)])
    assert ahead.go(5)
    assert set(next(iter(ahead))) == {"x", "z", "c", "n", "early"}


def test_too_much_to_keep_is_not_kept_and_the_place_stays() -> None:
    segments = Segments(network())
    runs = [inputs(3, 0)] * 4
    tight = Ahead(segments, runs, held=4 * (3 * 8 * 4) * 2)
    assert tight.go(2)  # `early` and `a`
    assert not tight.go(4)  # `early`, `b` and `n`, which is more
    assert tight.at == 2
    assert set(next(iter(tight))) == {"x", "z", "early", "a"}


@pytest.mark.parametrize("jobs", [1, 3])
def test_work_is_done_in_order_and_taken_as_it_is_needed(jobs: int) -> None:
    taken = []

    def items() -> object:
        for i in range(20):
            taken.append(i)
            yield i

    found = each(lambda i: i * i, items(), jobs)  # type: ignore[arg-type]
    assert next(iter(found)) == 0
    assert [*found][-1] == 19 * 19
    assert taken == list(range(20))


def test_as_many_cores_as_asked_for() -> None:
    assert cores(3) == 3
    assert cores() >= 1
