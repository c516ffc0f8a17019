"""Run another optimiser on a model: `python benchmarks/peers.py TOOL IN.onnx OUT.onnx [heads dim]`.

Runs in the peers' environment, so it imports nothing of edgec. Each tool is called as its documentation says.
"""

from __future__ import annotations

import subprocess
import sys


def ort(level: str, source: str, out: str) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = out
    options.log_severity_level = 3
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def ort_transformers(kind: str, source: str, out: str, heads: str, dim: str) -> None:
    """The transformer optimiser behind onnxruntime's basic level: its own default, which imports torch to find GPUs."""
    ort("BASIC", source, out)
    flags = ["--model_type", kind, "--num_heads", heads, "--hidden_size", dim, "--opt_level", "0"]
    command = [sys.executable, "-m", "onnxruntime.transformers.optimizer", "--input", out, "--output", out, *flags]
    subprocess.run(command, check=True)


def onnxscript(source: str, out: str) -> None:
    import onnx_ir
    import onnxscript.optimizer
    import onnxscript.rewriter

    model = onnx_ir.load(source)
    onnxscript.optimizer.optimize(model)
    onnxscript.rewriter.rewrite(model)
    onnx_ir.save(model, out)


def onnxscript_ort(source: str, out: str) -> None:
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = onnx_ir.load(source)
    optimized = optimize_for_ort(model)
    onnx_ir.save(optimized[0] if isinstance(optimized, tuple) else optimized, out)


def command_line(tool: str, source: str, out: str) -> None:
    subprocess.run([sys.executable.rpartition("/")[0] + f"/{tool}", source, out], check=True)


TOOLS = {
    "ort-basic": lambda *args: ort("BASIC", *args),
    "ort-extended": lambda *args: ort("EXTENDED", *args),
    "ort-transformers-bert": lambda *args: ort_transformers("bert", *args),
    "ort-transformers-vit": lambda *args: ort_transformers("vit", *args),
    "ort-transformers-gpt2": lambda *args: ort_transformers("gpt2", *args),
    "onnxscript": onnxscript,
    "onnxscript-ort": onnxscript_ort,
    "onnxsim": lambda *args: command_line("onnxsim", *args),
    "onnxslim": lambda *args: command_line("onnxslim", *args),
}

if __name__ == "__main__":
    TOOLS[sys.argv[1]](*sys.argv[2:])
