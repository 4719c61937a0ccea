"""Solves exact linear equations over fractions: those that must hold first, then by least squares those that should."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

Form = dict[str | float, Fraction]
"""A linear form: a string is an unknown, a float a known number; 1/2 v + 3 e is {"v": 1/2, e: 3}."""
TOLERANCE = 1e-7


def combined(*terms: tuple[float | Fraction, Mapping[str | float, Fraction]]) -> Form:
    """Return a weighted sum of linear forms, such as 2 (x + 3) - y, without terms that are 0.

    A form is a dict of coefficients: {"x": 1/2, 3.0: 1} is x / 2 + 3.

    Args:
        terms: (factor, form) of each form.
    """
    total: Form = {}
    for factor, form in terms:
        for key, value in form.items():
            total[key] = total.get(key, Fraction(0)) + as_fraction(factor) * value
    return {key: value for key, value in total.items() if value}


def as_fraction(number: float | Fraction) -> Fraction:
    """Return the simplest fraction that a rounded float may stand for: 2/3 for 0.6666666667."""
    near = Fraction(number).limit_denominator(1000)
    return near if abs(near - Fraction(number)) < 1e-9 else Fraction(number)


def known_value(form: Mapping[str | float, Fraction]) -> Fraction:
    """Return the part of a linear form that has no unknowns: {"x": 1/2, 3.0: 2} is x / 2 + 6, whose part is 6."""
    return sum((value * as_fraction(key) for key, value in form.items() if not isinstance(key, str)), Fraction(0))


class Equations:
    """Linear equations `form = 0` over fractions, solved one by one for as many unknowns as there are equations.

    A form is a dict of coefficients: {"x": 1/2, 3.0: 1} is x / 2 + 3.

    >>> equations = Equations()
    >>> equations.require({"x": Fraction(2), 1.0: Fraction(-1)})  # 2 x = 1
    True
    >>> equations.solution("x")
    {1.0: Fraction(1, 2)}
    """

    def __init__(self) -> None:
        """Start with no equations, so that every unknown is free."""
        self._solved: dict[str, Form] = {}
        self._within: dict[str, set[str]] = {}

    def reduced(self, form: Mapping[str | float, Fraction]) -> Form:
        """Return a linear form in which the unknowns that the equations determine are replaced by others."""
        terms = [(Fraction(1), {key: value for key, value in form.items() if key not in self._solved})]
        terms += [(value, self._solved[key]) for key, value in form.items() if key in self._solved]
        return combined(*terms)

    def require(self, form: Mapping[str | float, Fraction]) -> bool:
        """Add the equation `form = 0`; return False, and add nothing, if it contradicts those so far."""
        rest = self.reduced(form)
        unknowns = [key for key in rest if isinstance(key, str)]
        if not unknowns:
            return abs(known_value(rest)) < TOLERANCE
        pivot = min(unknowns, key=lambda name: len(self._within.get(name, ())))
        self._define(pivot, combined((-1 / rest.pop(pivot), rest)))
        return True

    def least_squares(self, forms: Iterable[Mapping[str | float, Fraction]]) -> None:
        """Add the equations that make the sum of the squares of linear forms least.

        Unknowns that do not change the sum stay free.
        """
        normal: dict[str, Form] = {}
        for row in map(self.reduced, forms):
            for name, factor in row.items():
                if isinstance(name, str):
                    normal[name] = combined((1, normal.get(name, {})), (factor, row))
        for equation in normal.values():
            assert self.require(equation), "normal equations have a solution"

    def solution(self, unknown: str) -> Form:
        """Return the value of an unknown as a linear form of numbers alone; 0 where no equation determines it."""
        form = self.reduced({unknown: Fraction(1)})
        return {key: value for key, value in form.items() if not isinstance(key, str)}

    def _define(self, pivot: str, form: Form) -> None:
        """Substitute a linear form for the unknown `pivot` in every equation."""
        for name in self._within.pop(pivot, set()):
            before = self._solved[name]
            factor = before.pop(pivot)
            after = combined((1, before), (factor, form))
            self._solved[name] = after
            for key in form:
                if isinstance(key, str):
                    users = self._within.setdefault(key, set())
                    users.add(name) if key in after else users.discard(name)
        self._solved[pivot] = form
        for key in form:
            if isinstance(key, str):
                self._within.setdefault(key, set()).add(pivot)
