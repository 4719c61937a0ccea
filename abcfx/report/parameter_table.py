"""The table of parameters in the printed report: one row for all parameters that are alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence

from rich.table import Table

from abcfx.outcome import Outcome
from abcfx.plan.spec import ParameterPlan
from abcfx.report.binding import binding_tags
from abcfx.report.names import CollapsedName, collapse_names
from abcfx.report.tables import flat_table, number, per_use

STD_TOLERANCE = 1.1  # stds of one row within this factor are draws of one distribution, and shown as their mean
_DOT = re.compile(r"\.(?![^{]*\})")  # between the parts of a name, not within {0..11}


def parameter_table(outcome: Outcome, width: int) -> Table:
    """Make the table of all parameters, with one row for all that are alike, at most `width` characters wide."""
    plans, has_base = outcome.plan.values(), outcome.header.has_base
    columns = ["x", "role", "growth", *([] if has_base else ["n"]), "a", "b", "c", "mult", "std", "lr"]
    columns += ["eps"] if any(plan.eps is not None for plan in plans) else []
    columns += ["decay"] if any(plan.weight_decay for plan in plans) else []
    columns += ["r", "binds"]
    parts = collapse_names({name: row_key(plan) for name, plan in outcome.plan.items()})
    rows = [_cells([outcome.plan[name] for name in part.names], columns) for part in parts]
    taken = [max(map(len, "\n".join(cells).split("\n"))) for cells in zip(columns, *rows, strict=True)]
    room = max(width - sum(taken) - len(taken), 16)
    table = flat_table("parameter", *columns, left=("parameter", "role", "growth", "binds"), flexible="binds")
    for title, row in zip(_titles(parts, room), rows, strict=True):
        for line in title[:-1]:  # the name of a repeated block, above its first parameter
            table.add_row(line, *[""] * len(columns))
        table.add_row(title[-1], *row)
    return table


def legend(outcome: Outcome) -> list[str]:
    """Return sentences that explain the columns of the table of parameters, one or two per line."""
    m = "m" if outcome.header.has_base else "n"
    return [
        f"a, b, c: the weight is multiplied by {m}^-a (its multiplier), starts with a standard deviation that scales "
        f"as {m}^-b, and learns at a rate that scales as {m}^-c. std (RMS entry), lr, eps and decay are the values for "
        f"this model.",
        f"r: training changes the layer's output by about {m}^-r. The goal is r = 0, the same change at every width. "
        f"Below 0 the change grows with the width, which is stable only if the output itself grows, as before a norm.",
        f"x: number of parameters that share the row. growth: exponent of {m} with which each dim grows (0: it does "
        f"not). binds: what keeps c from being smaller, explained below.",
    ]


def row_key(plan: ParameterPlan) -> tuple[Hashable, ...]:
    """Return a key that is equal for parameters that share a row of the report's table: all that the row shows.

    The standard deviation, which is a random draw, does not count, nor the names of nodes that use the parameter.
    """
    numbers = (plan.b, plan.c, plan.r, plan.lr, plan.eps, plan.weight_decay, plan.width, *plan.growth)
    exact = tuple(None if value is None else f"{value:.9g}" for value in numbers)
    return (plan.role, plan.why, plan.void, *exact, multipliers_key(plan), binding_tags(plan.binding))


def multipliers_key(plan: ParameterPlan) -> tuple[float, ...]:
    """Return the exponents a (multiplier m^-a; m, the width ratio) of a parameter's uses; one if they are equal."""
    values = tuple(plan.a.values())
    return values if len(set(values)) > 1 else values[:1]


def _cells(plans: Sequence[ParameterPlan], columns: Sequence[str]) -> list[str]:
    """Return the cells of one row of the table, for parameters that are alike, in the order of `columns`."""
    first = plans[0]
    cells = {
        "x": str(len(plans)) if len(plans) > 1 else "",
        "role": first.role,
        "growth": ",".join(number(e) for e in first.growth) or "-",
        "n": number(first.width),
        "a": per_use(first.a, 0.0),
        "b": number(first.b),
        "c": number(first.c),
        "mult": "void" if first.void else per_use(first.multiplier, 1.0),
        "std": _spread([plan.std for plan in plans if plan.std is not None]),
        "lr": number(first.lr),
        "eps": number(first.eps),
        "decay": number(first.weight_decay),
        "r": number(first.r),
        "binds": ", ".join(binding_tags(first.binding)),
    }
    return [cells[column] for column in columns]


def _spread(values: Sequence[float]) -> str:
    """Write the mean of numbers that are within 10 % of each other, and the range of others."""
    if not values:
        return number(None)
    low, high = min(values), max(values)
    return number(sum(values) / len(values)) if high <= STD_TOLERANCE * low else f"{number(low)}\n..{number(high)}"


def _titles(parts: Sequence[CollapsedName], room: int) -> list[list[str]]:
    """Return the name in the first cell of each row of the table as lines; a block's pattern stands above its first.

    `parts` are the names of all rows, `room` is the number of columns that a name may take.
    """
    prefixes = Counter(_block_prefix(part.shown) for part in parts)
    titles, above = [], ""
    for part in parts:
        prefix = _block_prefix(part.shown)
        prefix = prefix if prefixes[prefix] > 1 else ""
        name = "  " + part.shown.removeprefix(prefix).removeprefix(".") if prefix else part.shown
        titles.append([*([prefix] if prefix and prefix != above else []), _broken(name, room)])
        above = prefix
    return titles


def _block_prefix(shown: str) -> str:
    """Return a collapsed name up to the last part that is nothing but numbers, as `blocks.{0..11}`; "" if none is."""
    parts = _DOT.split(shown)
    last = max((i for i, part in enumerate(parts[:-1]) if part.startswith("{") and part.endswith("}")), default=-1)
    return ".".join(parts[: last + 1])


def _broken(name: str, room: int) -> str:
    """Break a name that is longer than `room` columns into lines, each of which but the first begins with a dot."""
    indent = " " * (len(name) - len(name.lstrip()) + 2)
    first, *rest = _DOT.split(name)
    lines = [first]
    for part in rest:
        if len(lines[-1]) + 1 + len(part) <= room:
            lines[-1] += f".{part}"
        else:
            lines.append(f"{indent}.{part}")
    return "\n".join(lines)
