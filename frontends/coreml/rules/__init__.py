"""One rule per MIL operator, by family. Importing this package fills `call.RULES`."""

from . import (
    control,
    cropping,
    elementwise,
    image,
    indexing,
    linear,
    normalization,
    pooling,
    quantized,
    recurrent,
    reduction,
    shaping,
    sparse,
    tables,
)

__all__ = [
    "control",
    "cropping",
    "elementwise",
    "image",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "quantized",
    "recurrent",
    "reduction",
    "shaping",
    "sparse",
    "tables",
]
