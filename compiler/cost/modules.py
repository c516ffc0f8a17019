"""The module that a node came from: `encoder.layers.0.attn`, read off what the exporter wrote.

Sources, best first: the scopes that torch's exporter notes (`pkg.torch.onnx.name_scopes`); paths in node and value
names, as torch's older exporter and TensorFlow write them (`/encoder/layers.0/attn/MatMul`, `model/dense/MatMul`); the
names of weights (`layers.0.fc.weight`). A node that says nothing, such as one that a pass made, takes the path that its
neighbours have in common.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set

import onnx_ir as ir

from ..graph import is_const, subgraphs

Path = tuple[str, ...]

SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPERS = frozenset({"StatefulPartitionedCall", "PartitionedCall", "model_graph", "main_graph"})
"""Names in front of a path that TensorFlow and its converters add."""
_FUSED = frozenset({"Conv", "ConvTranspose"})
"""Operators that torch notes under the batch normalisation that it folded into them; their weights know better."""
_COUNTED = re.compile(r"__\d+$")
_LEARNED = frozenset({"weight", "bias", "kernel", "gamma", "beta", "scale", "running_mean", "running_var"})


def paths(graph: ir.Graph, outer: Path = ()) -> dict[ir.Node, Path]:
    """The module path of every node of `graph` and of the graphs inside it; () for the outermost module."""
    found: dict[ir.Node, Path | None] = {}
    inside: dict[ir.Node, Path] = {}
    values = {out.name for node in graph for out in node.outputs}
    for node in graph:
        found[node] = written(node, values)
    if any(found.values()):
        _inherit(graph, found)
    result = {node: outer + path if path else outer for node, path in found.items()}
    for node in graph:
        for inner in subgraphs(node):
            inside |= paths(inner, result[node])
    return result | inside


def written(node: ir.Node, values: Set[str | None] = frozenset()) -> Path | None:
    """The path that the model itself gives for a node; None where it says nothing.

    What stands before the last slash is no module where it is the name of one of `values`: the frontend for Core ML
    names the nodes that make a value `value/Relu`, and what is between them `value.Relu`.
    """
    scopes = node.metadata_props.get(SCOPES)
    if scopes and node.op_type in _FUSED and (owner := _of_weights(node)) is not None:
        return owner
    if scopes:
        # The list of enclosing scopes as Python writes it, the operator last: "['', 'blocks.0', 'matmul']".
        names = [name.strip("'\"") for name in scopes.strip("[]").split(", ")]
        return _split(names[-2]) if len(names) > 1 else ()
    for name in (node.name, node.outputs[0].name if node.outputs else None):
        if name and "/" in name:
            before, _, last = name.rpartition("/")
            if before not in values and f"{before}.{last}" not in values:
                return _of_name(name)
    return _of_weights(node)


def _split(dotted: str) -> Path:
    return tuple(dotted.split(".")) if dotted else ()


def _of_name(name: str) -> Path:
    """`/layer1/layer1.0/conv1/Conv` → ("layer1", "0", "conv1"): a part that repeats the one before it is shortened."""
    parts = [p for p in name.split("/")[:-1] if p]
    if parts and parts[0] in _WRAPPERS:
        parts = parts[1:]
    path: list[str] = []
    before = ""
    for part in parts:
        part = _COUNTED.sub("", part)
        path += (part.removeprefix(f"{before}.") if before else part).split(".")
        before = part
    return tuple(path)


def _of_weights(node: ir.Node) -> Path | None:
    for value in node.inputs:
        if value is not None and value.name and "." in value.name and is_const(value):
            module, _, last = value.name.rpartition(".")
            if last in _LEARNED:
                return _split(module)
    return None


def _inherit(graph: ir.Graph, found: dict[ir.Node, Path | None]) -> None:
    """Give nodes without a path what the nodes before and behind them have in common."""
    for node in graph:
        if found[node] is None:
            before = [found.get(p) for p in _producers(node)]
            behind = [found.get(u) for out in node.outputs for u, _ in out.uses()]
            known = [p for p in (*before, *behind) if p is not None]
            if known:
                found[node] = common(known)


def _producers(node: ir.Node) -> Iterable[ir.Node]:
    for value in node.inputs:
        maker = None if value is None else value.producer()
        if maker is not None:
            yield maker


def common(known: list[Path]) -> Path:
    """The longest path that all begin with."""
    low, high = min(known), max(known)
    same = 0
    while same < len(low) and low[same] == high[same]:
        same += 1
    return low[:same]
