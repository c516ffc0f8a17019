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
from typing import Any

CO_FUTURE = annotations.compiler_flag
"""Set in the code of a module that says `from __future__ import annotations`, which holds for all of its statements."""

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
            return  # Asked by what it imports right now: as in any circular import, the name isn't there yet.
        if known["__rest__"] is None:
            known["__rest__"] = deque(_statements(self.__name__, known["__usual__"]))
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
        name = module.__name__
        module.__dict__.update(
            __bound__=_bound(self._usual.get_code(name)), __enough__=PARTLY.get(name, ANY), __rest__=None,
            __running__=False, __usual__=self._usual,
        )  # fmt: skip


def _bound(code: CodeType | None) -> set[str]:
    """The names that a module's statements define."""
    import dis

    assert code is not None
    return {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_NAME", "STORE_GLOBAL")}


def _statements(name: str, usual: importlib.machinery.SourceFileLoader) -> list[CodeType]:
    """The module's code, a statement each where that is possible."""
    import ast

    code, file = usual.get_code(name), usual.get_filename(name)
    assert code is not None
    if name not in PARTLY or code.co_flags & CO_FUTURE:
        return [code]
    tree = ast.parse(usual.get_data(file), file)
    return [compile(ast.Module([s], []), file, "exec", dont_inherit=True) for s in tree.body]


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
