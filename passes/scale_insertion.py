"""Multiply the input of a weight op by a constant, or, for a lookup in a table, its output."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import fx

from abcfx.passes.nodes import ScaleNode, create_after, scale_note
from abcfx.passes.result import PassError, PassResult, check_factor, check_module, checked_nodes, finish

NAME = "insert_scales"


@dataclass(frozen=True)
class ScaleInsertion:
    """One multiplication by a constant to insert into a graph.

    Attributes:
        node: the op that is scaled.
        operand: the argument of the op that is multiplied, so that a bias is added after the scale; None multiplies the
            result of the op.
        factor: the constant.
        label: name of what is scaled, kept in the note on the new node.
        formula: the constant as a formula, kept in the note on the new node.
        everywhere: whether the operand is multiplied wherever it stands among the arguments, or where it stands first.
        through: the argument of the op that concatenates the operand with others, if the operand is none itself. The op
            then gets a concatenation of its own, so that other ops that read the first one see no factor.
    """

    node: fx.Node
    operand: fx.Node | None
    factor: float
    label: str = ""
    formula: str = ""
    everywhere: bool = False
    through: fx.Node | None = None

    def note(self, created_by: str, *, on_result: bool = False) -> ScaleNode:
        """Return the note for the node that will multiply by the constant: which pass makes it, and why.

        Args:
            created_by: name of the pass that makes the node.
            on_result: True if the node multiplies the result of the op, False if it multiplies an operand.
        """
        return ScaleNode(created_by, self.factor, self.label, self.formula, on_result)


def insert_scales(module: fx.GraphModule, scales: Sequence[ScaleInsertion]) -> PassResult:
    """Insert nodes into a graph that multiply operands or results of ops by constants.

    Parameters, `state_dict` keys and the signature stay what they are.

    Args:
        module: the module that owns the graphs of the ops; a module with a graph for each mode owns both.
        scales: the ops with their factors. A factor of exactly 1 makes no node.

    Returns:
        The module, and the names of the new nodes.

    Raises:
        PassError: an operand is not an argument of its op, or the op was scaled before. Nothing has been changed then.

    Example:
        >>> graph_module = fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 2)))
        >>> x, linear, _ = graph_module.graph.nodes
        >>> insert_scales(graph_module, [ScaleInsertion(linear, x, 0.5)]).touched
        ('_0_scale',)
    """
    check_module(NAME, module)
    wanted = [scale for scale in checked_scales(NAME, scales) if scale.factor != 1.0]
    for scale in wanted:
        _check(scale)
    touched, copies = [], dict[tuple[fx.Node, fx.Node], fx.Node]()
    # Operands first: a scaled result then replaces the result everywhere, also as the input of its consumers' scales.
    for scale in sorted(wanted, key=lambda scale: scale.operand is None):
        base = scale.operand if scale.operand is not None else _first_result(scale.node)
        note = scale.note(NAME, on_result=scale.operand is None)
        node = create_after(base, f"{scale.node.name}_scale", torch.mul, (base, scale.factor), note)
        if scale.operand is None:
            base.replace_all_uses_with(node, delete_user_cb=partial(operator.is_not, node))
        else:
            op = scale.node if scale.through is None else _own_copy(scale.node, scale.through, copies)
            # Beside the op and not beside the tensor that is scaled: the graph then reads like the model.
            op.prepend(node)
            if scale.everywhere:
                op.replace_input_with(base, node)
            else:
                _replace_first(op, base, node)
        touched.append(node.name)
    return finish(module, [scale.node for scale in wanted], touched)


def checked_scales(name: str, scales: object) -> list[ScaleInsertion]:
    """Return the multiplications that a pass is asked for as a list, each with nodes and a number where they belong.

    Args:
        name: the pass, for the message.
        scales: the caller's value.

    Raises:
        PassError: it is no sequence of `ScaleInsertion`, or one of them has something else than nodes, or no number.
    """
    if not isinstance(scales, Sequence) or any(not isinstance(each, ScaleInsertion) for each in scales):
        raise PassError(f"{name}: scales: expected a list of ScaleInsertion, got something else.")
    for scale in scales:
        nodes = [scale.node, *(each for each in (scale.operand, scale.through) if each is not None)]
        checked_nodes(name, nodes)
        checked_nodes(name, nodes, scale.node.graph)
        check_factor(f"{name}: {scale.node.name}", scale.factor)
        if scale.node.op in ("placeholder", "output"):
            raise PassError(f"{name}: {scale.node.name}: expected an op, got the {scale.node.op} of the graph.")
        if scale.through is not None and (scale.operand is None or scale.through not in scale.node.all_input_nodes):
            raise PassError(
                f"{name}: through: {scale.through.name} is no argument of {scale.node.name}, or no operand is given."
            )
    return list(scales)


def _replace_first(op: fx.Node, old: fx.Node, new: fx.Node) -> None:
    """Replace one node by another in the arguments of an op, at the first place only.

    Only the first, since an op may read one node several times, as attention with the same tensor as query, key and
    value.
    """
    left = [new]

    def replaced(argument: fx.Node) -> fx.Node:
        return left.pop() if argument is old and left else argument

    args = fx.map_arg(op.args, replaced)
    op.kwargs = fx.map_arg(op.kwargs, replaced)
    op.args = args


def _own_copy(op: fx.Node, joined: fx.Node, copies: dict[tuple[fx.Node, fx.Node], fx.Node]) -> fx.Node:
    """Return the concatenation that an op alone reads; where other ops read it too, the op gets a copy of it.

    The copy stands where the first one does, since later ops may change the tensors that are concatenated.

    Args:
        op: the op.
        joined: the node of the concatenation.
        copies: by (op, concatenation), what was returned before; the new result is added.
    """
    if (op, joined) not in copies:
        readers = [user for user in joined.users if user is not op]
        copies[op, joined] = joined
        if readers:
            with joined.graph.inserting_after(joined):
                copies[op, joined] = joined.graph.node_copy(joined)
            _replace_first(op, joined, copies[op, joined])
    return copies[op, joined]


def _first_result(node: fx.Node) -> fx.Node:
    """Return the node of the tensor that an op computes; for an op with several results (embedding_bag), the first."""
    firsts = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    return firsts[0] if isinstance(node.meta.get("val"), tuple | list) and firsts else node


def _check(scale: ScaleInsertion) -> None:
    """Raise an error if a multiplication cannot be inserted: its op is scaled already, or does not read the operand.

    Raises:
        PassError: names the op and the reason.
    """
    reader = scale.node if scale.through is None else scale.through
    neighbours = list(scale.node.users) if scale.operand is None else reader.all_input_nodes
    if any((note := scale_note(each)) is not None and note.label == scale.label for each in neighbours):
        raise PassError(f"{NAME}: {scale.node.name} ({scale.label}) is scaled already; it would count twice.")
    if scale.operand is not None and scale.operand not in reader.all_input_nodes:
        raise PassError(
            f"{NAME}: {scale.operand.name} is not an argument of {reader.name}, whose arguments are "
            f"{[each.name for each in reader.all_input_nodes]}."
        )
