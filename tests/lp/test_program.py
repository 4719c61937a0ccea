"""The linear program finds the exact and lexicographic optimum, its prices, and the constraints in conflict."""

from __future__ import annotations

import copy
import math
import pickle
import random
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import pytest
from oracles import least_sum
from scipy.optimize import linprog

from abcfx.errors import AbcfxError, InfeasibleError
from abcfx.lp.names import BoundName, RowKind, RowLabel, RowName
from abcfx.lp.program import LpSolution, Solver
from abcfx.lp.rows import ALIGNMENTS, Alignment, Rate, Row, generic_weight
from abcfx.verification.recursion import Term

NO_ALIGNMENT: Alignment = {}


class Problem(NamedTuple):
    """The arguments of `Solver`."""

    rows: list[Row]
    rates: dict[Hashable, Rate]
    lower: dict[Hashable, float]
    alignment: dict[Hashable, tuple[float, float, float]]
    exact: list[Hashable]

    def right(self, row: Row) -> float:
        if row.alignment is None:
            return row.constant
        return row.constant - row.weight * self.alignment[row.layer][ALIGNMENTS.index(row.alignment)]

    def optimum(self) -> float | None:
        levels: dict[Hashable, list[Term]] = {}
        for row in self.rows:
            coefficients: dict[Hashable, float] = {}
            for name in row.inputs:
                coefficients[name] = coefficients.get(name, 0.0) + 1
            levels.setdefault(row.out, []).append((coefficients, self.right(row)))
        limits = {name: np.clip(rate.limits, -50, 50) for name, rate in self.rates.items()}
        rates = {name: (rate.cost, *limits[name]) for name, rate in self.rates.items()}
        return least_sum(levels, rates, self.lower, self.exact)

    def levels(self, c: dict[Hashable, float]) -> dict[Hashable, float]:
        values = dict(c)
        for row in self.rows:  # rows come in topological order here
            total = self.right(row) + sum(values[name] for name in row.inputs)
            values[row.out] = min(values.get(row.out, math.inf), total)
        return {name: value for name, value in values.items() if name not in c}


def random_problem(rng: random.Random, *, bounds: bool = True, exact: float = 0.0) -> Problem:
    """Draw a problem with shared rates, sums, doubled inputs, free levels and costs of 0; a row holds each rate."""
    ties = rng.random() < 0.5

    def draw(low: float, high: float) -> float:
        return rng.randint(round(4 * low), round(4 * high)) / 4 if ties else round(rng.uniform(low, high), 3)

    rates: dict[Hashable, Rate] = {}
    for i in range(rng.randint(1, 5)):
        limits = (rng.choice([-math.inf, draw(-1, 0)]), rng.choice([math.inf, draw(0, 2)]))
        fixed = draw(-1, 1) if bounds and rng.random() < 0.1 else None
        cost = rng.choice([1.0, 1.0, 2.0, 0.5])
        rates[f"c{i}"] = Rate(cost, rng.randint(0, 4), fixed, limits if bounds else (-math.inf, math.inf))
    rows = [Row(f"alone {name}", ("alone", name), (name,), draw(-1, 1)) for name in rates]
    for level in range(rng.randint(1, 8)):
        for option in range(rng.randint(1, 4)):
            inputs: list[Hashable] = [rng.choice(list(rates))] if rng.random() < 0.6 else []
            inputs += [("level", rng.randrange(level)) for _ in range(rng.choice([0, 1, 1, 2])) if level]
            inputs += inputs[:1] if rng.random() < 0.05 else []
            kind = rng.choice([None, *ALIGNMENTS])
            layer, weight = rng.randrange(3), rng.choice([1.0, 0.5, 2.0])
            rows.append(Row(f"{level} {option}", ("level", level), tuple(inputs), draw(-1, 1), kind, layer, weight))
    lower: dict[Hashable, float] = {("alone", name): draw(-1, 0) for name in rates}
    lower |= {row.out: rng.choice([0.0, draw(-0.5, 0.5)]) for row in rows if rng.random() < 0.4}
    alignment: dict[Hashable, Any] = {layer: (draw(0, 1), draw(0, 1), draw(0, 1)) for layer in range(3)}
    return Problem(rows, rates, lower, alignment, [level for level in lower if rng.random() < exact])


def optimum(problem: Problem) -> LpSolution | None:
    try:
        return Solver(*problem).solve()
    except InfeasibleError:
        return None


class TestOptimum:
    @pytest.mark.parametrize("exact", [0.0, 0.2, 0.5])
    def test_random_rows(self, exact: float) -> None:
        rng = random.Random(f"rows {exact}")
        feasible = 0
        for _ in range(150):
            problem = random_problem(rng, exact=exact)
            solution = optimum(problem)
            assert (solution and solution.objective) == pytest.approx(problem.optimum(), abs=1e-7)
            if solution:
                feasible += 1
                assert solution.levels == pytest.approx(problem.levels(solution.c), abs=1e-9)
                assert all(solution.levels[level] >= bound - 1e-9 for level, bound in problem.lower.items())
                assert all(solution.levels[x] == pytest.approx(problem.lower[x], abs=1e-8) for x in problem.exact)
        assert feasible >= 5

    def test_lexicographic(self) -> None:
        """Of all optima the one that is least in distance + 1/2 hash, by two linear programs of scipy."""
        rng = random.Random(8)
        for _ in range(150):
            problem = random_problem(rng)
            solution = optimum(problem)
            if solution is None:
                continue
            names = [*problem.rates, *solution.levels]
            rows = [[(x == row.out) - row.inputs.count(x) for x in names] for row in problem.rows]
            right = [problem.right(row) for row in problem.rows]
            limits = [rate.limits for rate in problem.rates.values()]
            limits += [(problem.lower.get(level, -math.inf), math.inf) for level in solution.levels]
            padding = [0.0] * len(solution.levels)
            cost = [rate.cost for rate in problem.rates.values()] + padding
            weight = [rate.distance + 0.5 * generic_weight(name) for name, rate in problem.rates.items()] + padding
            least = linprog(cost, A_ub=rows, b_ub=right, bounds=limits).fun
            second = linprog(weight, A_ub=[*rows, cost], b_ub=[*right, least + 1e-9], bounds=limits)
            assert list(solution.c.values()) == pytest.approx(second.x[: len(problem.rates)], abs=1e-5)

    def test_a_trade_leaves_the_upstream_rate_low(self) -> None:
        rows = [Row("both", "r", ("up", "down"), 0.0), Row("up", "s", ("up",), 1.0), Row("down", "t", ("down",), 1.0)]
        lower: dict[Hashable, float] = dict.fromkeys("rst", 0.0)
        for order in (("up", "down"), ("down", "up")):
            rates: dict[Hashable, Rate] = {name: Rate(distance=int(name == "up")) for name in order}
            assert Solver(rows, rates, lower, NO_ALIGNMENT).solve().c == {"up": -1.0, "down": 1.0}

    def test_a_tie_at_one_distance_does_not_depend_on_the_order(self) -> None:
        rows = [Row("both", "r", ("x", "y"), 0.0), Row("x", "s", ("x",), 1.0), Row("y", "t", ("y",), 1.0)]
        lower: dict[Hashable, float] = dict.fromkeys("rst", 0.0)
        one = Solver(rows, {"x": Rate(), "y": Rate()}, lower, NO_ALIGNMENT).solve()
        other = Solver(rows[::-1], {"y": Rate(), "x": Rate()}, lower, NO_ALIGNMENT).solve()
        assert one.c == other.c
        assert sorted(one.c.values()) == [-1.0, 1.0]

    def test_costs_come_before_weights_however_large(self) -> None:
        """A rise of x or y is worth a little more than it costs, and both are far upstream; y is nearer, so y rises."""
        rows = [Row("sum", "r", ("x", "y", "z"), -1.0)]
        rows += [Row(f"{name} alone", name.upper(), (name,), 0.0) for name in "xyz"]
        rates = {"x": Rate(1.0, 1001), "y": Rate(1.0, 1000), "z": Rate(1.01, 0)}
        lower: dict[Hashable, float] = dict.fromkeys("rXYZ", 0.0)
        for order in ("xyz", "zyx", "yzx"):
            solution = Solver(rows, {name: rates[name] for name in order}, lower, NO_ALIGNMENT).solve()
            assert solution.c == {"x": 0.0, "y": 1.0, "z": 0.0}

    def test_growth_exponents_weigh_alignments(self) -> None:
        rows = [Row("h: alpha", "r", ("c",), 0.0, "alpha", "h", weight=2 / 3)]
        solution = Solver(rows, {"c": Rate()}, {"r": 0.0}, {"h": (0.9, 0.0, 0.0)}).solve()
        assert solution.c["c"] == pytest.approx(0.6)

    def test_rates_that_nothing_holds_up(self) -> None:
        rows = [Row("r", "r", ("used",), 0.0), Row("s", "s", ("dead", "r"), 0.0)]
        rates: dict[Hashable, Rate] = {"used": Rate(), "dead": Rate()}
        rates |= {"low": Rate(bounds=(-9.0, 1.0)), "high": Rate(bounds=(-math.inf, -5.0))}
        solution = Solver(rows, rates, {"r": 0.0}, NO_ALIGNMENT).solve()
        assert solution.c == {"used": 0.0, "dead": -4.0, "low": -9.0, "high": -5.0}
        assert solution.unconstrained == ("dead", "high")
        assert solution.levels == {"r": 0.0, "s": -4.0}

    def test_fixed_rates_costs_of_zero_and_bounds(self) -> None:
        rows = [Row(f"{name} {k}", name, (f"c{name}",), -1.0) for k, name in enumerate("abc")]
        rates: dict[Hashable, Rate] = {"ca": Rate(fixed=2.0), "cb": Rate(cost=0.0), "cc": Rate(bounds=(1.5, 3.0))}
        solution = Solver(rows, rates, dict.fromkeys("abc", 0.0), NO_ALIGNMENT).solve()
        assert solution.c == {"ca": 2.0, "cb": 1.0, "cc": 1.5}
        assert solution.objective == 3.5
        given, bounded = BoundName("ca", "c", "=", 2.0), BoundName("cc", "c", ">=", 1.5)
        assert solution.binding == {"ca": (given,), "cb": ("b 1",), "cc": (bounded,)}
        assert solution.shadow_prices == {given: 1.0, bounded: 1.0}
        assert (str(given), str(bounded)) == ("ca: c = 2", "cc: c >= 1.5")

    def test_no_rates_or_no_rows(self) -> None:
        assert Solver([Row("r", "r", (), 0.5)], {}, {"r": 0.0}, NO_ALIGNMENT).solve().levels == {"r": 0.5}
        assert Solver([], {"c": Rate()}, {}, NO_ALIGNMENT).solve().c == {"c": -4.0}
        assert Solver([], {}, {}, NO_ALIGNMENT).solve().objective == 0.0


class TestHistory:
    def test_re_solving_equals_a_cold_solve(self) -> None:
        rng = random.Random(9)
        for _ in range(60):
            problem = random_problem(rng, exact=rng.choice([0.0, 0.3]))
            solver = Solver(*problem)
            for _ in range(6):
                alignment: dict[Hashable, tuple[float, float, float]] = {
                    layer: (rng.uniform(0, 1.5), rng.uniform(0, 1.5), rng.uniform(0, 1.5)) for layer in range(3)
                }
                cold = optimum(problem._replace(alignment=alignment))
                try:
                    warm = solver.resolve(alignment)
                except InfeasibleError:
                    assert cold is None
                else:
                    assert cold is not None
                    assert warm.c == pytest.approx(cold.c, abs=1e-9)
                    assert warm.levels == pytest.approx(cold.levels, abs=1e-9)

    def test_copies_and_pickles_solve(self) -> None:
        solver = Solver(*random_problem(random.Random(14), bounds=False))
        first = solver.solve()
        for other in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver)), solver):
            assert other.solve().c == first.c


class TestExplanations:
    def test_shadow_prices_bound_the_objective_from_below(self) -> None:
        """The price of a right-hand side is a subgradient: the optimum as a function of it is convex."""
        rng = random.Random(11)
        for _ in range(60):
            problem = random_problem(rng, bounds=False)
            solution = optimum(problem)
            if solution is None:
                continue
            for name, price in solution.shadow_prices.items():
                for change in (-0.1, 0.1):
                    changed = optimum(_shifted(problem, name, change))
                    if changed:
                        assert changed.objective >= solution.objective + price * change - 1e-8

    def test_prices_and_names(self) -> None:
        rows = [
            Row("e: update", ("r", "e"), ("e",), 0.0),
            Row("h: alpha", ("r", "h"), ("h",), -1.0),
            Row("h: omega", ("r", "h"), (("r", "e"),), -0.25),
        ]
        solution = Solver(rows, {"e": Rate(), "h": Rate()}, {("r", "e"): 0.0, ("r", "h"): 0.0}, NO_ALIGNMENT).solve()
        assert solution.c == {"e": 0.25, "h": 1.0}
        assert solution.binding == {"e": ("e: update",), "h": ("h: alpha",)}
        assert solution.shadow_prices == {
            "e: update": -1.0,
            "h: alpha": -1.0,
            "h: omega": -1.0,
            BoundName("h", "r", ">=", 0.0): 2.0,
        }

    def test_required_levels_are_the_lowest_that_keep_all_bounds(self) -> None:
        """A level kept at what is required breaks nothing; a little below, it breaks a bound."""
        rng = random.Random(12)
        checked = 0
        for _ in range(80):
            problem = random_problem(rng)
            solver = Solver(*problem)
            try:
                solution = solver.solve()
            except InfeasibleError:
                continue
            for level, need in solver.required(solution).items():
                assert need <= solution.levels[level] + 1e-9
                if need > -math.inf:
                    checked += 1
                    assert _stays(problem, solution, level, need + 1e-7)
                    assert not _stays(problem, solution, level, need - 1e-5)
        assert checked > 50


def _shifted(problem: Problem, name: Hashable, change: float) -> Problem:
    rows = [row._replace(constant=row.constant + change * (row.name == name)) for row in problem.rows]
    is_lower = isinstance(name, BoundName) and name.relation == ">="
    level = (name.variable, name.owner) if isinstance(name, BoundName) and is_lower else None
    lower = {each: bound + change * (each == level) for each, bound in problem.lower.items()}
    return problem._replace(rows=rows, lower=lower)


def _stays(problem: Problem, solution: LpSolution, level: Hashable, value: float) -> bool:
    """Tell whether every level is at or above its bound when one level has a value."""
    rows = [row for row in problem.rows if row.out != level]
    levels = problem._replace(rows=rows).levels({**solution.c, level: value}) | {level: value}
    return all(levels[name] >= bound - 1e-8 for name, bound in problem.lower.items())


class TestInfeasible:
    def test_conflicts_are_irreducible(self) -> None:
        """What the message names is infeasible, and without any one of it feasible."""
        rng = random.Random(13)
        found = 0
        while found < 40:
            problem = random_problem(rng, exact=0.3)
            try:
                Solver(*problem).solve()
            except InfeasibleError as error:
                head, *lines = str(error).split("\n  - ")
                if "exactly" not in head:
                    found += 1
                    assert not _is_feasible(problem, lines)
                    for line in lines:
                        assert _is_feasible(problem, [other for other in lines if other != line])

    def test_words(self) -> None:
        rows = [
            Row(RowName("h", RowLabel(RowKind.UPDATE)), ("r", "h"), ("h",), 0.0, "alpha", "h"),
            Row("o: omega", ("r", "o"), (("r", "h"),), 0.5, "omega", "o"),
        ]
        lower: dict[Hashable, float] = {("r", "h"): 0.0, ("r", "o"): 0.0}
        solver = Solver(rows, {"h": Rate()}, lower, {"h": (1.0, 0.5, 1.0), "o": (1.0, 0.75, 1.0)}, [("r", "h")])
        with pytest.raises(InfeasibleError) as error:
            solver.solve()
        assert str(error.value).split("\n  - ") == [
            "no exponents satisfy these constraints together; relax one of them:",
            "o: omega: r(o) <= r(h) - 0.25",
            "h: r = 0",
            "o: r >= 0",
        ]
        names = ("o: omega", BoundName("h", "r", "=", 0.0), BoundName("o", "r", ">=", 0.0))
        assert set(error.value.conflict) == set(names)
        with pytest.raises(InfeasibleError, match=r"h: update: r\(h\) <= h - 1 \(the update of .*\)"):
            Solver(rows[:1], {"h": Rate(bounds=(-1, 0.5))}, {("r", "h"): 0.0}, {"h": (1.0, 0.5, 1.0)}).solve()

    def test_exact_levels_that_only_branching_refutes(self) -> None:
        rows = [Row("x", "x", ("c",), 0.0), Row("m: x", "m", ("x",), 0.25), Row("m: y", "m", (), 0.5)]
        with pytest.raises(InfeasibleError) as error:
            Solver(rows, {"c": Rate()}, {"x": 0.0, "m": 0.0}, NO_ALIGNMENT, ["m"]).solve()
        head, *lines = str(error.value).split("\n  - ")
        assert head.startswith("no exponents put m exactly at the bound.")
        assert "none of the 2 ways to choose is possible" in head
        choices = [{"m: x: m = x + 0.25", "m: level = 0", "x: level >= 0"}, {"m: y: m = 0.5", "m: level = 0"}]
        assert set(lines) in choices

    def test_too_many_choices_are_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows: list[Row] = []
        lower: dict[Hashable, float] = {}
        for k in range(4):
            for side in "xy":
                rows.append(Row(f"{side}{k}", f"{side}{k}", (f"c{side}{k}",), 0.0))
                rows.append(Row(f"m{k}: {side}", f"m{k}", (f"{side}{k}",), 0.0))
                rows.append(Row(f"d{side}{k}", f"d{side}{k}", (f"{side}{k}", f"d{side}{k} rate"), 0.0))
                lower |= {f"{side}{k}": 0.0, f"d{side}{k}": 1.0}
            lower[f"m{k}"] = 0.0
        inputs = [str(name) for row in rows for name in row.inputs]
        rates: dict[Hashable, Rate] = {name: Rate() for name in inputs if name.startswith("c")}
        rates |= {name: Rate(cost=2.0, bounds=(-5.0, 5.0)) for name in inputs if "rate" in name}
        exact = [f"m{k}" for k in range(4)]
        assert Solver(rows, rates, lower, NO_ALIGNMENT, exact).solve().levels["m3"] == 0.0
        monkeypatch.setattr("abcfx.lp.program.MAX_BRANCHES", 5)
        with pytest.raises(AbcfxError, match=r"gave up after 5 LPs: m0, m1, m2, m3 must each"):
            Solver(rows, rates, lower, NO_ALIGNMENT, exact).solve()


def _is_feasible(problem: Problem, lines: list[str]) -> bool:
    """Tell whether a point satisfies the constraints that the lines of a message name."""
    levels = list(dict.fromkeys(row.out for row in problem.rows))
    limits: dict[Hashable, list[float]] = {name: [-math.inf, math.inf] for name in [*problem.rates, *levels]}
    known: dict[str, tuple[Hashable, tuple[float, float]]] = {
        f"{name[1]}: {name[0]}": (name, (bound, bound))
        for name, bound in problem.lower.items()
        if isinstance(name, tuple) and name[1:]
    }
    known |= {f"{name}: c": (name, rate.limits) for name, rate in problem.rates.items()}
    rows = [row for row in problem.rows if any(line.startswith(f"{row.name}: ") and "(" in line for line in lines)]
    for line in lines:
        label, _, tail = line.rpartition(" ")[0].rpartition(" ")
        if label in known:
            name, (low, high) = known[label]
            limits[name] = [low if tail in (">=", "=") else -math.inf, high if tail in ("<=", "=") else math.inf]
    matrix = [[(name == row.out) - row.inputs.count(name) for name in limits] for row in rows]
    right = [problem.right(row) for row in rows]
    result = linprog(np.zeros(len(limits)), A_ub=matrix or None, b_ub=right or None, bounds=list(limits.values()))
    return bool(result.status == 0)
