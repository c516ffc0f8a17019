"""Inputs and outputs as Core ML can have them, determinism, import hygiene, and growth with size."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from coremlpack import check, compile_package, parse
from edgec.backends.coreml import BACKEND
from edgec.compiler import core_ops
from edgec.compiler.backend import EmitOptions
from edgec.compiler.targets import find_target


def test_names_are_legal_and_mapped(tmp_path: Path) -> None:
    """Names that collide once they are legal get numbers; the mapping is reported."""
    model = parse("g (float[2] a, float[2] b) => (float c, float d) { t = Add(a, b) c = Relu(t) d = Neg(t) }")
    names = ("in/put:0", "in_put_0", "1", "è")
    for value, name in zip((*model.graph.inputs, *model.graph.outputs), names, strict=True):
        value.name = name
    feeds = {"in/put:0": np.array([1, 2], np.float32), "in_put_0": np.array([3, -5], np.float32)}
    package = compile_package(model, tmp_path / "a.mlpackage", "ios15", feeds)
    legal = [*package.emitted.inputs.values(), *package.emitted.outputs.values()]
    assert len(set(legal)) == 4 and all(re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", n) for n in legal)
    assert list(package.emitted.inputs) == ["in/put:0", "in_put_0"]
    np.testing.assert_array_equal(package.got["1"], [4, 0])
    np.testing.assert_array_equal(package.got["è"], [-4, 3])
    assert any("'in/put:0' is called" in line for line in package.emitted.contract)


@pytest.mark.parametrize("target", ["ios15", "ios18"])
def test_types_that_core_ml_has_not(target: str, tmp_path: Path) -> None:
    text = (
        "g (int64[2,2] i, bool[2,2] b, double[2,2] d, float s, uint8[2,2] u) => (int64 k, bool n, double e, float t) "
        "{ v = Cast<to=7>(u) k = Add(i, v) n = Not(b) e = Neg(d) t = Exp(s) }"
    )
    package = check(text, tmp_path / "a.mlpackage", target)
    said = "\n".join(package.emitted.contract)
    for sentence in (
        "input 'i': int64 is int32", "input 'b': bool is int32, 0 or 1", "input 'd': float64 is float32",
        "input 's': a scalar is given as shape [1]", "output 't': a scalar is given as shape [1]",
        "output 'n': bool is int32, 0 or 1", "input 'u': uint8 is int32", "output 'k': int64 is int32",
    ):  # fmt: skip
        assert sentence in said, sentence


def test_odd_outputs(tmp_path: Path) -> None:
    """An output that is an input, one that is a constant, one twice, and an input that nobody reads."""
    model = parse("g (float[2] x, float[3] unread) => (float y, float z) { y = Relu(x) z = Neg(x) }",
                  {"k": np.array([1, 2, 3], np.float32)})  # fmt: skip
    y = model.graph.outputs[0]
    model.graph.outputs.extend([model.graph.inputs[0], model.graph.initializers["k"]])
    again = parse("g (float[2] x) => (float y, float z) { y = Identity(t) z = Identity(t) t = Exp(x) }")
    package = check(model, tmp_path / "a.mlpackage", "ios16")
    assert len(set(package.emitted.outputs.values())) == 4
    assert set(package.emitted.inputs) == {"x", "unread"}
    assert y.name in package.got
    check(again, tmp_path / "b.mlpackage", "ios16")


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = "g (float[1,4,9,8] x) => (float y) { a = Conv(x, w, b) c = Relu(a) y = Softmax<axis=1>(c) }"
    weights = {"w": rng.normal(size=(8, 4, 3, 3)).astype(np.float32), "b": np.ones(8, np.float32)}
    files = []
    for name in ("a", "b"):
        path = tmp_path / name / "m.mlpackage"
        path.parent.mkdir()
        BACKEND.emit(parse(text, weights), find_target("ios17"), path, EmitOptions())
        files.append({f.relative_to(path): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()})
    assert files[0] == files[1]
    assert len(files[0]) == 3


def test_the_specification_is_the_targets(tmp_path: Path) -> None:
    for name in ("ios15", "ios16", "ios17", "ios18", "ios26"):
        target = find_target(name)
        package = check("g (float[2] x) => (float y) { y = Relu(x) }", tmp_path / f"{name}.mlpackage", name)
        assert package.spec.specificationVersion == target.spec
        assert list(package.spec.mlProgram.functions["main"].block_specializations) == [target.opset]


def test_apples_reader_accepts_the_signatures(tmp_path: Path) -> None:
    """coremltools' own loader builds every operator again, checking its inputs against the opset."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    text = (
        "g (float[1,4,9,8] x) => (float y) { a = Conv<pads=[1,1,1,1]>(x, w) b = MaxPool<kernel_shape=[2,2]>(a) "
        'c = Resize<mode="linear">(b, , s) d = LogSoftmax<axis=1>(c) y = Gelu(d) }'
    )
    weights = {"w": np.ones((4, 4, 3, 3), np.float32), "s": np.array([1, 1, 2, 2], np.float32)}
    for name in ("ios15", "ios17", "ios18"):
        path = tmp_path / f"{name}.mlpackage"
        package = check(text, path, name, weights)
        model = ct.models.MLModel(str(path), skip_model_load=True)
        program = load(model.get_spec(), package.spec.specificationVersion, model.weights_dir)
        assert [o.op_type for o in program.functions["main"].operations if o.op_type != "const"] == [
            o.type for o in package.operations]  # fmt: skip


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgec.backends.coreml import package as writer

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "_manifest", full)
    path = tmp_path / "a.mlpackage"
    with pytest.raises(OSError, match="No space left"):
        BACKEND.emit(parse("g (float[2] x) => (float y) { y = Relu(x) }"), find_target("ios17"), path, EmitOptions())
    assert not path.exists()


def test_the_core_set_is_the_table() -> None:
    """compiler.core_ops is the light copy of the lowering table that `legalize` works with."""
    from edgec.backends.coreml.registry import lowerings

    assert core_ops.core(find_target("ios18")) == lowerings().keys()


def test_importing_the_backend_is_light_and_importing_coremltools_is_quiet() -> None:
    script = (
        "import sys, edgec.backends.coreml, edgec.backends.coreml.registry as r; r.lowerings(); "
        "assert 'coremltools' not in sys.modules; from edgec.backends.coreml.mil import import_coremltools; "
        "import_coremltools(True); assert 'coremltools' in sys.modules and 'sklearn' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_time_grows_linearly_with_nodes() -> None:
    """Processor time per node at 2,400 nodes is about that at 300."""
    from edgec.backends.coreml.lower import build

    def seconds(n: int) -> float:
        steps = " ".join(f"t{i + 1} = {('Relu', 'Sigmoid')[i % 2]}(t{i})" for i in range(n))
        model = parse(f"g (float[2,2] t0) => (float t{n}) {{ {steps} }}")
        start = time.process_time()
        build(model, find_target("ios17"), EmitOptions())
        return time.process_time() - start

    seconds(50)
    assert seconds(2400) / 8 < 2.5 * min(seconds(300) for _ in range(3))
