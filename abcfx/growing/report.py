"""The printed report of a growth."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from abcfx.pairing.factors.index_maps import sizes
from abcfx.report.names import collapse_names

if TYPE_CHECKING:
    from abcfx.growing.grown import Grown, Step


def render(grown: Grown, width: int = 100) -> str:
    """The report as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(f"grown: {type(grown.module).__name__}, {_count(grown.module)} parameters", highlight=False)
    for number, step in enumerate(grown.steps, 1):
        kept = "function kept" if step.kept else "FUNCTION CHANGED"
        console.print(f"{number}. {step.name}: {kept}, outputs differ by {step.difference:.1e} of their RMS")
        console.print({"widen": _widened, "deepen": _deepened, "upcycle": _upcycled}[step.name](step))
        for note in step.notes:
            console.print(f"   note: {note}")
    if grown.param_groups:
        rates = Counter(f"{group['lr']:.3g}" for group in grown.param_groups)
        console.print("learning rates: " + ", ".join(f"{rate} ({n} parameters)" for rate, n in rates.items()))
    file: Any = console.file
    return str(file.getvalue()).rstrip()


def _count(module: Any) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,}"


def _widened(step: Step) -> Table:
    table = Table("tensor", "dims", "scale", box=SIMPLE_HEAD, pad_edge=False)
    keys = {
        name: (" x ".join(map(_dim, each["dims"])) or "1", f"{each['factor']:.4g}")
        for name, each in step.data["tensors"].items()
    }
    for folded in collapse_names(keys):
        table.add_row(folded.shown, *keys[folded.names[0]])
    return table


def _dim(factors: Any) -> str:
    small, large = sizes(factors)
    return f"{small}" if small == large else f"{small}->{large}"


def _deepened(step: Step) -> str:
    copies = ", ".join(f"{block} from {source}" for block, source in step.data["copies"].items())
    return f"   {copies}\n   zero: {', '.join(step.data['zeroed']) or 'nothing'}"


def _upcycled(step: Step) -> Table:
    table = Table("experts", "made of", "layout", box=SIMPLE_HEAD, pad_edge=False)
    keys = {
        n: (tuple(s.rsplit(".", 2)[-2] for s in e["sources"]), e["layout"]) for n, e in step.data["tensors"].items()
    }
    for folded in collapse_names(keys):
        sources, layout = keys[folded.names[0]]
        table.add_row(folded.shown, ", ".join(sources), layout)
    return table
