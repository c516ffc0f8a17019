"""Reverse-mode differentiation of ONNX models, as an ONNX model that onnxruntime runs (docs/gradients.md)."""
