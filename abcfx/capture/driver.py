"""`capture`: the one way from a model to its graphs; every way of capturing in turn, each checked before it is used."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from abcfx.capture.capture_notes import CHECKPOINTS, hook_notes
from abcfx.capture.captured import CapturedGraph
from abcfx.capture.emitted import EmittedModule
from abcfx.capture.examples import OpenSizes, canonical, tiled
from abcfx.capture.export import capture_export
from abcfx.capture.leaves import is_composite
from abcfx.capture.patches import checkpoints_noticed
from abcfx.capture.record import capture_record
from abcfx.capture.shapes import propagate_shapes
from abcfx.capture.signature import signature_of
from abcfx.capture.state import quiet_torch, rare_collections, refuse_lazy
from abcfx.capture.symbolic import capture_symbolic
from abcfx.capture.verify import own_failure
from abcfx.capture.verify import verify as verify_graphs
from abcfx.errors import CaptureError, InvalidInputError

METHODS = ("auto", "symbolic", "export", "record", "record_values")
_Capture = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[EmittedModule, tuple[str, ...]]]
_Attempt = Callable[[], tuple[EmittedModule, tuple[str, ...]]]


def capture(
    model: nn.Module,
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    method: str = "auto",
    verify: bool = True,
    modes: tuple[str, ...] = ("train", "eval"),
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
    """
    if method not in METHODS:
        raise InvalidInputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not modes or set(modes) - {"train", "eval"}:
        raise InvalidInputError(f"modes must be some of 'train', 'eval', got {modes!r}")
    refuse_lazy(model)
    args, kwargs = canonical(args, kwargs)
    notes: tuple[str, ...] = ()
    if args is None and (dummy := _dummy_inputs(model)) is not None:
        args, kwargs = (), dummy
        notes = (f"no example inputs: the model's own dummy_inputs were used ({', '.join(dummy)})",)
    flags = tuple(mode == "train" for mode in modes)
    attempts = _attempts(model, args, kwargs, flags, sizes)
    if method == "auto":
        attempts.pop("record_values", None)
    else:
        attempts = {name: attempt for name, attempt in attempts.items() if name.split(",")[0] == method}
    if not attempts:
        raise InvalidInputError(f"method={method!r} needs example inputs: capture(model, args, kwargs)")
    failures: dict[str, str] = {}
    kept: CapturedGraph | None = None
    for name, attempt in attempts.items():
        try:
            with quiet_torch(), rare_collections(), checkpoints_noticed() as checkpoints:
                module, more = attempt()
            more += hook_notes(model, module, root=name != "symbolic")
            more += (CHECKPOINTS,) if checkpoints else ()
            if verify and args is not None and kwargs is not None:
                more += verify_graphs(model, module, args, kwargs, modes=flags)
        except CaptureError as error:
            failures[name] = str(error)
            continue
        result = CapturedGraph(model, module, name.split(",")[0].removesuffix("_values"), notes + more, args, kwargs)
        if not _hides_layers(module) or len(attempts) == 1:
            return result
        # torch.nn.Transformer and its like came out as single nodes: right, but another way may show their inside.
        kept = kept or result
    if kept is not None:
        return kept
    if args is not None and kwargs is not None and (own := own_failure(model, args, kwargs)):
        lines = "\n".join(dict.fromkeys(line for text in failures.values() for line in text.splitlines()[1:2]))
        raise CaptureError(f"{type(model).__name__} does not run on its example inputs: {own}\n{lines}".rstrip())
    raise CaptureError(_all_failed(model, failures, args is None))


def _attempts(
    model: nn.Module,
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None,
    flags: tuple[bool, ...],
    sizes: OpenSizes,
) -> dict[str, _Attempt]:
    attempts: dict[str, _Attempt] = {"symbolic": lambda: _symbolic(model, args, kwargs)}
    if args is not None and kwargs is not None:
        given, named = args, kwargs
        attempts["export"] = lambda: _with_larger_batch(
            partial(capture_export, modes=flags, sizes=sizes), model, given, named
        )
        attempts["record"] = lambda: _with_larger_batch(
            partial(capture_record, modes=flags, sizes=sizes), model, given, named
        )
        # Python code that needs plain numbers for sizes (a dict keyed by a length) gets them in all dims but the batch.
        attempts["export, sizes fixed"] = partial(_fixed, capture_export, model, given, named, flags)
        attempts["record, sizes fixed"] = partial(_fixed, capture_record, model, given, named, flags)
        attempts["record_values"] = lambda: capture_record(model, given, named, modes=flags, values=True)
    return attempts


def _symbolic(
    model: nn.Module, args: tuple[Any, ...] | None, kwargs: dict[str, Any] | None
) -> tuple[EmittedModule, tuple[str, ...]]:
    module, signature, examples, notes = capture_symbolic(model, args, kwargs)
    if args is None or kwargs is None:
        return module, notes
    _, larger = signature_of(model, *tiled(args, kwargs), opaque=True)
    without_shapes = propagate_shapes(module, signature.slots, larger)
    if without_shapes:
        without_shapes = propagate_shapes(module, signature.slots, examples)
    return module, notes + without_shapes


def _with_larger_batch(
    capture_with: _Capture, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[EmittedModule, tuple[str, ...]]:
    larger = tiled(args, kwargs)
    try:
        return capture_with(model, *larger)
    except CaptureError:
        if larger[0] is args and larger[1] is kwargs:
            raise
        # The first dim was not a batch after all.
        return capture_with(model, args, kwargs)


def _fixed(
    capture_with: Callable[..., tuple[EmittedModule, tuple[str, ...]]],
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    flags: tuple[bool, ...],
) -> tuple[EmittedModule, tuple[str, ...]]:
    return _with_larger_batch(partial(capture_with, modes=flags, sizes="batch"), model, args, kwargs)


def _hides_layers(module: EmittedModule) -> bool:
    return any(
        is_composite(module.get_submodule(str(node.target)))
        for graph in module.graphs
        for node in graph.find_nodes(op="call_module")
    )


def _dummy_inputs(model: nn.Module) -> dict[str, Any] | None:
    """The inputs that a Hugging Face model offers, unless its forward takes others (every model offers token ids)."""
    inputs = getattr(model, "dummy_inputs", None)
    if not isinstance(inputs, dict):
        return None
    try:
        inspect.signature(model.forward).bind(**inputs)
    except TypeError:
        return None
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}


def _all_failed(model: nn.Module, failures: dict[str, str], no_inputs: bool) -> str:
    tried = "\n".join(f"- {name}: {failure}" for name, failure in failures.items() if "sizes fixed" not in name)
    advice = (
        "give example inputs (args=..., kwargs=...), so that torch.export and the recorder can take the model"
        if no_inputs
        else "take branches on tensor values out of forward (torch.where, torch.cond, an argument fixed in __init__); "
        'or, where the branches taken for these inputs are the right ones for all, capture="record_values"'
    )
    return f"{type(model).__name__} could not be captured.\n{tried}\nWhat to do: {advice}."
