"""Capture by recording: the model runs on fake tensors while every torch call that touches them is written down.

Unlike an export it keeps torch.nn layers and custom autograd Functions whole. Unlike symbolic tracing it sees real
shapes, so that Python code over containers, shapes and types just runs.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import fx, nn

from abcfx.capture.boundaries import settled
from abcfx.capture.calls import ModuleCall
from abcfx.capture.capture_notes import checks_note
from abcfx.capture.codegen import SignatureCodeGen
from abcfx.capture.emitted import Emitted, EmittedModule
from abcfx.capture.examples import OpenSizes, free_dims
from abcfx.capture.fake import FakeInputs, off_meta, replace_weights
from abcfx.capture.graphs import graphs_of_modes, merge_constants, same_graph
from abcfx.capture.guards import guards_of_record
from abcfx.capture.patches import (
    as_if_exporting,
    conversions_that_change_nothing,
    function_applies,
    module_calls,
    open_lengths,
)
from abcfx.capture.randomness import DefaultGenerator, no_hidden_randomness
from abcfx.capture.recorder import Recorder
from abcfx.capture.signature import Signature, signature_of
from abcfx.capture.state import contents_preserved, preserved
from abcfx.capture.state_spaces import Change
from abcfx.capture.structure import take_apart
from abcfx.errors import CaptureError
from abcfx.support.location import is_user_file, user_line
from abcfx.support.running import preserved_rng

# Numbers that float(tensor) gives while there is no value. Three recordings that agree did not look at the number.
_STAND_INS = (1e30, -1e30, math.nan)


def capture_record(
    model: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    *,
    modes: tuple[bool, ...],
    values: bool = False,
    sizes: OpenSizes = "free",
) -> Emitted:
    """Record a model in the given modes: run it and write down every torch call as a node of a graph.

    Args:
        model: the model.
        args: positional example inputs.
        kwargs: keyword example inputs.
        modes: True for train mode, False for eval mode, in any order.
        values: record on the example tensors themselves instead of fake ones. Branches on tensor values can then be
            recorded, but the graph is right only for inputs that take the same branches; so this is never automatic.
        sizes: which sizes of inputs the graph leaves open: "free", "batch" (only the first dim) or "fixed".

    Returns:
        The module with the graphs, notes for the report, and what forward changed in Python.

    Raises:
        CaptureError: forward looks at tensor values, or does something that cannot be recorded; names the line.
    """
    signature, examples = signature_of(model, args, kwargs)
    run = _Run(model, signature, examples, None if values else free_dims(examples, sizes=sizes))
    constants: dict[str, torch.Tensor] = {}
    checks: list[str] = []
    changes: list[Change] = []
    calls: dict[fx.Graph, list[ModuleCall]] = {}

    def record() -> fx.Graph:
        """Record the model in its present mode (train or eval), return the graph, and keep its constants and checks."""
        recorder = _record(run)
        merge_constants(recorder.graph, recorder.constants, constants)
        checks.extend(recorder.places)
        changes.extend(recorder.changes)
        calls[recorder.graph] = settled(recorder.graph, recorder.calls)
        return recorder.graph

    train, evaluate = graphs_of_modes(model, modes, record)
    notes = checks_note(checks)
    if values:
        notes += ("recorded on the example values: branches on tensor values are fixed as these inputs took them",)
    module = EmittedModule(model, train, evaluate, constants=constants)
    module.note_calls(calls)
    return module, notes, changes


def _record(run: _Run) -> Recorder:
    """Record a model in its current mode, on fake tensors or on the examples; return the recorder, with its graph.

    A number that forward takes from a fake tensor is a stand-in; the graph must not depend on which one it is.

    Args:
        run: the model in its mode, with its signature and example inputs.

    Raises:
        CaptureError: the model cannot be recorded, or its graph depends on the number in a tensor.
    """
    if run.free is None:
        return run.record(None, None)
    recorder = _past_checks(run)
    for stand_in in _STAND_INS[1:] if recorder.used_stand_in else ():
        if not same_graph(recorder.graph, run.record(stand_in, recorder.taken).graph):
            raise CaptureError("forward computes with float(tensor), or branches on it, which a graph cannot keep")
    return recorder


def _past_checks(run: _Run) -> Recorder:
    """Record a forward that checks tensor values, such as `assert not x.isnan().any()`, as if the checks pass.

    A truth value of a tensor counts as a check if forward raises for the other truth value.

    Args:
        run: the model in its mode, with its signature and example inputs.

    Returns:
        The recorder, with its graph.

    Raises:
        CaptureError: forward branches on a tensor's value and goes on in both branches, in different ways.
    """
    decisions: list[bool] = []
    while True:
        try:
            recorder = run.record(_STAND_INS[0], decisions)
            break
        except _RaisedByModel as raised:
            if len(raised.taken) <= len(decisions):  # also when forward looked at nothing
                raise CaptureError(str(raised), raised.line) from raised
            decisions = [*raised.taken[:-1], not raised.taken[-1]]
    for index, taken in enumerate(recorder.taken):
        try:
            other = run.record(_STAND_INS[0], [*recorder.taken[:index], not taken])
        except _RaisedByModel:
            continue
        if not same_graph(recorder.graph, other.graph):
            place = recorder.places[index]
            raise CaptureError(f"forward branches on a tensor's value, which a graph cannot keep: {place}", place)
    return recorder


class _RaisedByModel(Exception):
    """The error that the model's own code raised while it was recorded.

    Attributes:
        line: the line of the model's source.
        taken: the truth values that `bool(tensor)` had given in forward by then.
    """

    def __init__(self, explained: CaptureError, taken: list[bool]) -> None:
        """Store the source line of the model's error and the truth values that `bool(tensor)` had given by then.

        These are `taken`; `explained` is the error of the capture, which has the line.
        """
        super().__init__(str(explained))
        self.line = explained.line
        self.taken = taken


@dataclass(frozen=True)
class _Run:
    """A model with everything that is needed to run it once for a recording.

    Attributes:
        model: the model, in the mode to record.
        signature: how the model is called, and which of its arguments become placeholders.
        examples: the example value of every placeholder.
        free: for each input the dims that stay open; None to run on the examples themselves.
    """

    model: nn.Module
    signature: Signature
    examples: Mapping[str, torch.Tensor]
    free: Mapping[str, frozenset[int]] | None

    def record(self, stand_in: float | None, decisions: Sequence[bool] | None) -> Recorder:
        """Run the model once and return the recorder, whose graph has the model's signature and checks of sizes.

        Args:
            stand_in: the number that `float(tensor)` gives, since a fake tensor has no value; None to let it raise.
            decisions: the truth values that `bool(tensor)` gives, in order, and True after them; None to let it raise.

        Raises:
            CaptureError: the model cannot be recorded.
            _RaisedByModel: the model's own code raised, where decisions were given.
        """
        fake = None if self.free is None else FakeInputs(off_meta(dict(self.examples)), self.free)
        if fake is not None:
            inputs = fake.tensors
        else:
            inputs = {name: tensor.detach().clone() for name, tensor in self.examples.items()}
        named = [*self.model.named_buffers(), *self.model.named_parameters()]
        originals = {id(tensor): name for name, tensor in named}
        with preserved(self.model) as before, preserved_rng(), ExitStack() as stack:
            if fake is not None:
                replace_weights(self.model, fake.mode)
            else:
                stack.enter_context(contents_preserved(self.model.buffers()))
            recorder = Recorder(self.model, originals if fake is None else None, stand_in, decisions)
            recorder.add_inputs(inputs)
            try:
                with _recording(recorder, fake):
                    recorder.bottom = inspect.currentframe()
                    with no_hidden_randomness(before.generators), recorder:
                        output = self.signature.call(self.model, self.signature.rebuild(inputs))
                        results, recipe = take_apart(output)
                        recorder.finish(results)
            except CaptureError:
                raise
            except Exception as error:  # the user's forward runs here on fake tensors, and may raise anything
                explained = _explained(self.model, recorder, error)
                if decisions is not None and _is_refusal(error):
                    raise _RaisedByModel(explained, recorder.taken) from error
                raise explained from error
        recorder.changes = before.undone
        guards = guards_of_record(fake, self.signature.slots, inputs)
        signature = self.signature.with_output(recipe).with_guards(guards)
        recorder.graph.set_codegen(SignatureCodeGen(signature))
        return recorder


@contextmanager
def _recording(recorder: Recorder, fake: FakeInputs | None) -> Iterator[None]:
    """Show a recorder the calls of modules and autograd.Functions within the block.

    With fake inputs, new tensors within the block are fake, too, and models learn that they are being exported.
    """
    with ExitStack() as stack:
        if fake is not None:
            stack.enter_context(fake.active())
            stack.enter_context(as_if_exporting())
        stack.enter_context(module_calls(recorder.call_module))
        stack.enter_context(conversions_that_change_nothing())
        stack.enter_context(open_lengths(recorder.model))
        stack.enter_context(DefaultGenerator())
        stack.enter_context(function_applies(recorder.call_autograd_function))
        yield


def _is_refusal(error: Exception) -> bool:
    """Whether the model's own code raised an error on purpose, as it does when a check of values fails."""
    if not isinstance(error, (AssertionError, ValueError)):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and is_user_file(frames[-1].filename)


def _explained(model: nn.Module, recorder: Recorder, error: Exception) -> CaptureError:
    """Return the error that a model cannot be recorded, with the module that ran and the line of its source."""
    line = user_line(error.__traceback__)
    first = next((text for text in str(error).splitlines() if text.strip()), "")
    where = recorder.current_module() + (f"\n    {line}" if line else "")
    return CaptureError(
        f"{type(model).__name__} cannot be recorded: in {where}\n    {type(error).__name__}: {first[:300]}", line
    )
