"""Multiplies attention logits by a constant: on the queries, or inside an attention module on what projects them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx
from torch import nn
from torch.func import functional_call

from abcfx.passes.insert_scales import ScaleInsertion, ScaleNode, insert_scales
from abcfx.passes.result import META, PassError, PassResult, create_after

NAME = "scale_attention"
_FUNCTIONAL = nn.functional.multi_head_attention_forward
_IN_PROJECTION, _BIAS, _EMBED = 5, 6, 3  # positions among the arguments of multi_head_attention_forward


def scale_attention(gm: fx.GraphModule, scales: Sequence[ScaleInsertion]) -> PassResult:
    """Multiply the logits of attention ops. `Scale.operand` is the query, or None where it exists only inside the op.

    Parameters, `state_dict` keys and the signature stay what they are. Raises PassError for an op that cannot be
    opened; the graphs are then as they were.
    """
    wanted = [scale for scale in scales if scale.factor != 1.0]
    inside = [scale for scale in wanted if scale.operand is None]
    for scale in inside:
        if not (_is_attention_module(gm, scale.node) or scale.node.target is _FUNCTIONAL):
            raise PassError(f"{NAME}: {scale.node.name} ({scale.label}) makes its queries inside, out of reach.")
    result = insert_scales(gm, [scale for scale in wanted if scale.operand is not None])
    touched = []
    for scale in inside:
        provenance = ScaleNode(NAME, scale.factor, scale.label, scale.formula)
        rewrite = _scale_module if scale.node.op == "call_module" else _scale_function
        touched.append(rewrite(scale.node, scale.factor, provenance).name)
    for graph in {id(scale.node.graph): scale.node.graph for scale in inside}.values():
        graph.lint()
    if touched:
        gm.recompile()
    return PassResult(gm, (*result.touched, *touched))


def scaled_rows(weight: torch.Tensor, factor: float, rows: int) -> torch.Tensor:
    """The first `rows` rows (entries, of a bias) times a factor: those that make the queries, of q, k and v in one."""
    return torch.cat([weight[:rows] * factor, weight[rows:]])


def query_parameters(module: nn.MultiheadAttention, factor: float) -> dict[str, torch.Tensor]:
    """The module's parameters that make the queries, by name, with the queries' part times a factor."""
    rows = module.embed_dim
    found = {}
    if module.in_proj_weight is not None:
        found["in_proj_weight"] = scaled_rows(module.in_proj_weight, factor, rows)
    else:
        assert module.q_proj_weight is not None
        found["q_proj_weight"] = module.q_proj_weight * factor
    if module.in_proj_bias is not None:
        found["in_proj_bias"] = scaled_rows(module.in_proj_bias, factor, rows)
    return found


def attend_with_scaled_queries(module: nn.MultiheadAttention, factor: float, *args: Any, **kwargs: Any) -> Any:
    """The module's own forward, with its queries times a factor."""
    return functional_call(module, query_parameters(module, factor), args, kwargs)


def _is_attention_module(gm: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(gm.get_submodule(str(node.target)), nn.MultiheadAttention)


def _scale_module(node: fx.Node, factor: float, provenance: ScaleNode) -> fx.Node:
    with node.graph.inserting_before(node):
        module = node.graph.get_attr(str(node.target))
    new = create_after(node, f"{node.name}_scale", attend_with_scaled_queries, (module, factor, *node.args), provenance)
    new.kwargs = node.kwargs
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new


def _scale_function(node: fx.Node, factor: float, provenance: ScaleNode) -> fx.Node:
    """The projections are arguments of the op: scale those."""
    args, kwargs = list(node.args), dict(node.kwargs)
    if args[_IN_PROJECTION] is None:
        kwargs["q_proj_weight"] = last = _times(node, kwargs["q_proj_weight"], factor, provenance)
    else:
        args[_IN_PROJECTION] = last = _scaled(node, args[_IN_PROJECTION], factor, args[_EMBED], provenance)
    if args[_BIAS] is not None:
        args[_BIAS] = _scaled(node, args[_BIAS], factor, args[_EMBED], provenance)
    node.args, node.kwargs = tuple(args), kwargs
    return last


def _scaled(node: fx.Node, tensor: Any, factor: float, rows: Any, provenance: ScaleNode) -> fx.Node:
    with node.graph.inserting_before(node):
        made = node.graph.call_function(scaled_rows, (tensor, factor, rows))
    made.meta[META] = provenance
    return made


def _times(node: fx.Node, tensor: Any, factor: float, provenance: ScaleNode) -> fx.Node:
    with node.graph.inserting_before(node):
        made = node.graph.call_function(torch.mul, (tensor, factor))
    made.meta[META] = provenance
    return made
