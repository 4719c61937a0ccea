"""The result of a capture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from abcfx.capture.emitted import EmittedModule
from abcfx.capture.options import CaptureMethod
from abcfx.capture.state_spaces import Change


@dataclass(frozen=True)
class CapturedGraph:
    """A model together with the fx graphs that were captured of it, one for train mode and perhaps one for eval mode.

    Attributes:
        model: the model that was captured, unchanged.
        module: a callable module that holds the graphs, with the model's own Parameters, names and call signature.
        method: the way of capturing that gave the graphs: "symbolic", "export" or "record".
        notes: sentences for the report: defaults taken, dummy inputs used, effects left out.
        args: example positional inputs; None if there were no examples.
        kwargs: example keyword inputs; None if there were no examples.
        changes: what a call of the model's forward changes in Python.
        opened: paths of the modules whose operations the graphs have in place of a call of the module.
    """

    model: nn.Module
    module: EmittedModule
    method: CaptureMethod
    notes: tuple[str, ...] = ()
    args: tuple[object, ...] | None = None
    kwargs: dict[str, object] | None = None
    changes: tuple[Change, ...] = ()
    opened: tuple[str, ...] = ()
