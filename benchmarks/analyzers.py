"""Count a model's MACs with another tool: `python benchmarks/analyzers.py onnx-tool IN.onnx`. Prints JSON.

Runs in the environment of that tool, so it imports nothing of edgec. Each tool is called as its documentation says.
"""

from __future__ import annotations

import json
import sys


def onnx_tool(source: str) -> dict[str, int]:
    import onnx_tool as tool

    graph = tool.Model(source).graph
    graph.shape_infer(None)
    graph.profile()
    return {"macs": round(graph.macs[0]), "parameters": round(graph.params)}


TOOLS = {"onnx-tool": onnx_tool}

if __name__ == "__main__":
    print(json.dumps(TOOLS[sys.argv[1]](sys.argv[2])))
