"""What `--target onnx` writes: any opset, weights beside the file where it gets too big, and what can't be said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgec
from edgec.backends.onnx import writer
from edgec.backends.onnx.spelling import respell
from edgec.compiler import driver, place
from edgec.compiler.errors import EdgecError, UnsupportedOp, UsageError
from passcheck import load as as_passes_see_it

RNG = np.random.default_rng(0)
OPSETS = (13, 15, 17, 18, 20, 21, 23, 24, 25, 28)


def save(folder: Path, text: str, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 25]> agraph {text}'), path)
    return path


def opset_of(path: Path) -> int:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {n.domain for n in model.graph.node} <= {"", "edgec"}
    assert all(f.domain == "edgec" for f in model.functions)
    return int(next(o.version for o in model.opset_import if o.domain == ""))


def compile_at(path: Path, opset: int, **options: Any) -> Path:
    with edgec.compile(path, target="onnx", opset=opset, **options) as c:
        assert c.proof is not None and c.proof.ok
        assert not [r.why for r in c.report.passes if r.status == "undone"]
        return c.save(path.with_name(f"out{opset}.onnx"))


# One model for each operator whose form or existence depends on the opset.
CASES = {
    "attention": """(float[N,5,16] x) => (float[N,5,16] y)
        <int64[1] zero = {0}, int64[1] eight = {8}, int64[1] two = {2}> {
        k = Slice(x, zero, eight, two) v = Slice(x, zero, eight, two)
        y = Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>(x, k, v) }""",
    "norms": """(float[N,8,6,6] x) => (float[N,8,6,6] y) <float[8] c = {1,2,3,4,5,6,7,8}, float[6] s = {1,2,3,1,2,3}> {
        g = GroupNormalization<num_groups=2>(x, c, c) l = LayerNormalization(g, s, s) y = RMSNormalization(l, s) }""",
    "activations": """(float[N,8] x) => (float[N,8] y) {
        a = HardSwish(x) b = Gelu(a) c = Mish(b) e = Gelu<approximate="tanh">(c) s = Sigmoid(e) y = Mul(e, s) }""",
    "reductions": """(float[N,8,6] x) => (float[N,6] y, float[N,8,1] z, float[1,1,1] w)
        <int64[1] a = {1}, int64[1] b = {2}> {
        y = ReduceMax<keepdims=0>(x, a) z = ReduceL2(x, b) w = ReduceMean(x) }""",
    "sizes": """(float[N,4,6,6] x) => (float[N,4,8,10] y, float[N,4,12,3] z, int64[2] n)
        <int64[4] p = {1,2,1,2}, int64[2] a = {2,3}, float[2] s = {2,0.5}> {
        y = Pad<mode="reflect">(x, p, , a) z = Resize<mode="nearest", axes=[2,3]>(x, , s)
        h = Relu(x) n = Shape<start=2, end=4>(x) }""",
    "splits": """(float[N,7] x) => (float[N,3] a, float[N,3] b, float[N,1] c) {
        a, b, c = Split<axis=1, num_outputs=3>(x) }""",
    "pools": """(float[N,4,8,8] x) => (float[N,4,4,4] y, float[N,4,4,4] z) {
        y = AveragePool<kernel_shape=[2,2], strides=[2,2], dilations=[1,1]>(x)
        z = LpPool<kernel_shape=[2,2], strides=[2,2]>(x) }""",
    "scatter": """(float[4,3] x, float[1,3] u) => (float[4,3] y) <int64[1,3] i = {0,1,2}> {
        y = ScatterElements(x, i, u) }""",
}


@pytest.mark.parametrize("case", CASES)
def test_every_opset(case: str, tmp_path: Path) -> None:
    path = save(tmp_path, CASES[case])
    for opset in OPSETS:
        written = compile_at(path, opset, level="O1")
        assert opset_of(written) == opset


def weights_model(folder: Path, name: str = "model.onnx", layers: int = 3) -> Path:
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(layers)]
    nodes = [n for i, m in enumerate(nodes) for n in (m, helper.make_node("Relu", [f"h{i + 1}"], [f"r{i + 1}"]))]
    for i in range(1, layers):
        nodes[2 * i].input[0] = f"r{i}"
    weights = [RNG.standard_normal((64, 64)).astype(np.float32) for _ in range(layers)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info(f"r{layers}", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    path = folder / name
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "LIMIT", 4096)


def same(a: Path, b: Path, limit: float = 1e-5) -> bool:
    return driver.verify(a, b).within(limit)


@pytest.mark.usefixtures("small_limit")
def test_big_weights_lie_beside_the_file_under_whatever_name_it_is_saved(tmp_path: Path) -> None:
    source = weights_model(tmp_path)
    with edgec.compile(source, target="onnx", level="O1") as c:
        assert c.proof is not None and c.proof.ok
        for name in ("a.onnx", "b.onnx", "b.onnx"):
            path = c.save(tmp_path / name)
            assert c.report.output == str(path) and any(f"{name}.data" in line for line in c.report.contract)
    for name in ("a.onnx", "b.onnx"):
        locations = {
            e.value
            for t in onnx.load(tmp_path / name, load_external_data=False).graph.initializer
            for e in t.external_data
            if e.key == "location"
        }
        assert locations == {f"{name}.data"}
        assert same(source, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.onnx", "a.onnx.data", "b.onnx", "b.onnx.data", "model.onnx",
    ]  # fmt: skip


def test_weights_of_an_older_run_go_with_the_model_that_named_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = weights_model(tmp_path), tmp_path / "out.onnx"
    with monkeypatch.context() as m:
        m.setattr(writer, "LIMIT", 4096)
        with edgec.compile(source, target="onnx", level="O1") as c:
            c.save(out)
    assert place.data_file(out).exists()
    with edgec.compile(source, target="onnx", level="O1") as c:
        c.save(out)
    assert not place.data_file(out).exists()
    assert same(source, out)


def test_a_file_that_only_has_the_name_of_weights_stays(tmp_path: Path) -> None:
    source, out = weights_model(tmp_path), tmp_path / "out.onnx"
    place.data_file(out).write_text("not ours")
    for _ in range(2):
        with edgec.compile(source, target="onnx", level="O1") as c:
            c.save(out)
    assert place.data_file(out).read_text() == "not ours"


@pytest.mark.usefixtures("small_limit")
def test_an_overwritten_pair_is_whole_or_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = weights_model(tmp_path), tmp_path / "out.onnx"
    with edgec.compile(source, target="onnx", level="O1") as c:
        c.save(out)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = weights_model(tmp_path, "other.onnx", layers=4)
    before["other.onnx"] = other.read_bytes()
    replace = Path.replace

    def fails_last(self: Path, target: Path) -> Path:
        if target == out:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with edgec.compile(other, target="onnx", level="O1") as c, monkeypatch.context() as m:
        m.setattr(Path, "replace", fails_last)
        with pytest.raises(EdgecError, match=r"can't write .*out\.onnx: No space left"):
            c.save(out)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with edgec.compile(other, target="onnx", level="O1") as c:
        c.save(out)
    assert same(other, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(before)


@pytest.mark.parametrize("opset", [25, 13])
def test_packed_weights_survive_the_way_through_a_file(tmp_path: Path, opset: int) -> None:
    source, packed = weights_model(tmp_path), tmp_path / "packed.onnx"
    with edgec.compile(source, target="onnx", level="O2", opset=opset) as c:
        assert c.report.precision == "fp32"
        c.save(packed)
    stored = [t.data_type for t in onnx.load(packed).graph.initializer if len(t.dims) == 2]
    assert stored == [TensorProto.INT8] * 3
    assert packed.stat().st_size < 0.4 * source.stat().st_size
    with edgec.compile(packed, target="ios", level="O2", shapes={"N": (1,)}) as c:
        assert c.proof is not None and c.proof.ok
        ops = [n.op_type for n in c.model.graph if n.op_type == "DequantizeLinear"]
        assert len(ops) == 3
        sizes = sum(p.stat().st_size for p in Path(c.path).rglob("*") if p.is_file())
        assert sizes < 0.5 * source.stat().st_size


def blocks_model(folder: Path) -> Path:
    """A matrix in 4 bits with a scale for each block of 32 rows."""
    q = helper.make_tensor("q", TensorProto.INT4, [64, 96], RNG.integers(-8, 8, 64 * 96).tolist())
    scale = numpy_helper.from_array((RNG.random((2, 96)) + 0.1).astype(np.float32), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", d]) for n, d in (("x", 64), ("y", 96))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [q, scale])
    path = folder / "blocks.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize(("opset", "packed"), [(25, True), (21, True), (20, False), (13, False)])
def test_blocks_in_4_bits_stay_packed_where_the_opset_has_them(tmp_path: Path, opset: int, packed: bool) -> None:
    source = blocks_model(tmp_path)
    out = compile_at(source, opset, level="O1")
    assert opset_of(out) == opset and same(source, out)
    assert [n.op_type for n in onnx.load(out).graph.node] == ["DequantizeLinear", "MatMul"][0 if packed else 1 :]


UNSAYABLE = {
    "BitwiseAnd": ("(int32[2] x, int32[2] z) => (int32[2] y) { y = BitwiseAnd(x, z) }", 17, "not in opset 17"),
    "Pad": (
        '(float[2,4] x) => (float[2,8] y) <int64[4] p = {0,2,0,2}> { y = Pad<mode="wrap">(x, p) }', 18, "mode=wrap",
    ),
    "AveragePool": (
        "(float[1,1,8] x) => (float[1,1,6] y) { y = AveragePool<kernel_shape=[2], dilations=[2]>(x) }", 18, "dilations",
    ),
    "Split": ("(float[N,4] x) => (float[A,4] a, float[B,4] b) { a, b = Split<num_outputs=2>(x) }", 17, "num_outputs=2"),
}  # fmt: skip


@pytest.mark.parametrize("op", UNSAYABLE)
def test_what_an_opset_cant_say_is_listed(op: str) -> None:
    text, opset, why = UNSAYABLE[op]
    model = as_passes_see_it(f'<ir_version: 10, opset_import: ["" : 25]> agraph {text}')
    (missing,) = respell(model, opset)
    assert missing.op == op and why in missing.why


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        """(int32[2] x, int32[2] z) => (int32[2] y) { a = BitwiseAnd(x, z) b = BitwiseOr(a, z) y = BitwiseNot(b) }""",
    )
    with pytest.raises(UnsupportedOp) as found:
        edgec.compile(path, target="onnx", opset=16, level="O1")
    assert [m.op for m in found.value.missing] == ["BitwiseAnd", "BitwiseOr", "BitwiseNot"]


def test_a_dry_run_lists_what_an_older_opset_lacks(tmp_path: Path) -> None:
    path = save(tmp_path, "(int32[2] x, int32[2] z) => (int32[2] y) { a = BitwiseAnd(x, z) y = BitwiseNot(a) }")
    assert driver.dry_run(path, target="onnx") == []
    assert [m.op for m in driver.dry_run(path, target="onnx", opset=16)] == ["BitwiseAnd", "BitwiseNot"]


def test_a_dry_run_lists_free_dimensions_and_unknown_operators_together(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        """(float[N,3] x) => (float[N,3] y) { s = SequenceConstruct(x, x) zero = Constant<value_int = 0>()
        y = SequenceAt(s, zero) }""",
    )
    missing = driver.dry_run(path, target="ios")
    assert [m.op for m in missing] == ["input 'x'", "SequenceConstruct", "SequenceAt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "onnx", "opset": 5}, "--opset 5: choose one from 13 to 28"),
        ({"target": "onnx", "opset": 99}, "--opset 99"),
        ({"target": "onnx", "io": "fp16"}, "--io fp16 is for Core ML"),
        ({"target": "ios", "opset": 17}, "--opset is for --target onnx"),
    ],
)
def test_wrong_use_is_said_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        edgec.compile("there is no such file.onnx", **options)
