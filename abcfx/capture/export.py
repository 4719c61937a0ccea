"""Capture by torch.export on example inputs: aten-level graphs over the model's own parameters, with guards."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, redirect_stderr
from dataclasses import replace
from functools import partial

import torch
from torch import fx, nn

from abcfx.capture.boundaries import settled
from abcfx.capture.calls import MarkedCalls, ModuleCall
from abcfx.capture.codegen import SignatureCodeGen
from abcfx.capture.emitted import Emitted, EmittedModule
from abcfx.capture.examples import OpenSizes, free_dims
from abcfx.capture.fake import off_meta, replace_weights
from abcfx.capture.graphs import graphs_of_modes, merge_constants
from abcfx.capture.guards import guards_of_export
from abcfx.capture.modes import ModeDifference, mode_difference
from abcfx.capture.patches import (
    answers_as_eager,
    conversions_that_change_nothing,
    function_applies,
    is_torchs_own,
    open_lengths,
    plain_call_of_checkpoint,
)
from abcfx.capture.randomness import DefaultGenerator, no_hidden_randomness
from abcfx.capture.rebuild import Rebuild
from abcfx.capture.signature import Signature, signature_of
from abcfx.capture.state import preserved
from abcfx.capture.state_spaces import Change
from abcfx.capture.structure import Part, take_apart
from abcfx.errors import CaptureError, UncapturableError
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
) -> Emitted:
    """Capture a model with torch.export in the given modes.

    Args:
        model: the model.
        args: positional example inputs.
        kwargs: keyword example inputs.
        modes: True for train mode, False for eval mode, in any order.
        sizes: which sizes of inputs the graph leaves open: "free", "batch" (only the first dim) or "fixed".

    Returns:
        The module with the graphs, an empty tuple of notes for the report, and what forward changed in Python.

    Raises:
        CaptureError: torch.export cannot take the model, or the model has a custom autograd.Function, whose gradient an
            export would silently replace; names the line of the model's source.
    """
    signature, examples = signature_of(model, args, kwargs)
    attributes: dict[str, object] = {}
    told: set[str] = set()
    changes: list[Change] = []
    calls: dict[fx.Graph, Sequence[ModuleCall]] = {}
    difference = mode_difference(model, signature, examples) if len(modes) == 2 else None
    if difference is not None and difference.is_none:
        modes, difference = modes[:1], None

    def export() -> fx.Graph:
        """Export the model in its present mode (train or eval) with torch.export and return the fx graph."""
        marks = None if sizes == "fixed" else MarkedCalls(model)  # nobody calls a graph of fixed sizes
        export_now = partial(_export, model, signature, examples, attributes, sizes, changes)
        try:
            graph, calls_now = export_now(marks)
        except CaptureError:
            if marks is None or not marks.failed:
                raise
            graph, calls_now = export_now(None)
        calls[graph] = settled(graph, calls_now)
        return graph

    def graph_now() -> fx.Graph:
        """Return the graph of the model's present mode: that of the other mode with dropout switched, or an export."""
        other = None
        if difference is not None and calls and not told:
            other = _other_mode(difference, calls, training=model.training)
        if other is None:
            return _as_trained(export, told)
        changes.extend(difference.changes[model.training] if difference is not None else ())
        return other

    train, evaluate = graphs_of_modes(model, modes, graph_now)
    constants = {name: value for name, value in attributes.items() if isinstance(value, torch.Tensor)}
    module = EmittedModule(model, train, evaluate, constants=constants)
    for name, value in attributes.items():
        if isinstance(value, nn.Module):
            module.add_module(name, value)
    module.note_calls(calls)
    return module, (), changes


def _other_mode(
    difference: ModeDifference, calls: MutableMapping[fx.Graph, Sequence[ModuleCall]], *, training: bool
) -> fx.Graph | None:
    """Return the graph of one mode, made of that of the other, which differs in dropout only; None if it cannot be.

    Args:
        difference: the calls of dropout in both modes.
        calls: the calls of submodules in the graph of the other mode, the only one; those in the new graph are added.
        training: the mode of the new graph, True for train mode.
    """
    ((graph, of_modules),) = calls.items()
    other = difference.other_graph(graph, training=training)
    if other is None:
        return None
    twin = dict(zip(graph.nodes, other.nodes, strict=True))

    def there(nodes: Iterable[fx.Node | None]) -> tuple[fx.Node | None, ...]:
        """Return the nodes of the new graph that stand for nodes of the other one."""
        return tuple(None if node is None else twin[node] for node in nodes)

    calls[other] = [replace(each, inputs=there(each.inputs), outputs=there(each.outputs)) for each in of_modules]
    return other


def _as_trained(export: Callable[[], fx.Graph], told: set[str]) -> fx.Graph:
    """Export a model along the code path that it takes in training, as far as that can be exported; return the graph.

    A model may ask torch whether it is being compiled, and gets the answer no. Where an export then fails, the place in
    the model's code that asked last gets the true answer from then on, so that another path is taken only there; after
    a few such places all get it.

    Args:
        export: makes one export.
        told: the places that get the true answer; more are added.
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


def _distinct(tensors: Iterable[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Return the tensors so that no two are one object, which torch.export would take for one input of the graph."""
    found: list[torch.Tensor] = []
    for tensor in tensors:
        is_new = all(tensor is not each for each in found)
        found.append(tensor if is_new else tensor.detach().requires_grad_(tensor.requires_grad))
    return tuple(found)


def _export(
    model: nn.Module,
    signature: Signature,
    examples: Mapping[str, torch.Tensor],
    attributes: MutableMapping[str, object],
    sizes: OpenSizes,
    changes: list[Change],
    marks: MarkedCalls | None,
) -> tuple[fx.Graph, Sequence[ModuleCall]]:
    """Export a model in its current mode; return the graph, over the model's own names, and the calls of submodules.

    Args:
        model: the model.
        signature: how the model is called, and which of its arguments become placeholders.
        examples: the example value of every placeholder.
        attributes: tensors and sub-graphs that graphs refer to by name; those of this graph are added.
        sizes: which sizes of inputs the graph leaves open: "free", "batch" (only the first dim) or "fixed".
        changes: what forward changed in Python; what it changes in this export is added.
        marks: watches the calls of submodules; None to watch none.
    """
    wrapper = _FlatCall(model, signature, marks)
    flat = off_meta(_distinct(examples[name] for name in signature.slots))
    free = free_dims(examples, sizes=sizes)
    dims = tuple(dict.fromkeys(sorted(free[name]), torch.export.Dim.AUTO) for name in signature.slots)
    with (
        nullcontext() if marks is None else marks.hooked(),
        preserved(model) as before,
        preserved_rng(),
        warnings.catch_warnings(),
        function_applies(_without_custom_gradients),
        ExitStack() as stack,
    ):
        stack.enter_context(_quiet())
        # Warnings here are about torch.export's own use of torch, not about anything the user can change.
        warnings.simplefilter("ignore")
        replace_weights(model)
        wrapper.own.generators = before.generators
        stack.enter_context(conversions_that_change_nothing())
        stack.enter_context(open_lengths(model))
        stack.enter_context(DefaultGenerator())
        try:
            program = torch.export.export(wrapper, flat, dynamic_shapes=(dims,), strict=False)
            exported = program.module()
        except UncapturableError:
            raise
        except Exception as error:  # torch.export runs the user's forward, and both may raise anything
            raise _explained(model, error) from error
    assert wrapper.own.recipe is not None
    changes += before.undone
    rebuilt = Rebuild(model, exported, signature.slots)
    merge_constants(rebuilt.graph, rebuilt.found, attributes)
    guards = guards_of_export(exported, program, signature.slots)
    whole = signature.with_output(wrapper.own.recipe).with_guards(guards)
    rebuilt.graph.set_codegen(SignatureCodeGen(whole))
    return rebuilt.graph, () if marks is None else marks.calls(rebuilt.graph, rebuilt.marked)


class _OwnOfCall:
    """The state of one export that the wrapped model needs and produces.

    It is an object of its own, because torch.export restores the attributes of the module that it runs.

    Attributes:
        recipe: builds the model's output from the flat outputs; None before the call.
        generators: random generators that the model has of its own, by path.
        marks: watches the calls of submodules.
    """

    recipe: Part | None = None
    generators: Mapping[str, object] = {}
    marks: MarkedCalls | None = None


class _FlatCall(nn.Module):
    """A module that calls the model with flat tensors, so that torch.export never sees its signature and containers."""

    def __init__(self, model: nn.Module, signature: Signature, marks: MarkedCalls | None = None) -> None:
        """Wrap a model, in its present train or eval mode, for an export with flat tensors as inputs.

        Args:
            model: the model.
            signature: how flat tensors become the model's arguments.
            marks: watches the calls of submodules; None to watch none.
        """
        super().__init__()
        self.model = model
        self.signature = signature
        self.own = _OwnOfCall()
        self.own.marks = marks
        self.training = model.training

    def forward(self, *flat: torch.Tensor) -> tuple[object, ...]:
        """Call the model on flat tensors; return the tensors in its output, and keep how they are nested there."""
        values = self.signature.rebuild(dict(zip(self.signature.slots, flat, strict=True)))
        if self.own.marks is not None:
            self.own.marks.start()
        with no_hidden_randomness(self.own.generators):
            outputs, self.own.recipe = take_apart(self.signature.call(self.model, values))
        return tuple(outputs)


def _without_custom_gradients(
    original: Callable[..., object], cls: type, args: tuple[object, ...], kwargs: dict[str, object]
) -> object:
    """Stand in for the `apply` of an autograd.Function: run torch's own Functions, and a checkpoint as plain code.

    Args:
        original: the `apply` that was called.
        cls: the autograd.Function.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Raises:
        CaptureError: the Function is a custom one, whose gradient an export would replace.
    """
    call = plain_call_of_checkpoint(cls, args)
    if call is not None:
        return call()
    if is_torchs_own(cls):
        return original(*args, **kwargs)
    raise CaptureError(f"{cls.__name__} is a custom autograd.Function, whose gradient an export would replace")


def _quiet() -> AbstractContextManager[object]:
    """Return a context that discards stderr, to which a failing torch.export prints the graph that it has so far."""
    return redirect_stderr(io.StringIO())


def _explained(model: nn.Module, error: Exception) -> CaptureError:
    """Return the error that torch.export cannot take the model, with the user's source line and torch's first line."""
    line = user_line(error.__traceback__)
    where = f"\n    {line}" if line else ""
    # Further lines of torch's messages advise on torch.export's settings, which a user of this package cannot change.
    first = next((text.strip() for text in str(error).splitlines() if text.strip()), "")
    return CaptureError(
        f"torch.export cannot take {type(model).__name__}:{where}\n    {type(error).__name__}: {first[:600]}", line
    )
