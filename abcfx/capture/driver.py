"""`capture`, the one way from a model to its graphs: tries the ways of capturing in turn and checks each result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, get_args

import torch
from torch import nn

from abcfx.capture.capture_notes import CHECKPOINTS, hook_notes
from abcfx.capture.captured import CapturedGraph
from abcfx.capture.copying import refuse_lazy
from abcfx.capture.emitted import EmittedModule
from abcfx.capture.examples import OpenSizes, canonical, tiled
from abcfx.capture.export import capture_export
from abcfx.capture.leaves import is_composite
from abcfx.capture.options import CaptureMethod
from abcfx.capture.patches import checkpoints_noticed
from abcfx.capture.record import capture_record
from abcfx.capture.shapes import propagate_shapes
from abcfx.capture.signature import opaque_signature_of
from abcfx.capture.state import quiet_torch, rare_collections
from abcfx.capture.symbolic import capture_symbolic
from abcfx.capture.verify import own_failure
from abcfx.capture.verify import verify as verify_graphs
from abcfx.errors import CaptureError, InvalidInputError
from abcfx.support.choices import choose

Mode = Literal["train", "eval"]

# The module that a way of capturing emitted, and its notes.
Emitted = tuple[EmittedModule, tuple[str, ...]]


def capture(
    model: nn.Module,
    args: object = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    method: CaptureMethod = "auto",
    verify: bool = True,
    modes: tuple[Mode, ...] = ("train", "eval"),
    sizes: OpenSizes = "free",
) -> CapturedGraph:
    """Turn a model into graphs that are called exactly like it.

    Args:
        model: any module; it is not changed.
        args: example positional inputs; a bare tensor counts as one argument.
        kwargs: example keyword inputs. Without any example a Hugging Face model's own `dummy_inputs` are used.
        method: "symbolic" (torch.fx, needs no inputs), "export" (torch.export), "record" (operations recorded while
            the model runs on fake tensors), or "auto": the first of them that captures the model correctly. Only on
            request: "record_values" records on the example inputs themselves, for models that branch on values.
        verify: compare with the model on other inputs, when there are example inputs, before a graph is used.
        modes: capture train mode, eval mode or both; leaving one out saves its time.
        sizes: "free", or "fixed" to those of the examples, for a graph that is never called; saves half of an export.

    Raises:
        CaptureError: no way of capturing gave a correct graph; names the line of the model that is the cause.
        InvalidInputError: an option or the example inputs are malformed, or the model has no weights yet.

    Example:
        >>> captured = capture(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
        >>> captured.method, [str(node) for node in captured.module.graph.nodes]
        ('symbolic', ['input_1', '_0', '_1', 'output'])
    """
    method = choose("method", method, get_args(CaptureMethod))
    if not modes or set(modes) - {"train", "eval"}:
        raise InvalidInputError(f"modes must be some of 'train', 'eval', got {modes!r}")
    refuse_lazy(model)
    examples = _Examples(model, *canonical(args, kwargs))
    notes: tuple[str, ...] = ()
    if examples.args is None and (dummy := _dummy_inputs(model)) is not None:
        examples = _Examples(model, (), dummy)
        notes = (f"no example inputs: the model's own dummy_inputs were used ({', '.join(dummy)})",)
    flags = tuple(mode == "train" for mode in modes)
    attempts = _attempts(examples, flags, sizes)
    if method == "auto":
        attempts = [attempt for attempt in attempts if attempt.automatic]
    else:
        attempts = [attempt for attempt in attempts if attempt.method == method]
    if not attempts:
        raise InvalidInputError(f"method={method!r} needs example inputs.\n  To fix: capture(model, args, kwargs)")
    return _first_correct(examples, attempts, flags if verify else (), notes)


@dataclass(frozen=True)
class _Examples:
    """A model with example inputs; both are None when there are none."""

    model: nn.Module
    args: tuple[object, ...] | None
    kwargs: dict[str, object] | None


@dataclass(frozen=True)
class _Attempt:
    """One way to capture the model.

    Attributes:
        method: the way's name among the methods that a user can ask for.
        run: captures the model.
        automatic: True if the way is tried without being asked for.
        sizes_fixed: True if only the batch stays open.
    """

    method: CaptureMethod
    run: Callable[[], Emitted]
    automatic: bool = True
    sizes_fixed: bool = False


def _first_correct(
    examples: _Examples, attempts: Sequence[_Attempt], verified_modes: tuple[bool, ...], notes: tuple[str, ...]
) -> CapturedGraph:
    """Return the result of the first attempt that gives a correct graph, if possible one that shows all layers."""
    model, args, kwargs = examples.model, examples.args, examples.kwargs
    failures: list[tuple[_Attempt, CaptureError]] = []
    kept: CapturedGraph | None = None
    for attempt in attempts:
        try:
            with quiet_torch(), rare_collections(), checkpoints_noticed() as checkpoints:
                module, more = attempt.run()
            more += hook_notes(model, module, root=attempt.method != "symbolic")
            more += (CHECKPOINTS,) if checkpoints else ()
            if verified_modes and args is not None and kwargs is not None:
                more += verify_graphs(model, module, args, kwargs, modes=verified_modes)
        except CaptureError as error:
            failures.append((attempt, error))
            continue
        method: CaptureMethod = "record" if attempt.method == "record_values" else attempt.method
        result = CapturedGraph(model, module, method, notes + more, args, kwargs)
        if not _hides_layers(module) or len(attempts) == 1:
            return result
        # torch.nn.Transformer and its like came out as single nodes: right, but another way may show their inside.
        kept = kept or result
    if kept is not None:
        return kept
    if args is not None and kwargs is not None and (own := own_failure(model, args, kwargs)):
        raise _no_run(examples, failures, own)
    raise _all_failed(examples, failures)


def _attempts(examples: _Examples, flags: tuple[bool, ...], sizes: OpenSizes) -> list[_Attempt]:
    """List the ways to capture the model in the order in which they are tried.

    Args:
        examples: the model and its inputs. Without inputs symbolic tracing is the only way.
        flags: the modes to capture, True for train mode.
        sizes: the sizes that stay open.
    """
    attempts = [_Attempt("symbolic", partial(_symbolic, examples))]
    model, args, kwargs = examples.model, examples.args, examples.kwargs
    if args is None or kwargs is None:
        return attempts

    def running(way: _RunningWay, open_sizes: OpenSizes) -> Callable[[], Emitted]:
        return lambda: _with_larger_batch(partial(way, model, modes=flags, sizes=open_sizes), args, kwargs)

    return [
        *attempts,
        _Attempt("export", running(capture_export, sizes)),
        _Attempt("record", running(capture_record, sizes)),
        # Python code that needs plain numbers for sizes (a dict keyed by a length) gets them in all dims but the batch.
        _Attempt("export", running(capture_export, "batch"), sizes_fixed=True),
        _Attempt("record", running(capture_record, "batch"), sizes_fixed=True),
        _Attempt(
            "record_values",
            lambda: capture_record(model, args, kwargs, modes=flags, values=True),
            automatic=False,
        ),
    ]


class _RunningWay(Protocol):
    """A way of capturing that runs the model on its example inputs."""

    def __call__(
        self,
        model: nn.Module,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        /,
        *,
        modes: tuple[bool, ...],
        sizes: OpenSizes,
    ) -> Emitted: ...


def _symbolic(examples: _Examples) -> Emitted:
    """Trace the model, and put shapes on the nodes where there are example inputs."""
    module, signature, slot_values, notes = capture_symbolic(examples.model, examples.args, examples.kwargs)
    if examples.args is None or examples.kwargs is None:
        return module, notes
    _, larger = opaque_signature_of(examples.model, *tiled(examples.args, examples.kwargs))
    without_shapes = propagate_shapes(module, signature.slots, larger)
    if without_shapes:
        without_shapes = propagate_shapes(module, signature.slots, slot_values)
    return module, notes + without_shapes


def _with_larger_batch(
    capture_on: Callable[[tuple[object, ...], dict[str, object]], Emitted],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> Emitted:
    """Capture on inputs whose batch is not mistaken for a constant; on the inputs as they are where that fails."""
    larger = tiled(args, kwargs)
    try:
        return capture_on(*larger)
    except CaptureError:
        if larger[0] is args and larger[1] is kwargs:
            raise
        # The first dim was not a batch after all.
        return capture_on(args, kwargs)


def _hides_layers(module: EmittedModule) -> bool:
    return any(
        is_composite(module.get_submodule(str(node.target)))
        for graph in module.graphs
        for node in graph.find_nodes(op="call_module")
    )


def _dummy_inputs(model: nn.Module) -> dict[str, object] | None:
    """Return the inputs that a Hugging Face model offers, unless its forward takes others.

    Every such model offers token ids, also one for images.
    """
    inputs = getattr(model, "dummy_inputs", None)
    if not isinstance(inputs, dict):
        return None
    try:
        inspect.signature(model.forward).bind(**inputs)
    except TypeError:
        return None
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def _no_run(examples: _Examples, failures: Sequence[tuple[_Attempt, CaptureError]], own: str) -> CaptureError:
    """Say that the model itself does not run, with the lines of its source at which attempts failed."""
    lines = list(dict.fromkeys(error.line for _, error in failures if error.line))
    text = "".join(f"\n    {line}" for line in lines)
    return CaptureError(
        f"{type(examples.model).__name__} does not run on its example inputs: {own}{text}", lines[0] if lines else ""
    )


def _all_failed(examples: _Examples, failures: Sequence[tuple[_Attempt, CaptureError]]) -> CaptureError:
    tried = "\n".join(f"- {attempt.method}: {error}" for attempt, error in failures if not attempt.sizes_fixed)
    advice = (
        "give example inputs (args=..., kwargs=...), so that torch.export and the recorder can take the model"
        if examples.args is None
        else "take branches on tensor values out of forward (torch.where, torch.cond, an argument fixed in __init__); "
        'or, where the branches taken for these inputs are the right ones for all, capture="record_values"'
    )
    line = next((error.line for _, error in reversed(failures) if error.line), "")
    return CaptureError(f"{type(examples.model).__name__} could not be captured.\n{tried}\n  To fix: {advice}.", line)
