"""`Capture`: how a user wants models to be turned into graphs, and what to do where that is not exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from abcfx.errors import InvalidInputError
from abcfx.support.choices import choose

CaptureMethod = Literal["auto", "symbolic", "export", "record", "record_values"]
UnknownOps = Literal["raise", "report"]


@dataclass(frozen=True)
class Capture:
    """How a model is turned into graphs. Every function that captures takes it, or a method's name alone.

    Args:
        method: "symbolic" (torch.fx, needs no inputs), "export" (torch.export), "record" (the operations of one run on
            fake tensors), or "auto": the first of them that captures the model correctly. "record_values" records a
            run on the example inputs themselves, for models that branch on values; "auto" never chooses it.
        verify: compare the graph with the model on other inputs before anything is built on it.
        unknown: what to do at an op without a rule: "raise", or "report" it and assume that it passes on the largest
            change among its inputs.
        outputs: which of the returned tensors a loss is made of: paths in the output or patterns of them, such as
            "logits", "0" or ("*.logits", "boxes"). By default all but key-value caches, hidden states, attention maps,
            auxiliary losses and the like, which the report names.
        base_args: example positional inputs of the base (the smaller model), where those of the model do not fit it, as
            where an image size or a number of features depends on the width.
        base_kwargs: example keyword inputs of the base.

    Raises:
        InvalidInputError: a value is not one of these.

    >>> Capture(method="Export").method
    'export'
    """

    method: CaptureMethod = "auto"
    verify: bool = True
    unknown: UnknownOps = "raise"
    outputs: str | tuple[str, ...] = ()
    base_args: object = field(default=None, compare=False)
    base_kwargs: Mapping[str, object] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Check every option of the capture, and bring names such as "Export" into their usual spelling."""
        object.__setattr__(self, "method", choose("Capture(method)", self.method, get_args(CaptureMethod)))
        object.__setattr__(self, "unknown", choose("Capture(unknown)", self.unknown, get_args(UnknownOps)))
        given: object = self.outputs
        patterns = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else ()
        if not isinstance(given, Iterable) or not all(isinstance(each, str) and each for each in patterns):
            raise InvalidInputError(f"Capture(outputs={self.outputs!r}): expected a path, or a tuple of them.")
        object.__setattr__(self, "outputs", patterns)
        if not isinstance(self.verify, bool):
            raise InvalidInputError(f"Capture(verify={self.verify!r}): expected True or False.")
        if self.base_kwargs is not None and not isinstance(self.base_kwargs, Mapping):
            raise InvalidInputError(
                f"Capture(base_kwargs={type(self.base_kwargs).__name__}): expected a dict of keyword inputs.\n"
                f"  To fix: several positional inputs are given as one tuple: Capture(base_args=(x, y))"
            )

    def refuse_base_inputs(self, function: str) -> None:
        """Raise an error if inputs of the base were given to a function that takes one batch for all models.

        Args:
            function: what the function does, for the message.

        Raises:
            InvalidInputError: they were given.
        """
        if self.base_args is not None or self.base_kwargs:
            raise InvalidInputError(
                f"Capture(base_args, base_kwargs) is not an option here: {function} calls all models with one batch.\n"
                f"  To fix: leave them out, and let the models take inputs of one size."
            )

    @classmethod
    def of(cls, option: Capture | CaptureMethod) -> Capture:
        """Return the option itself if it is a Capture; make one with this method if it is the name of a method."""
        if isinstance(option, Capture):
            return option
        return cls(method=choose("capture", option, get_args(CaptureMethod)))
