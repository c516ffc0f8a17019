"""Synthesised inputs must run, and mean what the model takes them for; the user's inputs must fit or be refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from edgec.compiler.data import batches, fit_inputs, load_inputs, read_arrays
from edgec.compiler.errors import ModelError, UsageError
from edgec.compiler.roles import role
from edgec.compiler.synthesis import synthesise
from passcheck import load, run


def model(text: str) -> ir.Model:
    return load('<ir_version: 10, opset_import: ["" : 25]>\n' + text)


EMBEDDING = """agraph (int64[B,S] ids, int64[B,S] kinds) => (float[B,S,4] y)
  <float[30,4] table = {}, float[2,4] type_table = {}, int64 three = {{3}}>
{{ wide = Cast<to=7>(ids)  moved = Add(wide, three)  a = Gather(table, moved)  b = Gather(type_table, kinds)
   y = Add(a, b) }}"""


def embedding() -> ir.Model:
    numbers = "{" + ",".join(["0.5"] * 120) + "}", "{" + ",".join(["0.5"] * 8) + "}"
    return model(EMBEDDING.format(*numbers))


def test_indices_stay_in_range_of_what_they_index() -> None:
    m = embedding()
    for seed in range(20):
        x = synthesise(m, seed, {"ids": (2, 50)})
        assert x["ids"].min() >= 0 and x["ids"].max() + 3 < 30
        assert set(np.unique(x["kinds"])) == {0, 1}
        run(m, x)
    assert x["ids"].max() > 20, "the range should be used"


def test_symbols_are_consistent_and_shapes_fix_them() -> None:
    m = embedding()
    assert {a.shape for a in synthesise(m).values()} == {(1, 16)}
    assert {a.shape for a in synthesise(m, shapes={"kinds": (3, 5)}).values()} == {(3, 5)}
    assert {a.shape for a in synthesise(m, batch=2).values()} == {(2, 16)}


def test_the_seed_decides() -> None:
    m = embedding()
    assert np.array_equal(synthesise(m, 3)["ids"], synthesise(m, 3)["ids"])
    assert not np.array_equal(synthesise(m, 3)["ids"], synthesise(m, 4)["ids"])


ATTENTION = """agraph (float[1,2,6,4] q, {kind}[{dims}] {name}) => (float[1,2,6,4] y)
  <float big = {{-10000.0}}, float one = {{1.0}}, int64[1] zero = {{0}}, int64 none = {{0}}, float low = {{-1e30}},
   int64[2] ax = {{1, 2}}>
{{ k = Transpose<perm=[0,1,3,2]>(q)  s = MatMul(q, k)  {make}  p = Softmax(z)  y = MatMul(p, q) }}"""


@pytest.mark.parametrize(
    ("kind", "dims", "make"),
    [
        ("int64", "1,6", "u = Unsqueeze(m, ax) f = Cast<to=1>(u) i = Sub(one, f) b = Mul(i, big) z = Add(s, b)"),
        ("bool", "1,6", "u = Unsqueeze(m, ax) z = Where(u, s, low)"),
        ("int64", "1,6", "u = Unsqueeze(m, ax) e = Equal(u, none) n = Not(e) z = Where(n, s, low)"),
        ("float", "1,6", "u = Unsqueeze(m, ax) i = Sub(one, u) b = Mul(i, big) z = Add(s, b)"),
    ],
)
@pytest.mark.parametrize("name", ["m", "attention_mask"])
def test_masks_are_zero_or_one_and_leave_a_key(kind: str, dims: str, make: str, name: str) -> None:
    m = model(ATTENTION.format(kind=kind, dims=dims, name=name, make=make.replace("(m", f"({name}")))
    seen = set()
    for seed in range(10):
        x = synthesise(m, seed)
        assert set(np.unique(x[name])) <= {0, 1}
        assert x[name].any(-1).all(), "a row without any key"
        seen.add(x[name].tobytes())
        assert np.isfinite(run(m, x)["y"]).all()
    assert len(seen) > 1, "the same mask for every seed"


def test_a_mask_that_is_added_is_zero_or_very_negative() -> None:
    m = model(ATTENTION.format(kind="float", dims="1,1,6,6", name="m", make="z = Add(s, m)"))
    x = synthesise(m)["m"]
    assert set(np.unique(x)) == {0, -1e4} and (x == 0).any(-1).all()
    bias = model("agraph (float[2,3] x) => (float[2,3] y) <float[3] b = {1.0,2.0,3.0}> { t = Add(x,b) y = Softmax(t) }")
    assert len(np.unique(synthesise(bias)["x"])) == 6, "a bias before Softmax makes no mask of its input"


def test_a_sample_rate_is_one_that_the_model_knows() -> None:
    text = """agraph (float[1,8] x, int64 rate) => (float[1,8] y) <int64 a = {8000}, int64 b = {16000}>
    {{ low = Equal(rate, a) high = Equal(rate, b) any = Or(low, high) {what} }}""".replace("{{", "{").replace("}}", "}")
    m = model(text.replace("{what}", "f = Cast<to=1>(any) y = Mul(x, f)"))
    assert synthesise(m)["rate"] == 16000
    only = model(text.replace("{what}", "f = Cast<to=1>(any) y = Mul(x, f)").replace("16000", "44100"))
    assert synthesise(only)["rate"] in (8000, 44100)


def test_states_are_small_and_logarithms_get_positive_numbers() -> None:
    m = model("agraph (float[1,9] hidden_state, float[1,9] x) => (float[1,9] y) { l = Log(x) y = Add(l,hidden_state) }")
    x = synthesise(m)
    assert np.abs(x["hidden_state"]).max() < 1 < np.abs(x["x"]).max() and x["x"].min() > 0


def test_sizes_are_tried_until_the_model_runs() -> None:
    m = model("agraph (float[N,T] x) => (float[N,D] y) <int64[2] s = {-1, 576}> { y = Reshape(x, s) }")
    assert synthesise(m)["x"].shape == (1, 576)
    never = model("agraph (float[N,T] x) => (float[A,B] y) <int64[2] s = {-1, 577}> { y = Reshape(x, s) }")
    with pytest.raises(ModelError, match=r"--shape x:\?,\?.*--inputs"):
        synthesise(never)
    assert synthesise(never, shapes={"x": (1, 577)})["x"].shape == (1, 577)


def test_free_image_sizes_and_negative_dimensions() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 25]> agraph (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }'
    )
    assert synthesise(load(proto))["x"].shape == (1, 3, 224, 224)
    m = ir.from_proto(proto)
    m.graph.inputs[0].shape = ir.Shape([-1, 3, 32, 32])
    assert synthesise(m)["x"].shape == (1, 3, 32, 32)
    assert role(m.graph.inputs[0]).bound is None


def test_every_type_is_made() -> None:
    for kind in ("double", "float16", "bfloat16", "uint8", "int8", "int32", "bool", "uint64"):
        m = model(f"agraph ({kind}[2,3] x) => ({kind}[2,3] y) {{ y = Identity(x) }}")
        x = synthesise(m)["x"]
        assert x.dtype == m.graph.inputs[0].dtype.numpy() and x.shape == (2, 3) and len(np.unique(x)) > 1  # type: ignore[union-attr]
    text = model("agraph (string[2] x) => (string[2] y) { y = Identity(x) }")
    assert run(text, synthesise(text))["y"].shape == (2,)


def test_shapes_that_contradict_the_model_are_refused() -> None:
    m = model("agraph (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    with pytest.raises(UsageError, match=r"no input 'z'; its inputs: x"):
        synthesise(m, shapes={"z": (1, 3)})
    for wanted in ((1, 4), (3,)):
        with pytest.raises(UsageError, match=r"\[N, 3\]"):
            synthesise(m, shapes={"x": wanted})


@pytest.fixture
def classifier() -> ir.Model:
    return model("agraph (float[1,3] x, int32[1] k) => (float[1,3] y) { f = Cast<to=1>(k) y = Add(x, f) }")


def test_inputs_from_a_file(classifier: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, x=np.arange(15, dtype=np.float64).reshape(5, 3), k=np.arange(5), labels=np.arange(5))
    got = load_inputs(path, classifier)
    assert got["x"].dtype == np.float32 and got["k"].dtype == np.int32 and got["labels"].shape == (5,)
    runs = list(batches(got, classifier))
    assert [r["k"].item() for r in runs] == [0, 1, 2, 3, 4] and all(set(r) == {"x", "k"} for r in runs)
    assert np.array_equal(np.concatenate([r["x"] for r in runs]), got["x"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((1, 3), np.float32)}, "no array 'k'"),
        ({"x": np.ones((1, 3), np.float32), "k": np.ones(1, np.int32), "q": np.ones(1)}, "'q' is no input"),
        ({"x": np.ones((1, 4), np.float32), "k": np.ones(1, np.int32)}, r"\[1, 4\].*\[1, 3\]"),
        ({"x": np.ones((3,), np.float32), "k": np.ones(1, np.int32)}, r"\[3\].*\[1, 3\]"),
        ({"x": np.ones((1, 3), np.float32), "k": np.ones(1, np.float32)}, "float32.*int32"),
        ({"x": np.ones((1, 3), np.float32), "k": np.array([2**40])}, "int64.*int32"),
        ({"x": np.float32([[1, np.nan, 2]]), "k": np.ones(1, np.int32)}, "NaN in 1 place"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(classifier: ir.Model, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fit_inputs(arrays, classifier)


def test_an_unreadable_file_is_refused(classifier: ir.Model, tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK\3\4 not a zip")
    np.save(tmp_path / "one.npy", np.ones(3))
    for path in (bad, tmp_path / "none.npz", tmp_path / "one.npy"):
        with pytest.raises(UsageError, match=r"can't read|is no \.npz"):
            load_inputs(path, classifier)


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_refused_or_still_right(tmp_path: Path) -> None:
    """One byte is wrong, wherever it is."""
    path, wanted = tmp_path / "in.npz", np.random.default_rng(0).normal(size=(4, 3))
    np.savez_compressed(path, x=wanted)
    whole, refused = path.read_bytes(), 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = read_arrays(path)
        except UsageError:
            refused += 1
        else:
            assert all(np.array_equal(a, wanted) for a in found.values()), at
    assert refused > len(whole) // 2


def test_different_numbers_of_samples_are_refused(classifier: ir.Model) -> None:
    arrays = {"x": np.ones((4, 3), np.float32), "k": np.ones(3, np.int32)}
    with pytest.raises(UsageError, match="different numbers of samples: x 4, k 3"):
        list(batches(fit_inputs(arrays, classifier), classifier))


def test_a_free_batch_is_cut_to_bounded_pieces() -> None:
    m = model("agraph (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    pieces = [r["x"] for r in batches({"x": np.arange(450, dtype=np.float32).reshape(150, 3)}, m)]
    assert [len(p) for p in pieces] == [64, 64, 22]


def test_a_padding_mask_marks_what_is_ignored() -> None:
    m = model(ATTENTION.format(kind="bool", dims="1,6", name="key_padding_mask",
                               make="u = Unsqueeze(key_padding_mask, ax) z = Where(u, low, s)"))  # fmt: skip
    for seed in range(5):
        x = synthesise(m, seed)["key_padding_mask"]
        assert not x.all(-1).any(), "a row without any key"


def test_lengths_and_sizes() -> None:
    m = model("""agraph (float[5,2,4] x, float[1,9,4] w, float[1,9,3] r, int32[2] lens, float[1,2,3] h0)
    => (float[5,1,2,3] y)
    { y = GRU<hidden_size=3>(x, w, r, , lens, h0) }""")
    x = synthesise(m)
    assert set(x["lens"]) <= {1, 2, 3, 4, 5} and np.abs(x["h0"]).max() < 1
    run(m, x)
    sizes = model("agraph (float[2,6] x, int64[1] k) => (float[2,K] v, int64[2,K] i) { v, i = TopK(x, k) }")
    assert synthesise(sizes)["k"].tolist() == [1]
    run(sizes, synthesise(sizes))


def test_a_one_hot_encoding_by_hand_gives_the_range() -> None:
    table = ",".join(map(str, range(20)))
    m = model(f"""agraph (int32[1,50] x) => (float[1,50,20] y) <int32[20] t = {{{table}}}, int64[1] ax = {{2}}>
    {{ u = Unsqueeze(x, ax) e = Equal(u, t) y = Cast<to=1>(e) }}""")
    values = np.concatenate([synthesise(m, s)["x"].reshape(-1) for s in range(5)])
    assert values.min() == 0 and values.max() == 19
