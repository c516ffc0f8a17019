"""Model-local functions of the domain `edgec`: operators that onnxruntime lacks, with bodies of standard operators.

onnxruntime runs the body. A backend recognises the name; where the standard has an operator of that name, inputs and
attributes are the same.
"""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

from .targets import OPSET

DOMAIN = "edgec"
BODIES = {
    # ONNX has Swish from opset 24, but onnxruntime 1.32 finds its body only in models of exactly that opset.
    "Swish": "<alpha: float = 1.0> (x) => (y) { a = Constant<value_float: float = @alpha>() c = CastLike(a, x) "
    "z = Mul(x, c) s = Sigmoid(z) y = Mul(x, s) }",
}


def declare(model: ir.Model, name: str) -> None:
    """Make the function `edgec::name` known in `model`, once. Raises KeyError when there is no such function."""
    key = (DOMAIN, name, "")
    if key not in model.functions:
        text = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]> {name} {BODIES[name]}'
        model.functions[key] = ir.serde.deserialize_function(onnx.parser.parse_function(text))
    model.graph.opset_imports.setdefault(DOMAIN, 1)
