"""`Solver`: the linear program over named rows, checked, solved, and told in names: what binds and what conflicts."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from abcfx.errors import AbcfxError, InfeasibleError, InvalidInputError
from abcfx.lp.highs import Lp, Matrix, Point, UnboundedError
from abcfx.lp.levels import TOLERANCE, Floats, GreedyStart, Levels, without_gc
from abcfx.lp.names import BoundName, Relation, RowName
from abcfx.lp.rows import ALIGNMENTS, Alignment, Rate, Row, generic_weight, is_tagged, written

UNCONSTRAINED_BOUND = 4.0
MAX_BRANCHES = 20_000  # each takes milliseconds; independent choices multiply
DECIMALS = 13  # of c: equal exponents come out equal whatever the pivots, and 10,000 layers stay within 1e-9


@dataclass(frozen=True)
class LpSolution:
    """The optimum of a linear program; it is unique.

    Its variables are rates (learning-rate exponents c), which are minimised, and levels (exponents of changes and
    gradients), each of which is the min of the rows (inequalities) that bound it.

    Attributes:
        c: value of each rate.
        levels: value of each level at these rates.
        objective: sum of the rates, each times its cost.
        binding: names of the rows that hold with equality, or of its own bound, that keep each rate from going lower.
        shadow_prices: d(objective) / d(right side) by name of row or bound, where it is not zero. At a degenerate
            optimum several such derivatives exist, and this is one of them.
        unconstrained: rates that no row keeps from falling; they stay within +-4.
        iterations: iterations of the simplex method.
        seconds: time of the whole solve.
    """

    c: dict[Hashable, float]
    levels: dict[Hashable, float]
    objective: float
    binding: dict[Hashable, tuple[Hashable, ...]]
    shadow_prices: dict[Hashable, float]
    unconstrained: tuple[Hashable, ...]
    iterations: int
    seconds: float


class Solver:
    """The linear program that finds the smallest exponents c of learning rates m^-c at which training is stable.

    Its variables are rates (the exponents c), whose sum, weighted with costs, is minimised, and levels (exponents of
    changes and gradients), each of which is the min of the rows (inequalities) that bound it and may not fall below its
    lower bound. Of several optima it takes the one that is least by weights: larger for rates further upstream, with a
    small part that is derived from the `repr` of a rate's name, which should thus be the same in every process.

    Args:
        rows: the constraints.
        rates: the variables to minimise, by name.
        lower: lower bounds of levels; a level that is not in it is free.
        alignment: (alpha, omega, u) of each layer that a row names.
        exact: levels that must be equal to their lower bound.

    Raises:
        InvalidInputError: names are repeated or unknown, numbers are not finite, or levels depend on each other.
    """

    @without_gc
    def __init__(
        self,
        rows: Iterable[Row],
        rates: Mapping[Hashable, Rate],
        lower: Mapping[Hashable, float],
        alignment: Alignment,
        exact: Iterable[Hashable] = (),
    ) -> None:
        """Check rows (inequalities), rates (exponents c, which are minimised) and bounds; turn them into arrays.

        `lower` and `exact` bound levels (exponents of changes), `alignment` has (alpha, omega, u) of each layer.
        """
        self.rows, self.rates, exact = list(rows), dict(rates), list(dict.fromkeys(exact))
        self._check(lower, exact)
        self._names = [*self.rates, *dict.fromkeys(row.out for row in self.rows)]
        self._count = len(self.rates)
        column = {name: j for j, name in enumerate(self._names)}
        inputs = [tuple([column[name] for name in row.inputs]) for row in self.rows]
        self._levels = Levels(self._count, len(column), [column[row.out] for row in self.rows], inputs)
        if cycle := self._levels.find_cycle():
            path = " <- ".join(written(self._names[j]) for j in [*cycle, cycle[0]])
            raise InvalidInputError(f"levels depend on each other in a cycle: {path}. Remove one of their rows.")
        self._lower, self._upper = np.full(len(column), -math.inf), np.full(len(column), math.inf)
        self._lower[[column[level] for level in lower]] = list(lower.values())
        self._exact = [column[level] for level in exact]
        self._upper[self._exact] = self._lower[self._exact]
        self.unconstrained = self._bound_rates()
        self._constant = np.array([row.constant for row in self.rows], dtype=np.float64)
        aligned = [(k, row) for k, row in enumerate(self.rows) if row.alignment]
        self._layers = list(dict.fromkeys(row.layer for _, row in aligned))
        slot = {(layer, name): 3 * i + j for i, layer in enumerate(self._layers) for j, name in enumerate(ALIGNMENTS)}
        self._slots = np.array([slot[row.layer, str(row.alignment)] for _, row in aligned], dtype=np.int32)
        self._aligned = np.array([k for k, _ in aligned], dtype=np.int32)
        self._weights = np.array([row.weight for _, row in aligned], dtype=np.float64)
        self._right = self._right_hand_sides(alignment)
        self._lp: tuple[Lp, GreedyStart] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return what is pickled: all but the program in the solver HiGHS, into which the next solve loads it again."""
        return {**self.__dict__, "_lp": None}  # nothing in highspy can be pickled; the next solve loads the LP again

    @without_gc
    def solve(self) -> LpSolution:
        """Solve the linear program at the alignments given last: to `resolve`, or else to the constructor.

        An alignment says how strongly updates line up with inputs.

        Raises:
            InfeasibleError: no rates satisfy the rows; the message names a set in conflict, of which no row can be left
                out.
        """
        start = time.perf_counter()
        lp, point = self._optimum()
        c = self._rounded(point.x)
        values = np.array(self._levels.evaluate(self._right, c, near=point.x))
        if (values < self._lower - 1e-6).any():
            raise AbcfxError(f"HiGHS returned a point below a bound by {np.max(self._lower - values):.1e}")
        return LpSolution(
            c=dict(zip(self.rates, c.tolist(), strict=True)),
            levels=dict(zip(self._names[self._count :], values[self._count :].tolist(), strict=True)),
            objective=math.fsum(lp.cost[: self._count] * c),
            binding=self._binding(values),
            shadow_prices=self._shadow_prices(point),
            unconstrained=self.unconstrained,
            iterations=lp.iterations,
            seconds=time.perf_counter() - start,
        )

    def resolve(self, alignment: Alignment) -> LpSolution:
        """Solve again at new alignments of updates with inputs, starting from the last optimal basis."""
        self._right = self._right_hand_sides(alignment)
        return self.solve()

    def rates_at(self, alignment: Alignment) -> dict[Hashable, float]:
        """Return the optimal rates (learning-rate exponents c) at new alignments of updates with inputs.

        That takes less time than `resolve` where the last basis of the simplex method is still optimal.
        """
        self._right = self._right_hand_sides(alignment)
        x = self._lp[0].revisit(self._right) if self._lp is not None and not self._exact else None
        if x is None:
            x = self._optimum()[1].x
        return dict(zip(self.rates, self._rounded(x).tolist(), strict=True))

    def _optimum(self) -> tuple[Lp, Point]:
        """Find the optimum at the right sides set last; return the program, loaded into HiGHS, and the point.

        Raises:
            InvalidInputError: a rate can fall without end.
        """
        is_first = self._lp is None
        lp, greedy = self._lp = self._lp or self._load()
        lp.iterations = 0
        try:
            return lp, self._search(lp, greedy.basis(self._right) if is_first or greedy.is_optimal else None)
        except UnboundedError as error:
            names = ", ".join(written(self._names[j]) for j in error.args if j < self._count)
            raise InvalidInputError(f"{names or 'a rate'} can fall without end while others rise: bound it") from None

    def _rounded(self, x: Floats) -> Floats:
        """Return the rates (learning-rate exponents c) of a point, rounded so that equal exponents come out equal."""
        return np.asarray(np.round(x[: self._count], DECIMALS) + 0.0, dtype=np.float64)

    def required(self, solution: LpSolution) -> dict[Hashable, float]:
        """Find the least value that each level may take, all others fixed, with no level below its lower bound.

        A level is a variable that is the min of the inequalities that bound it: the exponent r of a node's change,
        which is ~ m^-r, or G of a gradient, ~ m^-G (m, the width ratio).

        Args:
            solution: the solution of the last solve.

        Returns:
            The value by level; -inf where nothing is required of it.
        """
        known = {**solution.c, **solution.levels}
        values = np.array([known[name] for name in self._names])
        need = self._levels.least_values(self._right, values, self._lower)
        return dict(zip(self._names[self._count :], need[self._count :], strict=True))

    def _check(self, lower: Mapping[Hashable, float], exact: Sequence[Hashable]) -> None:
        """Raise an error if a row (inequality), rate (variable to minimise) or bound of the program is invalid.

        Args:
            lower: lower bounds of levels (variables that are each the min of their rows).
            exact: levels that must equal their lower bound.

        Raises:
            InvalidInputError: names the one at fault.
        """
        levels = {row.out for row in self.rows}
        count_of = Counter([row.name for row in self.rows])
        repeated = [str(name) for name, count in count_of.items() if count > 1]
        _require(not repeated, f"rows need unique names, messages refer to them: {repeated[:1]} occurs more than once")
        for row in self.rows:
            if problem := row.problem(levels, self.rates):
                raise InvalidInputError(f"row {str(row.name)!r}: {problem}")
        for name, rate in self.rates.items():
            if problem := rate.problem():
                raise InvalidInputError(f"rate {name}: {problem}")
        for level, bound in lower.items():
            _require(level in levels, f"{written(level)} has a lower bound but no row; drop the bound or add the row")
            _require(math.isfinite(bound), f"the lower bound of {written(level)} must be finite, got {bound}")
        for level in exact:
            _require(level in lower, f"{written(level)} is to equal its lower bound, but has none")

    def _right_hand_sides(self, alignment: Alignment) -> Floats:
        """Return the constant of each row (inequality), with the values of the alignment exponents put in.

        Raises:
            InvalidInputError: the alignments of a layer are missing or malformed.
        """
        missing = [layer for layer in self._layers if layer not in alignment]
        _require(not missing, f"layer {missing[:1]} has rows but no alignment (alpha, omega, u)")
        try:
            table = np.array([alignment[x] for x in self._layers], dtype=np.float64).reshape(len(self._layers), 3)
        except (TypeError, ValueError):
            raise InvalidInputError("the alignment of a layer must be three numbers: (alpha, omega, u)") from None
        for i in np.flatnonzero(~np.isfinite(table).all(axis=1)):
            raise InvalidInputError(f"layer {self._layers[i]}: alpha, omega and u must be finite, got {table[i]}")
        right = self._constant.copy()
        right[self._aligned] -= self._weights * table.reshape(-1)[self._slots]
        return right

    def _bound_rates(self) -> tuple[Hashable, ...]:
        """Set the lower and upper bounds of the rates, the variables that are minimised.

        A rate that no inequality holds up would fall without end, and is kept within fixed bounds.

        Returns:
            Those rates that no row holds up.
        """
        held = self._levels.find_held(self._lower)
        unconstrained = []
        for j, (name, rate) in enumerate(self.rates.items()):
            low, high = rate.limits
            if not held[j] and low == -math.inf:
                unconstrained.append(name)
                low, high = min(-UNCONSTRAINED_BOUND, high), min(UNCONSTRAINED_BOUND, high)
            self._lower[j], self._upper[j] = low, high
        return tuple(unconstrained)

    def _load(self) -> tuple[Lp, GreedyStart]:
        """Write the linear program as a matrix and load it into HiGHS, the LP solver.

        Returns:
            The loaded program, and what finds a first basis for it.
        """
        levels, num_columns = self._levels, len(self._names)
        keys = np.concatenate([np.arange(levels.num_rows), levels.input_row]) * num_columns
        keys += np.concatenate([levels.out, levels.input])
        signs = np.repeat([1.0, -1.0], [levels.num_rows, len(levels.input)])
        entries, entry = np.unique(keys, return_inverse=True)  # a repeated input becomes one entry, -2
        start = np.searchsorted(entries, np.arange(levels.num_rows + 1) * num_columns)
        matrix = Matrix(start, entries % max(num_columns, 1), np.asarray(np.bincount(entry, signs), np.float64))
        cost, weight = np.zeros(num_columns), np.zeros(num_columns)
        cost[: self._count] = [rate.cost for rate in self.rates.values()]
        weight[: self._count] = [rate.distance + 0.5 * generic_weight(name) for name, rate in self.rates.items()]
        return Lp(matrix, cost, weight, self._lower, self._upper), GreedyStart(levels, self._lower)

    def _binding(self, values: Floats) -> dict[Hashable, tuple[Hashable, ...]]:
        """Return for each rate (learning-rate exponent c) the names of the inequalities and bounds that hold it up.

        `values` are those of all variables of the linear program.
        """
        rows_of = self._levels.find_holding_rows(self._right, values, self._lower)
        at_bound = (values - self._lower <= TOLERANCE).tolist()
        names: list[list[Hashable]] = [[self._bound_name(j)] if at_bound[j] else [] for j in range(self._count)]
        for j, rows in enumerate(rows_of):
            names[j] += [self.rows[k].name for k in rows]
        return dict(zip(self.rates, map(tuple, names), strict=True))

    def _shadow_prices(self, point: Point) -> dict[Hashable, float]:
        """Return the shadow prices, d(objective) / d(right side), that are not 0, by name of inequality or bound."""
        rows, columns = (np.flatnonzero(np.abs(dual) > TOLERANCE) for dual in (point.row_dual, point.column_dual))
        of_rows, of_columns = point.row_dual[rows].tolist(), point.column_dual[columns].tolist()
        prices = {self.rows[k].name: price for k, price in zip(rows.tolist(), of_rows, strict=True)}
        for j, price in zip(columns.tolist(), of_columns, strict=True):
            prices[self._bound_name(j, is_upper=price < 0)] = price
        return prices

    def _bound_name(self, j: int, is_upper: bool = False) -> BoundName:
        """Return the name of the lower or upper bound of column (variable) number j."""
        name, low, high = self._names[j], float(self._lower[j]), float(self._upper[j])
        variable, owner = name if is_tagged(name) else ("c" if j < self._count else "level", name)
        relation: Relation = "=" if low == high else "<=" if is_upper else ">="
        return BoundName(owner, variable, relation, high if is_upper else low)

    def _search(self, lp: Lp, basic: Mapping[int, int] | None) -> Point:
        """Find the best point of the linear program at which each variable in `exact` equals its lower bound.

        Such a variable is the min of the rows (inequalities) that bound it. It is a best-first search over which rows
        hold with equality.

        Args:
            lp: the program in HiGHS.
            basic: a basis to start from: the row that determines each basic column.

        Raises:
            InfeasibleError: there is no such point.
        """
        best: Point | None = None
        refuted: tuple[int, ...] | None = None
        queue: list[tuple[tuple[float, float], int, int, tuple[int, ...]]] = [((-math.inf, -math.inf), 0, 0, ())]
        for tried in range(MAX_BRANCHES):
            if not queue or (best and queue[0][0] >= best.key):
                break
            *_, tight = heapq.heappop(queue)
            point = lp.minimise(self._right, tight, None if tried else basic)
            if point is None:
                refuted = tight if refuted is None else refuted
            elif best is None or point.key < best.key:
                level = self._find_false_level(tight, point)
                if level is None:
                    best = point
                else:
                    for k in dict(self._levels.order)[level]:
                        heapq.heappush(queue, (point.key, -len(tight), k, (*tight, k)))
        else:
            raise AbcfxError(
                f"gave up after {MAX_BRANCHES} LPs: {self._exact_levels()} must each equal the bound, and "
                "the choices of what puts them there multiply. Ask for fewer of them."
            )
        if best is None:
            raise self._conflict(lp, refuted or (), tried)
        return best

    def _find_false_level(self, tight: tuple[int, ...], point: Point) -> int | None:
        """Find a level whose value at a point is less than the least of its rows, which it should equal.

        A level is a variable that is the min of the rows (inequalities) that bound it. Only levels matter from which
        the value of one that must be exact follows. None if all are right.

        Args:
            tight: rows that hold with equality.
            point: the point.
        """
        truth = self._levels.evaluate(self._right, point.x[: self._count], near=point.x) if self._exact else []
        if all(truth[level] <= self._lower[level] + 10 * TOLERANCE for level in self._exact):
            return None
        decided = set(self._levels.out[list(tight)].tolist())
        wanted = self._exact + [j for k in tight for j in self._levels.inputs[k] if j >= self._count]
        return max((j for j in wanted if j not in decided), key=lambda j: truth[j] - point.x[j], default=None)

    def _exact_levels(self) -> str:
        """Return the names of the variables that must equal their lower bound, as text for messages."""
        names = [written(self._names[j]) for j in self._exact]
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    def _conflict(self, lp: Lp, tight: tuple[int, ...], tried: int) -> InfeasibleError:
        """Return the error that no point satisfies the inequalities; it names a smallest set that cannot hold together.

        Args:
            lp: the program in HiGHS.
            tight: rows that had to hold with equality in the first attempt that failed.
            tried: number of attempts.
        """
        rows, columns = lp.conflict(self._right, tight)
        head = "no exponents satisfy these constraints together; relax one of them:"
        if tight:
            head = (
                f"no exponents put {self._exact_levels()} exactly at the bound. One of the constraints of such a level "
                f"has to hold with equality; none of the {tried - 1} ways to choose is possible. One conflicts in:"
            )
        bounds = [self._bound_name(j, is_upper) for j, is_upper in columns]
        lines = [head, *(self._written(k, "=" if k in tight else "<=") for k in rows), *map(str, bounds)]
        return InfeasibleError("\n  - ".join(lines), (*(self.rows[k].name for k in rows), *bounds))

    def _written(self, k: int, relation: Relation) -> str:
        """Return a row (inequality) as text: its name, its formula at the current alignments, and its meaning.

        Args:
            k: number of the row.
            relation: "=" or "<=", the sign in the formula.
        """
        row = self.rows[k]
        terms = " + ".join([*map(written, row.inputs), f"{self._right[k]:g}"]).replace("+ -", "- ")
        meaning = f" ({row.name.kind.sentence})" if isinstance(row.name, RowName) else ""
        return f"{row.name}: {written(row.out)} {relation} {terms}{meaning}"


def _require(condition: bool, message: str) -> None:
    """Raise an InvalidInputError with this message unless the condition is true."""
    if not condition:
        raise InvalidInputError(message)
