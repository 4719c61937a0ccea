"""Rewrites of an `fx.GraphModule` from plain arguments; they know nothing of widths, exponents or learning rates.

Every pass is called as `name(module, ...)` and returns a `PassResult`. A pass that should have matched and did not
raises a `PassError` before it has changed anything.
"""

from abcfx.passes.activation_probe import probe_activations
from abcfx.passes.attention_scaling import scale_attention
from abcfx.passes.mark_multiplication import multiply_marks
from abcfx.passes.nodes import ScaleNode, scale_nodes
from abcfx.passes.result import PassError, PassResult
from abcfx.passes.scale_insertion import ScaleInsertion, insert_scales

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
