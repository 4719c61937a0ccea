"""The result of a capture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from abcfx.capture.emitted import EmittedModule
from abcfx.capture.options import CaptureMethod


@dataclass(frozen=True)
class CapturedGraph:
    """A model together with the graphs that were captured of it.

    Attributes:
        model: the model that was captured, unchanged.
        module: the graphs with the model's own Parameters, names and signature; see `EmittedModule`.
        method: the way of capturing that gave them: "symbolic", "export" or "record".
        notes: what the report must say: defaults taken, dummy inputs used, effects left out.
        args: example positional inputs, if any.
        kwargs: example keyword inputs, if any.
    """

    model: nn.Module
    module: EmittedModule
    method: CaptureMethod
    notes: tuple[str, ...] = ()
    args: tuple[object, ...] | None = None
    kwargs: dict[str, object] | None = None
