"""The layer DAG as a Mermaid flowchart, which GitHub draws: repeated blocks once, a colour for each role."""

from __future__ import annotations

from abcfx.dag.queries import blocks_around
from abcfx.outcome import Outcome
from abcfx.report.drawing.boxes import Box, make_diagram
from abcfx.report.drawing.repeats import Frame, find_runs, view

# fill, border: text on the fill has a contrast of at least 7 to 1
COLOURS = {
    "embedding": ("#cfe8ff", "#1f6fb2"),
    "hidden": ("#d9f2d0", "#3b7d23"),
    "readout": ("#ffdfc2", "#b35a00"),
    "vector": ("#eadcf7", "#7a4aa5"),
    "scalar": ("#f7dce8", "#a83e72"),
    "plain": ("#e6e6e6", "#6b6b6b"),
    "op": ("#ffffff", "#8a8a8a"),
}


def mermaid(outcome: Outcome) -> str:
    """Write the graph of the model's layers as the text of a Mermaid flowchart, with repeated blocks drawn once."""
    diagram = make_diagram(outcome)
    drawn = view(diagram, find_runs(diagram))
    ids = {box.name: f"n{i}" for i, box in enumerate(drawn.boxes)}
    boxes = {box.name: box for box in drawn.boxes}
    lines = ["flowchart TD"]
    inside: set[str] = set()
    roots = [frame for frame in drawn.frames if not _parent(frame, drawn.frames)]
    for frame in roots:
        lines += _subgraph(frame, drawn.frames, boxes, ids, "  ", inside)
    lines += [f"  {_node(box, ids, '')}" for box in drawn.boxes if box.name not in inside]
    lines += [f"  {ids[tail]} --> {ids[head]}" for tail, head in drawn.edges]
    used = dict.fromkeys(_class(box) for box in drawn.boxes)
    lines += [
        f"  classDef {name} fill:{COLOURS[name][0]},stroke:{COLOURS[name][1]},color:#111"
        for name in COLOURS
        if name in used
    ]
    return "\n".join(lines) + "\n"


def _parent(frame: Frame, frames: tuple[Frame, ...]) -> Frame | None:
    """Return the smallest frame (of a repeated block) that is drawn around another frame; None if there is none."""
    around = [f for f in frames if f is not frame and set(frame.boxes) < set(f.boxes)]
    return min(around, key=lambda f: len(f.boxes), default=None)


def _subgraph(
    frame: Frame,
    frames: tuple[Frame, ...],
    boxes: dict[str, Box],
    ids: dict[str, str],
    indent: str,
    inside: set[str],
) -> list[str]:
    """Write a frame around a repeated block, with the boxes and frames inside, as the lines of a Mermaid subgraph.

    Args:
        frame: the frame.
        frames: all frames of the drawing.
        boxes: the boxes by name.
        ids: the name of each box in the flowchart.
        indent: spaces in front of each line.
        inside: names of boxes that are written already; this adds its own.
    """
    lines = [f'{indent}subgraph g{frames.index(frame)}["{_quoted(frame.title)} x {frame.count}"]']
    for child in frames:
        if _parent(child, frames) is frame:
            lines += _subgraph(child, frames, boxes, ids, indent + "  ", inside)
    own = [name for name in frame.boxes if name not in inside]
    lines += [f"{indent}  {_node(boxes[name], ids, frame.title)}" for name in own]
    inside.update(own)
    return [*lines, f"{indent}end"]


def _class(box: Box) -> str:
    """Return the name of a box's colour in the flowchart: its weight's role ("hidden", ...), or "op" without any."""
    return box.role or "op"


def _node(box: Box, ids: dict[str, str], frame: str) -> str:
    """Write a box as a line of a Mermaid flowchart.

    Args:
        box: the box.
        ids: the name of each box in the flowchart.
        frame: the title of the frame around it, "" for none.
    """
    label = _quoted(short_label(box, bool(frame)))
    if not box.role:
        return f'{ids[box.name]}(["{label}"]):::op'
    return f'{ids[box.name]}["{label}<br/>{box.role}{", tied" if box.is_tied else ""}"]:::{_class(box)}'


def short_label(box: Box, in_frame: bool) -> str:
    """Return the label of a box; in a frame, whose title names the block, only the part behind the block's number."""
    blocks = blocks_around(box.label)
    return blocks[-1].rest or box.label if in_frame and blocks else box.label


def _quoted(text: str) -> str:
    """Return text in which the characters are escaped that mean something to Mermaid or HTML."""
    return text.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
