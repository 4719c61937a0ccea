"""Mechanical rewrites of a GraphModule from plain arguments; no theory lives here."""

from abcfx.passes.insert_scales import Scale, ScaleNode, insert_scales, scale_nodes
from abcfx.passes.result import PassError, PassResult

__all__ = ["PassError", "PassResult", "Scale", "ScaleNode", "insert_scales", "scale_nodes"]
