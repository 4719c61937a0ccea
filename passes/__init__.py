"""Mechanical rewrites of a GraphModule from plain arguments; no theory lives here."""

from abcfx.passes.insert_scales import ScaleInsertion, ScaleNode, insert_scales, scale_nodes
from abcfx.passes.probe_activations import probe_activations
from abcfx.passes.result import PassError, PassResult
from abcfx.passes.scale_attention import scale_attention

__all__ = [
    "PassError",
    "PassResult",
    "ScaleInsertion",
    "ScaleNode",
    "insert_scales",
    "probe_activations",
    "scale_attention",
    "scale_nodes",
]
