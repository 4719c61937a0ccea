"""The printed report of a `Transformed`: plain text of a given width, every section from what the result holds."""

from __future__ import annotations

import io
import re
import textwrap
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from abcfx.dag.queries import find_skips, repeated_uses
from abcfx.report.names import (
    CollapsedName,
    binding_tags,
    collapse_names,
    count_entries,
    group_prices,
    tied_names,
)
from abcfx.rules import Layer, Vector
from abcfx.rules.kinds import Merge, Mix, Norm, Product

if TYPE_CHECKING:
    from abcfx.transformed import Transformed

METHODS = {"symbolic": "torch.fx symbolic tracing", "export": "torch.export", "record": "recording one run"}
TAGS = {
    "alpha": "its own update, acting on its input (dW x), must not blow up its output",
    "u": "its own update, acting on the change of its input (dW dx), must not blow up its output",
    "omega": "the change of its input, carried on by its initial weights (W dx), must not blow up its output",
    "gradient": "once updated, it must not send back a larger gradient than those upstream count on",
    "rule": "by rule, outside the LP: as large as what it is added to or multiplied onto allows",
    "given": "given by the user in `exponents`",
    "free": "nothing: it reaches no output, c is bounded by hand",
}
PRICED = ("alpha", "omega", "u", "gradient")
SETTINGS = ("parametrization", "optimizer", "alignment", "apply", "init")
_DOT = re.compile(r"\.(?![^{]*\})")  # between the parts of a name, not within {0..11}
NAMES_SHOWN = 6
PRICES_SHOWN = 8
STD_TOLERANCE = 1.1  # stds of one row within this factor are draws of one distribution, and shown as their mean


def render(result: Transformed, width: int = 100) -> str:
    """The report as plain text; lines are `width` columns long, or as long as a row of numbers needs."""
    width = max(width, 60)
    sections = [
        _header(result),
        _parameters(result, width),
        _roles(result),
        _groups(result),
        _graph(result),
        _binding(result),
        _special(result),
        _notes(result),
        _cost(result),
    ]
    return "\n\n".join(_text(section, width) for section in sections if section) + "\n"


def as_dict(result: Transformed) -> dict[str, Any]:
    """The report as JSON-able values."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in result.param_groups]
    return {
        "header": result.header.to_dict(),
        "parameters": dict(result.spec),
        "groups": groups,
        "shadow_prices": {str(name): price for name, price in result.solution.shadow_prices.items()},
        "objective": result.solution.solution.objective,
        "notes": list(result.notes),
        "seconds": result.timings,
    }


def _text(section: Sequence[str | Table], width: int) -> str:
    """Paragraphs wrapped with a hanging indent, tables drawn; no colours, no markup, no space at the end of a line."""
    lines: list[str] = []
    for part in section:
        if isinstance(part, str):
            start = len(part) - len(part.lstrip())
            lines += textwrap.wrap(part, width, subsequent_indent=" " * (start + 2), break_on_hyphens=False) or [""]
            continue
        lines += _drawn(part, width)
    return "\n".join(line.rstrip() for line in lines)


def _drawn(table: Table, width: int) -> list[str]:
    """The lines of a table; wider than `width` where its numbers would not fit, since a number is never cut."""
    file = io.StringIO()
    console = Console(
        file=file, width=1000, color_system=None, force_terminal=False, markup=False, emoji=False, highlight=False
    )
    console.print(table, width=max(width, Measurement.get(console, console.options, table).minimum))
    return [line for line in file.getvalue().splitlines() if line.strip()]


def _table(*columns: str, left: Iterable[str] = (), flexible: str | None = None) -> Table:
    """A flat table: numbers to the right, the columns in `left` to the left; only `flexible` may be wrapped."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for column in columns:
        wraps = column == flexible
        table.add_column(
            column, justify="left" if column in left else "right", no_wrap=not wraps, min_width=8 if wraps else None
        )
    return table


def number(value: float | None) -> str:
    return "-" if value is None else f"{value + 0.0:.3g}"


# -- header


def _header(result: Transformed) -> list[str | Table]:
    header, tensors = result.header, dict(result.module.named_parameters())
    if not header.has_base:
        scale = "absolute widths: n is the width of each layer itself"
    elif header.width_ratio == 1.0:
        scale = "base of the same width (m = 1): the transform is the identity"
    else:
        scale = f"m = {header.width_ratio:.6g}, the largest ratio of a dim to the same dim of the base model"
    settings = ", ".join(f"{key} {getattr(header, key)}" for key in SETTINGS)
    captured = METHODS.get(header.captured, header.captured)
    size = f"{len(tensors)} parameters, {count_entries(tensors.values()):,} entries"
    return [f"{header.model}: {size}, captured by {captured}", f"{scale}", settings]


# -- a row for each parameter


def _parameters(result: Transformed, width: int) -> list[str | Table]:
    spec, has_base = result.spec, result.header.has_base
    columns = ["x", "role", "growth", *([] if has_base else ["n"]), "a", "b", "c", "mult", "std", "lr"]
    columns += ["eps"] if any(row["eps"] is not None for row in spec.values()) else []
    columns += ["decay"] if any(row["weight_decay"] for row in spec.values()) else []
    columns += ["r", "binds"]
    body: list[list[str]] = []
    folded = collapse_names({name: row_key(result, name) for name in spec})
    prefixes = Counter(_prefix(part.shown) for part in folded)
    cells = [_cells(part, result, columns) for part in folded]
    stacked = zip(columns, *cells, strict=True)
    taken = [max(len(line) for cell in column for line in cell.split("\n")) for column in stacked]
    room = width - sum(taken) - len(taken)
    above = ""
    for part, row in zip(folded, cells, strict=True):
        prefix = _prefix(part.shown) if prefixes[_prefix(part.shown)] > 1 else ""
        if prefix and prefix != above:
            body.append([f"{prefix}", *[""] * len(columns)])
        above = prefix
        name = "  " + part.shown.removeprefix(prefix).removeprefix(".") if prefix else part.shown
        body.append([_broken(name, max(room, 16)), *row])
    table = _table("parameter", *columns, left=("parameter", "role", "growth", "binds"), flexible="binds")
    for line in body:
        table.add_row(*line)
    return [table, "", *legend(result)]


def legend(result: Transformed) -> list[str]:
    """What the columns of a parameter's row mean."""
    m = "m" if result.header.has_base else "n"
    return [
        f"A weight is multiplied by {m}^-a, starts with standard deviation ~ {m}^-b and learns at a rate ~ {m}^-c; "
        f"over training its output changes by ~ {m}^-r: r = 0 is the most that stays stable at any width.",
        "x: how many are alike. growth: exponent of each dim (0 stays, 1 grows). std: RMS entry after init.",
    ]


def row_key(result: Transformed, name: str) -> tuple[Hashable, ...]:
    """What a row shows, but for its std, a random draw, and its multipliers by node, whose names differ."""
    row = result.spec[name]
    use = tuple(row["a"].values()) if isinstance(row["a"], dict) else row["a"]
    numbers = (row["b"], row["c"], row["r"], row["lr"], row["eps"], row["weight_decay"], row["width"])
    exact = tuple(None if value is None else f"{value:.9g}" for value in numbers)
    return (
        row["role"],
        row["why"],
        row["void"],
        *exact,
        use,
        tuple(f"{e:.9g}" for e in row["growth"]),
        binding_tags(result.solution.binding[name]),
    )


def _cells(part: CollapsedName, result: Transformed, columns: Sequence[str]) -> list[str]:
    spec = result.spec
    row = spec[part.names[0]]
    cells = {
        "x": str(len(part.names)) if len(part.names) > 1 else "",
        "role": str(row["role"]),
        "growth": ",".join(number(e) for e in row["growth"]) or "-",
        "n": number(row["width"]),
        "a": _per_use(row["a"]),
        "mult": "void" if row["void"] else _per_use(row["multiplier"]),
        "std": _spread([std for name in part.names if (std := spec[name]["std"]) is not None]),
        "b": number(row["b"]),
        "c": number(row["c"]),
        "r": number(row["r"]),
        "lr": number(row["lr"]),
        "eps": number(row["eps"]),
        "decay": number(row["weight_decay"]),
        "binds": ", ".join(binding_tags(result.solution.binding[part.names[0]])),
    }
    return [cells[column] for column in columns]


def _per_use(value: float | Mapping[str, float]) -> str:
    return "\n/".join(number(v) for v in value.values()) if isinstance(value, Mapping) else number(value)


def _spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return number(sum(values) / len(values)) if high <= STD_TOLERANCE * low else f"{number(low)}\n..{number(high)}"


def _prefix(shown: str) -> str:
    """The repeated part of a folded name: up to the last component that is nothing but numbers, `blocks.{0..11}`."""
    parts = _DOT.split(shown)
    last = max((i for i, part in enumerate(parts[:-1]) if part.startswith("{") and part.endswith("}")), default=-1)
    return ".".join(parts[: last + 1])


def _broken(name: str, room: int) -> str:
    """A name that does not fit goes on below, broken before a dot."""
    indent = " " * (len(name) - len(name.lstrip()) + 2)
    first, *rest = _DOT.split(name)
    lines = [first]
    for part in rest:
        if len(lines[-1]) + 1 + len(part) <= room:
            lines[-1] += f".{part}"
        else:
            lines.append(f"{indent}.{part}")
    return "\n".join(lines)


# -- roles and groups


def _roles(result: Transformed) -> list[str | Table]:
    names: dict[tuple[str, str], dict[str, None]] = {}
    for name, row in result.spec.items():
        names.setdefault((row["role"], row["why"]), {})[name] = None
    lines = [
        f"  {role} ({len(which)}): {why}; {_listed([part.shown for part in collapse_names(which)])}"
        for (role, why), which in names.items()
    ]
    return ["Roles, and why", *lines]


def _listed(shown: Sequence[str], most: int = NAMES_SHOWN) -> str:
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _groups(result: Transformed) -> list[str | Table]:
    keys = [key for key in ("lr", "eps", "weight_decay") if any(key in group for group in result.param_groups)]
    if not any(group.get("weight_decay") for group in result.param_groups):
        keys = [key for key in keys if key != "weight_decay"]
    several = len({row["optimizer"] for row in result.spec.values()}) > 1
    more = ["optimizer"] if several else []
    table = _table("group", *more, *keys, "tensors", "entries", "of role", left=("optimizer", "of role"))
    for i, group in enumerate(result.param_groups):
        roles = dict.fromkeys(result.spec[name]["role"] for name in group["param_names"])
        numbers = [number(group.get(key)) for key in keys]
        size = [str(len(group["params"])), f"{count_entries(group['params']):,}"]
        own = [result.spec[group["param_names"][0]]["optimizer"]] if several else []
        table.add_row(str(i), *own, *numbers, *size, ", ".join(roles))
    return ["Optimizer groups", table]


# -- the layer DAG


def _graph(result: Transformed) -> list[str | Table]:
    dag = result.outcome.dag
    kinds = [node.kind for node in dag.nodes]
    counts = {
        "layer": sum(isinstance(k, Layer) for k in kinds),
        "norm": sum(isinstance(k, Norm) for k in kinds),
        "merge": sum(isinstance(k, Merge) for k in kinds),
        "product": sum(isinstance(k, Product) and not isinstance(k, Mix) for k in kinds),
        "mix": sum(isinstance(k, Mix) for k in kinds),
        "fork": sum(len(dag.successors(n.name)) > 1 for n in dag.nodes if not isinstance(n.kind, Vector)),
        "output": len(dag.outputs),
    }
    lines = ["Layer DAG: " + ", ".join(_count(n, what) for what, n in counts.items() if n)]
    skips = find_skips(dag)
    spans = Counter((skip.fewest, skip.most) for skip in skips)
    lines += [
        f"  {_count(count, 'skip connection')}: past {_count(most - fewest, 'layer')}"
        + (f", itself through {fewest}" if fewest else "")
        + f" ({_listed([f'{s.start} -> {s.end}' for s in skips if (s.fewest, s.most) == (fewest, most)], 3)})"
        for (fewest, most), count in spans.items()
    ]
    tied = tied_names(result.module)
    lines += [f"  tied: {' = '.join(names)}, one parameter" for names in tied]
    shared = {names[0] for names in tied}
    for name, nodes in repeated_uses(dag).items():
        uses = ", ".join(f"{node} a = {_at(result.spec[name]['a'], node)}" for node in nodes[:NAMES_SHOWN])
        lines.append(f"  {'uses of tied' if name in shared else 'used more than once:'} {name}: {len(nodes)} ({uses})")
    return list(lines)


def _count(count: int, what: str) -> str:
    plural = "es" if what.endswith("x") else "s"
    return f"{count} {what}{plural * (count != 1)}"


def _at(value: float | Mapping[str, float], node: str) -> str:
    return number(value.get(node, 0.0) if isinstance(value, Mapping) else value)


# -- what the LP says


def binding_tags_of(result: Transformed) -> list[str]:
    """The tags of all parameters, each once."""
    return list(dict.fromkeys(tag for name in result.spec for tag in binding_tags(result.solution.binding[name])))


def _binding(result: Transformed) -> list[str | Table]:
    tags = binding_tags_of(result)
    lines: list[str | Table] = ["What holds each c up (column binds)"]
    lines += [f"  {tag}: {TAGS.get(tag, tag)}" for tag in tags]
    prices = [price for price in group_prices(result.solution.shadow_prices) if price.tag in PRICED]
    if not prices:
        return lines
    lines += ["Shadow prices: the sum of all c falls by this much per unit that a constraint is loosened"]
    lines += [f"  {price.price:.3g}  {price.tag} of {_listed(price.nodes)}" for price in prices[:PRICES_SHOWN]]
    if len(prices) > PRICES_SHOWN:
        lines.append(f"  and {len(prices) - PRICES_SHOWN} more, none above {prices[PRICES_SHOWN].price:.3g}")
    return lines


def _special(result: Transformed) -> list[str | Table]:
    """What is out of the ordinary: void multipliers, inits that follow no round exponent, plain and frozen ones."""
    lines: list[str | Table] = []
    in_groups = {name for group in result.param_groups for name in group["param_names"]}
    chosen = {
        "Multiplier void, a norm follows at once": [name for name, row in result.spec.items() if row["void"]],
        "Not scaled (role plain)": [name for name, row in result.spec.items() if row["role"] == "plain"],
        "Frozen, in no group": [name for name in result.spec if name not in in_groups],
    }
    for title, names in chosen.items():
        if names:
            lines.append(f"{title}: {_listed([part.shown for part in collapse_names(dict.fromkeys(names))])}")
    for part in collapse_names(
        {name: measured for name, row in result.spec.items() if (measured := _own_init(row)) is not None}
    ):
        measured = _own_init(result.spec[part.names[0]])
        lines.append(f"Own init near no round exponent: {part.shown} ~ m^{-(measured or 0.0):.3g}, taken as measured")
    return lines


def _own_init(row: Mapping[str, Any]) -> float | None:
    """The exponent of a tensor's own init where it was taken as measured; None where it was snapped to a round one."""
    own = row["own_init"]
    if own is None or own["exponent"] != own["measured"] or (4 * own["measured"]).is_integer():
        return None
    return float(own["measured"])


def _notes(result: Transformed) -> list[str | Table]:
    return ["Notes", *(f"  {note}" for note in result.notes)] if result.notes else []


def _cost(result: Transformed) -> list[str | Table]:
    times = ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in result.timings.items())
    lp = f"LP: {result.header.rows} rows, {result.header.columns} columns"
    return [lp, f"Time (ms): {times}; in all {1000 * sum(result.timings.values()):.1f}"]
