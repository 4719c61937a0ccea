"""Rewrites of an `fx.GraphModule` from plain arguments; they know nothing of widths, exponents or learning rates.

Every pass is called as `name(module, ...)` and returns a `PassResult`. A pass that should have matched and did not
raises a `PassError` before it has changed anything.
"""

from abcfx.passes.insert_scales import ScaleInsertion, insert_scales
from abcfx.passes.multiply_marks import multiply_marks
from abcfx.passes.nodes import ScaleNode, scale_nodes
from abcfx.passes.probe_activations import probe_activations
from abcfx.passes.result import PassError, PassResult
from abcfx.passes.scale_attention import scale_attention

__all__ = [
    "PassError",
    "PassResult",
    "ScaleInsertion",
    "ScaleNode",
    "insert_scales",
    "multiply_marks",
    "probe_activations",
    "scale_attention",
    "scale_nodes",
]
