"""What edgec's command line does not run: and that a module which runs late is the module that others know."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgec.compiler import late

NEEDLESS = {
    "sympy.functions", "sympy.polys", "sympy.solvers", "torch", "torchvision", "sklearn", "tensorflow", "xgboost",
    "scipy", "scipy.sparse", "yaml", "cattrs", "asyncio", "ssl",
    "coremltools.converters.mil.frontend", "coremltools.models.utils", "coremltools.optimize.coreml._config",
}  # fmt: skip

COMMAND = """\
import sys
from edgec.compiler.cli import main
code = main({arguments!r})
print(sorted({needless!r} & set(sys.modules)), code)
"""

LIBRARY = """\
import sys
before = list(sys.meta_path)
import edgec
with edgec.compile("net.onnx", verify="off"): pass
assert sys.meta_path == before
from edgec.compiler import late
print([n for n, m in sys.modules.items() if isinstance(m, late.Late)])
import sympy, coremltools
print(callable(sympy.__dict__["solve"]), callable(coremltools.__dict__["convert"]))
"""

USUAL = """\
import coremltools, onnx, onnx_ir, sympy, sys
print({{n: dir(sys.modules[n]) for n in {modules!r}}})
"""

LATE = """\
import sys
from edgec.compiler import late, process
process.command_line = True
with process.undisturbed():
    from edgec.backends.coreml import mil
mil.mil()
for module, names in {names!r}.items():
    assert isinstance(sys.modules[module], late.Late), module
    print(module, [n for n in names if not hasattr(sys.modules[module], n)])
"""

MODULES = ["coremltools", "coremltools.optimize._utils", "onnx.compose", "onnx_ir.passes", "sympy"]


def run(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # No two filters alike, none zero: what has something to remove needs more.
    filters = np.random.default_rng(0).normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    weight = numpy_helper.from_array(filters, "w")
    for name, batch in (("net", 1), ("free", "N")):
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4, 8, 8])],
            [weight],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / f"{name}.onnx")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [["net.onnx", "--dry-run"], ["net.onnx", "-q"], ["free.onnx", "-q", "--target", "onnx", "-o", "out.onnx"]],
    ids=" ".join,
)
def test_the_command_line_runs_nothing_that_it_does_not_need(arguments: list[str], folder: Path) -> None:
    out = run(COMMAND.format(arguments=arguments, needless=NEEDLESS), folder)
    assert out.splitlines()[-1] == "[] 0"


def test_a_users_process_stays_as_it_is(folder: Path) -> None:
    assert run(LIBRARY, folder).splitlines() == ["[]", "True True"]


def test_a_late_module_has_every_name(tmp_path: Path) -> None:
    names = ast.literal_eval(run(USUAL.format(modules=MODULES), tmp_path))
    assert all(len(found) > 8 for found in names.values())  # what every module has
    assert run(LATE.format(names=names), tmp_path).splitlines() == [f"{m} []" for m in MODULES]


def test_symbols_are_computed_with_all_of_sympy(tmp_path: Path) -> None:
    code = (
        "from edgec.compiler import late\n"
        "late.install()\n"
        "import onnx_ir as ir, sympy\n"
        "half_way = type(sympy)\n"
        "total = (ir.SymbolicDim('N') + 1) * 2\n"
        "print(half_way is late.Late, type(sympy) is late.Late, total.evaluate({'N': 3}), 'solve' in vars(sympy))"
    )
    assert run(code, tmp_path) == "True False 8 True\n"


def test_a_package_runs_up_to_the_name_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "tardy"
    package.mkdir()
    package.joinpath("inner.py").write_text("here = True\n")
    package.joinpath("__init__.py").write_text("ran = ['a']\na = 1\nran.append('b')\nb = 2\nfrom . import broken\n")
    code = (
        "from edgec.compiler import late\n"
        "late.PARTLY = {'tardy': late.ANY}\n"
        "late.install()\n"
        "import tardy\n"
        "print('ran' in vars(tardy), tardy.a, tardy.ran, tardy.inner.here, tardy.ran, tardy.b, tardy.ran)\n"
        "for _ in range(2):\n"
        "    try: tardy.broken\n"
        "    except ImportError as e: print(type(e).__name__)\n"
        "print(hasattr(tardy, '__wrapped__'), type(tardy) is late.Late)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run(code, tmp_path).splitlines() == [
        "False 1 ['a', 'b'] True ['a', 'b'] 2 ['a', 'b']", "ImportError", "ImportError", "False True",
    ]  # fmt: skip


def test_every_late_module_exists() -> None:
    from importlib.util import find_spec

    assert [n for n in {*late.PARTLY, *late.WHOLE} if find_spec(n) is None] == []
