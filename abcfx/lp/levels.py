"""Evaluates levels (variables that are each the min of their rows), finds the binding rows and a first basis."""

from __future__ import annotations

import functools
import gc
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 1e-9

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
P = ParamSpec("P")
T = TypeVar("T")


class Levels:
    """The rows (inequalities) of a linear program as arrays, to evaluate variables and find which rows are tight.

    Tight rows hold with equality. Variables are numbered columns: first the rates (learning-rate exponents, which are
    chosen), then the levels (exponents of changes and gradients), each of which is the min of the rows that bound it.

    Args:
        num_rates: number of rates.
        num_columns: number of all variables.
        out: the level that each row bounds.
        inputs: the columns on the right side of each row; one that counts twice is there twice.

    Attributes:
        input_row: `inputs` as one flat array: the row of each entry.
        input: `inputs` as one flat array: the column of each entry.
        order: (level, its rows), each level after those it depends on; levels in a cycle or behind one are missing.
    """

    def __init__(self, num_rates: int, num_columns: int, out: Sequence[int], inputs: list[tuple[int, ...]]) -> None:
        """Turn the rows (inequalities) into arrays, and sort the levels so that each comes after those it depends on.

        A level is a variable that is the min of the rows that bound it.

        Args:
            num_rates: number of rates, the variables that are chosen.
            num_columns: number of all variables.
            out: the level that each row bounds.
            inputs: the variables on the right side of each row.
        """
        self.num_rates, self.num_columns, self.num_rows = num_rates, num_columns, len(inputs)
        self.out, self.inputs = np.array(out, dtype=np.int64), inputs
        self.input_row = np.repeat(np.arange(len(inputs)), [len(columns) for columns in inputs])
        self.input = np.array([j for columns in inputs for j in columns], dtype=np.int64)
        by_out = np.argsort(self.out, kind="stable")
        start = np.searchsorted(self.out[by_out], np.arange(num_columns + 1)).tolist()
        rows = by_out.tolist()
        order = dependency_order(num_columns, self.out[self.input_row], self.input)
        self.order = [(j, tuple(rows[start[j] : start[j + 1]])) for j in order if j >= num_rates]
        self._level_inputs = [tuple([j for j in columns if j >= num_rates]) for columns in inputs]

    def find_cycle(self) -> list[int]:
        """Find levels that depend on each other in a cycle; return [] if there are none.

        A level is a variable that is the min of the rows (inequalities) that bound it. In the list each depends on the
        next, and the last on the first.
        """
        stuck = set(range(self.num_rates, self.num_columns)) - {out for out, _ in self.order}
        path = [min(stuck)] if stuck else []
        while path:
            rows = np.flatnonzero(self.out == path[-1]).tolist()
            needed = next(j for k in rows for j in self.inputs[k] if j in stuck)
            if needed in path:
                return path[path.index(needed) :]
            path.append(needed)
        return []

    def right_sides(self, right: Floats, values: Floats) -> Floats:
        """Return the right side of every row (inequality): its constant, plus the variables that are summed in it.

        Args:
            right: constant of each row.
            values: value of each column (variable).
        """
        return np.asarray(right + np.bincount(self.input_row, values[self.input], self.num_rows))

    def evaluate(self, right: Floats, rates: Floats, near: Floats) -> list[float]:
        """Evaluate every level for given rates (variables that are chosen), and return both as one list.

        A level is a variable that is the min of the inequalities that bound it. A level within 1e-9 of its value in
        `near` takes that value: the difference is rounding, and products of changes would double it in every layer.

        Args:
            right: constant of each row.
            rates: value of each rate.
            near: values of all columns that the solver found.
        """
        values: list[float] = np.concatenate([rates, np.zeros(self.num_columns - self.num_rates)]).tolist()
        totals = self.right_sides(right, np.array(values)).tolist()
        inputs, guess = self._level_inputs, near.tolist()
        for out, rows in self.order:
            value = math.inf
            for k in rows:
                total = totals[k]
                for j in inputs[k]:
                    total += values[j]
                if total < value:
                    value = total
            values[out] = guess[out] if abs(value - guess[out]) <= TOLERANCE else value
        return values

    def find_held(self, lower: Floats) -> list[bool]:
        """Return a mask of the variables that cannot fall without end.

        A variable cannot if it has a lower bound, or stands in a row (inequality) that bounds such a variable from
        above.
        """
        held = np.isfinite(lower).tolist()
        for out, rows in reversed(self.order):
            for k in rows if held[out] else ():
                for j in self.inputs[k]:
                    held[j] = True
        return list(held)

    def least_values(self, right: Floats, values: Floats, lower: Floats) -> list[float]:
        """Find the least value that each variable may take, all others fixed, with no variable below its lower bound.

        Args:
            right: constant of each row.
            values: value of each column.
            lower: lower bound of each column.
        """
        need: list[float] = lower.tolist()
        totals = self.right_sides(right, values).tolist()
        for out, rows in reversed(self.order):
            for k in rows if need[out] > -math.inf else ():
                for j in self.inputs[k]:
                    slack = (totals[k] - need[out]) / self.inputs[k].count(j)
                    need[j] = max(need[j], float(values[j]) - slack)
        return need

    def find_holding_rows(self, right: Floats, values: Floats, lower: Floats) -> list[list[int]]:
        """Find, for each rate (a learning-rate exponent c), the rows (inequalities) that keep it from going lower.

        Such a row holds with equality, and the level that it bounds (a variable that is the min of its rows) cannot go
        lower: it is at its lower bound, or is an input of such a row itself.

        Args:
            right: constant of each row.
            values: value of each column (variable).
            lower: lower bound of each column.
        """
        is_tight = (self.right_sides(right, values) - values[self.out] <= TOLERANCE).tolist()
        is_stuck = (values - lower <= TOLERANCE).tolist()
        rows_of: list[list[int]] = [[] for _ in range(self.num_rates)]
        for out, rows in reversed(self.order):
            for k in rows if is_stuck[out] else ():
                if is_tight[k]:
                    for j in self.inputs[k]:
                        is_stuck[j] = True
                        if j < self.num_rates and k not in rows_of[j]:
                            rows_of[j].append(k)
        return rows_of


class GreedyStart:
    """A first basis for the simplex method, found by one walk from the output back to the inputs.

    A rate is a learning-rate exponent c, a level the exponent of a change or gradient, which is the min of the rows
    (inequalities) that bound it. Each level gets the lowest value that the levels computed from it permit; then each
    rate gets the value that its level permits. In a chain, where each level enters one other level at most, this is
    optimal but for terms of gradients. Elsewhere it is a good start. Levels of gradients are the min of their rows.

    Args:
        levels: the rows as arrays.
        lower: lower bound of each column (variable).
    """

    def __init__(self, levels: Levels, lower: Floats) -> None:
        """Find in which order the rows (inequalities) determine levels and rates; it is the same for all right sides.

        A level is a variable that is the min of its rows, a rate one that is chosen.

        `lower` has the lower bound of each variable.
        """
        self._levels, self._lower = levels, lower
        row, column = levels.input_row, levels.input
        self._demanding, demanded = self._find_demands(lower)
        demands = demanded[levels.out]
        between = demands[row] & demanded[column]
        users = np.unique(column[between] * levels.num_columns + levels.out[row[between]])
        self.is_optimal = len(users) == len(np.unique(users // levels.num_columns))
        self._from_demanded = demanded[column]

        # the other columns are determined by (column, row) pairs: rates by rows that ask, levels by their own rows
        mentions = demands[row] & (column < levels.num_rates)
        owners = np.concatenate([column[mentions], levels.out[~demands]])
        pairs = np.unique(owners * levels.num_rows + np.concatenate([row[mentions], np.flatnonzero(~demands)]))
        owner, self._row = pairs // max(levels.num_rows, 1), (pairs % max(levels.num_rows, 1)).tolist()
        size = np.bincount(row, minlength=levels.num_rows)[self._row]
        pair = np.repeat(np.arange(len(pairs)), size)
        entry = np.searchsorted(row, self._row)[pair] + np.arange(len(pair)) - (np.cumsum(size) - size)[pair]
        is_own = column[entry] == owner[pair]
        self._times = np.bincount(pair[is_own], minlength=len(pairs)).tolist()
        rest = ~is_own & ~demanded[column[entry]]
        pair, other = pair[rest], column[entry][rest]
        start, others = np.searchsorted(pair, np.arange(len(pairs) + 1)).tolist(), other.tolist()
        self._others = [tuple(others[i:j]) for i, j in pairwise(start)]
        start = np.searchsorted(owner, np.arange(levels.num_columns + 1)).tolist()
        order = dependency_order(levels.num_columns, owner[pair], other)
        self._plan = [(j, start[j], start[j + 1]) for j in order if not demanded[j]]

    def _find_demands(
        self, lower: Floats
    ) -> tuple[list[tuple[int, int, int, int, tuple[int, ...]]], NDArray[np.bool_]]:
        """Find the rows without rates, by which a level with a lower bound demands a least value of other levels.

        Rows are inequalities; a level is a variable that is the min of the rows that bound it, a rate one that is
        chosen.

        Args:
            lower: lower bound of each column (variable).

        Returns:
            (level, row, its first input, how often that input counts, its other inputs) of each such row, the level
            that demands before the levels of which it demands; and a mask of the columns of which something is
            demanded.
        """
        levels = self._levels
        has_rate = np.bincount(levels.input_row, levels.input < levels.num_rates, levels.num_rows).tolist()
        demanded = (np.isfinite(lower) & (np.arange(levels.num_columns) >= levels.num_rates)).tolist()
        demanding = []
        for out, rows in reversed(levels.order):
            for k in rows if demanded[out] else ():
                inputs = levels.inputs[k]
                if inputs and not has_rate[k]:
                    others = tuple([j for j in inputs if j != inputs[0]])
                    demanding.append((out, k, inputs[0], len(inputs) - len(others), others))
                    for j in inputs:
                        demanded[j] = True
        return demanding, np.array(demanded, dtype=bool)

    def basis(self, right: Floats) -> dict[int, int]:
        """Return a first simplex basis, basic variable -> the row (inequality) that determines it.

        It is the best guess for these constants (right sides) of the rows.
        """
        levels, value, bound = self._levels, self._lower.tolist(), right.tolist()
        basic: dict[int, int] = {}
        for out, k, first, times, others in self._demanding:
            least = (value[out] - bound[k] - sum([value[j] for j in others])) / times
            if value[first] < least < math.inf:  # the first input rises as far as the output needs it
                value[first] = least
                basic[first] = k
        known = np.nan_to_num(value, neginf=0.0)  # a free column that nothing determines stays at 0
        row, column = levels.input_row[self._from_demanded], levels.input[self._from_demanded]
        base = right + np.bincount(row, known[column], levels.num_rows)
        totals, gaps = base.tolist(), (known[levels.out] - base).tolist()
        row_of, times_of, others_of, num_rates = self._row, self._times, self._others, levels.num_rates
        for j, begin, end in self._plan:
            best = value[j] if j < num_rates else math.inf
            for p in range(begin, end):
                k, rest = row_of[p], 0.0
                for i in others_of[p]:
                    rest += value[i]
                if j >= num_rates:
                    if totals[k] + rest < best:
                        best, basic[j] = totals[k] + rest, k
                elif (gaps[k] - rest) / times_of[p] > best:
                    best, basic[j] = (gaps[k] - rest) / times_of[p], k
            value[j] = best if math.isfinite(best) else 0.0
        return basic


def dependency_order(count: int, users: Ints, needs: Ints) -> list[int]:
    """Sort the numbers 0 to count - 1 so that users[i] comes after needs[i].

    A cycle, and all that depends on it, is left out.
    """
    by_need = np.argsort(needs, kind="stable")
    start = np.searchsorted(needs[by_need], np.arange(count + 1)).tolist()
    users_of = users[by_need].tolist()
    waiting = np.bincount(users, minlength=count).tolist()
    ready = [key for key, left in enumerate(waiting) if not left]
    for key in ready:  # grows while it is walked
        for user in users_of[start[key] : start[key + 1]]:
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    return ready


def without_gc(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that makes many objects and no garbage, so that Python's garbage collector pauses meanwhile.

    Without collections such a function needs half of the time.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function while Python's garbage collector pauses."""
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            if was_enabled:
                gc.enable()

    return wrapped
