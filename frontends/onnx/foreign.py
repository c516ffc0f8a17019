"""Operators that nobody knows, kept in a model that is only looked at.

onnx's converter and its shape inference die of an operator in a domain that they don't know, but leave those of
onnxruntime's own domain alone: there the foreign ones wait until both are done.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from ...compiler.checks import is_known
from ...compiler.graph import graphs
from .convert import all_nodes

_QUIET = "com.microsoft"

Disguised = dict[str, tuple[str, str]]
"""First output of a node → the domain and the operator that it has in truth."""


def disguise(proto: onnx.ModelProto) -> Disguised:
    """Rename all unknown operators in place; nodes are told apart by their first output."""
    functions = {(f.domain, f.name) for f in proto.functions}
    found: Disguised = {}
    for node in all_nodes(proto.graph):
        if (node.domain, node.op_type) not in functions and not is_known(node.domain, node.op_type):
            name = next((o for o in node.output if o), None)
            if name is not None:
                found[name] = node.domain, node.op_type
                node.domain, node.op_type = _QUIET, f"Unknown{node.op_type}"
    if found and all(o.domain != _QUIET for o in proto.opset_import):
        proto.opset_import.add(domain=_QUIET, version=1)
    return found


def reveal(model: ir.Model, disguised: Disguised) -> None:
    """Give the operators their own names again, in place."""
    for node in (n for graph in graphs(model) for n in graph) if disguised else ():
        name = next((o.name for o in node.outputs if o.name), "")
        if node.domain == _QUIET and name in disguised:
            node.domain, node.op_type = disguised[name]
            model.opset_imports.setdefault(node.domain, 1)
