"""Modules that run only as much of themselves as somebody asks for: for edgec's command line.

`import coremltools` runs half a second's worth of modules, of which the lowering needs a third; onnx_ir imports sympy,
for the arithmetic of symbolic dimensions. A late module runs its own code, in its own order, but not before a name is
asked for, and a late package's `__init__` only up to the statement that defines that name.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections import deque
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ast

ANY: frozenset[str] = frozenset()

PARTLY: dict[str, frozenset[str]] = {
    "sympy": frozenset({"Basic", "Symbol"}),
    "coremltools": ANY,
    "coremltools.converters": ANY,
    "coremltools.converters.mil": ANY,
    "coremltools.models": ANY,
    "coremltools.models.ml_program": ANY,
    "coremltools.optimize": ANY,
    "coremltools.optimize.coreml": ANY,
}
"""Package → the names for which a part of its `__init__` is enough; any other name runs it to its end.

coremltools' packages only import and define. sympy's adds to its classes until the last line, so who computes with
symbols gets all of it; a class to compare with is whole before.
"""

WHOLE = frozenset({
    "onnx.compose", "onnx.gen_proto", "onnx.parser", "onnx.printer", "onnx.serialization", "onnx.utils",
    "onnx_ir._symbolic_shapes", "onnx_ir.passes", "onnx_ir.schemas", "onnx_ir.tape",
    "coremltools.converters.libsvm", "coremltools.converters.sklearn", "coremltools.converters.xgboost",
    "coremltools.optimize._utils", "google.protobuf.json_format", "google.protobuf.text_format",
})  # fmt: skip
"""Modules that run when the first name is asked for, and then to their end."""


class Late(ModuleType):
    """A module of which statements are left to run."""

    def __getattr__(self, name: str) -> Any:
        known = self.__dict__
        if name in known["__bound__"]:
            self._run(name)
        elif not name.startswith("__"):
            # A submodule, as a rule: a package that has run has those that its statements import as attributes, too.
            with contextlib.suppress(ModuleNotFoundError):
                return importlib.import_module(f"{self.__name__}.{name}")
            self._run(name)
        if name in known:
            return known[name]
        raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")

    def _run(self, name: str) -> None:
        known = self.__dict__
        if known["__running__"]:
            return  # Asked by what it imports right now: the same as in any circular import, the name isn't there yet.
        rest: deque[CodeType] = known["__rest__"]
        to_end = known["__enough__"] and name not in known["__enough__"]
        known["__running__"] = True
        try:
            while rest and (to_end or name not in known):
                exec(rest[0], known)
                rest.popleft()
        finally:
            known["__running__"] = False
        if not rest:
            self.__class__ = ModuleType  # type: ignore[assignment]


class _Loader(importlib.abc.Loader):
    """Makes a Late of what a module's usual loader would run at once."""

    def __init__(self, usual: importlib.machinery.SourceFileLoader) -> None:
        self._usual = usual

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = Late(spec.name)
        module.__dict__["__bound__"] = ANY  # the import system looks around before exec_module
        return module

    def exec_module(self, module: ModuleType) -> None:
        import ast

        name, file = module.__name__, self._usual.get_filename()
        tree = ast.parse(self._usual.get_data(file), file)
        rest = [self._usual.get_code(name)]
        future = any(isinstance(s, ast.ImportFrom) and s.module == "__future__" for s in tree.body)
        if name in PARTLY and not future:
            rest = [compile(ast.Module([s], []), file, "exec", dont_inherit=True) for s in tree.body]
        known = {"__rest__": deque(rest), "__bound__": _bound(tree), "__enough__": PARTLY.get(name, ANY)}
        module.__dict__.update(known, __running__=False)


def _bound(tree: ast.AST) -> set[str]:
    """The names that a module's statements may define; some more, those that its functions use, do no harm."""
    import ast

    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            found.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
    return found


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in PARTLY and fullname not in WHOLE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        spec.loader = _Loader(spec.loader)
        return spec


def install() -> None:
    """From now on, the modules of PARTLY and WHOLE that this process imports for the first time are late."""
    if not any(isinstance(f, _Finder) for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
