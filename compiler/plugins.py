"""Finding passes, frontends and backends: entry points (for built-ins, too), `module:attr`, `./file.py:attr`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from .backend import Backend
from .errors import UsageError
from .passbase import Pass, Spec, build, parse_spec, split_specs

PASSES, FRONTENDS, BACKENDS = "edgec.passes", "edgec.frontends", "edgec.backends"


@cache
def entries(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """Name → entry point, sorted by name. Raises UsageError when two packages claim one name."""
    found: dict[str, importlib.metadata.EntryPoint] = {}
    for e in importlib.metadata.entry_points(group=group):
        other = found.setdefault(e.name, e)
        if other.value != e.value:
            raise UsageError(
                f"two packages register '{e.name}' in {group}: {other.value} and {e.value}. Uninstall one of them."
            )
    return dict(sorted(found.items()))


def find_pass(spec: str | Spec) -> Pass:
    """The pass that a spec names. Raises UsageError for an unknown pass or option."""
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    cls = _attribute(spec.name) if ":" in spec.name else _registered(PASSES, spec.name, "pass", "edgec passes")
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        raise UsageError(f"'{spec.name}' is not a pass: it must be a subclass of edgec.Pass")
    if not isinstance(getattr(cls, "name", None), str):
        raise UsageError(f"'{spec.name}' has no name; give it one: name: ClassVar[str] = \"…\"")
    return build(cls, spec)


def find_function(path: str) -> Any:
    """What `pkg.mod:name` or `./file.py:name` names. Raises UsageError."""
    return _attribute(path)


def find_passes(text: str) -> list[Pass]:
    """The passes of a comma-separated list of specs."""
    return [find_pass(s) for s in split_specs(text)]


def find_backend(name: str) -> Backend:
    """The backend of that name."""
    return _registered(BACKENDS, name, "backend", "edgec targets")  # type: ignore[no-any-return]


def find_frontend(source: Any) -> Callable[[Any], Any]:
    """The `load` function for a path (by suffix) or an object (by the top-level module of its class).

    Raises UsageError, listing what can be loaded.
    """
    return entries(FRONTENDS)[check_loadable(source)].load()  # type: ignore[no-any-return]


def check_loadable(source: Any) -> str:
    """The name of the frontend for `source`; nothing is imported. Raises UsageError, listing what can be loaded."""
    known = entries(FRONTENDS)
    if isinstance(source, str | Path):
        key = Path(source).suffix.lower()
    else:
        key = next((m for c in type(source).__mro__ if (m := c.__module__.partition(".")[0]) in known), "")
    if key not in known:
        what = f"'{source}'" if isinstance(source, str | Path) else f"an object of type {type(source).__name__}"
        raise UsageError(f"don't know how to load {what}. Known: {', '.join(known)}")
    return key


def _registered(group: str, name: str, what: str, where: str) -> Any:
    entry = entries(group).get(name)
    if entry is None:
        close = _closest(name, list(entries(group)))
        hint = f" Did you mean '{close}'?" if close else ""
        raise UsageError(f"unknown {what} '{name}'.{hint} `{where}` lists them.")
    try:
        return entry.load()
    except (Exception, SystemExit) as e:
        raise UsageError(f"{what} '{name}' ({entry.value}) can't be loaded: {_said(e)}") from e


def _attribute(path: str) -> Any:
    """The attribute that `pkg.mod:attr` or `./file.py:attr` names."""
    where, _, name = path.rpartition(":")
    try:
        module = _file_module(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except UsageError:
        raise
    except (Exception, SystemExit) as e:
        # Somebody's file runs here: anything may happen.
        raise UsageError(f"can't load '{path}': {_said(e)}") from e
    if not hasattr(module, name):
        raise UsageError(f"can't load '{path}': {where} has no '{name}'")
    return getattr(module, name)


def _said(error: BaseException) -> str:
    """What an error says; with its kind, where that says more."""
    return str(error) if isinstance(error, (ImportError, OSError, SyntaxError)) else f"{type(error).__name__}: {error}"


_VERSION = "__edgec_version__"
"""Where a user's module holds which version of its file it is: who works in a notebook changes it between two calls."""


def _file_module(path: Path) -> Any:
    if not path.is_file():
        raise UsageError(f"no such file: {path}")
    name = f"edgec_user_{path.stem}_{abs(hash(path.resolve())):x}"
    version = (path.stat().st_mtime_ns, path.stat().st_size)
    if name in sys.modules and getattr(sys.modules[name], _VERSION) == version:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    setattr(module, _VERSION, version)
    # Dataclasses look their module up by name while the class is made.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _closest(name: str, names: list[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(name, names, 1)), None)
