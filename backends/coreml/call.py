"""A node while it is lowered: what a lowering function sees of the model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnx_ir as ir

from .build import F16, F32, I32, TINY, Slot, Var
from .constants import INLINE, Affine, Constant, of_array, to_int32
from .unlowered import Unlowered

if TYPE_CHECKING:
    from .lower import Lowering
    from .packed import Packed


def only_rounded(value: ir.Value) -> bool:
    """Whether nobody sees `value` before it is rounded to float16."""
    if value.is_graph_output():
        return False
    users = [node for node, _ in value.uses()]
    return all(n.op_type == "Cast" and n.attributes["to"].value == ir.DataType.FLOAT16 for n in users)


class Call:
    """One node: inputs as MIL variables in the node's precision, attributes, and the operators to lower it with."""

    def __init__(self, lowering: Lowering, node: ir.Node, half: bool) -> None:
        self._lowering = lowering
        self.node = node
        self.builder = lowering.builder
        self.version = lowering.builder.version
        self.half = half
        self.dtype = F16 if half else F32

    def missing(self, why: str) -> NoReturn:
        """This node can't be expressed."""
        raise Unlowered(why)

    # Attributes and inputs

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute's value or the default."""
        found = self.node.attributes.get(name)
        return default if found is None or found.value is None else found.value

    def value(self, i: int) -> ir.Value | None:
        """The ONNX value of input `i`, None when it is left out."""
        return self.node.inputs[i] if i < len(self.node.inputs) else None

    def has(self, i: int) -> bool:
        """Whether input `i` is given."""
        return self.value(i) is not None

    def shape(self, i: int = 0) -> tuple[int, ...]:
        """The shape of input `i`."""
        return self._lowering.shape(self._required(i))

    def out_shape(self, i: int = 0) -> tuple[int, ...]:
        """The shape of output `i`."""
        return self._lowering.shape(self.node.outputs[i])

    def rank(self, i: int = 0) -> int:
        """The rank of input `i`."""
        return len(self.shape(i))

    def axis(self, default: int | None = None, name: str = "axis", i: int = 0) -> int:
        """The attribute `axis`, counted from the front, of input `i`."""
        axis = int(self.attr(name, default))
        return axis + self.rank(i) if axis < 0 else axis

    def kind(self, i: int = 0) -> ir.DataType:
        """ONNX's element type of input `i`."""
        dtype = self._required(i).dtype
        assert dtype is not None
        return dtype

    def is_float_node(self) -> bool:
        """Whether input 0 is of a float type."""
        return self.kind() in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)

    def used(self, i: int) -> bool:
        """Whether output `i` exists and somebody reads it."""
        if i >= len(self.node.outputs) or not self.node.outputs[i].name:
            return False
        out = self.node.outputs[i]
        return bool(out.uses()) or out.is_graph_output()

    def x(self, i: int = 0) -> Var:
        """Input `i` as a variable; floats in the node's precision."""
        return self._lowering.var(self._required(i), self.dtype)

    def transposed(self, i: int) -> Var | None:
        """The constant matrix that input `i` is the transpose of, so that tied weights are stored once; or None."""
        node = self._required(i).producer()
        if node is None or node.op_type != "Transpose" or len(node.outputs[0].shape or ()) != 2:
            return None
        perm, source = node.attributes.get("perm"), node.inputs[0]
        if source is None or (perm is not None and tuple(perm.value) != (1, 0)):
            return None
        slot = self._lowering.slot(source)
        return None if slot.constant is None and slot.affine is None else self._lowering.var(source, self.dtype)

    def native(self, i: int = 0) -> Var:
        """Input `i` as a variable, a float in whichever precision it is there."""
        value = self._required(i)
        return self._lowering.var(value, F16 if self._lowering.rounded(value) else F32)

    def slot(self, i: int = 0) -> Slot:
        """What holds input `i`, in all its forms."""
        return self._lowering.slot(self._required(i))

    def same(self, i: int = 0) -> Slot:
        """Input `i` unchanged, as an output."""
        return self.slot(i)

    def opt(self, i: int) -> Var | None:
        """Input `i` as a variable, or None when it is left out."""
        return self.x(i) if self.has(i) else None

    def all(self) -> list[Var]:
        """All inputs."""
        return [self.x(i) for i in range(len(self.node.inputs))]

    def is_const(self, i: int) -> bool:
        """Whether input `i` is given and constant."""
        value = self.value(i)
        return value is not None and self._lowering.constant(value) is not None

    def const(self, i: int) -> Constant:
        """Input `i` as a constant that a weight of the operator may be made of."""
        found = self._lowering.constant(self._required(i))
        if found is None:
            self.missing(f"input '{self._required(i).name}' must be constant")
        return found

    def array(self, i: int) -> np.ndarray:
        """The numbers of constant input `i`."""
        return self.const(i).numpy()

    def ints(self, i: int, default: Sequence[int] | None = None) -> list[int]:
        """The integers of constant input `i`; the default when it is left out."""
        if not self.has(i) and default is not None:
            return list(default)
        return [int(n) for n in self.array(i).reshape(-1)]

    def number(self, i: int, default: float | None = None) -> float:
        """The number in constant input `i`."""
        if not self.has(i) and default is not None:
            return default
        array = self.array(i)
        if array.size != 1:
            self.missing(f"input '{self._required(i).name}' must hold one number")
        return float(array.reshape(()))

    def _required(self, i: int) -> ir.Value:
        value = self.value(i)
        if value is None:
            self.missing(f"input {i} is left out")
        return value

    # Making operators

    def op(self, name: str, /, **inputs: Any) -> Any:
        """Add a MIL operator. Python floats become constants of the node's precision."""
        return self.builder.op(name, **{k: self._number(v) for k, v in inputs.items()})

    def _number(self, value: Any) -> Any:
        if isinstance(value, float):
            return self.f(value)
        return value

    def f(self, value: float) -> Any:
        """A number in the node's precision."""
        with np.errstate(over="ignore"):
            return self.dtype.type(value)

    def eps(self, value: float) -> Any:
        """An epsilon in the node's precision. One that float16 can't hold becomes the least it can, with a warning."""
        if self.half and 0 < value < TINY:
            where = f"{self.node.op_type} '{self.node.name}'"
            self.builder.warnings.append(f"{where}: epsilon {value:g} is below float16's range; {TINY:.2g} is used")
            return F16.type(TINY)
        return self.f(value)

    def like(self, var: Var, value: float) -> Any:
        """A number in the element type of `var`."""
        return self.builder.dtype(var).type(value)

    def tensor(self, array: Any, dtype: Any = None) -> Var:
        """A constant array; floats in the node's precision, integers as int32."""
        array = np.asarray(array)
        if dtype is not None:
            array = array.astype(dtype)
        elif array.dtype.kind == "f":
            array = array.astype(self.dtype)
        elif array.dtype.kind in "iu":
            array = to_int32(array)
        return self.builder.constant(of_array(array, array.tobytes()))

    def weight(self, constant: Constant, dtype: Any = None) -> Var:
        """A variable for a constant; floats in the node's precision."""
        if dtype is None:
            dtype = self.dtype if constant.dtype.kind == "f" else constant.dtype
            dtype = I32 if dtype.kind in "iu" else dtype
        return self.builder.constant(constant, np.dtype(dtype))

    def packed(self, weight: Affine | Packed) -> Var:
        """A variable for a packed weight, in the node's precision."""
        return self._lowering.affine(Slot(affine=weight), self.dtype, self.node.name)

    def as_float(self, i: int) -> Var:
        """Integer input `i` as float32."""
        slot = self.slot(i)
        if slot.full is not None:
            return slot.full
        if slot.constant is not None:
            return self.builder.constant(slot.constant, F32)
        return self.cast(self.x(i), F32)

    def bytes_as_float(self, i: int) -> Var | None:
        """A big constant of 8-bit integers as whole float32 numbers, packed where the target can; else None."""
        constant = self.slot(i).constant
        if constant is None or constant.dtype.name not in ("int8", "uint8") or constant.size <= INLINE:
            return None
        if self.version < 16:
            return self.builder.constant(constant, F32)
        one = of_array(np.ones((), np.float32), "one")
        return self.builder.affine(Affine(constant, one, None, 0, 0, 8), F32, self._required(i).name)

    def as_float32(self, i: int) -> Var:
        """Float input `i` in float32, whatever the node's precision."""
        return self._lowering.var(self._required(i), F32)

    def inner_block(self) -> AbstractContextManager[None]:
        """While inside, what is made for the block stays in the block."""
        return self._lowering.inner_block()

    def bind(self, slots: dict[ir.Value, Slot]) -> None:
        """Say what holds these values: the inputs of a body that is lowered in place."""
        self._lowering.bind(slots)

    def static(self, value: ir.Value) -> tuple[int, ...]:
        """The fixed shape of any value of the graph."""
        return self._lowering.shape(value)

    def as_var(self, i: int) -> Var:
        """Input `i` as a variable, floats in float32."""
        return self._lowering.var(self._required(i), F32)

    def slot_of(self, var: Var) -> Slot:
        """A slot that holds a variable."""
        dtype = self.builder.dtype(var)
        return Slot(half=var) if dtype == F16 else Slot(full=var) if dtype == F32 else Slot(other=var)

    def var(self, value: ir.Value, dtype: np.dtype[Any]) -> Var:
        """A variable for any value of the graph; a float one of type `dtype`."""
        return self._lowering.var(value, dtype)

    def inline(self, graph: ir.Graph) -> list[Slot]:
        """Lower the nodes of a subgraph here; what holds its outputs."""
        return self._lowering.inline(graph)

    def cast(self, var: Var, dtype: Any) -> Var:
        """The variable in another element type."""
        return self.builder.cast(var, np.dtype(dtype))

    def reshape(self, var: Var, shape: Sequence[int]) -> Var:
        """The variable in another shape, itself when it already has it."""
        old = tuple(int(d) for d in var.shape)
        if old == tuple(shape):
            return var
        if not shape:
            return self.op("squeeze", x=var, axes=np.arange(len(old), dtype=np.int32))
        if not old:
            return self.op("expand_dims", x=var, axes=np.arange(len(shape), dtype=np.int32))
        return self.op("reshape", x=var, shape=np.array(shape, np.int32))

    def transpose(self, var: Var, perm: Sequence[int]) -> Var:
        """The variable with its axes permuted, itself when the permutation does nothing."""
        if list(perm) == sorted(perm):
            return var
        return self.op("transpose", x=var, perm=np.array(perm, np.int32))
