"""Dims as products of atoms: factors with a size in the small and in the large model, found by unification.

A dim is a row-major product of atoms. Atoms that must be the same are joined (union-find); an atom is refined into a
product where a view cuts it, and into segments where a split or a slice does. Since atoms are shared, a refinement is
seen at once by every dim that has the atom: the rows of a fused projection learn from the view behind it that they are
segments of heads x head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

Pair = tuple[int, int]
"""A size or an offset in the small and in the large model."""


class UnfitError(Exception):
    """Dims that cannot be the same, or a cut that no factor of a dim allows."""


@dataclass(eq=False)
class Atom:
    """A factor of dims.

    `same`: the atom that it was joined with. `product`: the atoms that it was cut into, row-major. `segments`: the
    dims that lie in it one behind another. At most one of the three is set.
    """

    small: int
    large: int
    same: Atom | None = None
    product: tuple[Atom, ...] = ()
    segments: list[Dim] = field(default_factory=list)

    @property
    def size(self) -> Pair:
        return self.small, self.large

    def __repr__(self) -> str:
        return f"{self.small}" if self.small == self.large else f"{self.small}->{self.large}"


@dataclass(frozen=True, eq=False)
class AtomUse:
    """An atom where it stands in a dim; `origin`: the parameter and its dim that it comes from, if any."""

    atom: Atom
    origin: tuple[str, int] | None = None


Dim = tuple[AtomUse, ...]


def fresh(size: Pair, origin: tuple[str, int] | None = None) -> Dim:
    """A dim of which nothing is known but its size."""
    return () if size == (1, 1) else (AtomUse(Atom(*size), origin),)


def root(atom: Atom) -> Atom:
    while atom.same is not None:
        atom = atom.same
    return atom


def legs(dim: Sequence[AtomUse]) -> Dim:
    """The dim with every cut atom written out; what is left is whole, or has segments."""
    found: list[AtomUse] = []
    for leg in dim:
        atom = root(leg.atom)
        if atom.product:
            found += legs([AtomUse(part, leg.origin) for part in atom.product])
        elif atom.size != (1, 1):
            found.append(AtomUse(atom, leg.origin))
    return tuple(found)


def sizes(dim: Sequence[AtomUse]) -> Pair:
    """Number of entries in the small and in the large model."""
    small = large = 1
    for leg in dim:
        small, large = small * leg.atom.small, large * leg.atom.large
    return small, large


def without_origin(dim: Sequence[AtomUse]) -> Dim:
    return tuple(AtomUse(leg.atom) for leg in dim)


def unify(one: Sequence[AtomUse], other: Sequence[AtomUse]) -> None:
    """Make two dims the same. Raises UnfitError where their atoms do not fit."""
    ours, theirs = list(legs(one)), list(legs(other))
    if sizes(ours) != sizes(theirs):
        raise UnfitError(f"{described(ours)} against {described(theirs)}")
    while ours and theirs:
        a, b = root(ours[0].atom), root(theirs[0].atom)
        if a.product or b.product:
            ours, theirs = list(legs(ours)), list(legs(theirs))
            continue
        if a is not b and a.size != b.size:
            bigger, first = (a, b) if _covers(a, b) else (b, a)
            _cut(bigger, first.size)
            continue
        if a is not b:
            _join(a, b)
        ours, theirs = ours[1:], theirs[1:]


def _covers(a: Atom, b: Atom) -> bool:
    return a.small % b.small == 0 and a.large % b.large == 0


def _cut(atom: Atom, size: Pair) -> None:
    """Refine an atom into a product whose first factor has the given size."""
    if atom.segments or atom.small % size[0] or atom.large % size[1]:
        raise UnfitError(f"{atom!r} cannot be cut into {Atom(*size)!r} and a rest")
    atom.product = Atom(*size), Atom(atom.small // size[0], atom.large // size[1])


def _join(a: Atom, b: Atom) -> None:
    if a.segments and b.segments:
        ours, theirs = _run_together(a.segments), _run_together(b.segments)
        if [sizes(each) for each in ours] != [sizes(each) for each in theirs]:
            raise UnfitError(f"segments {described(a.segments)} against {described(b.segments)}")
        for one, other in zip(ours, theirs, strict=True):
            unify(one, other)
    if a.segments:
        b.segments, b.same = [], a
    else:
        a.same = b


def _run_together(segments: Sequence[Dim]) -> list[Dim]:
    """The segments, neighbours that do not grow as one."""
    found: list[Dim] = []
    for segment in segments:
        small, large = sizes(segment)
        before = sizes(found[-1]) if found else (0, 1)
        if small == large and before[0] == before[1]:
            found[-1] = fresh((before[0] + small, before[0] + small))
        else:
            found.append(segment)
    return found


def regrouped(dims: Sequence[Dim], shape: Sequence[Pair]) -> tuple[Dim, ...]:
    """What a view makes of the dims: the same atoms in row-major order, grouped to the sizes of `shape`."""
    rest = list(legs([leg for dim in dims for leg in dim]))
    found = []
    for size in shape:
        taken, rest = _take(rest, size)
        found.append(taken)
    return tuple(found)


def _take(rest: list[AtomUse], size: Pair) -> tuple[Dim, list[AtomUse]]:
    taken: list[AtomUse] = []
    have = (1, 1)
    while have != size:
        if not rest or size[0] % have[0] or size[1] % have[1]:
            raise UnfitError(f"a view to {Atom(*size)!r} of {described(taken + rest)}")
        wanted = size[0] // have[0], size[1] // have[1]
        atom = root(rest[0].atom)
        if wanted[0] % atom.small or wanted[1] % atom.large:
            rest = _merged(rest) if atom.small == atom.large and not _covers(atom, Atom(*wanted)) else rest
            _cut(root(rest[0].atom), wanted)
            rest = list(legs(rest))
            continue
        taken.append(rest[0])
        have = have[0] * atom.small, have[1] * atom.large
        rest = rest[1:]
    return tuple(taken), rest


def _merged(rest: list[AtomUse]) -> list[AtomUse]:
    """Atoms in front that do not grow as one: a view may cut across them, for their entries are not copied."""
    count, size = 0, 1
    while count < len(rest) and rest[count].atom.small == rest[count].atom.large:
        size *= rest[count].atom.small
        count += 1
    return [AtomUse(Atom(size, size)), *rest[count:]]


def piece(dim: Sequence[AtomUse], start: Pair, size: Pair) -> Dim:
    """The part of a dim from `start` on, `size` long: what a slice or a split leaves of it."""
    whole = legs(dim)
    total = sizes(whole)
    if size == total:
        return whole
    if total[0] == total[1] and size[0] == size[1]:
        return fresh(size)
    first, rest = whole[0], whole[1:]
    inner = sizes(rest)
    if rest:
        if any(number % unit for pair in (start, size) for number, unit in zip(pair, inner, strict=True)):
            raise UnfitError(f"a slice across {described(whole)}")
        at, length = ((pair[0] // inner[0], pair[1] // inner[1]) for pair in (start, size))
        return (*piece((first,), at, length), *rest)
    return tuple(AtomUse(leg.atom, first.origin) for leg in _segment(root(first.atom), start, size))


def _segment(atom: Atom, start: Pair, size: Pair) -> Dim:
    if not atom.segments:
        after = atom.small - start[0] - size[0], atom.large - start[1] - size[1]
        if any((pair[0] == 0) != (pair[1] == 0) or min(pair) < 0 for pair in (start, after)):
            raise UnfitError(f"a slice of {Atom(*size)!r} at {start[0]} and {start[1]} of {atom!r}")
        atom.segments = [fresh(pair) for pair in (start, size, after) if min(pair) > 0]
    offset, covered = (0, 0), list[Dim]()
    for index, segment in enumerate(atom.segments):
        length = sizes(segment)
        end = offset[0] + length[0], offset[1] + length[1]
        if offset == start and length == size:
            return segment
        inside = all(o <= s and s + n <= e for o, s, n, e in zip(offset, start, size, end, strict=True))
        if inside and not covered:
            found = piece(segment, (start[0] - offset[0], start[1] - offset[1]), size)
            nested = legs(segment)
            if len(nested) == 1 and (inner := root(nested[0].atom)).segments:
                atom.segments[index : index + 1] = inner.segments
            return found
        if covered or offset == start:
            covered.append(segment)
            if end == (start[0] + size[0], start[1] + size[1]):
                return (AtomUse(Atom(*size, segments=covered)),)
        offset = end
    raise UnfitError(f"a slice across segments {described(atom.segments)}")


def joined(dims: Sequence[Dim]) -> Dim:
    """Dims one behind another, as cat makes them."""
    if len(dims) == 1:
        return dims[0]
    total = [sizes(dim) for dim in dims]
    size = sum(pair[0] for pair in total), sum(pair[1] for pair in total)
    if size[0] == size[1] and all(pair[0] == pair[1] for pair in total):
        return fresh(size)
    return (AtomUse(Atom(*size, segments=list(dims))),)


def factors_of(dim: Sequence[AtomUse]) -> list[Any]:
    """The dim as plain data: see `abcfx.passes.widen`."""
    found: list[Any] = []
    for leg in legs(dim):
        atom = root(leg.atom)
        found.append({"segments": [factors_of(each) for each in atom.segments]} if atom.segments else [*atom.size])
    return found


def largest_ratio(dim: Sequence[AtomUse]) -> Fraction:
    """Growth of the dim's fastest segment: large / small."""
    ratio = Fraction(1)
    for leg in legs(dim):
        atom = root(leg.atom)
        whole = Fraction(atom.large, atom.small)
        ratio *= max(map(largest_ratio, atom.segments)) if atom.segments else whole
    return ratio


def has_segments(dim: Sequence[AtomUse]) -> bool:
    """Whether some factor of the dim is made of pieces one behind another."""
    return any(root(leg.atom).segments for leg in legs(dim))


def plain_atoms(dim: Sequence[AtomUse]) -> list[Atom]:
    """Every atom of the dim that is not refined any further, those inside segments too."""
    found: list[Atom] = []
    for leg in legs(dim):
        atom = root(leg.atom)
        found += [inner for segment in atom.segments for inner in plain_atoms(segment)] if atom.segments else [atom]
    return found


def described(dims: Sequence[AtomUse] | Sequence[Dim]) -> str:
    """In words: `3 x (4->8) x 8`, segments as `[64->256 | 16 | 16]`."""
    words = []
    for each in dims:
        if isinstance(each, tuple):
            words.append(described(each) or "1")
            continue
        for leg in legs([each]):
            atom = root(leg.atom)
            words.append(f"[{' | '.join(map(described, atom.segments))}]" if atom.segments else f"{atom!r}")
    return " x ".join(words) or "1"
