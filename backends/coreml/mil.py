"""coremltools, imported late, quietly, and in the command-line process without the frameworks it looks for."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from ...compiler import process
from ...compiler.errors import EdgecError

_FRAMEWORKS = frozenset({"torch", "torchvision", "sklearn", "tensorflow", "xgboost", "keras", "libsvm", "executorch"})

_BUILDER = "coremltools.converters.mil.mil"
_PROGRAM = "coremltools.converters.mil.mil.program"
_TARGETS = "coremltools.converters.mil._deployment_compatibility"
_PARTS = (_BUILDER, _PROGRAM, _TARGETS)
"""What the lowering uses. Imported along with coremltools: in the command line that alone imports next to nothing."""


class _Absent(importlib.abc.MetaPathFinder):
    """Makes the frameworks look uninstalled, while coremltools is imported."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname.partition(".")[0] in _FRAMEWORKS:
            raise ModuleNotFoundError(f"{fullname} is kept out of this process", name=fullname)


@cache
def import_coremltools(light: bool | None = None) -> Any:
    """coremltools. `light` keeps torch and its like out (0.5 s and 0.1 GB instead of 4 s and 0.75 GB).

    After a light import coremltools can't convert torch models in this process any more, so it is the default only
    in edgec's command line, and frameworks that are already loaded are left alone.
    Raises EdgecError if coremltools is not installed.
    """
    light = process.command_line if light is None else light
    finder = _Absent()
    level = logging.root.manager.disable
    # coremltools warns eight times about libraries that exist on a Mac only.
    logging.disable(logging.CRITICAL)
    if light:
        sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings(), process.undisturbed():
            warnings.simplefilter("ignore")
            found = importlib.import_module("coremltools")
            for name in _PARTS:
                importlib.import_module(name)
            return found
    except ModuleNotFoundError as e:
        raise EdgecError(f"the Core ML backend needs coremltools: pip install 'coremltools>=9.0' ({e})") from e
    finally:
        logging.disable(level)
        if light:
            sys.meta_path.remove(finder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without coremltools' warnings: what they say is either reported as missing or handled."""
    logger = logging.getLogger("coremltools")
    was, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = was


class Mil:
    """What the lowering uses of coremltools: the builder, its types, its program and block classes."""

    def __init__(self) -> None:
        import_coremltools()
        core = sys.modules[_BUILDER]
        self.mb = core.Builder
        self.types = core.types
        self.Function = core.Function
        self.Var = core.Var
        self.Placeholder = sys.modules[_PROGRAM].Placeholder
        self._targets = sys.modules[_TARGETS].AvailableTarget

    def opset(self, version: int) -> Any:
        """The builder's opset of an iOS version."""
        return getattr(self._targets, f"iOS{version}")


@cache
def mil() -> Mil:
    """The one Mil of this process."""
    return Mil()
