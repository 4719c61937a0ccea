"""Capture by torch.export on example inputs: aten-level graphs over the model's own parameters, with guards."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, redirect_stderr
from typing import Any

import torch
from torch import fx, nn

from abcfx.capture.emitted import EmittedModule
from abcfx.capture.examples import OpenSizes, free_dims
from abcfx.capture.fake import off_meta, replace_weights
from abcfx.capture.graphs import merge_constants, same_graph
from abcfx.capture.guards import guards_of
from abcfx.capture.modes import modes_agree
from abcfx.capture.patches import (
    answers_as_eager,
    conversions_that_change_nothing,
    function_applies,
    is_torchs_own,
    plain_call_of_checkpoint,
)
from abcfx.capture.rebuild import Rebuild
from abcfx.capture.signature import Signature, SignatureCodeGen, signature_of
from abcfx.capture.state import both_modes_restored, no_hidden_randomness, preserved, preserved_rng, set_mode
from abcfx.capture.structure import Part, take_apart
from abcfx.errors import CaptureError
from abcfx.support.location import user_line


class _Recipe:
    """Keeps what the model's output is made of, outside of the module, whose attributes an export restores."""

    output: Part | None = None


class _FlatCall(nn.Module):
    """Calls the model with flat tensors, so that torch.export sees neither its signature nor its containers."""

    def __init__(self, model: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.model = model
        self.signature = signature
        self.recipe = _Recipe()
        self.training = model.training

    def forward(self, *flat: Any) -> Any:
        values = self.signature.rebuild(dict(zip(self.signature.slots, flat, strict=True)))
        with no_hidden_randomness():
            outputs, self.recipe.output = take_apart(self.signature.call(self.model, values))
        return tuple(outputs)


def capture_export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    modes: tuple[bool, ...],
    sizes: OpenSizes = "free",
) -> tuple[EmittedModule, tuple[str, ...]]:
    """Export the model in the given modes (True is train).

    Args:
        sizes: which sizes the graph leaves open, see `free_dims`.

    Raises:
        CaptureError: torch.export cannot take the model, or it has a custom autograd.Function, whose gradient
            an export would silently replace; names the line of the model's source.
    """
    signature, examples = signature_of(model, args, kwargs)
    graphs: dict[bool, fx.Graph] = {}
    attributes: dict[str, Any] = {}
    told: set[str] = set()
    if len(modes) == 2 and modes_agree(model, signature, examples):
        modes = modes[:1]
    with both_modes_restored(model):
        for training in sorted(modes, key=lambda mode: mode != model.training):
            set_mode(model, training)
            graphs[training] = _as_trained(lambda: _export(model, signature, examples, attributes, sizes), told)
    train = graphs.get(True, graphs.get(False))
    assert train is not None
    evaluate = graphs.get(False) if True in graphs else None
    if evaluate is not None and same_graph(train, evaluate):
        evaluate = None
    constants = {name: value for name, value in attributes.items() if isinstance(value, torch.Tensor)}
    module = EmittedModule(model, train, evaluate, constants=constants)
    for name, value in attributes.items():
        if isinstance(value, nn.Module):
            module.add_module(name, value)
    return module, ()


_CONCESSIONS = 3


def _as_trained(export: Callable[[], fx.Graph], told: set[str]) -> fx.Graph:
    """The graph of the path that the model takes in training, as far as that can be exported.

    Where an export fails, the place that asked last whether the model is compiled is told the truth (`told`), so that
    only there another path is taken; after a few such places all are.
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
    examples: Mapping[str, Any],
    attributes: dict[str, Any],
    sizes: OpenSizes,
) -> fx.Graph:
    wrapper = _FlatCall(model, signature)
    flat = off_meta(tuple(examples[name] for name in signature.slots))
    free = free_dims(examples, sizes=sizes)
    dims = tuple(dict.fromkeys(sorted(free[name]), torch.export.Dim.AUTO) for name in signature.slots)

    def refuse(original: Callable[..., Any], cls: type, args: Any, kwargs: Any) -> Any:
        call = plain_call_of_checkpoint(cls, args)
        if call is not None:
            return call()
        if is_torchs_own(cls):
            return original(*args, **kwargs)
        raise CaptureError(f"{cls.__name__} is a custom autograd.Function, whose gradient an export would replace")

    with preserved(model), preserved_rng(), warnings.catch_warnings(), function_applies(refuse), ExitStack() as stack:
        stack.enter_context(_quiet())
        # Warnings here are about torch.export's own use of torch, not about anything the user can change.
        warnings.simplefilter("ignore")
        replace_weights(model)
        stack.enter_context(conversions_that_change_nothing())
        try:
            program = torch.export.export(wrapper, flat, dynamic_shapes=(dims,), strict=False)
            exported = program.module()
        except Exception as error:
            raise _explain(model, error) from error
    assert wrapper.recipe.output is not None
    rebuilt = Rebuild(model, exported, signature.slots)
    graph, found = rebuilt.graph, rebuilt.found
    merge_constants(graph, found, attributes)
    guards = guards_of(exported, program, signature.slots)
    graph.set_codegen(SignatureCodeGen(signature.with_output(wrapper.recipe.output).with_guards(guards)))
    return graph


def _quiet() -> AbstractContextManager[Any]:
    """torch.export prints the graph it had got to when it fails."""
    return redirect_stderr(io.StringIO())


def _explain(model: nn.Module, error: Exception) -> CaptureError:
    line = user_line(error.__traceback__)
    where = f"\n    {line}" if line else ""
    return CaptureError(
        f"torch.export cannot take {type(model).__name__}:{where}\n    {type(error).__name__}: {_first_lines(error)}"
    )


def _first_lines(error: Exception) -> str:
    """torch's messages go on with advice on torch.export's own settings, which a user of this package cannot change."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return "\n    ".join(lines[:1])[:600]
