"""A metric that is the user's own function: it sees the outputs of all samples, and all arrays of the data, at once.

Outputs are kept in memory up to `SPOOL` bytes, then in a file that is mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ModelError
from .spool import Spool

Arrays = Mapping[str, np.ndarray]

SPOOL = 1 << 28
"""Bytes of outputs that are held in memory; more lies in a temporary file."""


@dataclass
class Function:
    """The user's function of all outputs and all data."""

    name: str
    function: Callable[..., Any]
    data: Arrays
    held: int = 0
    spools: dict[str, Spool] = field(default_factory=dict)

    def add(self, outputs: Arrays, data: Arrays) -> None:
        """Keep the outputs of a run."""
        for name, array in outputs.items():
            self.spools.setdefault(name, Spool()).add(array)
            self.held += array.nbytes
        if self.held > SPOOL:
            for spool in self.spools.values():
                spool.to_disk()
            self.held = 0

    def result(self) -> float:
        """What the function says. Raises ModelError when it fails or gives no number."""
        outputs = {n: s.whole() for n, s in self.spools.items()}
        try:
            value = float(self.function(outputs, dict(self.data)))
        except (Exception, SystemExit) as e:
            # Somebody's code runs here: anything may happen.
            raise ModelError(f"metric '{self.name}' failed: {type(e).__name__}: {e}") from e
        finally:
            for spool in self.spools.values():
                spool.close()
        return value
