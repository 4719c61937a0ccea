"""Owns the linear program over named rows `out <= inputs + constant - weight * alignment`: builds, solves and explains it."""

from __future__ import annotations

import heapq
import math
import time
import zlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import highspy
import numpy as np
from numpy.typing import NDArray

from abcfx.errors import AbcfxError, InfeasibleError, InvalidInputError

ALIGNMENTS = ("alpha", "omega", "u")
UNCONSTRAINED_BOUND = 4.0
DUAL_TOLERANCE = 1e-9
EXACT_TOLERANCE = 1e-8

Alignment = Mapping[Hashable, tuple[float, float, float]]
Floats = NDArray[np.float64]


class Row(NamedTuple):
    """One constraint `out <= sum(inputs) + constant - weight * alignment[layer]`; a level is the exact min of its rows.

    `inputs` are rates or levels, a repeated one counts twice. `weight` is the growth exponent of the fan-in. `words`
    says the constraint in messages; without it the row is printed as an inequality.
    """

    name: str
    out: Hashable
    inputs: tuple[Hashable, ...]
    constant: float
    alignment: str | None = None
    layer: Hashable = None
    weight: float = 1.0
    words: str = ""


class Rate(NamedTuple):
    """A learning-rate exponent c. `distance` to the outputs, in layers, makes upstream rates dearer in the tie-break."""

    cost: float = 1.0
    distance: int = 0
    fixed: float | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)


@dataclass(frozen=True)
class LpSolution:
    """The unique optimum. `levels` come from exact recursion; shadow prices are d(objective) / d(right-hand side)."""

    c: dict[Hashable, float]
    levels: dict[Hashable, float]
    objective: float
    binding: dict[Hashable, tuple[str, ...]]
    shadow_prices: dict[str, float]
    unconstrained: tuple[Hashable, ...]
    iterations: int
    seconds: float


class _Point(NamedTuple):
    """A lexicographic optimum of the relaxed LP with its stage-1 duals."""

    x: Floats
    objective: float
    tie: float
    row_dual: Floats
    col_dual: Floats


class Solver:
    """Minimises the cost-weighted sum of the rates, then, among the optima, a generic weighting dearer upstream.

    `lower` bounds levels from below (absent: free), `exact` names the levels that must equal their bound,
    `alignment` maps a layer to (alpha, omega, u).
    """

    def __init__(
        self,
        rows: Iterable[Row],
        rates: Mapping[Hashable, Rate],
        lower: Mapping[Hashable, float],
        alignment: Alignment,
        exact: Iterable[Hashable] = (),
    ) -> None:
        self.rows = list(rows)
        self.rates = dict(rates)
        self._names: list[Hashable] = list(self.rates)
        self._column = {name: column for column, name in enumerate(self._names)}
        for row in self.rows:
            if row.out not in self._column:
                self._column[row.out] = len(self._names)
                self._names.append(row.out)
        self._lower = np.full(len(self._names), -math.inf)
        self._upper = np.full(len(self._names), math.inf)
        for level, bound in lower.items():
            self._lower[self._column[level]] = bound
        self._exact = [self._column[level] for level in exact]
        self._upper[self._exact] = self._lower[self._exact]
        self._inputs = [[self._column[name] for name in row.inputs] for row in self.rows]
        self._outs = [self._column[row.out] for row in self.rows]
        self._order = self._topological_order()
        self.unconstrained = self._bound_rates()
        self._cost = np.zeros(len(self._names))
        self._weight = np.zeros(len(self._names))
        for column, (name, rate) in enumerate(self.rates.items()):
            self._cost[column] = rate.cost
            self._weight[column] = rate.distance + 0.5 * zlib.crc32(repr(name).encode()) / 2**32
        self._constant = np.array([row.constant for row in self.rows])
        self._right = self._right_hand_sides(alignment)
        self._highs: highspy.Highs | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_highs": None}

    def solve(self) -> LpSolution:
        """Solve at the alignments of the last call (at first: those of the constructor)."""
        start = time.perf_counter()
        point = self._search()
        c = np.round(point.x[: len(self.rates)], 12) + 0.0
        values = self._recurse(c)
        need = self._need(values)
        return LpSolution(
            c=dict(zip(self.rates, c.tolist(), strict=True)),
            levels=dict(zip(self._names[len(c) :], values[len(c) :], strict=True)),
            objective=float(self._cost[: len(c)] @ c),
            binding=self._binding(values, need),
            shadow_prices=self._shadow_prices(point),
            unconstrained=self.unconstrained,
            iterations=0,
            seconds=time.perf_counter() - start,
        )

    def resolve(self, alignment: Alignment) -> LpSolution:
        """Solve at new alignments: only row bounds change, HiGHS starts from the last basis."""
        self._right = self._right_hand_sides(alignment)
        return self.solve()

    def required(self, solution: LpSolution) -> dict[Hashable, float]:
        """For each level, the least value it must keep for every level to stay at or above its lower bound."""
        c = np.array([solution.c[name] for name in self.rates])
        need = self._need(self._recurse(c))
        return dict(zip(self._names[len(c) :], need[len(c) :], strict=True))

    def _right_hand_sides(self, alignment: Alignment) -> Floats:
        right = self._constant.copy()
        for k, row in enumerate(self.rows):
            if row.alignment is not None:
                right[k] -= row.weight * alignment[row.layer][ALIGNMENTS.index(row.alignment)]
        return right

    def _topological_order(self) -> list[tuple[int, list[int]]]:
        rows_of: dict[int, list[int]] = {}
        for k, out in enumerate(self._outs):
            rows_of.setdefault(out, []).append(k)
        waiting = {out: 0 for out in rows_of}
        users: dict[int, list[int]] = {out: [] for out in rows_of}
        for k, out in enumerate(self._outs):
            for column in self._inputs[k]:
                if column >= len(self.rates):
                    users[column].append(out)
                    waiting[out] += 1
        ready = [out for out, count in waiting.items() if not count]
        order = []
        while ready:
            out = ready.pop()
            order.append((out, rows_of[out]))
            for user in users[out]:
                waiting[user] -= 1
                if not waiting[user]:
                    ready.append(user)
        if len(order) < len(rows_of):
            raise InvalidInputError("cycle among levels")
        return order

    def _bound_rates(self) -> tuple[Hashable, ...]:
        held = np.isfinite(self._lower)
        for out, rows in reversed(self._order):
            if held[out]:
                for k in rows:
                    held[self._inputs[k]] = True
        unconstrained = []
        for column, (name, rate) in enumerate(self.rates.items()):
            low, high = rate.bounds if rate.fixed is None else (rate.fixed, rate.fixed)
            if not held[column] and not math.isfinite(low):
                low, high = -UNCONSTRAINED_BOUND, min(high, UNCONSTRAINED_BOUND)
                unconstrained.append(name)
            self._lower[column], self._upper[column] = low, high
        return tuple(unconstrained)

    def _recurse(self, c: Floats) -> list[float]:
        values: list[float] = c.tolist() + [math.inf] * (len(self._names) - len(c))
        right = self._right.tolist()
        for out, rows in self._order:
            values[out] = min(right[k] + sum([values[j] for j in self._inputs[k]]) for k in rows)
        return values

    def _need(self, values: Sequence[float]) -> list[float]:
        need: list[float] = self._lower.tolist()
        for out, rows in reversed(self._order):
            if need[out] == -math.inf:
                continue
            for k in rows:
                total = self._right[k] + sum([values[j] for j in self._inputs[k]])
                for j in self._inputs[k]:
                    least = values[j] - float(total - need[out]) / self._inputs[k].count(j)
                    need[j] = max(need[j], least)
        return need

    def _binding(self, values: Sequence[float], need: Sequence[float]) -> dict[Hashable, tuple[str, ...]]:
        binding: dict[Hashable, list[str]] = {name: [] for name in self.rates}
        for k, row in enumerate(self.rows):
            slack = self._right[k] + sum([values[j] for j in self._inputs[k]]) - need[self._outs[k]]
            if slack <= EXACT_TOLERANCE:
                for name in row.inputs:
                    if name in self.rates and row.name not in binding[name]:
                        binding[name].append(row.name)
        return {name: tuple(names) for name, names in binding.items()}

    def _shadow_prices(self, point: _Point) -> dict[str, float]:
        prices = {}
        for k in np.flatnonzero(np.abs(point.row_dual) > DUAL_TOLERANCE):
            prices[self.rows[k].name] = float(point.row_dual[k])
        for column in np.flatnonzero(np.abs(point.col_dual) > DUAL_TOLERANCE):
            prices[self._bound_name(int(column))] = float(point.col_dual[column])
        return prices

    def _bound_name(self, column: int) -> str:
        name, low, high = self._names[column], self._lower[column], self._upper[column]
        label = f"{name[1]}: {name[0]}" if isinstance(name, tuple) and len(name) == 2 else str(name)
        if column < len(self.rates):
            label += ": c"
        return f"{label} {'=' if low == high else '>=' if low > -math.inf else '<='} {low if low > -math.inf else high:g}"

    # -- HiGHS ---------------------------------------------------------------------------------------------------

    def _load(self) -> highspy.Highs:
        highs = highspy.Highs()
        for option, value in {
            "output_flag": False,
            "primal_feasibility_tolerance": 1e-10,
            "dual_feasibility_tolerance": 1e-10,
        }.items():
            _check(highs.setOptionValue(option, value), f"set {option}")
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self._names), len(self.rows)
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = self._cost, self._lower, self._upper
        lp.row_lower_, lp.row_upper_ = np.full(len(self.rows), -highspy.kHighsInf), self._right
        start, index, value_ = [0], [], []
        for out, inputs in zip(self._outs, self._inputs, strict=True):
            entries: dict[int, float] = {out: 1.0}
            for j in inputs:
                entries[j] = entries.get(j, 0.0) - 1.0
            index += entries
            value_ += entries.values()
            start.append(len(index))
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = np.array(start), np.array(index), np.array(value_)
        _check(highs.passModel(lp), "load the LP")
        return highs

    def _run(self, cost: Floats) -> bool:
        assert self._highs is not None
        columns = np.arange(len(cost), dtype=np.int32)
        _check(self._highs.changeColsCost(len(cost), columns, cost), "change the cost")
        _check(self._highs.run(), "run")
        status = self._highs.getModelStatus()
        if status == highspy.HighsModelStatus.kOptimal:
            return True
        if status == highspy.HighsModelStatus.kInfeasible:
            return False
        raise AbcfxError(f"HiGHS stopped with {self._highs.modelStatusToString(status)}")

    def _minimise(self, tight: frozenset[int]) -> _Point | None:
        if self._highs is None:
            self._highs = self._load()
        highs, rows, columns = self._highs, len(self.rows), len(self._names)
        every_row, every_column = np.arange(rows, dtype=np.int32), np.arange(columns, dtype=np.int32)
        low = np.full(rows, -highspy.kHighsInf)
        low[list(tight)] = self._right[list(tight)]
        _check(highs.changeRowsBounds(rows, every_row, low, self._right), "change row bounds")
        if not self._run(self._cost):
            return None
        solution = highs.getSolution()
        row_dual, col_dual = np.array(solution.row_dual), np.array(solution.col_dual)
        face = np.where(np.abs(row_dual) > DUAL_TOLERANCE, self._right, low)
        _check(highs.changeRowsBounds(rows, every_row, face, self._right), "fix the optimal face")
        left, right = self._lower.copy(), self._upper.copy()
        right[col_dual > DUAL_TOLERANCE] = left[col_dual > DUAL_TOLERANCE]
        left[col_dual < -DUAL_TOLERANCE] = right[col_dual < -DUAL_TOLERANCE]
        _check(highs.changeColsBounds(columns, every_column, left, right), "fix the optimal face")
        if not self._run(self._weight):
            raise AbcfxError("HiGHS lost the optimal face")
        x = np.array(highs.getSolution().col_value)
        _check(highs.changeColsBounds(columns, every_column, self._lower, self._upper), "restore column bounds")
        return _Point(x, float(self._cost @ x), float(self._weight @ x), row_dual, col_dual)

    def _search(self) -> _Point:
        heap: list[tuple[float, float, int, frozenset[int], _Point]] = []
        tight: frozenset[int] | None = frozenset()
        children = [frozenset[int]()]
        count = 0
        while True:
            for tight in children:
                point = self._minimise(tight)
                if point is not None:
                    heapq.heappush(heap, (round(point.objective, 9), point.tie, count, tight, point))
                count += 1
            if not heap:
                raise InfeasibleError("infeasible")
            _, _, _, tight, point = heapq.heappop(heap)
            level = self._violated(tight, point)
            if level is None:
                return point
            children = [tight | {k} for k in dict(self._order)[level]]

    def _violated(self, tight: frozenset[int], point: _Point) -> int | None:
        if not self._exact:
            return None
        truth = self._recurse(point.x[: len(self.rates)])
        if all(truth[level] <= self._lower[level] + EXACT_TOLERANCE for level in self._exact):
            return None
        fixed = {self._outs[k] for k in tight}
        needed = self._exact + [j for k in tight for j in self._inputs[k] if j >= len(self.rates)]
        return next(j for j in needed if j not in fixed and truth[j] > point.x[j] + EXACT_TOLERANCE)


def _check(status: highspy.HighsStatus, action: str) -> None:
    if status != highspy.HighsStatus.kOk:
        raise AbcfxError(f"HiGHS could not {action}: {status.name}")
