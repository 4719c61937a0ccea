"""The HTML report: one file with its data, style and script inside, which opens from disk without a network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from abcfx.report.drawing.boxes import Box, Diagram, make_diagram
from abcfx.report.drawing.layout import lay_out
from abcfx.report.drawing.mermaid import short_label
from abcfx.report.drawing.repeats import Frame, Run, View, find_runs, view
from abcfx.report.explain import Explainer
from abcfx.report.names import CollapsedName, binding_tags, collapse_names, count_entries, group_prices
from abcfx.report.text import METHODS, PRICED, TAGS, as_dict, binding_tags_of, legend, number, row_key
from abcfx.support.text import finite

if TYPE_CHECKING:
    from abcfx.transformed import Transformed

CHARACTER, SMALL_CHARACTER = 7.2, 6.4  # mean width in pixels, of the two font sizes of a box
LONGEST_LABEL = 36
TITLE_MARGIN = 54.0  # of the button before a frame's title
BOX_HEIGHT, OP_HEIGHT = 42.0, 26.0
MAX_DRAWN = 4000  # boxes in a view; a browser takes seconds for more
MAX_OPENED = 8  # runs that can be opened one by one
LEGEND = {
    "embedding": "embedding: fan_out grows",
    "hidden": "hidden: fan_in and fan_out grow",
    "readout": "readout: fan_in grows",
    "vector": "vector: bias, gain, position",
    "scalar": "scalar: nothing grows",
    "plain": "plain: not scaled",
    "op": "an op without parameters",
}
KIND_WORDS = {
    "merge": "adds, joins or selects: the input that changes most dominates",
    "product": "multiplies its inputs: their changes count with the size of the other",
    "norm": "a norm: sizes in front of it have no effect behind it",
    "softmax": "a softmax",
    "pointwise": "a function that is not 0 at 0: its output has size O(1)",
    "power": "a power of its input",
    "scale": "multiplies by a number that may depend on the width",
    "reduce": "a mean or a sum over dims",
    "layer": "a layer",
    "vector": "a vector of parameters",
}


def page(result: Transformed) -> str:
    """The text of the HTML file."""
    folder = files("abcfx.report.drawing")
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    header = result.header
    title = f"{header.model}, scaled"
    data = json.dumps(finite(page_data(result)), allow_nan=False, separators=(",", ":"))
    return template.substitute(
        title=escape(title),
        css=(folder / "page.css").read_text(encoding="utf-8").strip(),
        js=(folder / "page.js").read_text(encoding="utf-8").strip(),
        summary=escape(_summary(result)),
        settings="\n".join(f"<div>{_terms([pair])}</div>" for pair in _settings(result)),
        legend=_legend(result),
        legend_words=escape(" ".join(legend(result))),
        tags=_terms([(tag, TAGS.get(tag, tag)) for tag in binding_tags_of(result)]),
        prices=_prices(result),
        groups=_groups(result),
        notes=_list(result.notes, "Nothing out of the ordinary."),
        data=data.replace("<", "\\u003c"),
    )


# -- what the script reads


def page_data(result: Transformed) -> dict[str, Any]:
    """The report as JSON, shapes, folded rows with an explanation of each, and the drawings."""
    analysis = result.outcome
    names = list(result.spec)
    index = {name: i for i, name in enumerate(names)}
    parameters = dict(analysis.captured.model.named_parameters())
    widths, has_base = analysis.fixed.widths, result.header.has_base
    shapes = {name: tuple(parameters[name].shape) for name in names}
    keys = {
        name: (*row_key(result, name), shapes[name], row["optimizer"], parameters[name].requires_grad)
        for name, row in result.spec.items()
    }
    folds = collapse_names(keys)
    diagram = make_diagram(result)
    runs = find_runs(diagram)
    framed = {name for run in runs for unit in run.units for name in unit}
    boxes = [_box(box, result, index, box.name in framed) for box in diagram.boxes]
    box_of = {i: b for b, box in reversed(list(enumerate(boxes))) for i in box["parameters"]}
    return {
        "report": as_dict(result),
        "shapes": [list(shapes[name]) for name in names],
        "base_shapes": [list(widths.base_parameters[name].shape) if has_base else None for name in names],
        "folds": [{"shown": part.shown, "names": [index[name] for name in part.names]} for part in folds],
        "fold_of": _by_position({index[name]: i for i, part in enumerate(folds) for name in part.names}),
        "binds": [", ".join(binding_tags(result.solution.binding[part.names[0]])) for part in folds],
        "explanations": _explanations(result, folds),
        "boxes": boxes,
        "box_of": [box_of.get(i) for i in range(len(names))],
        "views": _views(diagram, runs, boxes),
    }


def _by_position(found: Mapping[int, int]) -> list[int]:
    return [found[i] for i in range(len(found))]


def _explanations(result: Transformed, folds: Sequence[CollapsedName]) -> list[dict[str, Any]]:
    """One for all that are alike: told of the first of them."""
    explainer = Explainer(result)
    told = [explainer.explain(part.names[0]) for part in folds]
    return [{"name": each.name, "paragraphs": [part._asdict() for part in each.paragraphs]} for each in told]


def _box(box: Box, result: Transformed, index: Mapping[str, int], in_frame: bool) -> dict[str, Any]:
    shown = short_label(box, in_frame)
    if len(shown) > LONGEST_LABEL:
        shown = f"{shown[: LONGEST_LABEL // 2]}…{shown[-LONGEST_LABEL // 2 + 1 :]}"
    row = result.spec[box.parameters[0]] if box.parameters else None
    weights = [name for name in box.parameters if result.spec[name]["role"] == box.role]
    row = result.spec[weights[0]] if weights else row
    sub = "" if row is None else f"{box.role}{', tied' if box.is_tied else ''}, lr {number(row['lr'])}"
    changes = [f"{node}: r = {number(r)}" for node in box.nodes[-1:] if (r := result.solution.r.get(node)) is not None]
    kinds = "; ".join(
        KIND_WORDS.get(kind, kind) for kind in dict.fromkeys(box.kinds) if kind != "vector" or not box.role
    )
    words = f"{row['why']}." if row is not None else f"{kinds[:1].upper()}{kinds[1:]}."
    words += f" Over training what comes out changes by m^-r, {', '.join(changes)}." if changes else ""
    words += " It is an output of the model." if box.is_output else ""
    parameters = [index[name] for name in box.parameters]
    fields = {"label": box.label, "shown": shown, "sub": sub, "role": box.role, "path": box.path}
    return {**fields, "words": words, "parameters": parameters}


def _views(diagram: Diagram, runs: Sequence[Run], boxes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Repeated blocks once; then each run drawn in full; last, all of them."""
    expanded: list[tuple[int, ...]] = [()]
    if runs:
        everything = tuple(range(len(runs)))
        folded = view(diagram, runs)
        openable = dict.fromkeys(frame.run for frame in folded.frames) if len(runs) <= MAX_OPENED else ()
        expanded += [(number,) for number in openable if len(runs) > 1]
        expanded += [everything]
    views = [view(diagram, runs, each) for each in expanded]
    kept = [(each, found) for each, found in zip(expanded, views, strict=True) if len(found.boxes) <= MAX_DRAWN]
    opened = {each[0]: i for i, (each, _) in enumerate(kept) if len(each) == 1}
    return [_view(found, each, opened, diagram, boxes) for each, found in kept or [((), views[0])]]


def _view(
    found: View,
    expanded: Sequence[int],
    opened: Mapping[int, int],
    diagram: Diagram,
    boxes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    index = {box.name: i for i, box in enumerate(diagram.boxes)}
    sizes = {box.name: _size(boxes[index[box.name]]) for box in found.boxes}
    titles = [CHARACTER * len(f"{frame.title}  x {frame.count}") + TITLE_MARGIN for frame in found.frames]
    layout = lay_out(sizes, found.edges, [frame.boxes for frame in found.frames], titles)
    frames = [
        {"title": frame.title, "count": frame.count, "run": frame.run, "place": _rounded(place)}
        | {"opens": _opens(frame, found.frames, expanded, opened)}
        for frame, place in zip(found.frames, layout.frames, strict=True)
    ]
    return {
        "width": round(layout.width),
        "height": round(layout.height),
        "nodes": [[index[name], *_rounded(layout.place[name]), *size] for name, size in sizes.items()],
        "edges": [[index[t], index[h], [_rounded(p) for p in points]] for (t, h), points in layout.path.items()],
        "frames": frames,
        "stands_for": {
            index[n]: [index[o] for o in others] for n, others in found.stands_for.items() if len(others) > 1
        },
    }


def _opens(frame: Frame, frames: Sequence[Frame], expanded: Sequence[int], opened: Mapping[int, int]) -> int | None:
    """The view that a frame's button draws; None for a frame without one."""
    if frame.run not in expanded:
        return opened.get(frame.run)
    return 0 if frame is next(other for other in frames if other.run == frame.run) else None


def _size(box: Mapping[str, Any]) -> tuple[float, float]:
    text = max(CHARACTER * len(box["shown"]), SMALL_CHARACTER * len(box["sub"]))
    return round(max(text + 22.0, 72.0)), BOX_HEIGHT if box["sub"] else OP_HEIGHT


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 1) for value in values]


# -- what stands in the page itself


def _summary(result: Transformed) -> str:
    header, tensors = result.header, dict(result.module.named_parameters())
    size = f"{len(tensors)} parameters with {count_entries(tensors.values()):,} entries"
    if not header.has_base:
        scale = "no base: the exponents are of each layer's own width"
    elif header.width_ratio == 1.0:
        scale = "the base has the same width: the transform changes nothing"
    else:
        scale = f"{header.width_ratio:.4g} times as wide as the base (m = {header.width_ratio:.4g})"
    return f"{size}, {scale}."


def _settings(result: Transformed) -> list[tuple[str, str]]:
    header, analysis = result.header, result.outcome
    options, widths = analysis.options, analysis.fixed.widths
    found = [("captured by", METHODS.get(header.captured, header.captured))]
    if widths.has_base and widths.width_ratio != 1.0:
        found.append(("sizes that grow", _sizes(result)))
    rates = (
        options.lr if not isinstance(options.lr, Mapping) else ", ".join(f"{k} {v:.4g}" for k, v in options.lr.items())
    )
    found += [
        ("parametrization", f"{header.parametrization}, alignment {header.alignment}"),
        ("optimizer", f"{header.optimizer}, lr {rates if isinstance(rates, str) else f'{rates:.4g}'}"),
        ("weight decay", f"{options.weight_decay:.4g}, {options.overrides.decay_mode}"),
        ("multipliers", f"apply {header.apply}, init {header.init}"),
        ("linear program", f"{header.rows} rows, {header.columns} columns"),
        ("time", f"{1000 * sum(result.timings.values()):.0f} ms"),
    ]
    if header.attention:
        values = ", ".join(f"{v:.4g}" for v in dict.fromkeys(header.attention.values()))
        found.append(("attention logits", f"multiplied by {values}"))
    if header.depth:
        values = ", ".join(f"{v:.4g}" for v in dict.fromkeys(header.depth.values()))
        found.append(("residual branches", f"{len(header.depth)}, multiplied by {values}"))
    return found


def _sizes(result: Transformed) -> str:
    """The commonest sizes that differ from the base's."""
    base = result.outcome.fixed.widths.base_parameters
    pairs = Counter(
        (theirs, ours)
        for name, parameter in result.outcome.captured.model.named_parameters()
        for theirs, ours in zip(base[name].shape, parameter.shape, strict=True)
        if theirs != ours
    )
    shown = [f"{theirs} → {ours}" for (theirs, ours), _ in pairs.most_common(4)]
    return ", ".join(shown) + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")


def _terms(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(words)}</dd>" for term, words in pairs)


def _legend(result: Transformed) -> str:
    used = {row["role"] for row in result.spec.values()} | {"op"}
    swatch = '<span class="swatch tint-{0}"></span>'
    items = [f"<li>{swatch.format(role)}{escape(words)}</li>" for role, words in LEGEND.items() if role in used]
    return "\n".join(items)


def _list(lines: Sequence[str], nothing: str) -> str:
    if not lines:
        return f"<p>{escape(nothing)}</p>"
    return "<ul>\n" + "\n".join(f"<li>{escape(line)}</li>" for line in lines) + "\n</ul>"


def _prices(result: Transformed) -> str:
    prices = [price for price in group_prices(result.solution.shadow_prices) if price.tag in PRICED]
    if not prices:
        return ""
    rows = "\n".join(
        f'<tr><td>{price.price:.3g}</td><td class="left">{escape(price.tag)}</td>'
        f'<td class="left">{escape(", ".join(price.nodes))}</td></tr>'
        for price in prices
    )
    return (
        "<p>Shadow prices: the sum of all c falls by this much per unit that a constraint is loosened. 1 is local, "
        "more is a bottleneck that holds several layers up.</p>\n"
        '<section class="wide" aria-label="Table of shadow prices" tabindex="0">\n<table>\n'
        '<thead><tr><th scope="col">price</th><th scope="col" class="left">constraint</th>'
        f'<th scope="col" class="left">of</th></tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</section>'
    )


def _groups(result: Transformed) -> str:
    keys = [key for key in ("lr", "eps", "weight_decay") if any(group.get(key) for group in result.param_groups)]
    titles = ["group", "optimizer", *keys, "tensors", "entries", "of role"]
    left = {"optimizer", "of role"}

    def cell(tag: str, title: str, text: str) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        side = ' class="left"' if title in left else ""
        return f"<{tag}{scope}{side}>{escape(text)}</{tag}>"

    rows = []
    for i, group in enumerate(result.param_groups):
        roles = dict.fromkeys(result.spec[name]["role"] for name in group["param_names"])
        own = result.spec[group["param_names"][0]]["optimizer"]
        size = [str(len(group["params"])), f"{count_entries(group['params']):,}"]
        texts = [str(i), own, *(number(group.get(key)) for key in keys), *size, ", ".join(roles)]
        rows.append("<tr>" + "".join(cell("td", t, text) for t, text in zip(titles, texts, strict=True)) + "</tr>")
    head = "".join(cell("th", title, title.replace("_", " ")) for title in titles)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>"
