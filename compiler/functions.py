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
    # With alpha = 1 only: a factor in the body would cost nodes and save none.
    "Swish": "(x) => (y) { s = Sigmoid(x) y = Mul(x, s) }",
}


def declare(model: ir.Model, name: str) -> None:
    """Make the function `edgec::name` known in `model`, once. Raises KeyError when there is no such function."""
    key = (DOMAIN, name, "")
    if key not in model.functions:
        text = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]> {name} {BODIES[name]}'
        model.functions[key] = ir.serde.deserialize_function(onnx.parser.parse_function(text))
    model.graph.opset_imports.setdefault(DOMAIN, 1)
