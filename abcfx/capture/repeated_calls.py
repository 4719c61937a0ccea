"""Find out whether what a model computes depends on Python state that its own forward changes, such as a counter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from abcfx.capture.capture_notes import line_that_sets
from abcfx.capture.emitted import EmittedModule
from abcfx.capture.python_state import Snapshot
from abcfx.capture.second_inputs import Inputs
from abcfx.capture.state import contents_preserved, preserved
from abcfx.capture.state_spaces import Change
from abcfx.capture.structure import take_apart
from abcfx.capture.verify import compare, has_no_values, in_mode, written_tensors
from abcfx.errors import UncapturableError
from abcfx.support.running import both_modes_restored, preserved_rng, set_mode

_SEED = 20_240
# How many calls in a row are compared, and values that a counter may come to in training.
_CALLS = 4
_COUNTS = (1_000, 1_000_000)


def refuse_state(
    model: nn.Module,
    module: EmittedModule,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    *,
    modes: Sequence[bool],
    changes: Sequence[Change],
) -> None:
    """Compare some calls of the model in a row with as many of the graph, where forward changes Python state.

    Args:
        model: the model that was captured.
        module: the module that the capture emitted, which is right on one call.
        args: positional example inputs.
        kwargs: keyword example inputs.
        modes: True for train mode, False for eval mode.
        changes: what a call of forward changes in Python.

    Raises:
        UncapturableError: the outputs differ; names the attributes and the line that sets them.
    """
    if not changes or has_no_values(model):
        return
    inputs = Inputs(args, kwargs, "", varied=False)
    with preserved_rng(), both_modes_restored(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for training in modes:
            set_mode(model, training)
            with in_mode(module, training):
                theirs, counters = _calls(model, module, model, inputs), _counters(model, module, inputs)
                ours = _calls(model, module, module, inputs)
                again = _calls(model, module, model, inputs)
                if _differ(theirs, ours) and not _differ(theirs, again):
                    raise _refusal(model, counters or changes)
                for counter in counters:
                    if any(_differ(_calls(model, module, model, inputs, counter, at), ours) for at in _COUNTS):
                        raise _refusal(model, [counter])


def _calls(
    model: nn.Module,
    module: EmittedModule,
    function: nn.Module,
    inputs: Inputs,
    counter: Change | None = None,
    count: int = 0,
) -> list[list[object]]:
    """Return the outputs of some calls of the model or of its graph, each from a seed; it ends with a call that raises.

    Args:
        model: the user's model.
        module: the module with its graph.
        function: the one of both that is called.
        inputs: example inputs.
        counter: a number that is set before a single call; several calls in a row without one.
        count: the value that it is set to.
    """
    found: list[list[object]] = []
    with contents_preserved(written_tensors(model, module)), preserved(model):
        if counter is not None and counter.assign is not None:
            counter.assign(count)
        for call in range(_CALLS if counter is None else 1):
            torch.manual_seed(_SEED + call)
            args, kwargs = inputs.fresh()
            try:
                outputs, _ = take_apart(function(*args, **kwargs))
            except Exception:  # the user's forward may raise anything in a state that it does not come to
                break
            found.append([value.detach() if isinstance(value, torch.Tensor) else value for value in outputs])
    return found


def _counters(model: nn.Module, module: EmittedModule, inputs: Inputs) -> list[Change]:
    """Return the numbers in Python that forward changes with every call, such as a counter of calls.

    The length of a cache that is filled once changes in the first call only, and is not among them.
    """
    with contents_preserved(written_tensors(model, module)), preserved(model):
        found: list[dict[str, Change]] = []
        for _ in range(2):
            before = Snapshot(model)
            args, kwargs = inputs.fresh()
            model(*args, **kwargs)
            found.append({change.path: change for change in before.changes()})
    first, second = found
    return [change for path, change in second.items() if change.is_number and path in first]


def _differ(theirs: list[list[object]], ours: list[list[object]]) -> bool:
    """Whether the outputs of any call differ between two series of calls, over as many calls as both have.

    `theirs` are the outputs of each call of the model, `ours` those of its graph.
    """
    return any(_differences(theirs, ours))


def _differences(theirs: list[list[object]], ours: list[list[object]]) -> Iterator[bool]:
    """Yield, for each call that two series of calls both have, whether its outputs differ.

    `theirs` are the outputs of each call of the model, `ours` those of its graph.
    """
    for left, right in zip(theirs, ours, strict=False):
        yield len(left) != len(right) or any(compare(*pair) for pair in zip(left, right, strict=True))


def _refusal(model: nn.Module, changes: Sequence[Change]) -> UncapturableError:
    """Return the error that a model's output depends on Python state that forward changes, with the first change."""
    first = changes[0]
    line = line_that_sets(model, first)
    names = ", ".join(list(dict.fromkeys(change.path for change in changes))[:3])
    where = f"\n    {line}" if line else ""
    return UncapturableError(
        f"The output of {type(model).__name__} depends on state in Python that its forward changes: {names} "
        f"({first.in_words()}).{where}\n"
        f"  A graph would keep the value of the first call for ever.\n"
        f"  To fix: keep it in a buffer, which graphs do write: in __init__ self.register_buffer({first.name!r}, "
        f"torch.tensor(...)), in forward self.{first.name}.add_(...) and torch operations on it (clamp for min, where "
        f"for if); or plan with apply='inplace', where the model's own forward runs on.",
        line,
    )
