"""Writes frontends/coreml/signatures.json: the inputs of every MIL operator in every opset, from coremltools' registry.

Run it after an upgrade of coremltools:  python tools/mil_signatures.py

The file lets the reader check a program without importing coremltools. Per operator a list of versions, oldest first:
`since` is the opset (5 for CoreML5, iOS 15) that introduced the version; per input `required`, `const` (must be known
when the program is compiled), `many` (takes a list), `types` (allowed element types; null for any) and `domain` (inputs
of one domain share one type).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "frontends" / "coreml" / "signatures.json"
_OPSETS = {"iOS13": 5, "iOS14": 5, "iOS15": 5, "iOS16": 6, "iOS17": 7, "iOS18": 8, "iOS26": 9}
_NAMES = {"str": "string"}


def signatures() -> dict[str, list[dict[str, Any]]]:
    """The table, from the coremltools that is installed."""
    import coremltools  # noqa: F401  registers the operators
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    table: dict[str, list[dict[str, Any]]] = {}
    for kind, versions in sorted(SSAOpRegistry.core_ops.items()):
        if kind.startswith("_"):
            continue
        rows: list[dict[str, Any]] = []
        for target, op_class in sorted(versions.items(), key=lambda item: item[0].value):
            row = {"since": _OPSETS[target.name], "inputs": _inputs(op_class)}
            if rows and (rows[-1]["inputs"] == row["inputs"] or rows[-1]["since"] == row["since"]):
                continue
            rows.append(row)
        table[kind] = rows
    return table


def render(table: dict[str, list[dict[str, Any]]]) -> str:
    """The table as JSON, a line per version of an operator."""
    lines = [
        f" {json.dumps(kind)}: [\n" + ",\n".join(f"  {json.dumps(row, sort_keys=True)}" for row in rows) + "\n ]"
        for kind, rows in table.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _inputs(op_class: Any) -> dict[str, dict[str, Any]]:
    from coremltools.converters.mil.mil import types
    from coremltools.converters.mil.mil.input_type import TensorInputType, TupleInputType

    inputs = {}
    for name, kind in op_class.input_spec.input_types.items():
        if name.startswith("_"):
            continue
        domain, allowed = None, None
        if isinstance(kind, TensorInputType):
            domain = kind.type_domain_id
            members = op_class.type_domains[domain] if domain else kind.type_domain
            members = members if isinstance(members, tuple) else (members,)
            allowed = sorted({_NAMES.get(n, n) for n in map(types.builtin_to_string, members)})
        inputs[name] = {
            "required": not kind.optional,
            "const": bool(kind.const),
            "many": isinstance(kind, TupleInputType),
            "types": allowed,
            "domain": domain,
        }
    return inputs


if __name__ == "__main__":
    FILE.write_text(render(signatures()))
    sys.stdout.write(f"{FILE}: {len(signatures())} operators\n")
