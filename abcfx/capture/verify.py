"""Check a captured graph against the model on inputs it was not captured with: outputs, gradients, buffers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from abcfx.capture.emitted import ROOT_LEAF, EmittedModule, unregistered
from abcfx.capture.gradients import Gradients, Routes, large_parameters, leaves_of
from abcfx.capture.graphs import written_parameters
from abcfx.capture.guards import SizesRefused
from abcfx.capture.second_inputs import Inputs, variations
from abcfx.capture.state import contents_preserved, preserved
from abcfx.capture.state_spaces import Change
from abcfx.capture.structure import take_apart
from abcfx.errors import CaptureError, InvalidInputError, UncapturableError
from abcfx.support import trees
from abcfx.support.running import both_modes_restored, preserved_rng, set_mode

_SEED = 20_240
# A gradient much smaller than the largest one is rounding noise (a key bias before a softmax, say).
_NOISE = 1e-5


@dataclass
class _Run:
    """The results of one forward and backward pass of a model or its graph, small enough to keep and compare.

    No gradient is stored.

    Attributes:
        outputs: what the model returned, without gradients.
        fingerprints: by parameter, random projections of its gradient.
        routes: by large parameter, the kinds of autograd nodes that hand gradient to it.
        buffers: values of the buffers after the run, by name.
    """

    outputs: list[object]
    fingerprints: dict[str, torch.Tensor]
    routes: dict[str, Routes]
    buffers: dict[str, torch.Tensor]
    changes: list[Change]


def verify(
    model: nn.Module,
    module: EmittedModule,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    *,
    modes: tuple[bool, ...],
) -> tuple[tuple[str, ...], list[Change]]:
    """Compare captured graphs with their model in every mode: outputs, gradients and buffers.

    Inputs differ from the examples in batch, length and values wherever the model itself accepts that.

    Args:
        model: the model that was captured.
        module: the module with the captured graphs.
        args: positional example inputs.
        kwargs: keyword example inputs.
        modes: True for train mode, False for eval mode.

    Returns:
        Notes for the report: sizes that the graph was specialised to, or why nothing could be checked. And what a
        call of the model changed in Python.

    Raises:
        CaptureError: the graph computes something else than the model; names the value and the mode.
    """
    if has_no_values(model):
        return ("not verified against the model: its weights are on the meta device",), []
    notes: list[str] = []
    changes: list[Change] = []
    with preserved(model), preserved_rng(), both_modes_restored(model), warnings.catch_warnings():
        # The model's warnings here are about inputs made up for the check.
        warnings.simplefilter("ignore")
        for training in modes:
            set_mode(model, training)
            with in_mode(module, training):
                more, changed = _verify_mode(model, module, args, kwargs, training)
            notes += more
            changes += changed
    return tuple(dict.fromkeys(notes)), changes


def own_failure(model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> str:
    """Return, as text, the error that a model itself raises on its example inputs; "" when it runs.

    A model whose weights are on the meta device is not run.
    """
    if has_no_values(model):
        return ""
    try:
        with preserved_rng():
            _run(model, model, Inputs(args, kwargs, "", varied=False), None, list(model.buffers()))
    except Exception as error:  # the user's forward may raise anything, and that is what is asked for
        return f"{type(error).__name__}: {error}"
    return ""


def written_tensors(model: nn.Module, module: EmittedModule) -> list[torch.Tensor]:
    """Return the tensors of a model that a call may write into: its buffers, and parameters that its graphs write."""
    names = written_parameters(module.graphs)
    return [*model.buffers(), *(parameter for name, parameter in model.named_parameters() if name in names)]


def has_no_values(model: nn.Module) -> bool:
    """Whether a parameter or buffer of the model is on the meta device, so that it has no values."""
    return any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def _verify_mode(
    model: nn.Module, module: EmittedModule, args: tuple[object, ...], kwargs: dict[str, object], training: bool
) -> tuple[list[str], list[Change]]:
    """Compare a graph with its model in one mode, on the first inputs that both take.

    Args:
        model: the model, in the mode to check.
        module: the module with the captured graphs.
        args: positional example inputs.
        kwargs: keyword example inputs.
        training: whether the mode is train mode, where gradients are compared as well.

    Returns:
        Notes for the report on sizes that the graph refused, and what the model changed in Python.

    Raises:
        CaptureError: the graph computes something else, or the model does not run on its example inputs.
    """
    notes: list[str] = []
    refused = ""
    large = large_parameters(model) if training else None
    written = written_tensors(model, module)
    for inputs in variations(args, kwargs):
        try:
            expected = _run(model, model, inputs, large, written)
        except UncapturableError:
            raise
        except Exception as error:  # the user's forward may refuse these sizes with any error; the next are milder
            refused = f"{type(error).__name__}: {error}"
            continue
        if inputs.varied and _has_nan(expected):
            continue  # these values mean nothing to the model (a division by a count of zero, say)
        try:
            got = _run(model, module, inputs, large, written)
            if expected.routes != got.routes:
                # Other operations may well hand on the same gradient: now it has to be computed after all.
                expected, got = (_run(model, each, inputs, frozenset(), written) for each in (model, module))
        except InvalidInputError as error:
            notes.append(error.note if isinstance(error, SizesRefused) else str(error))
            continue
        except Exception as error:  # a wrong graph may raise anything where the model runs
            message = f"{type(error).__name__}: {str(error)[:300]}"
            raise CaptureError(f"the captured graph fails where the model runs ({inputs.label}): {message}") from error
        difference = _difference(expected, got)
        if difference and inputs.varied and _difference(expected, _run(model, model, inputs, large, written)):
            continue  # the model itself gives another result every time: it reads beyond what is valid
        if difference:
            mode = "train" if training else "eval"
            raise CaptureError(f"the captured graph is wrong in {mode} mode ({inputs.label}): {difference}")
        return notes, expected.changes
    raise CaptureError(f"the model does not run on its example inputs: {refused}")


def _has_nan(run: _Run) -> bool:
    """Whether a tensor that the model returned has a NaN."""
    return any(isinstance(value, torch.Tensor) and bool(value.isnan().any()) for value in run.outputs)


@contextmanager
def in_mode(module: EmittedModule, training: bool) -> Iterator[None]:
    """Let the module with the captured graphs run the train or the eval graph within the block.

    Only its own flag is set: its submodules are those of the model, whose flags are set already.
    """
    before, leaf = module.training, module.__dict__.get(ROOT_LEAF)
    for each in (module, leaf):
        if each is not None:
            each.training = training
    try:
        yield
    finally:
        for each in (module, leaf):
            if each is not None:
                each.training = before


def _run(
    model: nn.Module,
    function: nn.Module,
    inputs: Inputs,
    large: frozenset[str] | None,
    written: Sequence[torch.Tensor],
) -> _Run:
    """Run a model, or a graph of it, with a fixed seed and return what the two are compared by.

    The parameters' gradients, and the contents of what forward writes, are put back afterwards.

    Args:
        model: the owner of the parameters and buffers.
        function: the model or the module with its graphs.
        inputs: the arguments.
        large: parameters whose gradient is not computed, only how it would reach them; None for a run without
            gradients.
        written: the parameters and buffers that a call may write into.
    """
    gradients = Gradients(model, large or frozenset())
    names = [name for name, _ in model.named_buffers()]
    with contents_preserved(written), preserved(model) as before:
        torch.manual_seed(_SEED)
        with torch.set_grad_enabled(large is not None), gradients.collected():
            args, kwargs = inputs.fresh()
            outputs, _ = take_apart(function(*args, **kwargs))
            if function is model:
                _refuse_foreign(model, outputs, (args, kwargs))
            if large is not None:
                gradients.backward(outputs)
        buffers = {name: function.get_buffer(name).detach().clone() for name in names}
    # Detached, or each would keep its whole autograd graph alive.
    outputs = [value.detach() if isinstance(value, torch.Tensor) else value for value in outputs]
    return _Run(outputs, gradients.fingerprints, gradients.routes, buffers, before.undone)


def _refuse_foreign(model: nn.Module, outputs: Sequence[object], inputs: object) -> None:
    """Raise an error if outputs depend on a weight that learns and is not the model's own, which a graph would freeze.

    Such are weights of modules in plain lists, and those of another model that a function of this one still refers to,
    but none that is among the inputs.
    """
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers(), *trees.tensors(inputs))}
    for leaf in leaves_of(output for output in outputs if isinstance(output, torch.Tensor)):
        # A tensor that forward itself makes to require gradients, as some do for checkpoints, is none of these.
        if id(leaf) not in own and isinstance(leaf, nn.Parameter):
            raise unregistered(model, leaf)


def _difference(expected: _Run, got: _Run) -> str:
    """Describe where a run of the graph differs from one of the model beyond rounding; "" if it does not.

    Args:
        expected: the run of the model.
        got: the run of the graph.
    """
    if len(expected.outputs) != len(got.outputs):
        return f"{len(got.outputs)} output tensors, expected {len(expected.outputs)}"
    for number, (left, right) in enumerate(zip(expected.outputs, got.outputs, strict=True)):
        text = compare(left, right)
        if text:
            return f"output {number} {text}"
    for name in expected.buffers:
        text = compare(expected.buffers[name], got.buffers[name])
        if text:
            return f"buffer {name} {text} after the call"
    missing = expected.fingerprints.keys() ^ got.fingerprints.keys()
    if missing:
        return f"gradient of {', '.join(sorted(missing)[:3])} is there in only one of model and graph"
    sizes = [float(value.abs().max()) for value in expected.fingerprints.values() if value.numel()]
    noise = _NOISE * max((size for size in sizes if math.isfinite(size)), default=0.0)
    for name, fingerprint in expected.fingerprints.items():
        text = compare(fingerprint, got.fingerprints[name], tolerance=2e-3, noise=noise)
        if text:
            return f"gradient of {name} {text}"
    return ""


def compare(expected: object, got: object, *, tolerance: float = 1e-4, noise: float = 0.0) -> str:
    """Describe in words how two values differ; "" when they are equal up to rounding.

    Args:
        expected: the value that the model returned.
        got: the value that the captured graph returned.
        tolerance: largest difference of entries, relative to the largest entry.
        noise: absolute difference that is allowed on top.
    """
    if not isinstance(expected, torch.Tensor) or not isinstance(got, torch.Tensor):
        return "" if type(expected) is type(got) and expected == got else f"is {got!r}, expected {expected!r}"
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return f"is {got.dtype} {tuple(got.shape)}, expected {expected.dtype} {tuple(expected.shape)}"
    if expected.layout != torch.strided or got.layout != torch.strided:
        expected, got = expected.to_dense(), got.to_dense()
    if torch.equal(expected, got):
        return ""
    if not (expected.is_floating_point() or expected.is_complex()):
        return f"differs in {int((expected != got).sum())} of {expected.numel()} entries"
    tolerance = max(tolerance, 8 * torch.finfo(expected.dtype).eps)
    finite = expected.isfinite()
    if not torch.equal(finite, got.isfinite()):
        return "has infinities or NaNs elsewhere"
    if not bool(finite.all()):
        expected, got = expected[finite], got[finite]
    if not expected.numel():
        return ""
    # The norms need no copies, which matters for logits.
    size = float(torch.linalg.vector_norm(expected, math.inf))
    error = float(torch.linalg.vector_norm(expected - got, math.inf))
    return "" if error <= tolerance * size + noise else f"differs by {error:.2g}, where its largest entry is {size:.2g}"
