"""The printed report of a growth."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from torch import nn

from abcfx.growing.steps import Deepened, GrowthStep, Upcycled, Widened
from abcfx.pairing.factors.index_maps import IndexMap
from abcfx.report.names import collapse_names


def growth_text(module: nn.Module, steps: Sequence[GrowthStep], rates: Sequence[float], width: int = 100) -> str:
    """Write the report of a growth (filling a larger model from a smaller one) as plain text.

    Args:
        module: the grown model.
        steps: the passes, such as widening.
        rates: learning rate of each parameter group.
        width: width of the text in characters.
    """
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None, highlight=False)
    for line in _lines(module, steps, rates):
        console.print(line)
    return file.getvalue().rstrip()


def _lines(module: nn.Module, steps: Sequence[GrowthStep], rates: Sequence[float]) -> Iterator[RenderableType]:
    """Yield the parts of the report of a growth: the model, each pass with its details, the learning rates.

    A growth fills a large model from a small one.
    """
    count = sum(parameter.numel() for parameter in module.parameters())
    yield f"grown: {type(module).__name__}, {count:,} parameters"
    for number, step in enumerate(steps, 1):
        kept = "function kept" if step.kept else "FUNCTION CHANGED"
        yield f"{number}. {step.name}: {kept}, outputs differ by {step.difference:.1e} of their RMS"
        yield _details(step)
        for note in step.notes:
            yield f"   note: {note}"
    if rates:
        counts = Counter(f"{rate:.3g}" for rate in rates)
        yield "learning rates: " + ", ".join(f"{rate} ({n} parameters)" for rate, n in counts.items())


def _details(step: GrowthStep) -> RenderableType:
    """Return the part of the report on what one pass of a growth (such as widening) did to the tensors.

    A growth fills a large model from a small one.
    """
    match step:
        case Widened():
            return _table(
                ("tensor", "dims", "multiplied by"),
                {
                    name: (" x ".join(map(_size, each.dims)) or "1", f"{each.factor:.4g}")
                    for name, each in step.tensors.items()
                },
            )
        case Upcycled():
            return _table(
                ("experts", "made of", "layout"),
                {
                    name: (", ".join(source.rsplit(".", 2)[-2] for source in each.sources), each.layout)
                    for name, each in step.fillings.items()
                },
            )
        case Deepened():
            copies = ", ".join(f"{block} from {source}" for block, source in step.copies.items())
            return f"   {copies}\n   zero: {', '.join(step.zeroed) or 'nothing'}"
    raise NotImplementedError(type(step).__name__)


def _table(header: Sequence[str], rows: Mapping[str, tuple[str, ...]]) -> Table:
    """Make a table in which names that differ only in numbers, and have the same cells, share one row."""
    table = Table(*header, box=SIMPLE_HEAD, pad_edge=False)
    for collapsed in collapse_names(rows):
        table.add_row(collapsed.shown, *rows[collapsed.names[0]])
    return table


def _size(dim: IndexMap) -> str:
    """Write the size of a dim, as "64->128" if it is larger in the large model."""
    small, large = dim.sizes
    return f"{small}->{large}" if dim.grows else f"{small}"
