"""The HTML report: one file with its data, style and script inside, which opens from disk without a network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files

from abcfx.outcome import Outcome
from abcfx.plan.options import ByRole
from abcfx.report.binding import bottlenecks, used_tags
from abcfx.report.drawing.page_data import page_data
from abcfx.report.names import count_entries
from abcfx.report.parameter_table import legend
from abcfx.report.tables import number
from abcfx.report.text import METHODS
from abcfx.support.text import finite

LEGEND = {
    "embedding": "embedding: its fan_out grows",
    "hidden": "hidden: its fan_in and fan_out grow",
    "readout": "readout: its fan_in grows",
    "vector": "vector: a bias, gain or position",
    "scalar": "scalar: no dim grows",
    "plain": "plain: left as it is",
    "op": "an op without parameters",
}
SIZES_SHOWN = 4


def page(outcome: Outcome) -> str:
    """Write the text of the interactive HTML report of a transform."""
    import jinja2  # here, since most runs write no page and its import takes time

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("abcfx.report", "drawing"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    folder = files("abcfx.report.drawing")
    used = {plan.role for plan in outcome.plan.values()} | {"op"}
    data = json.dumps(finite(page_data(outcome)), allow_nan=False, separators=(",", ":"))
    return environment.get_template("page.html").render(
        title=f"{outcome.header.model}, scaled",
        css=(folder / "page.css").read_text(encoding="utf-8").strip(),
        js=(folder / "page.js").read_text(encoding="utf-8").strip(),
        summary=_summary(outcome),
        settings=_settings(outcome),
        legend={role: words for role, words in LEGEND.items() if role in used},
        columns=" ".join(legend(outcome)),
        tags=used_tags(outcome),
        prices=[(f"{price.price:.3g}", price.tag, ", ".join(price.nodes)) for price in bottlenecks(outcome)],
        groups=_groups(outcome),
        notes=outcome.notes,
        data=data.replace("<", "\\u003c"),  # no tag can begin or end inside of the script element
    )


def _summary(outcome: Outcome) -> str:
    """Write the line below the title of the HTML report: size of the model, and ratio of widths."""
    header, tensors = outcome.header, list(outcome.captured.model.parameters())
    size = f"{len(tensors)} parameters with {count_entries(tensors):,} entries"
    if not header.has_base:
        scale = "no base: exponents are powers of each layer's own width"
    elif header.width_ratio == 1.0:
        scale = "the base has the same width, so nothing is changed"
    else:
        scale = f"{header.width_ratio:.4g} times as wide as the base (m = {header.width_ratio:.4g})"
    return f"{size}, {scale}."


def _rates(lr: ByRole | None) -> str:
    """Return in words which base learning rates the user gave: one, one for each role, or an optimizer's.

    A role is "embedding", "hidden", "readout" or the like.
    """
    if lr is None:
        return "of its groups"
    return ", ".join(f"{role} {each:.4g}" for role, each in lr.items()) if isinstance(lr, Mapping) else f"{lr:.4g}"


def _settings(outcome: Outcome) -> list[tuple[str, str]]:
    """Return the settings of the transform that the HTML report lists, as (title, value)."""
    header, options = outcome.header, outcome.options
    found = [("captured by", METHODS.get(header.captured, header.captured))]
    if header.has_base and header.width_ratio != 1.0:
        found.append(("sizes that grow", _sizes(outcome)))
    decay = "of its groups" if options.weight_decay is None else f"{options.weight_decay:.4g}"
    found += [
        ("parametrization", f"{header.parametrization}, alignment {header.alignment}"),
        ("optimizer", f"{header.optimizer}, lr {_rates(options.lr)}"),
        ("weight decay", f"{decay}, {options.overrides.decay_mode}"),
        ("multipliers", f"apply {header.apply}, init {header.init}"),
        ("linear program", f"{header.rows} rows, {header.columns} columns"),
        ("time", f"{1000 * sum(outcome.timings.values()):.0f} ms"),
    ]
    if header.attention:
        values = ", ".join(f"{value:.4g}" for value in dict.fromkeys(header.attention.values()))
        found.append(("attention logits", f"multiplied by {values}"))
    if header.depth:
        values = ", ".join(f"{value:.4g}" for value in dict.fromkeys(header.depth.values()))
        found.append(("residual branches", f"{len(header.depth)}, multiplied by {values}"))
    return found


def _sizes(outcome: Outcome) -> str:
    """List sizes of parameters that differ from the smaller base model's, as "64 → 256", most frequent ones first."""
    base = outcome.fixed.widths.base_parameters
    pairs = Counter(
        (theirs, ours)
        for name, parameter in outcome.captured.model.named_parameters()
        for theirs, ours in zip(base[name].shape, parameter.shape, strict=True)
        if theirs != ours
    )
    shown = [f"{theirs} → {ours}" for (theirs, ours), _ in pairs.most_common(SIZES_SHOWN)]
    return ", ".join(shown) + (f" and {len(pairs) - SIZES_SHOWN} more" if len(pairs) > SIZES_SHOWN else "")


def _groups(outcome: Outcome) -> dict[str, list[str]]:
    """Return the columns of the HTML report's table of optimizer groups, by title."""
    groups, plan = outcome.param_groups, outcome.plan
    names = [group["param_names"] for group in groups]
    columns = {
        "group": [str(i) for i in range(len(groups))],
        "optimizer": [plan[each[0]].optimizer for each in names],
    }
    for key in ("lr", "eps", "weight_decay"):
        if any(group.get(key) for group in groups):
            columns[key.replace("_", " ")] = [number(group.get(key)) for group in groups]
    columns["tensors"] = [str(len(each)) for each in names]
    columns["entries"] = [f"{count_entries(group['params']):,}" for group in groups]
    columns["roles"] = [", ".join(dict.fromkeys(plan[name].role for name in each)) for each in names]
    return columns
