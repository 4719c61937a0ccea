"""Trees of values: tuples, lists, dicts and registered classes, nested, with tensors and other values as their leaves.

This module holds the one import of torch's private pytree. torch has no public one yet, and libraries register their
output classes with this one, so that no other would know them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch.utils import _pytree as pytree
from torch.utils._pytree import TreeSpec

Tree = TypeVar("Tree")
Kind = TypeVar("Kind")

__all__ = [
    "TreeSpec",
    "flatten",
    "flatten_once",
    "leaves",
    "leaves_by_path",
    "leaves_of",
    "map_leaves",
    "map_leaves_by_path",
    "map_leaves_of",
    "map_tensors",
    "structure",
    "tensors",
    "unflatten",
]


def leaves(tree: object, *, is_leaf: Callable[[object], bool] | None = None) -> list[object]:
    """Return the leaves of a tree (nested containers) in order.

    The descent stops at containers for which `is_leaf` is true: these count as one leaf.

    Example:
        >>> leaves(({"x": 1, "y": [2, 3]}, 4))
        [1, 2, 3, 4]
    """
    return pytree.tree_leaves(tree, is_leaf=is_leaf)


def leaves_of(kind: type[Kind], tree: object) -> list[Kind]:
    """Return the leaves of a tree (nested containers) that are instances of a class, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, kind)]


def tensors(tree: object) -> list[torch.Tensor]:
    """Return the tensors in a tree (nested containers), in order."""
    return leaves_of(torch.Tensor, tree)


def leaves_by_path(tree: object) -> dict[str, object]:
    """Return the leaves of a tree (nested containers) by their paths, such as "['x'][0]".

    Example:
        >>> leaves_by_path({"x": [1, 2]})
        {"['x'][0]": 1, "['x'][1]": 2}
    """
    return {pytree.keystr(path): leaf for path, leaf in pytree.tree_leaves_with_path(tree)}


def map_leaves(function: Callable[[object], object], tree: Tree) -> Tree:
    """Return a tree of the same shape whose leaves are what the function returns for the leaves of the given tree."""
    mapped: Tree = pytree.tree_map(function, tree)
    return mapped


def map_leaves_by_path(function: Callable[[str, object], object], tree: Tree) -> Tree:
    """Return a tree of the same shape whose leaves are `function(path, leaf)`, with a path such as "['x'][0]"."""
    mapped: Tree = pytree.tree_map_with_path(lambda path, leaf: function(pytree.keystr(path), leaf), tree)
    return mapped


def map_leaves_of(kind: type[Kind], function: Callable[[Kind], object], tree: Tree) -> Tree:
    """Return a tree (nested containers) in which a function has replaced the leaves of one class; others stay."""
    mapped: Tree = pytree.tree_map_only(kind, function, tree)
    return mapped


def map_tensors(function: Callable[[torch.Tensor], object], tree: Tree) -> Tree:
    """Return a tree (nested containers) in which a function has replaced the tensors; other leaves stay.

    Example:
        >>> map_tensors(lambda tensor: tuple(tensor.shape), {"ids": torch.zeros(2, 3), "scale": 1.0})
        {'ids': (2, 3), 'scale': 1.0}
    """
    return map_leaves_of(torch.Tensor, function, tree)


def flatten(tree: object) -> tuple[list[object], TreeSpec]:
    """Return the leaves of a tree (nested containers) and its structure, by which `unflatten` nests leaves."""
    return pytree.tree_flatten(tree)


def flatten_once(tree: object) -> tuple[list[object], TreeSpec]:
    """Return the entries of a container, which may be containers themselves, and how they make up the container."""
    return pytree.tree_flatten(tree, is_leaf=lambda each: each is not tree)


def unflatten(values: Iterable[object], spec: TreeSpec) -> object:
    """Build a tree (nested containers) of the structure `spec` over these leaves."""
    return pytree.tree_unflatten(values, spec)


def structure(tree: object) -> TreeSpec:
    """Return how a tree (nested containers) is nested, without its leaves."""
    return pytree.tree_structure(tree)
