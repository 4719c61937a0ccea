"""`capture`: the one way from a model to its graphs."""

from __future__ import annotations

from typing import Any

from torch import nn

from abcfx.capture.captured import CapturedGraph
from abcfx.capture.examples import canonical, tiled
from abcfx.capture.shapes import propagate_shapes
from abcfx.capture.signature import signature_of
from abcfx.capture.symbolic import capture_symbolic
from abcfx.errors import InvalidInputError

METHODS = ("auto", "symbolic", "export", "record")


def capture(
    model: nn.Module, args: Any = None, kwargs: dict[str, Any] | None = None, *, method: str = "auto"
) -> CapturedGraph:
    """Turn a model into graphs that are called exactly like it.

    Args:
        model: any module; it is not changed.
        args: example positional inputs; a bare tensor counts as one argument.
        kwargs: example keyword inputs.
        method: "symbolic", or "auto".

    Raises:
        CaptureError: the model could not be captured; names the line of its source that is the cause.
    """
    if method not in METHODS:
        raise InvalidInputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    args, kwargs = canonical(args, kwargs)
    module, signature, examples, notes = capture_symbolic(model, args, kwargs)
    if args is not None and kwargs is not None:
        notes += _shapes(model, module, signature, examples, args, kwargs)
    return CapturedGraph(model, module, "symbolic", notes, args, kwargs)


def _shapes(model: nn.Module, module: Any, signature: Any, examples: Any, args: Any, kwargs: Any) -> tuple[str, ...]:
    _, larger = signature_of(model, *tiled(args, kwargs), opaque=True)
    notes = propagate_shapes(module, signature.slots, larger)
    return propagate_shapes(module, signature.slots, examples) if notes else notes
