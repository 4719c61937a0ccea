"""The printed report: plain text of a given width, section by section."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from abcfx.dag.queries import find_skips, repeated_uses
from abcfx.outcome import Outcome
from abcfx.plan.spec import ParameterPlan
from abcfx.report.binding import bottlenecks, used_tags
from abcfx.report.names import collapse_names, count_entries, listed, tied_names
from abcfx.report.parameter_table import legend, parameter_table
from abcfx.report.tables import Section, flat_table, number, section_text
from abcfx.rules import Layer, Vector
from abcfx.rules.kinds import Merge, Mix, Norm, Product

WIDTH, LEAST_WIDTH = 100, 60
METHODS = {"symbolic": "torch.fx symbolic tracing", "export": "torch.export", "record": "recording one run"}
NODES_SHOWN = 6
PRICES_SHOWN = 8


def render(outcome: Outcome, width: int = WIDTH) -> str:
    """Write the printed report of a transform as plain text.

    Args:
        outcome: everything that one transform found.
        width: length of lines in columns; lines are longer where a row of numbers needs it.
    """
    width = max(width, LEAST_WIDTH)
    sections: list[Section] = [
        _header(outcome),
        [parameter_table(outcome, width), "", *legend(outcome)],
        _roles(outcome),
        _groups(outcome),
        _graph(outcome),
        _binding(outcome),
        _exceptions(outcome),
        _notes(outcome),
        _cost(outcome),
    ]
    return "\n\n".join(section_text(section, width) for section in sections if section) + "\n"


def _groups_without_tensors(outcome: Outcome) -> list[dict[str, object]]:
    """Return the optimizer groups as JSON-able values, without the parameters themselves."""
    return [{key: value for key, value in group.items() if key != "params"} for group in outcome.param_groups]


def as_dict(outcome: Outcome) -> dict[str, object]:
    """Return the report of a transform as JSON-able values; names of constraints are written as text."""
    return {
        "header": outcome.header.to_dict(),
        "parameters": dict(outcome.spec),
        "groups": _groups_without_tensors(outcome),
        "shadow_prices": {str(name): price for name, price in outcome.solution.shadow_prices.items()},
        "objective": outcome.solution.solution.objective,
        "notes": list(outcome.notes),
        "seconds": dict(outcome.timings),
    }


def _header(outcome: Outcome) -> Section:
    """Write the head of the report: model, width ratio, and settings."""
    header, tensors = outcome.header, list(outcome.captured.model.parameters())
    if not header.has_base:
        scale = "no base: exponents are powers of n, the width of each layer itself"
    elif header.width_ratio == 1.0:
        scale = "m = 1: the base has the same width, so nothing is changed"
    else:
        scale = f"m = {header.width_ratio:.6g}, the largest ratio of a dim to the same dim of the base model"
    settings = (
        f"parametrization {header.parametrization}, optimizer {header.optimizer}, alignment {header.alignment}, "
        f"apply {header.apply}, init {header.init}"
    )
    captured = METHODS.get(header.captured, header.captured)
    size = f"{len(tensors)} parameters, {count_entries(tensors):,} entries"
    return [f"{header.model}: {size}, captured by {captured}", scale, settings]


def _roles(outcome: Outcome) -> Section:
    """Write the section of the report that lists parameters by role ("hidden", ...), with the reason for each role."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, plan in outcome.plan.items():
        names.setdefault((plan.role, str(plan.why)), []).append(name)
    lines = [f"  {role} ({len(which)}): {why}; {listed(which)}" for (role, why), which in names.items()]
    return ["Roles, and why", *lines]


def _groups(outcome: Outcome) -> Section:
    """Write the section of the report with the table of optimizer groups."""
    groups, plan = outcome.param_groups, outcome.plan
    keys = [key for key in ("lr", "eps", "weight_decay") if any(key in group for group in groups)]
    if not any(group.get("weight_decay") for group in groups):
        keys = [key for key in keys if key != "weight_decay"]
    several = len({each.optimizer for each in plan.values()}) > 1
    more = ["optimizer"] if several else []
    table = flat_table("group", *more, *keys, "tensors", "entries", "roles", left=("optimizer", "roles"))
    for i, group in enumerate(groups):
        names = group["param_names"]
        numbers = [number(group.get(key)) for key in keys]
        size = [str(len(names)), f"{count_entries(group['params']):,}"]
        own = [plan[names[0]].optimizer] if several else []
        table.add_row(str(i), *own, *numbers, *size, ", ".join(dict.fromkeys(plan[name].role for name in names)))
    return ["Optimizer groups", table]


def _graph(outcome: Outcome) -> Section:
    """Write the report's section on the graph of layers: counts, skip connections, parameters with several uses."""
    dag = outcome.dag
    kinds = [node.kind for node in dag.nodes]
    counts = {
        "layer": sum(isinstance(kind, Layer) for kind in kinds),
        "norm": sum(isinstance(kind, Norm) for kind in kinds),
        "merge": sum(isinstance(kind, Merge) for kind in kinds),
        "product": sum(isinstance(kind, Product) and not isinstance(kind, Mix) for kind in kinds),
        "mix": sum(isinstance(kind, Mix) for kind in kinds),
        "fork": sum(len(dag.successors(node.name)) > 1 for node in dag.nodes if not isinstance(node.kind, Vector)),
        "output": len(dag.outputs),
    }
    lines = ["Layer DAG: " + ", ".join(_count(n, what) for what, n in counts.items() if n)]
    skips = find_skips(dag)
    for (fewest, most), count in Counter((skip.fewest, skip.most) for skip in skips).items():
        ends = [f"{skip.start} -> {skip.end}" for skip in skips if (skip.fewest, skip.most) == (fewest, most)]
        shown = ", ".join(ends[:3]) + (f" and {len(ends) - 3} more" if len(ends) > 3 else "")
        itself = f", itself through {fewest}" if fewest else ""
        lines.append(f"  {_count(count, 'skip connection')}: past {_count(most - fewest, 'layer')}{itself} ({shown})")
    tied = tied_names(outcome.captured.model)
    lines += [f"  tied: {' = '.join(names)}, one parameter" for names in tied]
    shared = {names[0] for names in tied}
    for name, nodes in repeated_uses(dag).items():
        a = outcome.plan[name].a
        uses = ", ".join(f"{node} a = {number(a.get(node, 0.0))}" for node in nodes[:NODES_SHOWN])
        lines.append(f"  {'uses of tied' if name in shared else 'used more than once:'} {name}: {len(nodes)} ({uses})")
    return lines


def _count(count: int, what: str) -> str:
    """Write a number of things, as "1 layer" or "3 layers"."""
    plural = "es" if what.endswith("x") else "s"
    return f"{count} {what}{plural * (count != 1)}"


def _binding(outcome: Outcome) -> Section:
    """Write the section of the report on what keeps learning rates from being larger, with shadow prices."""
    lines = ["What keeps each c from being smaller, and so each rate from being larger (column binds)"]
    lines += [f"  {tag}: {words}" for tag, words in used_tags(outcome).items()]
    prices = bottlenecks(outcome)
    if not prices:
        return lines
    lines.append(
        "Shadow prices show bottlenecks: relax a constraint by x, and the sum of all c can fall by x times its price"
    )
    for price in prices[:PRICES_SHOWN]:
        lines.append(f"  {price.price:.3g}  {price.tag} of {', '.join(price.nodes[:NODES_SHOWN])}{_more(price.nodes)}")
    if len(prices) > PRICES_SHOWN:
        lines.append(f"  and {len(prices) - PRICES_SHOWN} more, none above {prices[PRICES_SHOWN].price:.3g}")
    return lines


def _more(nodes: tuple[str, ...]) -> str:
    """Write how many of the DAG nodes are not shown, such as " and 3 more"; "" if all are."""
    return f" and {len(nodes) - NODES_SHOWN} more" if len(nodes) > NODES_SHOWN else ""


def _exceptions(outcome: Outcome) -> Section:
    """Write the section of the report on parameters without multiplier, left alone, frozen, or with an unusual init."""
    lines: list[str] = []
    learning = {name for group in outcome.param_groups for name in group["param_names"]}
    plan = outcome.plan
    chosen: dict[str, Iterable[str]] = {
        "No multiplier, because a norm follows and would undo it": [n for n, each in plan.items() if each.void],
        "Left as the model has them (role plain)": [n for n, each in plan.items() if each.role == "plain"],
        "Frozen, so in no optimizer group": [n for n in plan if n not in learning],
    }
    lines += [f"{title}: {listed(names)}" for title, names in chosen.items() if names]
    measured = {name: exponent for name, each in plan.items() if (exponent := _unusual_init(each)) is not None}
    for part in collapse_names(measured):
        power = f"{part.shown} ~ m^-{measured[part.names[0]]:.3g}"
        lines.append(f"Init that follows no round power of the width, used as measured: {power}")
    return lines


def _unusual_init(plan: ParameterPlan) -> float | None:
    """Return x where a parameter's own init is ~ m^-x (m, the width ratio) and x is no round number; else None."""
    own = plan.own_init
    if own is None or own.exponent != own.measured or (4 * own.measured).is_integer():
        return None
    return own.measured


def _notes(outcome: Outcome) -> Section:
    """Write the section of the report with notes to the user; nothing if there are none."""
    return ["Notes", *(f"  {note}" for note in outcome.notes)] if outcome.notes else []


def _cost(outcome: Outcome) -> Section:
    """Write the section of the report on the size of the linear program, and the time of each stage."""
    times = ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in outcome.timings.items())
    program = f"Linear program: {outcome.header.rows} rows, {outcome.header.columns} columns"
    return [program, f"Time (ms): {times}; in all {1000 * sum(outcome.timings.values()):.1f}"]
