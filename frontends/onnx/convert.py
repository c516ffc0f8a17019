"""Brings a model to the one pinned opset, before any local function of ours exists."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir

from ...compiler.errors import ModelError

OLDEST = 7
IR_VERSION = 11


def to_pinned_opset(proto: onnx.ModelProto, opset: int) -> ir.Model:
    """The model at `opset`; `proto` holds no big weights. Raises ModelError when too old or not convertible."""
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
    if proto.functions and (found != opset or not _ours(proto)):
        proto = onnx.inliner.inline_local_functions(proto)
    if found != opset:
        proto = _convert(proto, found, opset)
    proto.ir_version = max(proto.ir_version, IR_VERSION)
    try:
        return ir.from_proto(proto)
    except Exception as e:
        raise ModelError(f"the graph is not valid: {str(e).splitlines()[0]}") from e


def _ours(proto: onnx.ModelProto) -> bool:
    return all(f.domain == "edgec" for f in proto.functions)


def _convert(proto: onnx.ModelProto, found: int, opset: int) -> onnx.ModelProto:
    domains = [(o.domain, o.version) for o in proto.opset_import if o.domain not in ("", "ai.onnx")]
    names = {o.name for o in proto.graph.output}
    try:
        converted = onnx.version_converter.convert_version(proto, opset)
    except Exception as e:
        raise ModelError(f"can't be converted from opset {found} to {opset}: {str(e).strip().splitlines()[-1]}") from e
    if {o.name for o in converted.graph.output} != names:
        raise ModelError(f"onnx's converter to opset {opset} renamed the outputs; export with a newer opset")
    _restore_domains(converted, domains)
    return converted


def _restore_domains(proto: onnx.ModelProto, domains: Iterable[tuple[str, int]]) -> None:
    have = {o.domain for o in proto.opset_import}
    for domain, version in domains:
        if domain not in have:
            proto.opset_import.add(domain=domain, version=version)
