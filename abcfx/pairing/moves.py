"""Ops that only move or repeat entries, which one of two graphs may have more of: chains of them are aligned.

A base whose keys have as many heads as its queries repeats none, and a base with one head needs no copy after a
transpose. Such ops are compared by what stands at both ends of a chain of them, not one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import fx

from abcfx.rules.registry import plain_name
from abcfx.rules.values import UNKNOWN_SIZE, shape_of
from abcfx.support import trees

Shape = tuple[int, ...]
# Where a shape is found by running an op, dims have the sizes 2, 3, ..., so that each can be told from the others.
_STAND_IN = 2
_SAME_SHAPE = frozenset({"contiguous", "clone", "alias", "detach", "dropout", "slice", "identity"})
_REGROUP = frozenset({"view", "reshape", "flatten", "unflatten", "ravel", "view_as", "reshape_as"})
_REPEAT = frozenset({"expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile"})
_REORDER = frozenset({"transpose", "permute", "unsqueeze", "squeeze", "getitem"})


@cache
def is_move(node: fx.Node) -> bool:
    """Whether a graph node only regroups, repeats, reorders or copies the entries of one tensor, and picks none."""
    if node.op not in ("call_function", "call_method") or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    shape, before = shape_of(node), shape_of(node.args[0])
    if shape is None or before is None:
        return False
    name = plain_name(node.target)
    if name == "dropout":
        chance = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        return isinstance(chance, int | float) and chance == 0
    if name == "slice":
        return _symbolic(node) == _symbolic(node.args[0])
    if name == "getitem":
        items = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return all(item in (None, Ellipsis, slice(None)) for item in items if not isinstance(item, fx.Node | list))
    return name in _SAME_SHAPE | _REGROUP | _REPEAT | _REORDER


def chain_above(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Return where a tensor comes from before entries were moved, and the nodes that move them, in order.

    Args:
        node: the graph node that the tensor is the result of.
    """
    moves: list[fx.Node] = []
    while is_move(node):
        moves.append(node)
        (source, *_) = node.all_input_nodes
        node = source
    return node, moves[::-1]


def tensors_read(node: fx.Node, is_number: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """Return the graph nodes whose tensors a node reads, in the order of its arguments, repeated ones too.

    `is_number` says whether a node returns a number or a size and no tensor.
    """
    read = [each for each in trees.leaves((node.args, dict(node.kwargs))) if isinstance(each, fx.Node)]
    return [each for each in read if not is_number(each)]


def align(
    ours: Sequence[fx.Node], theirs: Sequence[fx.Node], are_alike: Callable[[fx.Node, fx.Node], bool]
) -> list[tuple[fx.Node, fx.Node]]:
    """Return the longest list of pairs of equal ops, in order, of two chains of ops that move entries.

    Args:
        ours: the chain in the graph of the target.
        theirs: the chain in the graph of its smaller base.
        are_alike: whether two nodes run the same op.
    """
    best: dict[tuple[int, int], list[tuple[fx.Node, fx.Node]]] = {}
    for i in range(len(ours), -1, -1):
        for j in range(len(theirs), -1, -1):
            if i == len(ours) or j == len(theirs):
                best[i, j] = []
                continue
            found = max(best[i + 1, j], best[i, j + 1], key=len)
            one, other = ours[i], theirs[j]
            if len(shape_of(one) or ()) == len(shape_of(other) or ()) and are_alike(one, other):
                found = max(found, [(one, other), *best[i + 1, j + 1]], key=len)
            best[i, j] = found
    return best[0, 0]


def shape_if_run(node: fx.Node, source: Shape | None) -> Shape | None:
    """Return the shape that the result of an op that moves entries would have in a base that leaves the op out.

    An op that repeats entries is taken to repeat them once there. Sizes that are not known are -1.

    Args:
        node: the op in the graph of the target.
        source: shape, in the base, of the tensor whose entries are moved.

    Returns:
        The shape; None where it does not follow.
    """
    shape, before = shape_of(node), shape_of(node.args[0])  # type: ignore[arg-type]  # is_move has looked at it
    if source is None or shape is None or before is None or len(source) != len(before):
        return None
    name = plain_name(node.target)
    if name in _SAME_SHAPE:
        return source
    if name in _REPEAT:
        return (1,) * (len(shape) - len(source)) + source
    if name in _REORDER:
        return _reordered(node, source)
    return _regrouped(_symbolic(node.args[0]), _symbolic(node), source)


def keeps_order(node: fx.Node, source: Shape | None) -> bool:
    """Whether an op that moves entries leaves their order, as a transpose does of dims of which one has size 1.

    Args:
        node: the op.
        source: shape of what it moves, in the one of two models that lacks the op; True is returned for None.
    """
    is_reorder = plain_name(node.target) in _REORDER
    return not is_reorder or source is None or _reordered(node, source) is not None


def _reordered(node: fx.Node, source: Shape) -> Shape | None:
    """Return the shape after a transpose, permute, unsqueeze, squeeze or x[:, None], found on a tensor without values.

    Args:
        node: the op in the graph of the target.
        source: shape of what it moves.

    Returns:
        The shape; None where the arguments do not fit, or dims of more than one entry change places.
    """
    if any(isinstance(each, fx.Node) for each in trees.leaves(node.args[1:])):
        return None
    places = {_STAND_IN + place: size for place, size in enumerate(source) if size != 1}
    given = torch.empty([1 if size == 1 else _STAND_IN + place for place, size in enumerate(source)], device="meta")
    function = getattr(torch.Tensor, str(node.target)) if node.op == "call_method" else node.target
    assert callable(function)
    try:
        moved = function(given, *node.args[1:], **node.kwargs)
    except (RuntimeError, IndexError):
        return None
    if [size for size in moved.shape if size != 1] != list(places):
        return None
    return tuple(places.get(size, 1) for size in moved.shape)


def _regrouped(before: Sequence[object], after: Sequence[object], source: Shape) -> Shape | None:
    """Return the shape after a view or reshape that joins dims, where the dims before and behind them stay.

    Args:
        before: shape in the target before the op, with symbols for sizes that are not known.
        after: shape in the target after it.
        source: shape in the base before the op.

    Returns:
        The shape in the base after the op; None where dims are split.
    """
    shorter = min(len(before), len(after))
    front = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    back = next((i for i in range(shorter - front) if before[-1 - i] != after[-1 - i]), shorter - front)
    joined = source[front : len(source) - back]
    if len(after) - front - back != 1:
        return source if len(after) == len(before) == front + back else None
    size = UNKNOWN_SIZE if UNKNOWN_SIZE in joined else math.prod(joined)
    return (*source[:front], size, *source[len(source) - back :])


def _symbolic(node: object) -> tuple[object, ...]:
    """Return the shape recorded on a graph node as text, in which sizes that are not known have names."""
    assert isinstance(node, fx.Node)
    return tuple(map(str, node.meta["val"].shape))
