"""The algebra of computed weights: as which sum of products of parameters a tensor can be written, op by op.

Every function returns the terms of a result, or () where the result is no such sum: it is then a tensor like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch.fx as fx

from abcfx.rules.builder import DagBuilder
from abcfx.rules.extents import Number
from abcfx.rules.kinds import Vector
from abcfx.rules.registry import plain_name
from abcfx.rules.values import Value, WeightTerm, shape_of

Terms = tuple[WeightTerm, ...]


def terms_of(x: Value) -> Terms:
    """Return the summands (products of parameters) that a tensor is a sum of; a parameter is its own one summand."""
    if x.terms or x.node is not None or x.parameter is None or x.normalised or x.gains:
        return x.terms
    return (WeightTerm((replace(x, is_curved=False),), is_curved=x.is_curved),)


def summed(values: Iterable[Value], is_shifted: bool) -> Terms:
    """Return the terms, products of parameters, of a sum or concatenation of computed weights.

    A parameter that stands in several terms (symmetric weights, straight-through rounding) counts once. `is_shifted`
    says that a constant is added as well.
    """
    found: dict[tuple[object, ...], WeightTerm] = {}
    for value in values:
        own = terms_of(value)
        if not own and not value.is_constant:
            return ()
        for term in own:
            key = (term.parameters, term.cofactors)
            first = found.get(key, term)
            is_curved = is_shifted or first.is_curved or term.is_curved
            found[key] = replace(first, is_curved=is_curved)
    return tuple(found.values())


def multiplied(builder: DagBuilder, x: Value, y: Value, nodes: tuple[str | None, str | None]) -> Terms:
    """Return the terms, products of parameters, of a computed weight that is x * y, entry by entry.

    They are those of one factor, with the other as gain (along rows or columns) or cofactor (for each entry).

    Args:
        builder: holds the nodes of the layer DAG.
        x: a factor.
        y: the other factor.
        nodes: names of the DAG nodes of both.
    """
    sides = [(terms_of(x), y, nodes[1]), (terms_of(y), x, nodes[0])]
    sides.sort(key=lambda side: (not _is_matrix(side[0]), any(term.is_curved for term in side[0]), -_entries(side[0])))
    for terms, other, node in sides:
        if not terms:
            continue
        if node is None:  # a mask
            return terms
        above = [builder.kind(each) for each in builder.above(node)]
        read = {kind.parameter for kind in above if isinstance(kind, Vector)}
        if any(read.intersection(term.parameters) for term in terms):
            return ()
        if not builder.nodes[node].is_parametric and not _is_matrix(terms):
            return ()
        if _is_wide(other.shape) and not _is_thin(other.shape, terms):
            return tuple(replace(term, cofactors=(*term.cofactors, node)) for term in terms)
        return tuple(replace(term, gains=(*term.gains, node)) for term in terms)
    return ()


def scaled(x: Value, factor: Number) -> Terms:
    """Return the terms of a computed weight x times a number: the products of parameters whose sum that is."""
    return tuple(replace(term, factor=term.factor.times(factor)) for term in terms_of(x))


def curved(x: Value) -> Terms:
    """Return the terms (products of parameters) of phi(x), x a computed weight, for phi with phi(0) = 0, such as tanh.

    They are those of x, each marked as curved: it changes as the term does, but is not proportional to it.
    """
    return tuple(replace(term, is_curved=True) for term in x.terms)


def chained(x: Value, y: Value) -> Terms:
    """Return the terms, products of parameters, of the matrix product x @ y of two computed weights.

    Each is one term of x times one of y.
    """
    return tuple(
        WeightTerm(
            (*left.chain, *right.chain),
            (*left.gains, *right.gains),
            (),
            left.factor.times(right.factor),
            left.is_curved or right.is_curved,
        )
        for left in terms_of(x)
        for right in terms_of(y)
        if not left.cofactors and not right.cofactors and x.ndim == y.ndim == 2
    )


def permuted(x: Value, order: tuple[int, ...]) -> Terms:
    """Return the terms, products of parameters, of a computed weight with its dims in another order.

    Returns:
        The terms; () if a term has another number of dims, or is a matrix product and `order` is not its transpose.
    """
    found = []
    for term in x.terms:
        if len(term.chain) > 1 and order != (1, 0):
            return ()
        if any(matrix.ndim != len(order) for matrix in term.chain):
            return ()
        found.append(replace(term, chain=tuple(_permuted(matrix, order) for matrix in reversed(term.chain))))
    return tuple(found)


def _permuted(matrix: Value, order: tuple[int, ...]) -> Value:
    shape = None if matrix.shape is None else tuple(matrix.shape[i] for i in order)
    return replace(matrix.permuted(order), shape=shape)


def regrouped(x: Value, at: fx.Node) -> Terms:
    """Return the terms, products of parameters, of a computed weight after an op that keeps, moves or picks entries.

    The fx node `at` returns the result.
    """
    shape = shape_of(at)
    if shape is not None and shape == x.shape:
        return x.terms
    if any(len(term.chain) > 1 for term in x.terms):
        return ()
    return tuple(replace(term, chain=(replace(term.chain[0], dims=None, at=at, shape=shape),)) for term in x.terms)


def without_dims(x: Value, indices: Sequence[int] | None) -> Terms:
    """Return the parameters that a computed weight is a sum of, after a mean or sum over some dims of it.

    Args:
        x: the computed weight, such as a stack of the weights of several experts.
        indices: positions of the dims that are summed over; None where they are not known, which gives no parameters.
    """
    if is_sum_of_stack(x, indices):
        return x.terms
    found = []
    for term in terms_of(x):
        matrix = term.chain[0]
        if indices is None or matrix.dims is None or len(term.chain) > 1 or matrix.ndim != x.ndim:
            return ()
        gone = {i % len(matrix.dims) for i in indices}
        left = [i for i in range(len(matrix.dims)) if i not in gone]
        shape = None if matrix.shape is None else tuple(matrix.shape[i] for i in left)
        found.append(replace(term, chain=(replace(matrix, dims=tuple(matrix.dims[i] for i in left), shape=shape),)))
    return tuple(found)


def is_sum_of_stack(x: Value, indices: Sequence[int] | None) -> bool:
    """Whether the dims at `indices` of a tensor are the one dim along which torch.stack joined its summands."""
    if x.at is None or x.ndim is None or plain_name(x.at.target) != "stack" or indices is None:
        return False
    dim = x.at.args[1] if len(x.at.args) > 1 else x.at.kwargs.get("dim", 0)
    return isinstance(dim, int) and [i % x.ndim for i in indices] == [dim % x.ndim]


def _entries(terms: Terms) -> int:
    """Return the number of entries of the largest parameter in some terms (products of parameters)."""
    return max((math.prod(matrix.shape or ()) for term in terms for matrix in term.chain), default=0)


def _is_matrix(terms: Terms) -> bool:
    return any(_is_wide(matrix.shape) for term in terms for matrix in term.chain)


def _is_thin(shape: tuple[int, ...] | None, terms: Terms) -> bool:
    """Whether a factor of this shape is repeated along a dim of the weight that it multiplies, as a gain is."""
    wholes = [matrix.shape for term in terms for matrix in term.chain]
    return any(
        ours == 1 != theirs
        for whole in wholes
        if whole is not None and shape is not None
        for ours, theirs in zip(reversed(shape), reversed(whole), strict=False)
    )


def _is_wide(shape: tuple[int, ...] | None) -> bool:
    """Whether a tensor has several dims of more than one entry, as a matrix has and a vector has not."""
    return shape is None or sum(size != 1 for size in shape) > 1
