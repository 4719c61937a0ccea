"""Owns the arithmetic of levels, each the min of its rows: order, recursion, what holds up what, a first basis."""

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
    """Rows as arrays of columns, which are rates (the first `num_rates`) and then levels.

    Attributes:
        out: by row, the level that it bounds.
        inputs: by row, its inputs; a repeated one is there twice.
        input_row, input: the same inputs in one array, and the row of each.
        order: the levels with their rows, inputs first; levels in a cycle or behind one are missing.
    """

    def __init__(self, num_rates: int, num_columns: int, out: Sequence[int], inputs: list[tuple[int, ...]]) -> None:
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

    def cycle(self) -> list[int]:
        """Levels of which each needs the next, and the last the first; empty if there is no cycle."""
        stuck = set(range(self.num_rates, self.num_columns)) - {out for out, _ in self.order}
        path = [min(stuck)] if stuck else []
        while path:
            rows = np.flatnonzero(self.out == path[-1]).tolist()
            needed = next(j for k in rows for j in self.inputs[k] if j in stuck)
            if needed in path:
                return path[path.index(needed) :]
            path.append(needed)
        return []

    def totals(self, right: Floats, values: Floats) -> Floats:
        """The right side of every row, inputs included."""
        return np.asarray(right + np.bincount(self.input_row, values[self.input], self.num_rows))

    def recurse(self, right: Floats, rates: Floats, near: Floats) -> list[float]:
        """The rates, then every level as the exact min of its rows, or as in `near` where they differ by 1e-9.

        Such a difference is rounding, and must not grow: products of changes would double it in every layer.
        """
        values: list[float] = np.concatenate([rates, np.zeros(self.num_columns - self.num_rates)]).tolist()
        totals = self.totals(right, np.array(values)).tolist()
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

    def held(self, lower: Floats) -> list[bool]:
        """Whether a column has a finite bound from below, or something that has one would fall with it."""
        held = np.isfinite(lower).tolist()
        for out, rows in reversed(self.order):
            for k in rows if held[out] else ():
                for j in self.inputs[k]:
                    held[j] = True
        return list(held)

    def required(self, right: Floats, values: Floats, lower: Floats) -> list[float]:
        """The least value that each column must keep, all else equal, for every level to stay at its bound."""
        need: list[float] = lower.tolist()
        totals = self.totals(right, values).tolist()
        for out, rows in reversed(self.order):
            for k in rows if need[out] > -math.inf else ():
                for j in self.inputs[k]:
                    slack = (totals[k] - need[out]) / self.inputs[k].count(j)
                    need[j] = max(need[j], float(values[j]) - slack)
        return need

    def holding(self, right: Floats, values: Floats, lower: Floats) -> list[list[int]]:
        """By rate, the tight rows of levels that cannot go lower.

        A level cannot where it is at its bound, or where a level that cannot go lower has a tight row with it.
        """
        is_tight = (self.totals(right, values) - values[self.out] <= TOLERANCE).tolist()
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
    """The basis in which each level is as low as its users allow, and then each rate as low as its rows allow.

    It is optimal, up to what gradients depend on, where no level has two users: no rate can rise and lower two others.
    Elsewhere it is a good start. Levels that nothing bounds (gradients) are the min of their rows.
    """

    def __init__(self, levels: Levels, lower: Floats) -> None:
        self._levels, self._lower = levels, lower
        row, column = levels.input_row, levels.input
        self._asking, asked = self._ask(lower)
        asks = asked[levels.out]
        between = asks[row] & asked[column]
        users = np.unique(column[between] * levels.num_columns + levels.out[row[between]])
        self.is_optimal = len(users) == len(np.unique(users // levels.num_columns))
        self._from_asked = asked[column]

        # the other columns are determined by (column, row) pairs: rates by rows that ask, levels by their own rows
        mentions = asks[row] & (column < levels.num_rates)
        owners = np.concatenate([column[mentions], levels.out[~asks]])
        pairs = np.unique(owners * levels.num_rows + np.concatenate([row[mentions], np.flatnonzero(~asks)]))
        owner, self._row = pairs // max(levels.num_rows, 1), (pairs % max(levels.num_rows, 1)).tolist()
        size = np.bincount(row, minlength=levels.num_rows)[self._row]
        pair = np.repeat(np.arange(len(pairs)), size)
        entry = np.searchsorted(row, self._row)[pair] + np.arange(len(pair)) - (np.cumsum(size) - size)[pair]
        is_own = column[entry] == owner[pair]
        self._times = np.bincount(pair[is_own], minlength=len(pairs)).tolist()
        rest = ~is_own & ~asked[column[entry]]
        pair, other = pair[rest], column[entry][rest]
        start, others = np.searchsorted(pair, np.arange(len(pairs) + 1)).tolist(), other.tolist()
        self._others = [tuple(others[i:j]) for i, j in pairwise(start)]
        start = np.searchsorted(owner, np.arange(levels.num_columns + 1)).tolist()
        order = dependency_order(levels.num_columns, owner[pair], other)
        self._plan = [(j, start[j], start[j + 1]) for j in order if not asked[j]]

    def _ask(self, lower: Floats) -> tuple[list[tuple[int, int, int, int, tuple[int, ...]]], NDArray[np.bool_]]:
        """The rows without rates by which levels ask for other levels, users first; the levels that are asked.

        Each row comes as (out, row, first input, how often that is there, other inputs).
        """
        levels = self._levels
        has_rate = np.bincount(levels.input_row, levels.input < levels.num_rates, levels.num_rows).tolist()
        asked = (np.isfinite(lower) & (np.arange(levels.num_columns) >= levels.num_rates)).tolist()
        asking = []
        for out, rows in reversed(levels.order):
            for k in rows if asked[out] else ():
                inputs = levels.inputs[k]
                if inputs and not has_rate[k]:
                    others = tuple([j for j in inputs if j != inputs[0]])
                    asking.append((out, k, inputs[0], len(inputs) - len(others), others))
                    for j in inputs:
                        asked[j] = True
        return asking, np.array(asked, dtype=bool)

    def basis(self, right: Floats) -> dict[int, int]:
        """Column -> the row that determines it, where one does."""
        levels, value, bound = self._levels, self._lower.tolist(), right.tolist()
        basic: dict[int, int] = {}
        for out, k, first, times, others in self._asking:
            least = (value[out] - bound[k] - sum([value[j] for j in others])) / times
            if value[first] < least < math.inf:  # the first input rises as far as the output needs it
                value[first] = least
                basic[first] = k
        known = np.nan_to_num(value, neginf=0.0)  # a free column that nothing determines stays at 0
        row, column = levels.input_row[self._from_asked], levels.input[self._from_asked]
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
    """0 to count - 1, each after all that it needs (users[i] needs needs[i]); a cycle and what follows is left out."""
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
    """Pauses the cyclic collector: where many rows are made and none is garbage, it would take half of the time."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            if was_enabled:
                gc.enable()

    return wrapped
