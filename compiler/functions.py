"""Model-local functions of the domain `edgec`: operators that onnxruntime lacks, with bodies of standard operators.

onnxruntime runs the body. A backend recognises the name; where the standard has an operator of that name, inputs and
attributes are the same.

The others say how a weight is stored. All that they read are constants; docs/storage.md has the layouts.

`UnpackBits<bits, shape, low = 0, to = UINT8>(bytes)`
    Integers of `shape` out of UINT8 bytes that hold `bits` (1, 2, 3, 4 or 6) bits of each, one after the other, the
    lowest bits of a byte first. `low` is added; `to` is INT8 or UINT8.
`LookupWeight<shape, axis = 0, group = 0, vector_axis = 0, to = FLOAT>(indices, tables)`
    Entries of tables [groups, entries, vector], for indices of any integer type. `group` indices along `axis` share a
    table, the last group may be smaller; 0: there is one table. An index stands for `vector` neighbours along
    `vector_axis` of the result, which has `shape`.
`ScaleWeight<axis = 0, block = 1>(values, scale)`, `ShiftScaleWeight<axis = 0, block = 1>(values, scale, zero)`
    scale · values and scale · (values - zero). Scale and zero have the rank of the values: along `axis` an element for
    every `block` of them, the last block may be smaller; along the others one for each or one for all. What
    DequantizeLinear has no form for: tables with scales, blocks along one axis of a convolution's weight.
`SparseWeight<shape, to = FLOAT>(mask, values)`
    The values, in order, where the mask (UINT8 bytes, a bit an element as in UnpackBits) is set, zeros elsewhere.
`MaskWeight<shape>(mask, values)`
    Zeros where such a mask is not set, the dense values elsewhere: what is looked up or scaled by its place.
"""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

from .targets import OPSET

DOMAIN = "edgec"

_FLAGS = """
  shifts = Constant <value = uint8[8] {0, 1, 2, 3, 4, 5, 6, 7}> ()
  bit = Constant <value = uint8 {1}> ()
  last = Constant <value_ints = [1]> ()
  column = Unsqueeze (mask, last)
  shifted = BitShift <direction = "RIGHT"> (column, shifts)
  bits = BitwiseAnd (shifted, bit)
  line = Reshape (bits, flat)
  count = ReduceProd (size)
  flags = Slice (line, first, count)
"""
"""A bit of the mask for each element of `size`."""

_SPREAD = """
  one = Constant <value_int = 1> ()
  nothing = Constant <value_int = 0> ()
  along = Constant <value_int: int = @axis> ()
  each = Constant <value_int: int = @block> ()
  real = Cast <to = 1> (values)
  dims = Shape (real)
  length = Gather (dims, along)
  steps = Range (nothing, length, one)
  places = Div (steps, each)
  factors = Cast <to = 1> (scale)
  spread = Gather <axis: int = @axis> (factors, places)
"""
"""The scale of each element, and the values as float."""

# onnxruntime has no Shape of types of less than a byte: they are cast first.
BODIES = {
    # ONNX has Swish from opset 24, but onnxruntime 1.32 finds its body only in models of exactly that opset.
    # With alpha = 1 only: a factor in the body would cost nodes and save none.
    "Swish": "(x) => (y) { s = Sigmoid(x) y = Mul(x, s) }",
    # Three bytes hold a whole number of integers of each of the widths.
    "UnpackBits": """<bits, shape, low: int = 0, to: int = 2> (bytes) => (values) {
  width = Constant <value_int: int = @bits> ()
  size = Constant <value_ints: ints = @shape> ()
  least = Constant <value_int: int = @low> ()
  first = Constant <value_ints = [0]> ()
  flat = Constant <value_ints = [-1]> ()
  nothing = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  two = Constant <value_int = 2> ()
  three = Constant <value_ints = [3]> ()
  triples = Constant <value_ints = [-1, 3]> ()
  eight = Constant <value = uint32 {8}> ()
  sixteen = Constant <value = uint32 {16}> ()
  word = Constant <value_int = 24> ()
  stored = Shape (bytes)
  negative = Neg (stored)
  short = Mod (negative, three)
  pads = Concat <axis = 0> (first, short)
  padded = Pad (bytes, pads)
  rows = Reshape (padded, triples)
  wide = Cast <to = 12> (rows)
  a, b, c = Split <axis = 1, num_outputs = 3> (wide)
  b8 = BitShift <direction = "LEFT"> (b, eight)
  c16 = BitShift <direction = "LEFT"> (c, sixteen)
  ab = BitwiseOr (a, b8)
  abc = BitwiseOr (ab, c16)
  steps = Range (nothing, word, width)
  shifts = Cast <to = 12> (steps)
  power = Pow (two, width)
  top = Sub (power, one)
  mask = Cast <to = 12> (top)
  shifted = BitShift <direction = "RIGHT"> (abc, shifts)
  kept = BitwiseAnd (shifted, mask)
  line = Reshape (kept, flat)
  count = ReduceProd (size)
  cut = Slice (line, first, count)
  shaped = Reshape (cut, size)
  signed = Cast <to = 6> (shaped)
  least32 = Cast <to = 6> (least)
  moved = Add (signed, least32)
  values = Cast <to: int = @to> (moved)
}""",
    "LookupWeight": """<shape, axis: int = 0, group: int = 0, vector_axis: int = 0, to: int = 1>
    (indices, tables) => (weight) {
  size = Constant <value_ints: ints = @shape> ()
  along = Constant <value_int: int = @axis> ()
  share = Constant <value_int: int = @group> ()
  fill = Constant <value_int: int = @vector_axis> ()
  first = Constant <value_ints = [0]> ()
  flat = Constant <value_ints = [-1]> ()
  unit = Constant <value_ints = [1]> ()
  column = Constant <value_ints = [-1, 1]> ()
  nothing = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  entries = Shape <start = 1, end = 2> (tables)
  length = Shape <start = 2, end = 3> (tables)
  whole = Cast <to = 6> (indices)
  dims = Shape (whole)
  upto = Reshape (along, unit)
  above = Slice (dims, first, upto)
  above1 = Concat <axis = 0> (unit, above)
  outer = ReduceProd (above1)
  lanes = Gather (dims, upto)
  parts = Concat <axis = 0> (outer, lanes, flat)
  lined = Reshape (whole, parts)
  lane = Squeeze (lanes)
  single = Equal (share, nothing)
  each = Where (single, lane, share)
  numbers = Range (nothing, lane, one)
  groups = Div (numbers, each)
  starts = Mul (groups, entries)
  starts32 = Cast <to = 6> (starts)
  offsets = Reshape (starts32, column)
  places = Add (lined, offsets)
  points = Cast <to: int = @to> (tables)
  rows = Concat <axis = 0> (flat, length)
  listed = Reshape (points, rows)
  found = Gather (listed, places)
  after = Add (fill, one)
  until = Reshape (after, unit)
  front = Slice (dims, first, until)
  front1 = Concat <axis = 0> (unit, front)
  head = ReduceProd (front1)
  split = Concat <axis = 0> (head, flat, length)
  vectors = Reshape (found, split)
  turned = Transpose <perm = [0, 2, 1]> (vectors)
  weight = Reshape (turned, size)
}""",
    "ScaleWeight": f"""<axis: int = 0, block: int = 1> (values, scale) => (weight) {{ {_SPREAD}
  weight = Mul (real, spread)
}}""",
    "ShiftScaleWeight": f"""<axis: int = 0, block: int = 1> (values, scale, zero) => (weight) {{ {_SPREAD}
  origin = Cast <to = 1> (zero)
  offsets = Gather <axis: int = @axis> (origin, places)
  moved = Sub (real, offsets)
  weight = Mul (moved, spread)
}}""",
    "SparseWeight": f"""<shape, to: int = 1> (mask, values) => (weight) {{
  size = Constant <value_ints: ints = @shape> ()
  first = Constant <value_ints = [0]> ()
  flat = Constant <value_ints = [-1]> () {_FLAGS}
  found = NonZero (flags)
  places = Reshape (found, flat)
  blank = ConstantOfShape (count)
  zeros = Cast <to: int = @to> (blank)
  typed = Cast <to: int = @to> (values)
  filled = ScatterElements (zeros, places, typed)
  weight = Reshape (filled, size)
}}""",
    "MaskWeight": f"""<shape> (mask, values) => (weight) {{
  size = Constant <value_ints: ints = @shape> ()
  first = Constant <value_ints = [0]> ()
  flat = Constant <value_ints = [-1]> () {_FLAGS}
  set = Cast <to = 9> (flags)
  shaped = Reshape (set, size)
  zero = Constant <value_float = 0.0> ()
  weight = Where (shaped, values, zero)
}}""",
}

DECODERS = frozenset(BODIES) - {"Swish"}
"""The functions that make a weight out of what is stored."""


def function(name: str) -> ir.Function:
    """The function `edgec::name`. Raises KeyError when there is no such function."""
    text = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]> {name} {BODIES[name]}'
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def declare(model: ir.Model, name: str) -> None:
    """Make the function `edgec::name` known in `model`, once. Raises KeyError when there is no such function."""
    key = (DOMAIN, name, "")
    if key not in model.functions:
        model.functions[key] = function(name)
    model.graph.opset_imports.setdefault(DOMAIN, 1)
