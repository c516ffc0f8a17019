"""Brings a model to the one pinned opset, before any local function of ours exists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

import onnx
import onnx.defs
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir

from ...compiler.checks import RUNNABLE, is_known, unknown_operators
from ...compiler.cost.modules import SCOPES
from ...compiler.errors import Missing, ModelError

OLDEST = 7
IR_VERSION = 11


def opset_of(proto: onnx.ModelProto) -> int | None:
    """The opset of the standard domain that a model imports, or None."""
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)


def as_it_is(proto: onnx.ModelProto) -> ir.Model:
    """The model at its own opset, for onnxruntime to run: of a version in which initializers need not be inputs."""
    proto.ir_version = max(proto.ir_version, 8)
    return ir.from_proto(proto)


def to_pinned_opset(proto: onnx.ModelProto, opset: int) -> ir.Model:
    """The model at `opset`; `proto` holds no big weights.

    Raises ModelError when it is too old, too new or not convertible; UnsupportedOp, listing all operators that ONNX
    does not know.
    """
    versions = {o.domain if o.domain != "ai.onnx" else "": o.version for o in proto.opset_import}
    found = versions.get("")
    if found is None:
        if not versions and proto.ir_version < 3:
            found = 1
        else:
            found = opset
            proto.opset_import.add(domain="", version=opset)
    if found < OLDEST:
        raise ModelError(f"opset {found} is older than {OLDEST}; export again with opset_version={OLDEST} or newer")
    if found > onnx.defs.onnx_opset_version():
        raise ModelError(
            f"opset {found} is newer than what onnx {onnx.__version__} knows ({onnx.defs.onnx_opset_version()}); "
            "install a newer onnx, or export with an older opset_version"
        )
    if proto.functions and (found != opset or not _ours(proto)):
        proto = onnx.inliner.inline_local_functions(proto)
    if missing := list(_unknown(proto.graph, {(f.domain, f.name) for f in proto.functions})):
        raise unknown_operators(missing)
    if found != opset:
        proto = _convert(proto, found, opset)
    proto.ir_version = max(proto.ir_version, IR_VERSION)
    try:
        return ir.from_proto(proto)
    except Exception as e:
        raise ModelError(f"the graph is not valid: {_root(e)}") from e


def _ours(proto: onnx.ModelProto) -> bool:
    return all(f.domain == "edgec" for f in proto.functions)


def _root(error: BaseException) -> str:
    """What the innermost of chained errors says: onnx_ir wraps the reason in where it met it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of the graphs inside nodes included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from all_nodes(inner)


def _unknown(graph: onnx.GraphProto, functions: Set[tuple[str, str]]) -> Iterator[Missing]:
    """The operators that nothing here can run: onnx's converter dies of the first, naming no node."""
    for node in all_nodes(graph):
        if (node.domain, node.op_type) not in functions:
            if node.domain not in RUNNABLE:
                yield Missing(node.name, node.op_type, f"nobody knows the domain '{node.domain}'")
            elif not is_known(node.domain, node.op_type):
                yield Missing(node.name, node.op_type, "ONNX has no such operator")


def _convert(proto: onnx.ModelProto, found: int, opset: int) -> onnx.ModelProto:
    domains = [(o.domain, o.version) for o in proto.opset_import if o.domain not in ("", "ai.onnx")]
    names = {o.name for o in proto.graph.output}
    try:
        converted = onnx.version_converter.convert_version(proto, opset)
    except Exception as e:
        why = (str(e).strip() or type(e).__name__).splitlines()[-1]
        raise ModelError(f"can't be converted from opset {found} to {opset}: {why}") from e
    if {o.name for o in converted.graph.output} != names:
        raise ModelError(f"onnx's converter to opset {opset} renamed the outputs; export with a newer opset")
    _restore_domains(converted, domains)
    _restore_scopes(proto.graph, converted.graph)
    return converted


def _restore_scopes(graph: onnx.GraphProto, converted: onnx.GraphProto) -> None:
    """The converter drops what exporters note on nodes. Which module a node came from is wanted: it goes to whatever
    makes the node's first output now."""
    scopes = {n.output[0]: [p for p in n.metadata_props if p.key == SCOPES] for n in all_nodes(graph) if n.output}
    for node in all_nodes(converted):
        kept = scopes.get(node.output[0]) if node.output else None
        if kept and not node.metadata_props:
            node.metadata_props.extend(kept)


def _restore_domains(proto: onnx.ModelProto, domains: Iterable[tuple[str, int]]) -> None:
    have = {o.domain for o in proto.opset_import}
    for domain, version in domains:
        if domain not in have:
            proto.opset_import.add(domain=domain, version=version)
