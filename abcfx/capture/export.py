"""Capture by torch.export on example inputs: aten-level graphs over the model's own parameters, with guards."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager, ExitStack, redirect_stderr

import torch
from torch import fx, nn

from abcfx.capture.codegen import SignatureCodeGen
from abcfx.capture.emitted import EmittedModule
from abcfx.capture.examples import OpenSizes, free_dims
from abcfx.capture.fake import off_meta, replace_weights
from abcfx.capture.graphs import graphs_of_modes, merge_constants
from abcfx.capture.guards import guards_of_export
from abcfx.capture.modes import modes_agree
from abcfx.capture.patches import (
    answers_as_eager,
    conversions_that_change_nothing,
    function_applies,
    is_torchs_own,
    plain_call_of_checkpoint,
)
from abcfx.capture.rebuild import Rebuild
from abcfx.capture.signature import Signature, signature_of
from abcfx.capture.state import no_hidden_randomness, preserved
from abcfx.capture.structure import Part, take_apart
from abcfx.errors import CaptureError
from abcfx.support.location import user_line
from abcfx.support.running import preserved_rng

# How many places may hear one by one that the model is compiled, before all of them do.
_CONCESSIONS = 3


def capture_export(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    *,
    modes: tuple[bool, ...],
    sizes: OpenSizes = "free",
) -> tuple[EmittedModule, tuple[str, ...]]:
    """Export the model in the given modes.

    Args:
        model: the model.
        args: positional example inputs.
        kwargs: keyword example inputs.
        modes: True for train mode, False for eval mode, in any order.
        sizes: the sizes that the graph leaves open, see `free_dims`.

    Returns:
        The emitted module, and no notes.

    Raises:
        CaptureError: torch.export cannot take the model, or the model has a custom autograd.Function, whose gradient
            an export would silently replace; names the line of the model's source.
    """
    signature, examples = signature_of(model, args, kwargs)
    attributes: dict[str, object] = {}
    told: set[str] = set()
    if len(modes) == 2 and modes_agree(model, signature, examples):
        modes = modes[:1]

    def export() -> fx.Graph:
        return _export(model, signature, examples, attributes, sizes)

    train, evaluate = graphs_of_modes(model, modes, lambda: _as_trained(export, told))
    constants = {name: value for name, value in attributes.items() if isinstance(value, torch.Tensor)}
    module = EmittedModule(model, train, evaluate, constants=constants)
    for name, value in attributes.items():
        if isinstance(value, nn.Module):
            module.add_module(name, value)
    return module, ()


def _as_trained(export: Callable[[], fx.Graph], told: set[str]) -> fx.Graph:
    """Export the path that the model takes in training, as far as that can be exported.

    A model may ask torch whether it is compiled, and it hears no. Where an export fails, the place that asked last is
    told the truth from then on, so that another path is taken only there; after a few such places all are told.

    Args:
        export: makes one export.
        told: the places that are told the truth; grows.
    """
    for _ in range(_CONCESSIONS):
        with answers_as_eager(told) as asked:
            try:
                return export()
            except CaptureError:
                if not asked:
                    raise
                told.add(asked[-1])
    with answers_as_eager(None):
        return export()


def _export(
    model: nn.Module,
    signature: Signature,
    examples: Mapping[str, torch.Tensor],
    attributes: MutableMapping[str, object],
    sizes: OpenSizes,
) -> fx.Graph:
    """Export the model in its current mode.

    Args:
        attributes: tensors and sub-graphs that graphs refer to by name; grows.
    """
    wrapper = _FlatCall(model, signature)
    flat = off_meta(tuple(examples[name] for name in signature.slots))
    free = free_dims(examples, sizes=sizes)
    dims = tuple(dict.fromkeys(sorted(free[name]), torch.export.Dim.AUTO) for name in signature.slots)
    with (
        preserved(model),
        preserved_rng(),
        warnings.catch_warnings(),
        function_applies(_without_custom_gradients),
        ExitStack() as stack,
    ):
        stack.enter_context(_quiet())
        # Warnings here are about torch.export's own use of torch, not about anything the user can change.
        warnings.simplefilter("ignore")
        replace_weights(model)
        stack.enter_context(conversions_that_change_nothing())
        try:
            program = torch.export.export(wrapper, flat, dynamic_shapes=(dims,), strict=False)
            exported = program.module()
        except Exception as error:  # torch.export runs the user's forward, and both may raise anything
            raise _explained(model, error) from error
    assert wrapper.recipe.output is not None
    rebuilt = Rebuild(model, exported, signature.slots)
    merge_constants(rebuilt.graph, rebuilt.found, attributes)
    guards = guards_of_export(exported, program, signature.slots)
    whole = signature.with_output(wrapper.recipe.output).with_guards(guards)
    rebuilt.graph.set_codegen(SignatureCodeGen(whole))
    return rebuilt.graph


class _Recipe:
    """Holds the recipe of the model's output outside of the module, whose attributes an export restores."""

    output: Part | None = None


class _FlatCall(nn.Module):
    """Calls the model with flat tensors, so that torch.export sees neither its signature nor its containers."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model = model
        self.signature = signature
        self.recipe = _Recipe()
        self.training = model.training

    def forward(self, *flat: torch.Tensor) -> tuple[object, ...]:
        values = self.signature.rebuild(dict(zip(self.signature.slots, flat, strict=True)))
        with no_hidden_randomness():
            outputs, self.recipe.output = take_apart(self.signature.call(self.model, values))
        return tuple(outputs)


def _without_custom_gradients(
    original: Callable[..., object], cls: type, args: tuple[object, ...], kwargs: dict[str, object]
) -> object:
    """Refuse a custom autograd.Function; torch's own are run, and a reentrant checkpoint is left out."""
    call = plain_call_of_checkpoint(cls, args)
    if call is not None:
        return call()
    if is_torchs_own(cls):
        return original(*args, **kwargs)
    raise CaptureError(f"{cls.__name__} is a custom autograd.Function, whose gradient an export would replace")


def _quiet() -> AbstractContextManager[object]:
    """Swallow stderr: torch.export prints the graph it had got to when it fails."""
    return redirect_stderr(io.StringIO())


def _explained(model: nn.Module, error: Exception) -> CaptureError:
    line = user_line(error.__traceback__)
    where = f"\n    {line}" if line else ""
    # Further lines of torch's messages advise on torch.export's settings, which a user of this package cannot change.
    first = next((text.strip() for text in str(error).splitlines() if text.strip()), "")
    return CaptureError(
        f"torch.export cannot take {type(model).__name__}:{where}\n    {type(error).__name__}: {first[:600]}", line
    )
