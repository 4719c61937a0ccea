"""Factors the dims of every tensor of a paired run: walks the calls of the small and the large model side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from abcfx.capture.aten import Call, Ref, Trace
from abcfx.errors import PairingError
from abcfx.pairing.factors import math_ops, view_ops
from abcfx.pairing.factors.atoms import (
    Dim,
    Pair,
    UnfitError,
    factors_of,
    fresh,
    plain_atoms,
    sizes,
    unify,
    without_origin,
)
from abcfx.pairing.factors.index_maps import copies
from abcfx.pairing.factors.registry import RULES, Dims

_FAMILIES = (math_ops, view_ops)  # whose import registers the rules
TILES = frozenset({"softmax", "_softmax", "_log_softmax", "_safe_softmax", "topk", "sort", "argsort", "cumsum",
                   "cumprod", "logcumsumexp", "argmax", "argmin", "kthvalue"})  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Where a larger copy would not compute the same, or where dims could not be followed.

    `call`: index of the call in the traces. `dim`: the dim that it is about. `fatal`: dims of the result are unknown
    from here on.
    """

    call: int
    path: str
    op: str
    reason: str
    dim: Dim = ()
    fatal: bool = False


@dataclass
class Factors:
    """Dims of every tensor of the two traces, in the atoms that they share.

    `contracted`: (parameter, dim) of each dim of a parameter that some product sums over. `indexed`: rows of tables
    that are looked up. `statistics`: buffers that training changes. `unfollowed`: dims that do not grow by tiling.
    `of_weights`: tensors computed from parameters and buffers alone.
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
    _even: list[tuple[int, Dim]] = field(default_factory=list)

    def of(self, ref: Ref) -> Dims:
        found = self.dims[ref.index]
        if found is None:
            shapes = zip(self.small.shapes[ref.index], self.large.shapes[ref.index], strict=True)
            found = self.dims[ref.index] = tuple(fresh(pair) for pair in shapes)
        return found

    def parameter(self, name: str) -> Dims:
        """Dims of a parameter or buffer of the large model."""
        ref = self.large.parameters.get(name)
        return self.of(self.large.buffers[name] if ref is None else ref)


class Step:
    """One call, seen by a rule."""

    def __init__(self, factors: Factors, index: int) -> None:
        self.factors, self.index = factors, index
        self.calls = factors.small.calls[index], factors.large.calls[index]
        self.call = self.calls[1]

    def tensors(self) -> list[Ref]:
        return self.call.inputs

    def dims(self, ref: Ref) -> Dims:
        return self.factors.of(ref)

    def shape(self, ref: Ref | None = None) -> list[Pair]:
        """Sizes of a tensor, by default of the first result, in the small and the large model."""
        index = (ref or self.call.outs[0]).index
        return list(zip(self.factors.small.shapes[index], self.factors.large.shapes[index], strict=True))

    def is_floating(self, ref: Ref) -> bool:
        dtype = self.factors.large.dtypes[ref.index]
        return dtype.is_floating_point or dtype.is_complex

    def unknown(self, ref: Ref) -> Dims:
        return tuple(map(self.unfollowed, self.shape(ref)))

    def unfollowed(self, size: Pair) -> Dim:
        """A dim that may grow in another way than by tiling."""
        dim = fresh(size)
        if size[0] != size[1]:
            self.factors.unfollowed.append(dim)
        return dim

    def optional(self, name: str) -> Any:
        """The argument of that name; None where the op has none."""
        try:
            return self.call.argument(name)
        except KeyError:
            return None

    def grows(self, dim: Dim) -> bool:
        return any(atom.small != atom.large for atom in plain_atoms(dim))

    def report(self, reason: str, dim: Dim = (), fatal: bool = False) -> None:
        self.factors.problems.append(Problem(self.index, self.call.path, self.call.name, reason, dim, fatal))

    def reduced(self, dim: Dim) -> None:
        """A sum or mean over a dim: its copies must be equally many."""
        self.even(dim)
        name = self.call.name
        if name in ("var", "std", "var_mean", "std_mean") and self.grows(dim):
            correction = self.optional("correction")
            unbiased = self.optional("unbiased")
            if unbiased or (unbiased is None and correction != 0):
                self.report("an unbiased variance over a dim that grows divides by its size - 1", dim)
        if name in TILES and self.grows(dim):
            self.report(f"{name} over a dim that grows", dim)
        if name in ("norm", "linalg_vector_norm") and any(leg.origin for leg in dim):
            self.normed(dim)

    def normed(self, dim: Dim) -> None:
        """A weight is divided by a sum over one of its dims: it would shrink by itself as that grows."""
        if self.grows(dim):
            self.report("a weight is divided by a norm of itself, over a dim that grows", dim)

    def even(self, dim: Dim) -> None:
        """The op averages over a dim: every entry must have as many copies as any other."""
        self.factors._even.append((self.index, dim))

    def contracted(self, dim: Dim) -> None:
        self.factors.contracted.update(leg.origin for leg in dim if leg.origin is not None)

    def check_broadcast(self, dims: Dims, onto: Dims) -> None:
        """Unify a tensor's dims with those it is broadcast onto, aligned at the right."""
        for dim, wide in zip(reversed(dims), reversed(onto), strict=False):
            if sizes(dim) == sizes(wide):
                unify(dim, wide)

    def contract(self, one: Ref, other: Ref) -> Dims:
        """Matrix product: the last dim of one with the last but one (or only one) of the other."""
        a, b = self.dims(one), self.dims(other)
        inner = b[-2] if len(b) > 1 else b[-1]
        unify(a[-1], inner)
        weights = any(leg.origin for leg in inner)
        self.contracted(inner if weights else a[-1])  # learned inputs are no weights, though parameters
        batch = a[:-2]
        for mine, theirs in zip(batch, b[:-2], strict=True) if len(a) > 2 else ():
            unify(mine, theirs)
        out = (*a[:-1], *(b[-1:] if len(b) > 1 else ()))
        return tuple(map(without_origin, out))

    def run(self) -> None:
        name, results = self.call.name, self.call.outs
        rule = RULES.get(name) or RULES.get(name.removesuffix("_"))
        if rule is None and torch.Tag.pointwise in self.call.op.tags:
            rule = math_ops.pointwise
        if results and any(0 in pair for pair in self.shape(results[0])):
            rule = Step.without_entries
        try:
            if rule is None:
                raise UnfitError("no rule says what this op makes of dims")
            found = rule(self)
        except UnfitError as error:
            if any(small != large for ref in results for small, large in self.shape(ref)):
                self.report(str(error), fatal=True)
            found = [self.unknown(ref) for ref in results]
        if name in TILES and self.tensors():
            self._tiled(name)
        each = found if isinstance(found, list) else [found]
        floats = [ref for ref in self.tensors() if self.is_floating(ref)]
        looked_up = name.startswith(("embedding", "_embedding"))
        if not floats or looked_up or not all(ref.index in self.factors.of_weights for ref in floats):
            each = [tuple(map(without_origin, dims)) for dims in each]
        else:
            self.factors.of_weights.update(ref.index for ref in results)
        for ref, dims in zip(results, each, strict=False):
            if self.factors.dims[ref.index] is None:
                self.factors.dims[ref.index] = tuple(dims)

    def without_entries(self) -> list[Dims]:
        return [self.unknown(ref) for ref in self.call.outs]

    def _tiled(self, name: str) -> None:
        dims = self.dims(self.tensors()[0])
        at = self.optional("dim")
        if isinstance(at, int) and dims and self.grows(dims[at]):
            self.report(f"{name} over a dim that grows", dims[at])


def factor(small: Trace, large: Trace) -> Factors:
    """Walk two traces side by side and factor every dim.

    Raises:
        PairingError: the models do not make the same calls; names the first that differs.
    """
    _compare(small, large)
    factors = Factors(small, large, [None] * len(large.shapes))
    for group in ("parameters", "buffers"):
        for name, ref in getattr(large, group).items():
            shapes = zip(small.shapes[ref.index], large.shapes[ref.index], strict=True)
            factors.dims[ref.index] = tuple(fresh(size, (name, i)) for i, size in enumerate(shapes))
            factors.of_weights.add(ref.index)
    for index in range(len(large.calls)):
        Step(factors, index).run()
    for index, dim in factors._even:  # only now is every dim refined as far as it will be
        counts = copies(factors_of(dim))
        if len(counts) and bool((counts != counts[0]).any()):
            call = large.calls[index]
            reason = "it averages over a dim whose entries have unequal numbers of copies"
            factors.problems.append(Problem(index, call.path, call.name, reason, dim))
    return factors


def _compare(small: Trace, large: Trace) -> None:
    for one, other in zip(small.calls, large.calls, strict=False):
        ours, theirs = ([ref.index for ref in _refs(call)] for call in (one, other))
        if _kind(one) != _kind(other) or ours != theirs:
            raise PairingError(_difference(one, other))
    if len(small.calls) != len(large.calls):
        longer = max(small.calls, large.calls, key=len)
        raise PairingError(_difference(longer[min(len(small.calls), len(large.calls))], None))
    ranks = zip(small.shapes, large.shapes, strict=False)
    if len(small.shapes) != len(large.shapes) or any(len(one) != len(other) for one, other in ranks):
        raise PairingError("The small and the large model make the same calls on tensors of other ranks.")


def _kind(call: Call) -> str:
    """The op; views that do or do not copy are one kind."""
    return "view" if call.name in ("view", "_unsafe_view", "_reshape_alias") else str(call.op)


def _refs(call: Call) -> Sequence[Ref]:
    return [*call.inputs, *call.outs]


def _difference(one: Call, other: Call | None) -> str:
    got = "nothing more" if other is None else f"{other.name} in {other.path or 'its own forward'}"
    return (
        f"The small and the large model do not run the same operations; they first differ in "
        f"{one.path or 'the forward of the model'}:\n  one runs {one.name}, the other {got}.\n"
        f"  To fix: build both by the same code, with the same options and only other widths."
    )
