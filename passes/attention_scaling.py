"""Multiply attention logits by a constant: the queries, or, inside an attention module, the weights that make them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.fx.node import Argument

from abcfx.passes.nodes import ScaleNode, create_after, set_scale_note
from abcfx.passes.result import PassError, PassResult, check_module, finish
from abcfx.passes.scale_insertion import ScaleInsertion, checked_scales, insert_scales

NAME = "scale_attention"
_FUNCTIONAL = nn.functional.multi_head_attention_forward
# Positions among the arguments of multi_head_attention_forward.
_EMBED_DIM, _IN_PROJECTION, _IN_BIAS = 3, 5, 6


def scale_attention(module: fx.GraphModule, scales: Sequence[ScaleInsertion]) -> PassResult:
    """Multiply the logits of attention ops by constants, through the queries from which they are made.

    Parameters, `state_dict` keys and the signature stay what they are.

    Args:
        module: the module that owns the graphs of the ops.
        scales: the ops and their factors. `operand` is the query of an op, or None where an nn.MultiheadAttention or
            `multi_head_attention_forward` makes its queries inside.

    Returns:
        The module, and the names of the nodes that were made.

    Raises:
        PassError: an op makes its queries in a way that is out of reach. Nothing has been changed then.
    """
    check_module(NAME, module)
    wanted = [scale for scale in checked_scales(NAME, scales) if scale.factor != 1.0]
    inside = [scale for scale in wanted if scale.operand is None]
    for scale in inside:
        if not (_is_attention_module(module, scale.node) or scale.node.target is _FUNCTIONAL):
            raise PassError(f"{NAME}: {scale.node.name} ({scale.label}) makes its queries inside, out of reach.")
    outside = insert_scales(module, [scale for scale in wanted if scale.operand is not None])
    made = []
    for scale in inside:
        rewrite = _scale_module if scale.node.op == "call_module" else _scale_function
        made.append(rewrite(scale.node, scale.factor, scale.note(NAME)))
    return finish(module, made, (*outside.touched, *(node.name for node in made)))


def scale_first_rows(weight: torch.Tensor, factor: float, rows: int) -> torch.Tensor:
    """Return a weight with its first `rows` rows, or a bias with its first entries, multiplied by a factor.

    Where one weight makes queries, keys and values, its first rows make the queries.
    """
    return torch.cat([weight[:rows] * factor, weight[rows:]])


def scaled_query_parameters(module: nn.MultiheadAttention, factor: float) -> dict[str, torch.Tensor]:
    """Return, by name, the parameters of an attention module that make its queries, multiplied by a factor.

    Of a weight that makes keys and values as well, only the rows of the queries are multiplied.
    """
    rows = module.embed_dim
    found = {}
    if module.in_proj_weight is not None:
        found["in_proj_weight"] = scale_first_rows(module.in_proj_weight, factor, rows)
    else:
        assert module.q_proj_weight is not None
        found["q_proj_weight"] = module.q_proj_weight * factor
    if module.in_proj_bias is not None:
        found["in_proj_bias"] = scale_first_rows(module.in_proj_bias, factor, rows)
    return found


def attend_with_scaled_queries(
    module: nn.MultiheadAttention, factor: float, *args: object, **kwargs: object
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Call an attention module with its queries multiplied by a factor; rewritten graphs call this function.

    Args:
        module: the attention module.
        factor: the constant.
        args: positional arguments of the module's forward.
        kwargs: keyword arguments of the module's forward.

    Returns:
        The output and the attention weights, or None in their place, as the module returns them.
    """
    attended: tuple[torch.Tensor, torch.Tensor | None] = functional_call(
        module, scaled_query_parameters(module, factor), args, kwargs
    )
    return attended


def _is_attention_module(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls an nn.MultiheadAttention of the module that owns the graph."""
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.MultiheadAttention)


def _scale_module(node: fx.Node, factor: float, note: ScaleNode) -> fx.Node:
    """Replace the call of an attention module by a function that scales its queries; return the new node.

    Args:
        node: the call.
        factor: the number by which queries are multiplied.
        note: says which pass made the new node, and why.
    """
    with node.graph.inserting_before(node):
        module = node.graph.get_attr(str(node.target))
    new = create_after(node, f"{node.name}_scale", attend_with_scaled_queries, (module, factor, *node.args), note)
    new.kwargs = node.kwargs
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new


def _scale_function(node: fx.Node, factor: float, note: ScaleNode) -> fx.Node:
    """Scale the query projections that a call of `multi_head_attention_forward` gets as arguments.

    Args:
        node: the call.
        factor: the number by which queries are multiplied.
        note: says which pass made the new nodes, and why.

    Returns:
        The node that scales the weight.
    """
    args, kwargs = list(node.args), dict(node.kwargs)

    def insert(function: Callable[..., object], *arguments: Argument) -> fx.Node:
        """Insert a call of a function in front of the rewritten fx node, with the note in its meta; return its node."""
        with node.graph.inserting_before(node):
            made = node.graph.call_function(function, arguments)
        set_scale_note(made, note)
        return made

    if args[_IN_PROJECTION] is None:
        last = insert(torch.mul, kwargs["q_proj_weight"], factor)
        kwargs["q_proj_weight"] = last
    else:
        last = insert(scale_first_rows, args[_IN_PROJECTION], factor, args[_EMBED_DIM])
        args[_IN_PROJECTION] = last
    if args[_IN_BIAS] is not None:
        args[_IN_BIAS] = insert(scale_first_rows, args[_IN_BIAS], factor, args[_EMBED_DIM])
    node.args, node.kwargs = tuple(args), kwargs
    return last
