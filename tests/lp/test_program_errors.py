"""The linear program explains rows, rates and bounds that it cannot take."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import pytest

from abcfx.errors import InvalidInputError
from abcfx.lp.program import Solver
from abcfx.lp.rows import Alignment, Rate, Row

NO_ALIGNMENT: Alignment = {}


class TestBadRows:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"name": "s"}, r"rows need unique names, messages refer to them: \['s'\] occurs more than once"),
            ({"out": "c"}, "row 'r': it defines c as a level, but that is a rate"),
            ({"inputs": ("c", "x")}, "row 'r': its input x is no rate, and no row defines it"),
            ({"inputs": (("G", "h"),)}, r"row 'r': its input G\(h\) is no rate"),
            ({"constant": math.nan}, "row 'r': its constant and its weight must be finite, got nan and 1.0"),
            ({"weight": math.inf}, "row 'r': its constant and its weight must be finite, got 0.0 and inf"),
            ({"alignment": "beta"}, "row 'r': its alignment must be None or one of alpha, omega, u; got 'beta'"),
            ({"layer": "k"}, r"layer \['k'\] has rows but no alignment"),
            ({"inputs": ("s",)}, "levels depend on each other in a cycle: r <- s <- r. Remove one of their rows."),
            ({"inputs": ("r",)}, "levels depend on each other in a cycle: r <- r"),
        ],
    )
    def test_rows(self, changes: dict[str, Any], words: str) -> None:
        row = Row("r", "r", ("c",), 0.0, "alpha", "h")._replace(**changes)
        with pytest.raises(InvalidInputError, match=words):
            Solver([row, Row("s", "s", ("r",), 0.0)], {"c": Rate()}, {"s": 0.0}, {"h": (1.0, 0.5, 1.0)})

    @pytest.mark.parametrize(
        ("rate", "words"),
        [
            (Rate(cost=math.nan), "rate c: its cost and its distance must be finite and not negative, got nan and 0"),
            (Rate(cost=-1.0), "rate c: its cost"),
            (Rate(distance=-1), "rate c: its cost and its distance"),
            (Rate(fixed=math.nan), "rate c: its fixed value must be finite, got nan"),
            (Rate(bounds=(1.0, 0.0)), "rate c: its bounds, 1.0 to 0.0, leave no value"),
            (Rate(bounds=(math.nan, 0.0)), "rate c: its bounds"),
            (Rate(bounds=(math.inf, math.inf)), "rate c: its bounds"),
        ],
    )
    def test_rates(self, rate: Rate, words: str) -> None:
        with pytest.raises(InvalidInputError, match=words):
            Solver([Row("r", "r", ("c",), 0.0)], {"c": rate}, {"r": 0.0}, NO_ALIGNMENT)

    def test_bounds_and_alignments(self) -> None:
        rows = [Row("r", ("r", "h"), ("c",), 0.0, "u", "h")]
        rates: dict[Hashable, Rate] = {"c": Rate()}
        full: Alignment = {"h": (1.0, 0.5, 1.0)}
        with pytest.raises(InvalidInputError, match=r"r\(x\) has a lower bound but no row"):
            Solver(rows, rates, {("r", "x"): 0.0}, full)
        with pytest.raises(InvalidInputError, match=r"the lower bound of r\(h\) must be finite, got nan"):
            Solver(rows, rates, {("r", "h"): math.nan}, full)
        with pytest.raises(InvalidInputError, match=r"r\(h\) is to equal its lower bound, but has none"):
            Solver(rows, rates, {}, full, [("r", "h")])
        solver = Solver(rows, rates, {("r", "h"): 0.0}, full)
        for bad in (math.nan, math.inf):
            with pytest.raises(InvalidInputError, match="layer h: alpha, omega and u must be finite"):
                solver.resolve({"h": (1.0, bad, 1.0)})
        with pytest.raises(InvalidInputError, match=r"layer \['h'\] has rows but no alignment"):
            solver.resolve({})
        with pytest.raises(InvalidInputError, match="must be three numbers"):
            solver.resolve({"h": (1.0, 0.5)})  # type: ignore[dict-item]
        assert solver.solve().c == {"c": 1.0}

    def test_rates_that_fall_without_end(self) -> None:
        """c is held up by its row, but only together with d, which is free to rise."""
        solver = Solver([Row("r", "r", ("c", "d"), 0.0)], {"c": Rate(2.0), "d": Rate()}, {"r": 0.0}, NO_ALIGNMENT)
        with pytest.raises(InvalidInputError, match="c can fall without end while others rise: bound it"):
            solver.solve()
