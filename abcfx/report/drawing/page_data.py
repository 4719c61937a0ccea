"""Data of the HTML report that its script reads: numbers, explanations, boxes, and the places of the drawings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from abcfx.outcome import Outcome
from abcfx.report.binding import binding_tags
from abcfx.report.drawing.boxes import Box, Diagram, make_diagram
from abcfx.report.drawing.flowchart import short_label
from abcfx.report.drawing.layout import lay_out
from abcfx.report.drawing.repeats import Frame, Run, View, find_runs, view
from abcfx.report.explain import Explainer
from abcfx.report.names import CollapsedName, collapse_names
from abcfx.report.parameter_table import row_key
from abcfx.report.tables import number
from abcfx.report.text import as_dict

CHARACTER, SMALL_CHARACTER = 7.2, 6.4  # mean width in pixels, of the two font sizes of a box
LONGEST_LABEL = 36
TITLE_MARGIN = 54.0  # of the button before a frame's title
BOX_HEIGHT, OP_HEIGHT = 42.0, 26.0
MAX_DRAWN = 4000  # boxes in a view; a browser takes seconds for more
MAX_OPENED = 8  # runs that can be opened one by one
KIND_WORDS = {
    "merge": "adds, joins or selects its inputs: the one that changes most dominates",
    "product": "multiplies its inputs: a change of one counts with the size of the other",
    "mix": "a weighted mean of its inputs",
    "norm": "a norm: the size of its input has no effect on its output",
    "softmax": "a softmax",
    "pointwise": "a function that is not 0 at 0: the size of its output is O(1)",
    "power": "a power of its input",
    "numberfactor": "multiplies by a number that may depend on the width",
    "reduce": "a mean or a sum over dims",
    "layer": "a layer",
    "vector": "a vector of parameters",
}


class FoldData(TypedDict):
    """Data for the HTML page: parameters that are alike, as a pattern for their names and their indices."""

    shown: str
    names: list[int]


class BoxData(TypedDict):
    """Data for the HTML page: the texts of one box of a drawing, and the indices of its parameters."""

    label: str
    shown: str
    sub: str
    role: str
    path: str
    words: str
    parameters: list[int]


class FrameData(TypedDict):
    """Data for the HTML page: one frame around the boxes of repeated blocks.

    Attributes:
        title: name of the repeated blocks.
        count: how many blocks it stands for.
        run: index of the run of repeated blocks.
        place: left, top, width and height.
        opens: index of the drawing that its button shows; None if it has no button.
    """

    title: str
    count: int
    run: int
    place: list[float]
    opens: int | None


class ViewData(TypedDict):
    """Data for the HTML page: one drawing of the model, with the places of its boxes.

    Attributes:
        width: width of the drawing in pixels.
        height: height of the drawing in pixels.
        nodes: [index of a box, x, y, width, height] of each box.
        edges: [index of the tail, index of the head, points] of each edge.
        frames: frames around repeated blocks.
        stands_for: indices of the boxes that a box stands for, by its own index.
    """

    width: int
    height: int
    nodes: list[list[float]]
    edges: list[tuple[int, int, list[list[float]]]]
    frames: list[FrameData]
    stands_for: dict[int, list[int]]


class PageData(TypedDict):
    """Everything that the script of the HTML report reads, as JSON-able values; indices stand for parameters.

    Attributes:
        report: what `result.to_dict()` returns.
        shapes: shape of each parameter.
        base_shapes: shape of each parameter in the base; None without a base.
        folds: groups of parameters that are alike.
        fold_of: index of each parameter's group.
        binds: for each group, what keeps its c (learning rate ~ m^-c) from being smaller.
        explanations: the explanation of one parameter of each group.
        boxes: the boxes of the drawings.
        box_of: index of each parameter's first box; None if it has none.
        views: the drawings. The first draws repeated blocks once, the last one all boxes.
    """

    report: dict[str, object]
    shapes: list[list[int]]
    base_shapes: list[list[int] | None]
    folds: list[FoldData]
    fold_of: list[int]
    binds: list[str]
    explanations: list[dict[str, object]]
    boxes: list[BoxData]
    box_of: list[int | None]
    views: list[ViewData]


def page_data(outcome: Outcome) -> PageData:
    """Collect everything that the script of the HTML report reads, as JSON-able values."""
    names = list(outcome.plan)
    index = {name: i for i, name in enumerate(names)}
    shapes = {name: tuple(p.shape) for name, p in outcome.captured.model.named_parameters()}
    base = outcome.fixed.widths.base_parameters if outcome.header.has_base else None
    keys = {name: (*row_key(plan), shapes[name], plan.optimizer, plan.trainable) for name, plan in outcome.plan.items()}
    folds = collapse_names(keys)
    diagram = make_diagram(outcome)
    runs = find_runs(diagram)
    framed = {name for run in runs for unit in run.units for name in unit}
    boxes = [_PlacedBox(box, outcome, box.name in framed) for box in diagram.boxes]
    fold_of = {name: i for i, part in enumerate(folds) for name in part.names}
    box_of = {name: b for b, box in reversed(list(enumerate(diagram.boxes))) for name in box.parameters}
    return {
        "report": as_dict(outcome),
        "shapes": [list(shapes[name]) for name in names],
        "base_shapes": [None if base is None else list(base[name].shape) for name in names],
        "folds": [{"shown": part.shown, "names": [index[name] for name in part.names]} for part in folds],
        "fold_of": [fold_of[name] for name in names],
        "binds": [", ".join(binding_tags(outcome.plan[part.names[0]].binding)) for part in folds],
        "explanations": _explanations(outcome, folds),
        "boxes": [box.to_dict(index) for box in boxes],
        "box_of": [box_of.get(name) for name in names],
        "views": _views(diagram, runs, boxes),
    }


def _explanations(outcome: Outcome, folds: Sequence[CollapsedName]) -> list[dict[str, object]]:
    """Explain one parameter of each group of parameters that are alike, as JSON-able values."""
    explainer = Explainer(outcome)
    told = [explainer.explain(part.names[0]) for part in folds]
    return [{"name": each.name, "paragraphs": [part.to_dict() for part in each.paragraphs]} for each in told]


class _PlacedBox:
    """A box of a drawing with its texts and the size in pixels that they need.

    Args:
        box: the box.
        outcome: everything that one transform found.
        in_frame: whether a frame, whose title says which block it is, stands around the box.
    """

    def __init__(self, box: Box, outcome: Outcome, in_frame: bool) -> None:
        """Write the texts of a box of the HTML report, which stands for a module or an op of the model.

        `in_frame` says whether a frame, whose title says which block it is, stands around the box.
        """
        self.box = box
        shown = short_label(box, in_frame)
        if len(shown) > LONGEST_LABEL:
            shown = f"{shown[: LONGEST_LABEL // 2]}…{shown[-LONGEST_LABEL // 2 + 1 :]}"
        of_role = [name for name in box.parameters if outcome.plan[name].role == box.role]
        plan = outcome.plan[(of_role or box.parameters)[0]] if box.parameters else None
        self.shown = shown
        self.sub = "" if plan is None else f"{box.role}{', tied' if box.is_tied else ''}, lr {number(plan.lr)}"
        reason = _kinds_in_words(box) if plan is None else str(plan.why)
        self.words = f"{reason[:1].upper()}{reason[1:]}."
        last = box.nodes[-1]
        if last in outcome.solution.r:
            r = number(outcome.solution.r[last])
            self.words += f" Training changes its output by about m^-r, {last}: r = {r}."
        if box.is_output:
            self.words += " It is an output of the model."

    @property
    def size(self) -> tuple[float, float]:
        """The width and height of the box in pixels."""
        text = max(CHARACTER * len(self.shown), SMALL_CHARACTER * len(self.sub))
        return round(max(text + 22.0, 72.0)), BOX_HEIGHT if self.sub else OP_HEIGHT

    def to_dict(self, index: Mapping[str, int]) -> BoxData:
        """Return the texts of the box as JSON-able values; `index` numbers the parameters."""
        return {
            "label": self.box.label,
            "shown": self.shown,
            "sub": self.sub,
            "role": self.box.role,
            "path": self.box.path,
            "words": self.words,
            "parameters": [index[name] for name in self.box.parameters],
        }


def _kinds_in_words(box: Box) -> str:
    """Return in words what the ops in a box of the drawing do; the box has no parameters."""
    kinds = [kind for kind in dict.fromkeys(box.kinds) if kind != "vector" or not box.role]
    return "; ".join(KIND_WORDS.get(kind, kind) for kind in kinds)


def _views(diagram: Diagram, runs: Sequence[Run], boxes: Sequence[_PlacedBox]) -> list[ViewData]:
    """Make the drawings of the page: repeated blocks once; then one run of them in full each; last, all in full.

    Args:
        diagram: the boxes and edges.
        runs: the runs of repeated blocks.
        boxes: the boxes with their sizes, in the order of the diagram.
    """
    expanded: list[tuple[int, ...]] = [()]
    if runs:
        everything = tuple(range(len(runs)))
        collapsed = view(diagram, runs)
        openable = dict.fromkeys(frame.run for frame in collapsed.frames) if len(runs) <= MAX_OPENED else ()
        expanded += [(number,) for number in openable if len(runs) > 1]
        expanded += [everything]
    views = [view(diagram, runs, each) for each in expanded]
    kept = [(each, found) for each, found in zip(expanded, views, strict=True) if len(found.boxes) <= MAX_DRAWN]
    opened = {each[0]: i for i, (each, _) in enumerate(kept) if len(each) == 1}
    return [_view(found, each, opened, diagram, boxes) for each, found in kept or [((), views[0])]]


def _view(
    found: View, expanded: Sequence[int], opened: Mapping[int, int], diagram: Diagram, boxes: Sequence[_PlacedBox]
) -> ViewData:
    """Find the places of boxes, edges and frames of one drawing, and return them as JSON-able values.

    Args:
        found: the boxes, edges and frames that are drawn.
        expanded: indices of the runs of repeated blocks that are drawn in full.
        opened: for such a run, the index of the drawing that shows it in full.
        diagram: all boxes and edges.
        boxes: all boxes with their sizes.
    """
    index = {box.name: i for i, box in enumerate(diagram.boxes)}
    sizes = {box.name: boxes[index[box.name]].size for box in found.boxes}
    titles = [CHARACTER * len(f"{frame.title}  x {frame.count}") + TITLE_MARGIN for frame in found.frames]
    layout = lay_out(sizes, found.edges, [frame.boxes for frame in found.frames], titles)
    frames: list[FrameData] = [
        {
            "title": frame.title,
            "count": frame.count,
            "run": frame.run,
            "place": _rounded(place),
            "opens": _opens(frame, found.frames, expanded, opened),
        }
        for frame, place in zip(found.frames, layout.frames, strict=True)
    ]
    return {
        "width": round(layout.width),
        "height": round(layout.height),
        "nodes": [[index[name], *_rounded(layout.place[name]), *size] for name, size in sizes.items()],
        "edges": [(index[t], index[h], [_rounded(p) for p in points]) for (t, h), points in layout.path.items()],
        "frames": frames,
        "stands_for": {
            index[n]: [index[o] for o in others] for n, others in found.stands_for.items() if len(others) > 1
        },
    }


def _opens(frame: Frame, frames: Sequence[Frame], expanded: Sequence[int], opened: Mapping[int, int]) -> int | None:
    """Return the index of the drawing that the button of a frame shows; None for a frame without a button.

    Args:
        frame: the frame.
        frames: all frames of its drawing.
        expanded: indices of the runs of repeated blocks that this drawing shows in full; their button goes back to 0.
        opened: for a run, the index of the drawing that shows it in full.
    """
    if frame.run not in expanded:
        return opened.get(frame.run)
    return 0 if frame is next(other for other in frames if other.run == frame.run) else None


def _rounded(values: Sequence[float]) -> list[float]:
    """Return pixel coordinates rounded to one digit after the point."""
    return [round(value, 1) for value in values]
