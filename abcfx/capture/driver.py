"""`capture`, the one way from a model to its graphs: tries the ways of capturing in turn and checks each result."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, get_args

import torch
from torch import nn

from abcfx.capture.capture_notes import CHECKPOINTS, fixed_inputs_note, state_notes, uncalled_paths
from abcfx.capture.captured import CapturedGraph
from abcfx.capture.copying import refuse_lazy
from abcfx.capture.emitted import Emitted, EmittedModule
from abcfx.capture.examples import OpenSizes, canonical, tiled
from abcfx.capture.export import capture_export
from abcfx.capture.leaves import hides_ops, is_composite
from abcfx.capture.mode_weights import own_modes, refuse_unfollowed
from abcfx.capture.options import CaptureMethod
from abcfx.capture.patches import checkpoints_noticed
from abcfx.capture.randomness import DrawFinder, DrawnInPython, line_of_drawn_value, values_drawn
from abcfx.capture.record import capture_record
from abcfx.capture.repeated_calls import refuse_state
from abcfx.capture.shapes import propagate_shapes
from abcfx.capture.signature import opaque_signature_of
from abcfx.capture.state import contents_preserved, preserved, quiet_torch, rare_collections
from abcfx.capture.state_spaces import Change
from abcfx.capture.symbolic import capture_symbolic
from abcfx.capture.verify import has_no_values, own_failure
from abcfx.capture.verify import verify as verify_graphs
from abcfx.errors import CaptureError, InvalidInputError, UncapturableError
from abcfx.passes.quoted_names import quoted_names
from abcfx.support import arguments
from abcfx.support.choices import choose
from abcfx.support.running import both_modes_restored, preserved_rng, set_mode
from abcfx.support.undo import one_at_a_time

Mode = Literal["train", "eval"]


@one_at_a_time
@arguments.checked(model=arguments.module, verify=arguments.flag)
def capture(
    model: nn.Module,
    args: object = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    method: CaptureMethod = "auto",
    verify: bool = True,
    modes: tuple[Mode, ...] = ("train", "eval"),
    sizes: OpenSizes = "free",
    keeps_forward: bool = False,
) -> CapturedGraph:
    """Turn a model into fx graphs that are called exactly like the model.

    Args:
        model: any module; it is not changed.
        args: example positional inputs; a bare tensor counts as one argument.
        kwargs: example keyword inputs. Without any example a Hugging Face model's own `dummy_inputs` are used.
        method: "symbolic" (torch.fx, needs no inputs), "export" (torch.export), "record" (operations recorded while the
            model runs on fake tensors), or "auto": the first of them that captures the model correctly. Only on
            request: "record_values" records on the example inputs themselves, for models that branch on values.
        verify: where there are example inputs, compare the graph with the model on other inputs before it is used.
        modes: capture train mode, eval mode or both; leaving one out saves its time.
        sizes: "free" leaves sizes of inputs open for later calls; "fixed" keeps those of the examples, for a graph that
            is never called, and halves the time of an export.
        keeps_forward: whether the model's own forward goes on to run, so that Python state which it changes, and on
            which its output depends, is told in a note; where the graph runs in its place, that is refused.

    Returns:
        The model with its graphs, the method that gave them, and notes for the report.

    Raises:
        CaptureError: no way of capturing gave a correct graph; names the line of the model that is the cause.
        InvalidInputError: an option or the example inputs are malformed, or the model has no weights yet.

    Example:
        >>> captured = capture(nn.Sequential(nn.Linear(4, 2), nn.ReLU()))
        >>> captured.method, [str(node) for node in captured.module.graph.nodes]
        ('symbolic', ['input_1', '_0', '_1', 'output'])
    """
    method = choose("method", method, get_args(CaptureMethod))
    choose("sizes", sizes, get_args(OpenSizes))
    if not modes or set(modes) - {"train", "eval"}:
        raise InvalidInputError(f"modes must be some of 'train', 'eval', got {modes!r}")
    refuse_lazy(model)
    if not keeps_forward and len(modes) > 1:
        refuse_unfollowed(model)
    examples = _Examples(model, *canonical(args, kwargs))
    notes: tuple[str, ...] = ()
    if examples.args is None and (dummy := _dummy_inputs(model)) is not None:
        examples = _Examples(model, (), dummy)
        notes = (f"no example inputs: the model's own dummy_inputs were used ({', '.join(dummy)})",)
    notes += fixed_inputs_note(model, examples.args, examples.kwargs)
    flags = tuple(mode == "train" for mode in modes)
    attempts = _attempts(examples, flags, sizes)
    if method == "auto":
        attempts = [attempt for attempt in attempts if attempt.automatic]
    else:
        attempts = [attempt for attempt in attempts if attempt.method == method]
    if not attempts:
        raise InvalidInputError(f"method={method!r} needs example inputs.\n  To fix: capture(model, args, kwargs)")
    with contents_preserved(model.buffers()):
        own = own_modes(model) if len(modes) > 1 else {}
        return _first_correct(examples, attempts, flags if verify else (), notes, keeps_forward, own)


@dataclass(frozen=True)
class _Examples:
    """A model with its example inputs, positional and by keyword; both are None when there are none."""

    model: nn.Module
    args: tuple[object, ...] | None
    kwargs: dict[str, object] | None


@dataclass(frozen=True)
class _Attempt:
    """One way to capture a model as a graph, with the function that does so.

    Attributes:
        method: the way's name in the option `method`, such as "export".
        run: a function that captures the model and returns the module with its graphs, and notes for the report.
        automatic: True if `method="auto"` tries this way.
        sizes_fixed: True if the graph keeps all sizes of the example inputs but that of the batch.
    """

    method: CaptureMethod
    run: Callable[[], Emitted]
    automatic: bool = True
    sizes_fixed: bool = False


def _first_correct(
    examples: _Examples,
    attempts: Sequence[_Attempt],
    verified_modes: tuple[bool, ...],
    notes: tuple[str, ...],
    keeps_forward: bool,
    modes_of_train: Mapping[bool, Mapping[str, bool]],
) -> CapturedGraph:
    """Try ways of capturing in turn and return the first correct graph, if possible one that shows all layers.

    Args:
        examples: the model and its example inputs.
        attempts: the ways of capturing.
        verified_modes: the modes in which a graph is compared with the model, True for train mode; none to skip that.
        notes: notes for the report, to which those of the capture are added.
        keeps_forward: whether the model's own forward goes on to run.
        modes_of_train: the modes that the model's own `train` gives to its modules.

    Raises:
        CaptureError: every way failed, or gave a graph that computes something else than the model.
    """
    model, args, kwargs = examples.model, examples.args, examples.kwargs
    failures: list[tuple[_Attempt, CaptureError]] = []
    kept: CapturedGraph | None = None
    for attempt in attempts:
        try:
            with quiet_torch(), rare_collections(), quoted_names(), checkpoints_noticed() as checkpoints:
                module, more, changes = attempt.run()
            module.own_modes = modes_of_train
            if not keeps_forward:
                more += (CHECKPOINTS,) if checkpoints else ()
            if verified_modes and args is not None and kwargs is not None:
                noticed, changed = verify_graphs(model, module, args, kwargs, modes=verified_modes)
                # The model's own forward is limited by nothing that the graph is.
                more, changes = more + (() if keeps_forward else noticed), _once(changes + changed)
                if not keeps_forward:
                    refuse_state(model, module, args, kwargs, modes=verified_modes, changes=changes)
            more += state_notes(model, changes, keeps_forward=keeps_forward)
        except DrawnInPython as error:
            raise _drawn(examples, attempt, error) from error
        except UncapturableError:
            raise
        except CaptureError as error:
            failures.append((attempt, error))
            continue
        method: CaptureMethod = "record" if attempt.method == "record_values" else attempt.method
        opened = () if keeps_forward else tuple(uncalled_paths(model, module, root=method != "symbolic"))
        result = CapturedGraph(model, module, method, notes + more, args, kwargs, tuple(changes), opened)
        if not _hides_layers(module) or len(attempts) == 1:
            return result
        # torch.nn.Transformer and its like came out as single nodes: right, but another way may show their inside.
        kept = kept or result
    if kept is not None:
        return kept
    if args is not None and kwargs is not None and (own := own_failure(model, args, kwargs)):
        raise _no_run(examples, failures, own)
    raise _drawn_value(examples) or _all_failed(examples, failures)


def _attempts(examples: _Examples, flags: tuple[bool, ...], sizes: OpenSizes) -> list[_Attempt]:
    """List the ways to capture a model in the order in which they are tried.

    Args:
        examples: the model and its example inputs. Without inputs symbolic tracing is the only way.
        flags: the modes to capture, True for train mode.
        sizes: which sizes of inputs a graph leaves open: "free", "batch" or "fixed".
    """
    attempts = [_Attempt("symbolic", partial(_symbolic, examples))]
    model, args, kwargs = examples.model, examples.args, examples.kwargs
    if args is None or kwargs is None:
        return attempts

    def running(way: _RunningWay, open_sizes: OpenSizes) -> Callable[[], Emitted]:
        """Return a function that captures the model in this way, export or record, on its example inputs.

        `open_sizes` says which sizes of inputs the graph leaves open: "free", "batch" (only the first dim) or "fixed".
        """
        return lambda: _with_larger_batch(partial(way, model, modes=flags, sizes=open_sizes), args, kwargs)

    def as_given() -> Emitted:
        """Record the model on its example inputs as they are: its code makes a number of a batch of 1 or 2."""
        return capture_record(model, args, kwargs, modes=flags, sizes="fixed")

    return [
        *attempts,
        _Attempt("export", running(capture_export, sizes)),
        _Attempt("record", running(capture_record, sizes)),
        # Python code that needs plain numbers for sizes (a dict keyed by a length) gets them in all dims but the batch.
        _Attempt("export", running(capture_export, "batch"), sizes_fixed=True),
        _Attempt("record", running(capture_record, "batch"), sizes_fixed=True),
        *([] if tiled(args, kwargs)[0] is args else [_Attempt("record", as_given, sizes_fixed=True)]),
        _Attempt(
            "record_values",
            lambda: capture_record(model, args, kwargs, modes=flags, values=True),
            automatic=False,
        ),
    ]


class _RunningWay(Protocol):
    """The type of the functions that capture a model by running it on its example inputs."""

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
    """Trace a model with torch.fx and, where there are example inputs, put the shape of each value on its node.

    Returns the module with the graphs, notes for the report, and what forward changed in Python.
    """
    emitted, signature, slot_values = capture_symbolic(examples.model, examples.args, examples.kwargs)
    if examples.args is None or examples.kwargs is None:
        return emitted
    module, notes, changes = emitted
    _, larger = opaque_signature_of(examples.model, *tiled(examples.args, examples.kwargs))
    without_shapes = propagate_shapes(module, signature.slots, larger)
    if without_shapes:
        without_shapes = propagate_shapes(module, signature.slots, slot_values)
    return module, notes + without_shapes, changes


def _with_larger_batch(
    capture_on: Callable[[tuple[object, ...], dict[str, object]], Emitted],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> Emitted:
    """Capture on inputs whose batch of 1 or 2 is repeated to 3, since torch takes 1, and models take 2, for a constant.

    Where that fails, the first dim was perhaps no batch: then capture on the inputs as they are.

    Args:
        capture_on: captures the model on positional and keyword inputs.
        args: positional example inputs.
        kwargs: keyword example inputs.

    Returns:
        What `capture_on` returns: the module with the graphs, notes, and what forward changed in Python.
    """
    larger = tiled(args, kwargs)
    try:
        return capture_on(*larger)
    except CaptureError:
        if larger[0] is args and larger[1] is kwargs:
            raise
        # The first dim was not a batch after all.
        return capture_on(args, kwargs)


def _once(changes: Sequence[Change]) -> list[Change]:
    """Return the changes of Python attributes without repetitions: of several with one path, the first."""
    return list({change.path: change for change in reversed(changes)}.values())[::-1]


def _hides_layers(module: EmittedModule) -> bool:
    """Whether a graph calls a whole block of torch's, or a function under `torch.fx.wrap`, as a single node."""
    return any(
        is_composite(module.get_submodule(str(node.target))) if node.op == "call_module" else hides_ops(node.target)
        for graph in module.graphs
        for node in graph.nodes
        if node.op in ("call_module", "call_function")
    )


def _dummy_inputs(model: nn.Module) -> dict[str, object] | None:
    """Return the example inputs that a Hugging Face model itself offers; None if it has none or forward refuses them.

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
    """Return the error that a model does not run on its example inputs, with the source lines at which attempts failed.

    Args:
        examples: the model and its example inputs.
        failures: the ways of capturing that were tried, each with its error.
        own: the error that the model itself raises, as text.
    """
    lines = list(dict.fromkeys(error.line for _, error in failures if error.line))
    text = "".join(f"\n    {line}" for line in lines)
    return CaptureError(
        f"{type(examples.model).__name__} does not run on its example inputs: {own}{text}\n"
        f"  To fix: give inputs as its forward takes them: one tensor, a tuple, or a dict of keyword inputs.",
        lines[0] if lines else "",
    )


def _drawn(examples: _Examples, attempt: _Attempt, error: DrawnInPython) -> CaptureError:
    """Return the error that forward draws random numbers in Python, with the line at which it does.

    To find the line, the capture is run again while the random generators are compared after every line.

    Args:
        examples: the model and its example inputs.
        attempt: the way of capturing that raised `error`.
        error: says which generators were used.
    """
    model = examples.model
    with quiet_torch(), preserved(model) as before:
        finder = DrawFinder(error.used, before.generators)
        finder.run(attempt.run)
    return DrawnInPython(error.used, error.line or finder.line, model=type(model).__name__)


def _drawn_value(examples: _Examples) -> UncapturableError | None:
    """Return an error if forward turns a random draw of torch's into a Python value; None if it does not."""
    model, args, kwargs = examples.model, examples.args, examples.kwargs
    if args is None or kwargs is None or has_no_values(model):
        return None
    for training in (True, False):
        with preserved(model), preserved_rng(), both_modes_restored(model):
            set_mode(model, training)
            line = line_of_drawn_value(lambda: model(*args, **kwargs))
        if line:
            return values_drawn(type(model).__name__, line)
    return None


def _all_failed(examples: _Examples, failures: Sequence[tuple[_Attempt, CaptureError]]) -> CaptureError:
    """Return the error that no way of capturing the model worked, with what each way reported and advice.

    Args:
        examples: the model and its example inputs.
        failures: the ways that were tried, each with its error.
    """
    tried = "\n".join(f"- {attempt.method}: {error}" for attempt, error in failures if not attempt.sizes_fixed)
    advice = (
        "give example inputs (args=..., kwargs=...), so that torch.export and the recorder can take the model"
        if examples.args is None
        else "take branches on tensor values out of forward (torch.where, torch.cond, an argument fixed in __init__); "
        'or, where the branches taken for these inputs are the right ones for all, capture="record_values"'
    )
    line = next((error.line for _, error in reversed(failures) if error.line), "")
    return CaptureError(f"{type(examples.model).__name__} could not be captured.\n{tried}\n  To fix: {advice}.", line)
