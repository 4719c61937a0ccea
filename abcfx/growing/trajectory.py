"""Check C5 of `verify_growth`: whether the grown model, without noise and in float64, trains along the small one's
trajectory.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from abcfx.growing.check_result import GrowthCheckRow, judged
from abcfx.growing.grown_pair import GrownPair
from abcfx.growing.optimizer_state import Group, grown_groups
from abcfx.growing.output_gap import output_gap, outputs_of
from abcfx.pairing.factors.index_maps import averaged, tiled
from abcfx.support.running import evaluating
from abcfx.support.trees import map_tensors
from abcfx.support.verdict import Verdict

STEPS, RATE = 3, 1e-3
LIMITS = {torch.float64: 1e-9, torch.float32: 1e-3}
"""By the coarsest dtype of weights and of the run, in which rounding decides the signs of small gradients."""
HALF_LIMIT = 0.05
"""For smaller dtypes: copies with noise are rounded each for itself, and so is their mean."""


@dataclass(frozen=True)
class _Inputs:
    """The inputs of the small and the large model, positional and by keyword, and the batch that the loss takes."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    batch: object


def trajectory(pair: GrownPair) -> GrowthCheckRow:
    """Check that the outputs of the small and the grown model agree after each of three training steps (check C5)."""
    small, large, inputs = _copies(pair)
    optimizers = _optimizers(pair, small, large)
    limit = max(LIMITS.get(dtype, HALF_LIMIT) for dtype in _dtypes(pair))
    worst, at = 0.0, 0
    for step in range(STEPS + 1):
        gap = output_gap(small, large, inputs.args, inputs.kwargs, pair.plan.output_dims())
        if not gap <= worst:
            worst, at = gap, step
        for model, optimizer in zip((small, large), optimizers, strict=True):
            optimizer.zero_grad()
            with evaluating(model), torch.enable_grad():
                loss = pair.loss(model(*inputs.args, **inputs.kwargs), inputs.batch)
                torch.autograd.backward(loss)
            optimizer.step()
    given = "with the optimizers given" if pair.optimizers else f"with {type(optimizers[0]).__name__} from the start"
    details = [f"{STEPS} steps {given}, noise taken out: largest difference {worst:.2g} after step {at}"]
    if not worst <= limit:
        return judged(
            "C5", Verdict.FAIL,
            f"after {at} steps the outputs differ: the optimizer does not move the copies as it moves the originals",
            "take param_groups and optimizer_state from abcfx.grow(..., optimizer=...): rates, eps, weight decay and "
            "moments scale with width", value=worst, tolerance=limit, node="outputs", details=details,
        )  # fmt: skip
    return judged("C5", Verdict.PASS, value=worst, tolerance=limit, node="outputs", details=details)


def _dtypes(pair: GrownPair) -> set[torch.dtype]:
    """Return the dtypes of all floating tensors of a run, weights included."""
    return {dtype for dtype in pair.plan.factors.large.dtypes if dtype.is_floating_point}


def _double(tensor: torch.Tensor) -> torch.Tensor:
    """Return a floating-point tensor in float64; any other tensor as it is."""
    return tensor.double() if tensor.is_floating_point() else tensor


def _copies(pair: GrownPair) -> tuple[nn.Module, nn.Module, _Inputs]:
    """Copy the small and the large model, with equally many blocks and without noise, in float64; add their inputs.

    They stay in their own dtype where some op has no float64.
    """
    with pair.equally_deep():
        small, large = copy.deepcopy(pair.small), copy.deepcopy(pair.large)
    inputs = _Inputs(pair.args, pair.kwargs, pair.batch)
    args, kwargs, batch = map_tensors(_double, (pair.args, pair.kwargs, pair.batch))
    try:
        with evaluating(small.double()):
            outputs_of(small, args, kwargs)
        inputs, large = _Inputs(args, kwargs, batch), large.double()
    except RuntimeError:
        small = copy.deepcopy(pair.small)
    own = dict(large.named_parameters())
    with torch.no_grad():
        for name, widening in pair.plan.widenings.items():
            if name in own and all(dim.old_entries is None for dim in widening.dims):
                own[name].copy_(tiled(averaged(own[name], widening.dims), widening.dims))
    return small, large, inputs


def _optimizers(pair: GrownPair, small: nn.Module, large: nn.Module) -> list[torch.optim.Optimizer]:
    """Make the optimizers of the copied small and large model: like those that the user gave, or new ones.

    The second of new ones has the learning rates, eps and weight decay that growth asks for.
    """
    if pair.optimizers is None:
        # Adam takes the sign even of gradients that are nothing but rounding errors
        kind = torch.optim.AdamW if _dtypes(pair) == {torch.float64} else torch.optim.SGD
        first = kind(small.parameters(), lr=RATE)
        return [first, kind(grown_groups(first, pair.plan.widenings, small, large), lr=RATE)]
    originals = dict(pair.small.named_parameters()), pair.parameters()
    return [
        _rebuilt(optimizer, names, dict(model.named_parameters()))
        for optimizer, names, model in zip(pair.optimizers, originals, (small, large), strict=True)
    ]


def _rebuilt(
    optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter], copies: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """Make an optimizer of the same class and settings over copies of the parameters, and give it the state by name.

    Args:
        optimizer: the optimizer of the originals.
        names: name -> its parameter.
        copies: name -> the copy. Parameters of the optimizer without a copy are left out.
    """
    name_of = {id(parameter): name for name, parameter in names.items()}
    groups: list[Group] = []
    states: list[dict[str, object]] = []
    for group in optimizer.param_groups:
        known = [p for p in group["params"] if id(p) in name_of]
        states += [dict(optimizer.state.get(parameter, {})) for parameter in known]
        groups.append({**group, "params": [copies[name_of[id(p)]] for p in known]})
    groups = [group for group in groups if group["params"]]
    kind: type[torch.optim.SGD] = type(optimizer)  # type: ignore[assignment]  # every optimizer takes (groups, lr=)
    made = kind(groups, **{k: v for k, v in optimizer.defaults.items() if k == "lr"})
    packed = made.state_dict()
    packed["state"] = copy.deepcopy({i: state for i, state in enumerate(states) if state})
    made.load_state_dict(packed)
    return made
