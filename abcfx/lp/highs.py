"""Runs HiGHS, the LP solver: loads a linear program, minimises it by two costs in order, and finds conflicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import highspy
import numpy as np

from abcfx.errors import AbcfxError
from abcfx.lp.levels import TOLERANCE, Floats, Ints

_OPTIMAL = (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kModelEmpty)
_INFEASIBLE = highspy.HighsModelStatus.kInfeasible


class UnboundedError(Exception):
    """The error that the minimum of a linear program is -infinity.

    `args` are the numbers of the columns (variables) that can fall without end.
    """


class Point(NamedTuple):
    """An optimum of a linear program with two objectives: least by cost and, among those points, least by weight.

    Attributes:
        x: value of each column (variable).
        objective: its cost.
        tie: its weight.
        row_dual: d(objective) / d(right side) of each row.
        column_dual: d(objective) / d(bound) of each column.
    """

    x: Floats
    objective: float
    tie: float
    row_dual: Floats
    column_dual: Floats

    @property
    def key(self) -> tuple[float, float]:
        """The pair (cost, weight) of the point, rounded, by which optima are compared."""
        return (round(self.objective, 9), round(self.tie, 9))


class Vertex(NamedTuple):
    """A basis of the simplex method that was optimal once, kept to find later optima without a search.

    Costs do not change, so the basis is optimal at any right side at which the point that it determines is feasible.

    Attributes:
        basic: positions of columns (variables) among the basic variables.
        columns: the columns at those positions.
        x: values of the other columns, which are at bounds; 0 for basic ones.
        fixed: the part of each row's left side that those other columns make up.
    """

    basic: Ints
    columns: Ints
    x: Floats
    fixed: Floats


class Matrix(NamedTuple):
    """A sparse matrix by rows: row k has `value[i]` in column `column[i]` for i from `start[k]` to `start[k + 1]`."""

    start: Ints
    column: Ints
    value: Floats


class Lp:
    """A linear program `matrix @ x <= right` in one HiGHS object, to be solved again and again at other right sides.

    It is minimised by cost and, among the optima of that, by weight.

    Args:
        matrix: the coefficients, by rows.
        cost: cost of each column (variable).
        weight: weight of each column.
        lower: lower bound of each column.
        upper: upper bound of each column.
    """

    def __init__(self, matrix: Matrix, cost: Floats, weight: Floats, lower: Floats, upper: Floats) -> None:
        """Load the linear program into a new object of the solver HiGHS.

        Args:
            matrix: the coefficients, by rows.
            cost, weight: what is minimised first, and then among the optima, for each column (variable).
            lower, upper: bounds of each column.
        """
        self.cost, self.lower, self.upper = cost, lower, upper
        self.weight = weight * 100 / max(1.0, weight.max(initial=0.0))  # larger ones end in numerical trouble
        # with this little weight its optimum nearly always is the lexicographic one, and both stages take no pivot
        self._blend = cost + self.weight / 1000
        self.iterations = 0
        self._num_rows, self._num_columns = len(matrix.start) - 1, len(cost)
        self._column, self._value = matrix.column, matrix.value
        self._row = np.repeat(np.arange(self._num_rows), np.diff(matrix.start))
        self._vertex: Vertex | None = None
        self._every_row = np.arange(self._num_rows, dtype=np.int32)
        self._every_column = np.arange(self._num_columns, dtype=np.int32)
        lp = highspy.HighsLp()
        lp.num_row_, lp.num_col_ = self._num_rows, self._num_columns
        lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, lower, upper
        lp.row_lower_, lp.row_upper_ = np.full(self._num_rows, -math.inf), np.zeros(self._num_rows)
        lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix
        self._highs = _new_highs(
            presolve="off",  # it would leave no basis that a re-solve can start from without much work
            simplex_strategy=0,  # primal simplex where the start is feasible, else dual
            simplex_dual_edge_weight_strategy=1,  # Devex
            dual_simplex_cost_perturbation_multiplier=0.0,  # the weights already make the optimum unique
            primal_simplex_bound_perturbation_multiplier=0.0,
            primal_feasibility_tolerance=1e-10,
            dual_feasibility_tolerance=1e-10,
        )
        _check(self._highs.passModel(lp), "load the LP")

    def minimise(
        self, right: Floats, tight: Sequence[int] = (), basic: Mapping[int, int] | None = None
    ) -> Point | None:
        """Find the point that is least by cost and then by weight; None if no point is feasible.

        Args:
            right: right sides of the rows.
            tight: rows that must hold with equality.
            basic: column (variable) -> the row that determines it, of a basis to start from; the last basis if None.

        Raises:
            UnboundedError: the cost can fall without end.
        """
        self._vertex = None
        floor = np.full(self._num_rows, -math.inf)
        floor[list(tight)] = right[list(tight)]
        self._set_bounds(floor, right, self.lower, self.upper)
        if basic is not None:
            self._start_from(basic)
        if not self._run(self._blend):
            return None
        is_unique = self._count_priced() == self._num_columns  # no other point is as good, every price being positive
        pivots = self.iterations
        self._rerun(self.cost)
        solution = self._highs.getSolution()
        row_dual, column_dual = np.array(solution.row_dual), np.array(solution.col_dual)
        if not is_unique or self.iterations > pivots:
            # complementary slackness: whatever has a price stays where it is on the whole optimal face
            priced = np.abs(row_dual) > TOLERANCE
            floor[priced] = right[priced]
            lower = np.where(column_dual < -TOLERANCE, self.upper, self.lower)
            upper = np.where(column_dual > TOLERANCE, self.lower, self.upper)
            self._set_bounds(floor, right, lower, upper)
            self._rerun(self.weight)
            solution = self._highs.getSolution()
        x = np.array(solution.col_value) + 0.0  # no -0.0
        if is_unique and self.iterations == pivots and not tight:
            self._vertex = self._read_vertex(x)
        return Point(x, float(self.cost @ x), float(self.weight @ x), row_dual, column_dual)

    def revisit(self, right: Floats) -> Floats | None:
        """Return the optimum at new right sides if the last basis of the simplex method is still optimal, else None.

        Costs have not changed, so the last basis is optimal if the point that it determines is feasible.
        """
        if self._vertex is None:
            return None
        status, found = self._highs.getBasisSolve(right - self._vertex.fixed)
        if status != highspy.HighsStatus.kOk:
            return None
        x = self._vertex.x.copy()
        x[self._vertex.columns] = np.asarray(found)[self._vertex.basic]
        inside = (x >= self.lower - TOLERANCE).all() and (x <= self.upper + TOLERANCE).all()
        return x if inside and (self._activity(x) <= right + TOLERANCE).all() else None

    def _read_vertex(self, x: Floats) -> Vertex | None:
        """Return the simplex basis that HiGHS, the LP solver, holds at its optimum x; None if it cannot give one."""
        status, variables = self._highs.getBasicVariables()
        if status != highspy.HighsStatus.kOk:
            return None
        basic = np.flatnonzero(np.asarray(variables) >= 0)  # the others are rows that are not tight
        columns = np.asarray(variables)[basic]
        at_bounds = x.copy()
        at_bounds[columns] = 0.0
        return Vertex(basic, columns, at_bounds, self._activity(at_bounds))

    def _activity(self, x: Floats) -> Floats:
        """Return the left side of each row (inequality) at the point x, which is matrix @ x."""
        return np.asarray(np.bincount(self._row, self._value * x[self._column], self._num_rows), dtype=np.float64)

    def _count_priced(self) -> int:
        """Return how many inequalities and variables of the linear program have a price (dual value) that is not 0."""
        solution = self._highs.getSolution()
        duals = np.concatenate([solution.row_dual, solution.col_dual])
        return int(np.count_nonzero(np.abs(duals) > 10 * TOLERANCE))

    def conflict(self, right: Floats, tight: Sequence[int]) -> tuple[list[int], list[tuple[int, bool]]]:
        """Find a smallest set of rows (inequalities) and bounds of the linear program that cannot hold together.

        Args:
            right: right sides of the rows.
            tight: rows that must hold with equality.

        Returns:
            Indices of rows; (column, True for its upper bound) of bounds.
        """
        self.minimise(right, tight)
        highs = _new_highs(iis_strategy=6)  # from the LP, columns first; the default, 0, finds an empty set
        _check(highs.passModel(self._highs.getLp()), "load the infeasible LP")
        status, iis = highs.getIis()
        _check(status, "find the conflict")
        side = highspy.IisBoundStatus
        is_upper = {int(side.kIisBoundStatusLower): False, int(side.kIisBoundStatusUpper): True}
        columns = [(j, int(bound)) for j, bound in zip(iis.col_index_, iis.col_bound_, strict=True)]
        return list(iis.row_index_), [(j, is_upper[bound]) for j, bound in columns if bound in is_upper]

    def _start_from(self, basic: Mapping[int, int]) -> None:
        """Give HiGHS, the LP solver, a basis to start from: for each variable in `basic` the row that determines it.

        A row is an inequality of the linear program.
        """
        status = highspy.HighsBasisStatus
        basis = highspy.HighsBasis()
        columns = [status.kLower if bounded else status.kZero for bounded in np.isfinite(self.lower).tolist()]
        rows = [status.kBasic] * self._num_rows
        for column, row in basic.items():
            columns[column], rows[row] = status.kBasic, status.kUpper
        basis.col_status, basis.row_status = columns, rows
        basis.valid, basis.alien = True, False
        _check(self._highs.setBasis(basis), "set the basis")

    def _set_bounds(self, floor: Floats, right: Floats, lower: Floats, upper: Floats) -> None:
        """Set the bounds of all inequalities (floor, right) and of all variables (lower, upper)."""
        rows, columns = self._num_rows, self._num_columns
        _check(self._highs.changeRowsBounds(rows, self._every_row, floor, right), "change row bounds")
        _check(self._highs.changeColsBounds(columns, self._every_column, lower, upper), "change column bounds")

    def _run(self, cost: Floats) -> bool:
        """Minimise a cost with HiGHS, the LP solver; return False if no point is feasible, else True.

        HiGHS then holds the optimum.
        """
        highs = self._highs
        _check(highs.changeColsCost(self._num_columns, self._every_column, cost), "change the cost")
        for _attempt in ("from the last basis", "from nothing"):
            outcome = highs.run()
            status = highs.getModelStatus()
            self.iterations += max(0, highs.getInfo().simplex_iteration_count)
            if outcome == highspy.HighsStatus.kOk and status in (*_OPTIMAL, _INFEASIBLE):
                return status in _OPTIMAL
            if status == highspy.HighsModelStatus.kUnbounded:
                found, exists, ray = highs.getPrimalRay()
                _check(found, "find what is unbounded")
                raise UnboundedError(*np.flatnonzero(ray < -TOLERANCE).tolist() if exists else ())
            _check(highs.clearSolver(), "start again")
        raise AbcfxError(f"HiGHS stopped with {highs.modelStatusToString(status)}")

    def _rerun(self, cost: Floats) -> None:
        """Minimise another cost over a linear program that was just found feasible."""
        if not self._run(cost):
            raise AbcfxError("HiGHS calls the LP infeasible that it has just solved")


class _SilentHighs(highspy.Highs):
    """A HiGHS object that prints nothing, not even the banner that enabling callbacks prints (highspy 1.16)."""

    def enableCallbacks(self) -> None:  # called by the constructor of `highspy.Highs`
        """Turn off output before callbacks are enabled, which would print a banner."""
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()  # type: ignore[no-untyped-call]


def _new_highs(**options: float | str) -> Any:  # the stubs of highspy lack half of its methods
    """Make a solver object of HiGHS that prints nothing, with these options."""
    highs = _SilentHighs()  # type: ignore[no-untyped-call]
    for option, value in {"output_flag": False, **options}.items():
        _check(highs.setOptionValue(option, value), f"set {option}")
    return highs


def _check(status: highspy.HighsStatus, action: str) -> None:
    """Raise an error unless HiGHS did what it was asked to; `action` says what that was."""
    if status != highspy.HighsStatus.kOk:
        raise AbcfxError(f"HiGHS could not {action}: {status.name}")
