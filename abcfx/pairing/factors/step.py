"""One call of two paired runs as a rule sees it, the factors found so far, and the registry of the rules.

A rule is a small function for one kind of aten op. It gets a `Step` and returns the dims of the result, or a list with
the dims of each result. Ops that torch tags as pointwise need no rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from abcfx.capture.aten import Ref, Trace
from abcfx.pairing.factors.atoms import (
    Dim,
    SizePair,
    UnfitError,
    fresh,
    grows,
    sizes,
    unify,
    without_origin,
)

Dims = tuple[Dim, ...]
"""The dims of one tensor."""
Result = Dims | list[Dims]

COPIES_COMPETE = frozenset({"softmax", "_softmax", "_log_softmax", "_safe_softmax", "topk"})
"""Ops along whose `dim` copies of an entry take from each other: they share a probability, or not all are chosen."""
COPIES_COUNT = frozenset({"sort", "argsort", "cumsum", "cumprod", "logcumsumexp", "argmax", "argmin", "kthvalue"})
"""Ops along whose `dim` the number of entries in front changes the result, so that copies of the input give no copy."""


class ProblemKind(Enum):
    """A reason why a larger model made of copies of a smaller one's entries would not compute the same.

    It decides which remedy a message names.
    """

    UNEVEN = "a dim with unequal numbers of copies is averaged over"
    COMPETING = "copies of an entry compete or are picked one by one"
    NORMED_WEIGHT = "a weight is divided by a norm of itself"
    NO_RULE = "no rule for the op"
    OTHER = "any other"


@dataclass(frozen=True)
class Problem:
    """A call of a model at which a larger model made of copied entries would compute something else.

    Attributes:
        call: index of the call in the two runs.
        path: module path of the call.
        op: name of the op.
        kind: the reason, as a value.
        reason: the reason, in words.
        dim: the dim in question, as a product of factors.
        fatal: whether the dims of the result are unknown from here on.
    """

    call: int
    path: str
    op: str
    kind: ProblemKind
    reason: str
    dim: Dim = ()
    fatal: bool = False


@dataclass
class Factors:
    """The dims of every tensor in runs of a small and a large model, as products of factors (heads x head_dim).

    Attributes:
        small: the aten calls of a run of the small model.
        large: those of the large model, which are the same ones.
        dims: the dims of each tensor, by its number in the runs; None where nothing is known yet.
        problems: calls at which a larger model made of copied entries would compute something else.
        contracted: (name, dim) of each dim of a parameter that some product sums over.
        indexed: row dims of the tables that are looked up.
        statistics: names of buffers that training changes.
        unfollowed: dims that may grow in another way than by copies.
        of_weights: numbers of the tensors that are computed from parameters and buffers alone.
        averaged: (call, dim) of each dim that an op averages over.
    """

    small: Trace
    large: Trace
    dims: list[Dims | None]
    problems: list[Problem] = field(default_factory=list)
    contracted: set[tuple[str, int]] = field(default_factory=set)
    indexed: list[Dim] = field(default_factory=list)
    statistics: set[str] = field(default_factory=set)
    unfollowed: list[Dim] = field(default_factory=list)
    of_weights: set[int] = field(default_factory=set)
    averaged: list[tuple[int, Dim]] = field(default_factory=list)

    def of(self, ref: Ref) -> Dims:
        """Return the dims of a tensor as products of factors that both runs (of a small and a large model) share.

        They are new ones where nothing is known of the tensor.
        """
        found = self.dims[ref.index]
        if found is None:
            found = self.dims[ref.index] = tuple(map(fresh, self.shape(ref)))
        return found

    def shape(self, ref: Ref) -> list[SizePair]:
        """Return (size in the small model, size in the large model) of each dim of a tensor."""
        return list(zip(self.small.shapes[ref.index], self.large.shapes[ref.index], strict=True))

    def parameter(self, name: str) -> Dims:
        """Return the dims of a parameter or buffer, as products of factors that the small and the large model share."""
        ref = self.large.parameters.get(name)
        return self.of(self.large.buffers[name] if ref is None else ref)


class Step:
    """A step of two runs side by side: the same call in the small and in the large model, as a rule sees it.

    Args:
        factors: the factors, such as heads and head_dim, found so far as whose products the dims of both runs are
            written.
        index: index of the call in the runs.

    Attributes:
        calls: the call in the small and in the large model.
        call: the call in the large model.
    """

    def __init__(self, factors: Factors, index: int) -> None:
        """Look up the aten call with this index in the runs of the small and of the large model."""
        self.factors, self.index = factors, index
        self.calls = factors.small.calls[index], factors.large.calls[index]
        self.call = self.calls[1]

    def tensors(self) -> list[Ref]:
        """Return the tensors among the arguments of the call, in order, as their numbers in the run."""
        return self.call.inputs

    def dims(self, ref: Ref) -> Dims:
        """Return the dims of a tensor, each as a product of factors that the small and the large model share."""
        return self.factors.of(ref)

    def shape(self, ref: Ref | None = None) -> list[SizePair]:
        """Return (small model's size, large model's) of each dim of a tensor, by default of the first result."""
        return self.factors.shape(ref or self.call.outs[0])

    def is_floating(self, ref: Ref) -> bool:
        """Whether a tensor, given by its number in the runs, has floating or complex numbers."""
        dtype = self.factors.large.dtypes[ref.index]
        return dtype.is_floating_point or dtype.is_complex

    def unknown(self, ref: Ref) -> Dims:
        """Return new dims for a result of the call of which nothing but its shape is known."""
        return tuple(map(self.unfollowed, self.shape(ref)))

    def unfollowed(self, size: SizePair) -> Dim:
        """Return a new dim of this size in the two models; if it grows, that is perhaps not by copies of its entries.

        Such a dim is added to `factors.unfollowed`.
        """
        dim = fresh(size)
        if size[0] != size[1]:
            self.factors.unfollowed.append(dim)
        return dim

    def optional(self, name: str) -> Any:
        """Return the argument of that name of the aten call; None where the op has none."""
        try:
            return self.call.argument(name)
        except KeyError:
            return None

    def report(self, reason: str, dim: Dim = (), kind: ProblemKind = ProblemKind.OTHER, fatal: bool = False) -> None:
        """Add to `factors.problems` that a larger model made of copied entries computes something else at this call.

        Args:
            reason: why, in words.
            dim: the dim in question.
            kind: why, as a value.
            fatal: whether the dims of the result are unknown from here on.
        """
        self.factors.problems.append(Problem(self.index, self.call.path, self.call.name, kind, reason, dim, fatal))

    def reduced(self, dim: Dim) -> None:
        """Record that the op sums or averages over a dim, and any problem of a larger model made of copied entries.

        The dim is added to `factors.averaged`, a problem (the copies would change the result) to `factors.problems`.
        """
        self.even(dim)
        name = self.call.name
        if name in ("var", "std", "var_mean", "std_mean") and grows(dim):
            correction = self.optional("correction")
            unbiased = self.optional("unbiased")
            if unbiased or (unbiased is None and correction != 0):
                self.report("an unbiased variance over a dim that grows divides by its size - 1", dim)
        self.check_copies(dim)
        if name in ("norm", "linalg_vector_norm") and any(use.origin for use in dim):
            self.normed(dim)

    def check_copies(self, dim: Dim) -> None:
        """Add a problem to `factors.problems` if repeated entries along a dim that grows would change the op's result.

        A softmax is such an op.
        """
        name = self.call.name
        if name in COPIES_COMPETE | COPIES_COUNT and grows(dim):
            kind = ProblemKind.COMPETING if name in COPIES_COMPETE else ProblemKind.OTHER
            self.report(f"{name} over a dim that grows", dim, kind)

    def normed(self, dim: Dim) -> None:
        """Add a problem to `factors.problems` if a dim grows over which a weight is divided by a norm of itself.

        The weight then shrinks as the dim grows.
        """
        if grows(dim):
            reason = "a weight is divided by a norm of itself, over a dim that grows"
            self.report(reason, dim, ProblemKind.NORMED_WEIGHT)

    def even(self, dim: Dim) -> None:
        """Add a dim to `factors.averaged`: the op averages over it, so its entries must be copied equally often."""
        self.factors.averaged.append((self.index, dim))

    def contracted(self, dim: Dim) -> None:
        """Add a dim that a product sums over to `factors.contracted`, if it is a dim of a parameter."""
        self.factors.contracted.update(use.origin for use in dim if use.origin is not None)

    def check_broadcast(self, dims: Dims, onto: Dims) -> None:
        """Make a tensor's dims the same as those of equal size that it is broadcast onto, aligned at the right."""
        for dim, wide in zip(reversed(dims), reversed(onto), strict=False):
            if sizes(dim) == sizes(wide):
                unify(dim, wide)

    def contract(self, one: Ref, other: Ref) -> Dims:
        """Return the dims of the matrix product `one @ other`, and make the two dims that it sums over the same."""
        a, b = self.dims(one), self.dims(other)
        inner = b[-2] if len(b) > 1 else b[-1]
        unify(a[-1], inner)
        is_weight = any(use.origin for use in inner)
        self.contracted(inner if is_weight else a[-1])  # a learned input is a parameter, but no weight
        batch = a[:-2]
        for mine, theirs in zip(batch, b[:-2], strict=True) if len(a) > 2 else ():
            unify(mine, theirs)
        out = (*a[:-1], *(b[-1:] if len(b) > 1 else ()))
        return tuple(map(without_origin, out))


Rule = Callable[[Step], Result]

RULES: dict[str, Rule] = {}
"""Name of an aten op, without namespace and overload -> its rule."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of some aten ops, named without namespace and overload.

    A rule gets a step (the same call in a small and a large model) and returns the dims of the results.
    """

    def register(function: Rule) -> Rule:
        """Register the function as the rule of each of the aten ops that were named to the decorator."""
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def over(size: SizePair, by: SizePair) -> SizePair:
    """Divide a pair of sizes, (in the small model, in the large one), by another such pair.

    Raises:
        UnfitError: there is a rest.
    """
    if size[0] % by[0] or size[1] % by[1]:
        raise UnfitError(f"{size[0]} and {size[1]} are no multiples of {by[0]} and {by[1]}")
    return size[0] // by[0], size[1] // by[1]
