"""Dims as products of atoms: factors with a size in the small and in the large model, found by unification.

A dim is a row-major product of atoms. Atoms that must be the same are joined (union-find). An atom is refined into a
product where a view cuts it, and into segments where a split or a slice does. Dims share their atoms, so each of them
sees a refinement at once: the rows of a fused projection learn from the view behind it that they are segments of
heads x head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from abcfx.pairing.factors.index_maps import Factor, IndexMap, Segments, Tiling

SizePair = tuple[int, int]
"""A size or an offset in the small and in the large model."""


class UnfitError(Exception):
    """The error that two dims cannot be the same, or that a view or slice cuts a dim inside one of its factors."""


@dataclass(eq=False)
class Atom:
    """A factor of a dim (as heads or head_dim of heads x head_dim), with its size in the small and in the large model.

    An atom may turn out to be the same as another one, a product of smaller atoms, or a row of segments; at most one of
    `same`, `product` and `segments` is set.

    Attributes:
        small: size in the small model.
        large: size in the large model.
        same: the atom that this one was joined with.
        product: the atoms that this one was cut into, row-major.
        segments: the dims that this atom consists of, one behind another.
    """

    small: int
    large: int
    same: Atom | None = None
    product: tuple[Atom, ...] = ()
    segments: list[Dim] = field(default_factory=list)

    @property
    def size(self) -> SizePair:
        """The sizes of this factor of a dim in the small and in the large model."""
        return self.small, self.large

    @property
    def grows(self) -> bool:
        """Whether the sizes of this factor of a dim differ in the two models."""
        return self.small != self.large

    def __repr__(self) -> str:
        """Return the two sizes of this factor of a dim as text, as "64->128", or "64" if they are equal."""
        return f"{self.small}->{self.large}" if self.grows else f"{self.small}"


@dataclass(frozen=True, eq=False)
class AtomUse:
    """One occurrence of an atom, a factor of a dim with a size in each of two models, in a dim of a tensor.

    Attributes:
        atom: the atom.
        origin: (name, dim) of the parameter or buffer that the dim comes from; None in tensors that depend on inputs.
    """

    atom: Atom
    origin: tuple[str, int] | None = None


Dim = tuple[AtomUse, ...]


def fresh(size: SizePair, origin: tuple[str, int] | None = None) -> Dim:
    """Make a dim of a single factor with this size in the small and the large model; no factor for size 1.

    `origin` is (name, dim) of the parameter that it belongs to.
    """
    return () if size == (1, 1) else (AtomUse(Atom(*size), origin),)


def root(atom: Atom) -> Atom:
    """Return the atom (factor of a dim) that stands for `atom` and for all found to be the same as it."""
    while atom.same is not None:
        atom = atom.same
    return atom


def expanded(dim: Sequence[AtomUse]) -> Dim:
    """Return a dim as a product of factors none of which is itself a product of smaller ones.

    A factor may still be a row of segments, pieces one behind another.
    """
    found: list[AtomUse] = []
    for use in dim:
        atom = root(use.atom)
        if atom.product:
            found += expanded([AtomUse(part, use.origin) for part in atom.product])
        elif atom.size != (1, 1):
            found.append(AtomUse(atom, use.origin))
    return tuple(found)


def sizes(dim: Sequence[AtomUse]) -> SizePair:
    """Return the number of entries of a dim in the small and in the large model."""
    small = large = 1
    for use in dim:
        small, large = small * use.atom.small, large * use.atom.large
    return small, large


def without_origin(dim: Sequence[AtomUse]) -> Dim:
    """Return a dim of the same factors without a note of its parameter, for a tensor that depends on inputs."""
    return tuple(AtomUse(use.atom) for use in dim)


def unify(one: Sequence[AtomUse], other: Sequence[AtomUse]) -> None:
    """Make two dims the same: join their factors one by one, and cut a factor where the other dim has two in its place.

    A factor has a size in the small and in the large model, as heads and head_dim of heads x head_dim.

    Raises:
        UnfitError: their sizes or factors do not fit.
    """
    ours, theirs = list(expanded(one)), list(expanded(other))
    if sizes(ours) != sizes(theirs):
        raise UnfitError(f"{described(ours)} against {described(theirs)}")
    while ours and theirs:
        a, b = root(ours[0].atom), root(theirs[0].atom)
        if a.product or b.product:
            ours, theirs = list(expanded(ours)), list(expanded(theirs))
            continue
        if a is not b and a.size != b.size:
            bigger, first = (a, b) if _covers(a, b) else (b, a)
            _cut(bigger, first.size)
            continue
        if a is not b:
            _join(a, b)
        ours, theirs = ours[1:], theirs[1:]


def _covers(a: Atom, b: Atom) -> bool:
    """Whether atom b may be a factor of atom a: in the small and in the large model a's size is a multiple of b's."""
    return a.small % b.small == 0 and a.large % b.large == 0


def _cut(atom: Atom, size: SizePair) -> None:
    """Turn an atom (a factor of a dim) into a product whose first factor has the given size in the two models.

    Raises:
        UnfitError: the atom is no multiple of that size, or consists of dims one behind another.
    """
    if atom.segments or atom.small % size[0] or atom.large % size[1]:
        raise UnfitError(f"{atom!r} cannot be cut into {Atom(*size)!r} and a rest")
    atom.product = Atom(*size), Atom(atom.small // size[0], atom.large // size[1])


def _join(a: Atom, b: Atom) -> None:
    """Make two atoms (factors of dims) of equal size one; if both have segments, these are made the same in pairs.

    Segments are dims that lie one behind another and make up the factor.

    Raises:
        UnfitError: the segments of the two do not fit.
    """
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
    """Return dims that lie one behind another, with neighbours of one size in small and large model joined into one."""
    found: list[Dim] = []
    for segment in segments:
        small, large = sizes(segment)
        before = sizes(found[-1]) if found else (0, 1)
        if small == large and before[0] == before[1]:
            found[-1] = fresh((before[0] + small, before[0] + small))
        else:
            found.append(segment)
    return found


def regrouped(dims: Sequence[Dim], shape: Sequence[SizePair]) -> tuple[Dim, ...]:
    """Return the entries of several dims, in row-major order, grouped into dims of other sizes, as a view does.

    Args:
        dims: the dims before the view.
        shape: the size of each dim after it, in the small and the large model.

    Raises:
        UnfitError: no factors multiply to these sizes.
    """
    rest = list(expanded([use for dim in dims for use in dim]))
    found = []
    for size in shape:
        taken, rest = _take(rest, size)
        found.append(taken)
    return tuple(found)


def _take(rest: list[AtomUse], size: SizePair) -> tuple[Dim, list[AtomUse]]:
    """Split off the factors in front of a dim whose sizes multiply to `size`, and return them and the rest.

    A factor is cut in two where that is necessary.

    Raises:
        UnfitError: no factors multiply to that size.
    """
    taken: list[AtomUse] = []
    have = (1, 1)
    while have != size:
        if not rest or size[0] % have[0] or size[1] % have[1]:
            raise UnfitError(f"a view to {Atom(*size)!r} of {described(taken + rest)}")
        wanted = size[0] // have[0], size[1] // have[1]
        atom = root(rest[0].atom)
        if wanted[0] % atom.small or wanted[1] % atom.large:
            rest = _merged(rest) if not atom.grows and not _covers(atom, Atom(*wanted)) else rest
            _cut(root(rest[0].atom), wanted)
            rest = list(expanded(rest))
            continue
        taken.append(rest[0])
        have = have[0] * atom.small, have[1] * atom.large
        rest = rest[1:]
    return tuple(taken), rest


def _merged(rest: list[AtomUse]) -> list[AtomUse]:
    """Return the factors `rest` with those in front that do not grow as one, so that a view may cut across them."""
    count, size = 0, 1
    while count < len(rest) and not rest[count].atom.grows:
        size *= rest[count].atom.small
        count += 1
    return [AtomUse(Atom(size, size)), *rest[count:]]


def piece(dim: Sequence[AtomUse], start: SizePair, size: SizePair) -> Dim:
    """Return a piece of a dim, a product of factors, as a slice or a split cuts it out.

    Args:
        dim: the whole dim.
        start: offset of the piece in the small and the large model.
        size: length of the piece in the small and the large model.

    Raises:
        UnfitError: the piece does not begin and end at borders of factors.
    """
    whole = expanded(dim)
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
    return tuple(AtomUse(use.atom, first.origin) for use in _segment(root(first.atom), start, size))


def _segment(atom: Atom, start: SizePair, size: SizePair) -> Dim:
    """Return a piece of a dim's factor (atom) by its offset: some of the dims that it consists of, or a part cut out.

    A factor has a size in the small and in the large model; so have offset and length of the piece.

    Args:
        atom: the atom.
        start: offset of the segment in the small and the large model.
        size: length of the segment in the small and the large model.

    Raises:
        UnfitError: the segment would begin or end inside another one.
    """
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
            nested = expanded(segment)
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
    """Return the dim that consists of the given dims one behind another, as torch.cat makes it."""
    if len(dims) == 1:
        return dims[0]
    total = [sizes(dim) for dim in dims]
    size = sum(pair[0] for pair in total), sum(pair[1] for pair in total)
    if size[0] == size[1] and all(pair[0] == pair[1] for pair in total):
        return fresh(size)
    return (AtomUse(Atom(*size, segments=list(dims))),)


def index_map(dim: Sequence[AtomUse]) -> IndexMap:
    """Return for a dim which entry in the small model each entry in the large one is a copy of, as plain data."""
    found: list[Factor] = []
    for use in expanded(dim):
        atom = root(use.atom)
        found.append(Segments(tuple(map(index_map, atom.segments))) if atom.segments else Tiling(*atom.size))
    return IndexMap(tuple(found))


def largest_ratio(dim: Sequence[AtomUse]) -> Fraction:
    """Return the size of a dim in the large model over that in the small one.

    Of a dim that consists of segments, dims one behind another, it is the largest such ratio of any of them.
    """
    ratio = Fraction(1)
    for use in expanded(dim):
        atom = root(use.atom)
        whole = Fraction(atom.large, atom.small)
        ratio *= max(map(largest_ratio, atom.segments)) if atom.segments else whole
    return ratio


def has_segments(dim: Sequence[AtomUse]) -> bool:
    """Whether some factor of the dim consists of pieces one behind another."""
    return any(root(use.atom).segments for use in expanded(dim))


def plain_atoms(dim: Sequence[AtomUse]) -> list[Atom]:
    """Return every factor of a dim that neither is a product nor consists of dims one behind another, at any depth."""
    found: list[Atom] = []
    for use in expanded(dim):
        atom = root(use.atom)
        found += [inner for segment in atom.segments for inner in plain_atoms(segment)] if atom.segments else [atom]
    return found


def grows(dim: Sequence[AtomUse]) -> bool:
    """Whether some factor of the dim has different sizes in the two models."""
    return any(atom.grows for atom in plain_atoms(dim))


def described(dims: Sequence[AtomUse] | Sequence[Dim]) -> str:
    """Write dims as text for a message: `3 x 4->8 x 8` with sizes small->large.

    Dims that lie one behind another and make up one dim are written as `[64->256 | 16 | 16]`.
    """
    words = []
    for each in dims:
        if isinstance(each, tuple):
            words.append(described(each) or "1")
            continue
        for use in expanded([each]):
            atom = root(use.atom)
            words.append(f"[{' | '.join(map(described, atom.segments))}]" if atom.segments else f"{atom!r}")
    return " x ".join(words) or "1"
