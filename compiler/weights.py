"""Weights stay on disk: tensors are mapped, and what a pass makes anew is spooled to a scratch file."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir

from .quantization.bits import pack_bits

SMALL = 1024
"""Bytes up to which a tensor is kept inline: shape inference and constant folding want to see small ones."""
SPOOL = 1 << 18
"""Bytes from which a new tensor is written to the scratch file. Below, the bookkeeping costs more than the memory."""


def release(model: ir.Model) -> None:
    """Give back the memory that mapped weights took up while they were read; they are read from disk again when needed.

    Pages of a mapped file count as the process's memory until it is short; a peak would be the sum of all states.
    """
    for value in model.graph.initializers.values():
        release_value(value)


def release_value(value: ir.Value) -> None:
    """Give back the memory of the file that a constant lies in."""
    if value.const_value is not None:
        release_tensor(value.const_value)


def release_tensor(tensor: ir.TensorProtocol) -> None:
    """Give back the memory of the file that a mapped tensor lies in."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.raw is not None and hasattr(mmap, "MADV_DONTNEED"):
        start = (tensor.offset or 0) // mmap.PAGESIZE * mmap.PAGESIZE
        tensor.raw.madvise(mmap.MADV_DONTNEED, start, (tensor.offset or 0) + tensor.nbytes - start)


class Deferred(ir.ExternalTensor):
    """A tensor of the scratch file whose numbers are worked out and written when somebody first asks where they lie.

    Attributes:
        make: what works them out.
    """

    def __init__(self, scratch: Scratch, make: Callable[[], np.ndarray], like: ir.TensorProtocol, name: str) -> None:
        """Its place is taken at once; type and shape are those of another tensor."""
        offset = scratch.reserve(like.nbytes)
        shape = ir.Shape(like.shape.numpy())
        super().__init__(FILE, offset, like.nbytes, like.dtype, shape=shape, name=name, base_dir=os.fspath(scratch.dir))
        self.make, self._scratch, self._writing, self._written = make, scratch, threading.Lock(), False

    @property
    def path(self) -> str:
        """The file, with the numbers in it."""
        self._write()
        return super().path

    @property
    def location(self) -> str | os.PathLike[str]:
        """The name of the file, with the numbers in it."""
        self._write()
        return super().location

    def _write(self) -> None:
        with self._writing:
            if not self._written:
                self._scratch.write(self.make(), self.offset or 0)
                self._written = True


FILE = "tensors.bin"
"""The scratch file."""
PREFIX, LOCK = ".edgec-", "in-use"
"""How scratch folders are called, and the file in them that whoever works there holds locked."""
_LOCKS: dict[Path, int] = {}
"""The descriptors of the locks that this process holds."""


def _sweep(parent: Path) -> None:
    """Remove the folders of processes that were killed: nobody holds their locks any more."""
    for folder in parent.glob(f"{PREFIX}*/{LOCK}"):
        try:
            with folder.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder.parent, ignore_errors=True)
        except OSError:  # In use, another user's, or another process was faster.
            continue


def _hold(folder: Path) -> None:
    """Lock a folder until the process ends; the lock gets its name when it is held, so that no other sees it open."""
    new = folder / "lock"
    lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / LOCK)
    _LOCKS[folder] = lock


def _remove(folder: Path, process: int) -> None:
    """Remove a folder, unless this is a fork of the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
        lock = _LOCKS.pop(folder, None)
        if lock is not None:
            os.close(lock)


class Scratch:
    """A folder for new tensors and temporary files, removed when closed. Nothing is made on disk until used.

    It is made inside `parent`; by default where the system keeps temporary files. Any thread may make tensors. What
    isn't closed goes with the process; what a killed process left, the next one removes.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._dir: Path | None = None
        self._size = 0
        self._lock = threading.Lock()
        self._remove: weakref.finalize | None = None  # type: ignore[type-arg]

    @property
    def dir(self) -> Path:
        """The folder."""
        with self._lock:
            if self._dir is None:
                _sweep(self._parent or Path(tempfile.gettempdir()))
                self._dir = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
                _hold(self._dir)
                # Not when this object goes: tensors may outlive it. At the end of the process, or when closed.
                self._remove = weakref.finalize(Scratch, _remove, self._dir, os.getpid())
            return self._dir

    def tensor(self, array: np.ndarray, name: str, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
        """A tensor that holds `array`: in memory when small, mapped from the scratch file when big.

        Raises OSError when the disk is full.
        """
        array = np.asarray(array, order="C")  # ascontiguousarray would make rank 0 rank 1
        kind, shape = dtype or ir.DataType.from_numpy(array.dtype), array.shape
        if kind.bitwidth < 8:  # As many bytes as it will be stored in; numpy has one for each element.
            if array.dtype.kind not in "iu":
                array = array.view(np.uint8)
            packed = pack_bits(array & ((1 << kind.bitwidth) - 1), kind.bitwidth)
            if packed.nbytes < SPOOL:
                return ir.PackedTensor(packed, kind, shape=shape, name=name)
            array = packed
        if array.nbytes < SPOOL:
            return ir.Tensor(array, dtype=kind, name=name)
        offset = self.reserve(array.nbytes)
        self.write(array, offset)
        return ir.ExternalTensor(
            FILE, offset, array.nbytes, kind, shape=ir.Shape(shape), name=name, base_dir=os.fspath(self.dir)
        )

    def reserve(self, size: int) -> int:
        """Where in the scratch file the next so many bytes may lie. Nothing is written yet."""
        with self._lock:
            offset = -(-self._size // 64) * 64
            self._size = offset + size
        return offset

    def write(self, array: np.ndarray, offset: int) -> None:
        """Write a contiguous array to its place. Raises OSError when the disk is full."""
        path = self.dir / FILE
        path.touch()
        with path.open("r+b") as f:
            f.seek(offset)
            f.write(array.reshape(-1).view(np.uint8).data)  # `tofile` would not say why it can't.

    def close(self) -> None:
        """Remove the folder."""
        if self._remove is not None:
            self._remove()
            self._remove, self._dir, self._size = None, None, 0

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
