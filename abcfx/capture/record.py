"""Capture by recording: the model runs once on fake tensors while every torch call that touches them is written down.

Unlike an export it keeps torch.nn layers and custom autograd Functions whole; unlike symbolic tracing it sees real
shapes, so that Python code over containers, shapes and types just runs.
"""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from abcfx.capture.capture_notes import checks_note
from abcfx.capture.emitted import EmittedModule
from abcfx.capture.examples import OpenSizes, free_dims
from abcfx.capture.fake import FakeInputs, off_meta, replace_weights
from abcfx.capture.graphs import merge_constants, same_graph
from abcfx.capture.guards import expression_guards
from abcfx.capture.patches import as_if_exporting, conversions_that_change_nothing, function_applies, module_calls
from abcfx.capture.recorder import Recorder
from abcfx.capture.signature import Signature, SignatureCodeGen, signature_of
from abcfx.capture.state import both_modes_restored, no_hidden_randomness, preserved, preserved_rng, set_mode
from abcfx.capture.structure import take_apart
from abcfx.errors import CaptureError
from abcfx.support.location import is_user_file, user_line


def capture_record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    modes: tuple[bool, ...],
    values: bool = False,
    sizes: OpenSizes = "free",
) -> tuple[EmittedModule, tuple[str, ...]]:
    """Record the model in the given modes (True is train).

    Args:
        sizes: which sizes the graph leaves open, see `free_dims`.
        values: record on the example tensors themselves instead of fake ones. Branches on tensor values can then be
            recorded, but the graph is right only for inputs that take the same branches; so this is never automatic.

    Raises:
        CaptureError: forward looks at tensor values, or does something that cannot be recorded; names the line.
    """
    signature, examples = signature_of(model, args, kwargs)
    free = None if values else free_dims(examples, sizes=sizes)
    graphs: dict[bool, fx.Graph] = {}
    constants: dict[str, torch.Tensor] = {}
    checks: list[str] = []
    with both_modes_restored(model):
        for training in sorted(modes, key=lambda mode: mode != model.training):
            set_mode(model, training)
            graphs[training], places = _record(model, signature, examples, constants, free)
            checks += places
    train = graphs.get(True, graphs.get(False))
    assert train is not None
    evaluate = graphs.get(False) if True in graphs else None
    if evaluate is not None and same_graph(train, evaluate):
        evaluate = None
    notes = checks_note(checks)
    if values:
        notes += ("recorded on the example values: branches on tensor values are fixed as these inputs took them",)
    return EmittedModule(model, train, evaluate, constants=constants), notes


# What float(tensor) gives while there is no value. Three recordings that agree did not look at it.
_STAND_INS = (1e30, -1e30, math.nan)


def _record(
    model: nn.Module,
    signature: Signature,
    examples: Mapping[str, Any],
    constants: dict[str, torch.Tensor],
    free: Mapping[str, frozenset[int]] | None,
) -> tuple[fx.Graph, list[str]]:
    """The graph of one run and the lines of its checks; on fake tensors, or without `free` on the examples."""
    run = partial(_run, model, signature, examples, free)
    recorder = run(None, None) if free is None else _past_checks(run)
    for stand_in in _STAND_INS[1:] if recorder.used_stand_in else ():
        if not same_graph(recorder.graph, run(stand_in, recorder.taken).graph):
            raise CaptureError("forward computes with float(tensor), or branches on it, which a graph cannot keep")
    merge_constants(recorder.graph, recorder.constants, constants)
    return recorder.graph, recorder.places


def _past_checks(run: Callable[[float, Sequence[bool]], Recorder]) -> Recorder:
    """Record a forward that checks tensor values, `assert not x.isnan().any()` say, on the way that passes the checks.

    A truth value is a check when forward raises for the other one. A branch, both sides of which go on, is refused.
    """
    decisions: list[bool] = []
    while True:
        try:
            recorder = run(_STAND_INS[0], decisions)
            break
        except _RaisedByModel as raised:
            if len(raised.taken) <= len(decisions):  # also when nothing was looked at
                raise CaptureError(str(raised)) from raised
            decisions = [*raised.taken[:-1], not raised.taken[-1]]
    for index, taken in enumerate(recorder.taken):
        try:
            other = run(_STAND_INS[0], [*recorder.taken[:index], not taken])
        except _RaisedByModel:
            continue
        if not same_graph(recorder.graph, other.graph):
            raise CaptureError(
                f"forward branches on a tensor's value, which a graph cannot keep: {recorder.places[index]}"
            )
    return recorder


class _RaisedByModel(Exception):
    """The model's own code raised while it was recorded, after these truth values of tensors."""

    def __init__(self, message: str, taken: list[bool]) -> None:
        super().__init__(message)
        self.taken = taken


def _run(
    model: nn.Module,
    signature: Signature,
    examples: Mapping[str, Any],
    free: Mapping[str, frozenset[int]] | None,
    stand_in: float | None,
    decisions: Sequence[bool] | None,
) -> Recorder:
    fake = None if free is None else FakeInputs(off_meta(dict(examples)), free)
    inputs = {name: tensor.detach().clone() for name, tensor in examples.items()} if fake is None else fake.tensors
    originals = {id(tensor): name for name, tensor in [*model.named_buffers(), *model.named_parameters()]}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if fake is None else []
    with preserved(model), preserved_rng(), ExitStack() as stack:
        if fake is not None:
            replace_weights(model, fake.mode)
        recorder = Recorder(model, originals if fake is None else None, stand_in, decisions)
        recorder.add_inputs(inputs)
        try:
            if fake is not None:
                stack.enter_context(fake.active())
                stack.enter_context(as_if_exporting())
            stack.enter_context(module_calls(recorder.call_module))
            stack.enter_context(conversions_that_change_nothing())
            stack.enter_context(function_applies(recorder.call_autograd_function))
            recorder.bottom = inspect.currentframe()
            with no_hidden_randomness(), recorder:
                results, recipe = take_apart(signature.call(model, signature.rebuild(inputs)))
                recorder.finish(results)
        except CaptureError:
            raise
        except Exception as error:
            if decisions is not None and isinstance(error, (AssertionError, ValueError)) and _is_raised_by_user(error):
                raise _RaisedByModel(str(_explain(model, recorder, error)), recorder.taken) from error
            raise _explain(model, recorder, error) from error
        finally:
            stack.close()
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
    guards = expression_guards(fake, signature.slots, inputs)
    recorder.graph.set_codegen(SignatureCodeGen(signature.with_output(recipe).with_guards(guards)))
    return recorder


def _is_raised_by_user(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and is_user_file(frames[-1].filename)


def _explain(model: nn.Module, recorder: Recorder, error: Exception) -> CaptureError:
    line = user_line(error.__traceback__)
    first = next((text for text in str(error).splitlines() if text.strip()), "")
    where = recorder.current_module() + (f"\n    {line}" if line else "")
    return CaptureError(
        f"{type(model).__name__} cannot be recorded: in {where}\n    {type(error).__name__}: {first[:300]}"
    )
