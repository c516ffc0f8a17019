"""One rule per MIL operator, by family. Importing this package fills `call.RULES`."""

from . import (
    constexpr,
    control,
    cropping,
    elementwise,
    image,
    indexing,
    linear,
    normalization,
    pooling,
    recurrent,
    reduction,
    shaping,
)

__all__ = [
    "constexpr",
    "control",
    "cropping",
    "elementwise",
    "image",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "recurrent",
    "reduction",
    "shaping",
]
