"""C5: whether the grown model trains along the small one's course, with noise taken out, in float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from abcfx.growing.finding import Finding
from abcfx.growing.output_gap import evaluating, output_gap, outputs_of
from abcfx.growing.pair import Pair
from abcfx.growing.state import grown_groups
from abcfx.pairing.factors.index_maps import averaged, padded, tiled
from abcfx.support import trees

STEPS, RATE = 3, 1e-3
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3}
"""By the coarsest dtype in which weights are kept or the model computes: rounding decides signs of small gradients."""
HALF_LIMIT = 0.05
"""Of the smaller ones: copies with noise are rounded each for itself, and so is their mean."""


def course(pair: Pair) -> Finding:
    """C5: the outputs of both models agree after each of some further steps on the batch."""
    name = "C5 trajectory"
    small, large, inputs = _copies(pair)
    args, kwargs, batch = inputs
    optimizers = _optimizers(pair, small, large)
    limit = max(LIMITS.get(dtype, HALF_LIMIT) for dtype in _dtypes(pair))
    worst, at = 0.0, 0
    for step in range(STEPS + 1):
        gap = _gap(pair, small, large, args, kwargs)
        if not gap <= worst:
            worst, at = gap, step
        for model, optimizer in zip((small, large), optimizers, strict=True):
            optimizer.zero_grad()
            with evaluating(model), torch.enable_grad():
                pair.loss(model(*args, **kwargs), batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    given = "with the optimizers given" if pair.optimizers else f"with {type(optimizers[0]).__name__} from the start"
    details = (f"{STEPS} steps {given}, noise taken out: largest difference {worst:.2g} after step {at}",)
    if not worst <= limit:
        return Finding(
            name, "FAIL", worst, limit, "outputs", "",
            f"after {at} steps the outputs differ: the optimizer does not move the copies as it moves the originals",
            "take param_groups and optimizer_state from abcfx.grow(..., optimizer=...): rates, eps, weight decay and "
            "moments scale with width", details,
        )  # fmt: skip
    return Finding(name, "PASS", worst, limit, "outputs", details=details)


def _dtypes(pair: Pair) -> set[torch.dtype]:
    """Of all floating tensors of a run, weights included."""
    return {dtype for dtype in pair.plan.factors.large.dtypes if dtype.is_floating_point}


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _copies(pair: Pair) -> tuple[nn.Module, nn.Module, Any]:
    """Copies, equally deep, of both models and the inputs: in float64, or as they are where an op has no float64."""
    with pair.equally_deep():
        small, large = copy.deepcopy(pair.small), copy.deepcopy(pair.large)
    inputs = (pair.args, pair.kwargs, pair.batch)
    doubled = trees.map_tensors(_double, inputs)
    try:
        with evaluating(small.double()):
            outputs_of(small, doubled[0], doubled[1])
        inputs, large = doubled, large.double()
    except RuntimeError:
        small = copy.deepcopy(pair.small)
    own = dict(large.named_parameters())
    with torch.no_grad():
        for name, widening in pair.plan.widenings.items():
            if name in own and not any(padded(factors) is not None for factors in widening.dims):
                own[name].copy_(tiled(averaged(own[name], widening.dims), widening.dims))
    return small, large, inputs


def _optimizers(pair: Pair, small: nn.Module, large: nn.Module) -> list[torch.optim.Optimizer]:
    if pair.optimizers is None:
        # Adam takes the sign even of gradients that are rounding errors
        kind: Any = torch.optim.AdamW if _dtypes(pair) == {torch.float64} else torch.optim.SGD
        first = kind(small.parameters(), lr=RATE)
        return [first, kind(grown_groups(first, pair.plan.widenings, small, large), lr=RATE)]
    originals = dict(pair.small.named_parameters()), pair.parameters()
    return [
        _rebuilt(optimizer, names, dict(model.named_parameters()))
        for optimizer, names, model in zip(pair.optimizers, originals, (small, large), strict=True)
    ]


def _rebuilt(
    optimizer: torch.optim.Optimizer, names: dict[str, nn.Parameter], to: dict[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """The same optimizer with its state over other parameters of the same names, those that it has there."""
    name_of = {id(parameter): name for name, parameter in names.items()}
    groups: list[dict[str, Any]] = []
    states: list[Any] = []
    for group in optimizer.param_groups:
        known = [p for p in group["params"] if id(p) in name_of]
        states += [dict(optimizer.state.get(parameter, {})) for parameter in known]
        groups.append({**group, "params": [to[name_of[id(p)]] for p in known]})
    groups = [group for group in groups if group["params"]]
    kind: Any = type(optimizer)
    made: torch.optim.Optimizer = kind(groups, **{k: v for k, v in optimizer.defaults.items() if k == "lr"})
    packed = made.state_dict()
    packed["state"] = copy.deepcopy({i: state for i, state in enumerate(states) if state})
    made.load_state_dict(packed)
    return made


def _gap(pair: Pair, small: nn.Module, large: nn.Module, args: Any, kwargs: Any) -> float:
    return output_gap(small, large, (args, kwargs), (args, kwargs), pair.plan.output_dims())
