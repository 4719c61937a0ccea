"""Multiplies what goes into a weight op by a constant, or, for a lookup in a table, what comes out."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.fx as fx

from abcfx.passes.result import META, PassError, PassResult, create_after

NAME = "insert_scales"


@dataclass(frozen=True)
class ScaleInsertion:
    """One factor to insert.

    `node`: the weight op. `operand`: the activation that it multiplies with the weight, so that the bias is added after
    the scale; None scales the op's result. `label` and `formula` go into the provenance of the node.
    """

    node: fx.Node
    operand: fx.Node | None
    factor: float
    label: str = ""
    formula: str = ""


@dataclass(frozen=True)
class ScaleNode:
    """Provenance of an inserted node, under `node.meta["abcfx"]`."""

    created_by: str
    factor: float
    label: str
    formula: str


def insert_scales(gm: fx.GraphModule, scales: Sequence[ScaleInsertion]) -> PassResult:
    """Insert scale nodes into the graphs that the given ops belong to (both graphs of a two-mode module).

    A factor of exactly 1 makes no node. Parameters, `state_dict` keys and the signature stay what they are.
    Raises PassError when an operand is not an argument of its op, or when the op was scaled before; the graphs are then
    as they were.
    """
    wanted = [scale for scale in scales if scale.factor != 1.0]
    for scale in wanted:
        _check(scale)
    touched = []
    # Operands first: a result that is scaled is then replaced wherever it goes, also into scales of its consumers.
    for scale in sorted(wanted, key=lambda scale: scale.operand is None):
        provenance = ScaleNode(NAME, scale.factor, scale.label, scale.formula)
        base = scale.operand if scale.operand is not None else _result(scale.node)
        name = f"{scale.node.name}_scale"
        node = create_after(base, name, torch.mul, (base, scale.factor), provenance)
        if scale.operand is None:
            base.replace_all_uses_with(node, delete_user_cb=partial(operator.is_not, node))
        else:
            _move_before(node, scale.node)
            scale.node.replace_input_with(base, node)
        touched.append(node.name)
    for graph in {id(scale.node.graph): scale.node.graph for scale in wanted}.values():
        graph.lint()
        if isinstance(owner := graph.owning_module, fx.GraphModule) and owner is not gm:
            owner.recompile()
    if touched:
        gm.recompile()
    return PassResult(gm, tuple(touched))


def scale_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The scale nodes of a graph, in order."""
    return [node for node in graph.nodes if isinstance(node.meta.get(META), ScaleNode)]


def _result(node: fx.Node) -> fx.Node:
    """The tensor that an op computes: of an op that returns several (embedding_bag), the first."""
    firsts = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    return firsts[0] if isinstance(node.meta.get("val"), tuple | list) and firsts else node


def _move_before(node: fx.Node, op: fx.Node) -> None:
    """Beside the op that it belongs to, not beside the tensor that it scales: the graph then reads like the model."""
    op.prepend(node)


def _check(scale: ScaleInsertion) -> None:
    neighbours = list(scale.node.users) if scale.operand is None else scale.node.all_input_nodes
    if any(isinstance(n.meta.get(META), ScaleNode) and n.meta[META].label == scale.label for n in neighbours):
        raise PassError(f"{NAME}: {scale.node.name} ({scale.label}) is scaled already; it would count twice.")
    if scale.operand is not None and scale.operand not in scale.node.all_input_nodes:
        raise PassError(
            f"{NAME}: {scale.operand.name} is not an argument of {scale.node.name}, whose arguments are "
            f"{[n.name for n in scale.node.all_input_nodes]}."
        )
