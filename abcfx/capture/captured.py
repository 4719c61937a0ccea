"""The result of a capture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from abcfx.capture.emitted import EmittedModule


@dataclass(frozen=True)
class CapturedGraph:
    """A model as graphs.

    Attributes:
        model: the model that was captured, unchanged.
        module: the graphs with the model's own Parameters, names and signature; see `EmittedModule`.
        method: "symbolic", "export" or "record".
        notes: what the report must say: defaults taken, dummy inputs used, what was dropped.
        args: example positional inputs, if any.
        kwargs: example keyword inputs, if any.
    """

    model: nn.Module
    module: EmittedModule
    method: str
    notes: tuple[str, ...] = ()
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None
