"""What a model costs: parameters, bytes, multiply-accumulates; see docs/cost.md for the definitions."""

from .products import node_macs
from .storage import constants, count_nodes, op_counts, parameters, stats, weight_bytes
from .walk import macs

__all__ = [
    "constants",
    "count_nodes",
    "macs",
    "node_macs",
    "op_counts",
    "parameters",
    "stats",
    "weight_bytes",
]
