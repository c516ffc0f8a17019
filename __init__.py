"""edgec: a compiler for neural networks. ONNX in, a proven Core ML package out, on any machine."""

__version__ = "0.1.0"
