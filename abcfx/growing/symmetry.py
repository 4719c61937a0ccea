"""C3: whether the copies in a grown model can part: gradients of the real loss, output-side copies, every parameter."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from abcfx.capture.state import both_modes_restored, preserved_rng, set_mode
from abcfx.growing.expected_scales import fitted
from abcfx.growing.fill.width import Widening, widened
from abcfx.growing.finding import Finding
from abcfx.growing.output_gap import TOLERANCES
from abcfx.growing.pair import Pair
from abcfx.pairing.factors.index_maps import Factors, averaged, grows, sizes, tiled

PARTED = 1e-4
"""Least relative deviation of gradients from the mean of their copies; without noise it is below 3e-16."""
PARTED_LATER = 1e-6
"""The same after two steps, over all copies."""
RATE = 1e-3
LIKE_NOISE = 0.9
"""Cosine between averaged and expected weight above which a deviation is noise, and not another layout."""


@dataclass(frozen=True)
class _Row:
    name: str
    weight: float
    gradient: float


def symmetry(pair: Pair) -> Finding:
    """C3 of growth: copies get different gradients, and the noise that parts them adds up to zero over each input."""
    name = "C3 symmetry"
    uneven = _not_zero_sum(pair)
    if uneven is not None:
        weight, size, limit = uneven
        return Finding(
            name, "FAIL", size, limit, "noise", weight,
            f"the noise on {weight} does not add up to zero over the copies of an input, so it changes the function",
            "use zero-sum noise, as abcfx.grow(noise=...) does",
        )  # fmt: skip
    widenings = {n: w for n, w in pair.plan.widenings.items() if any(map(_tiles, w.dims))}
    parameters = pair.parameters()
    at_first = _rows(parameters, widenings, _gradients(pair, pair.large, parameters), outputs_only=True)
    later = {row.name: row for row in _rows(*_after_two_steps(pair, widenings), outputs_only=False)}
    if not later:
        return Finding(name, "SKIP", cause="no parameter has copies")
    part = {row.name for row in at_first if row.gradient >= PARTED}
    details = [
        f"{row.name}: weights {row.weight:.2g}, gradients {row.gradient:.2g} at first, "
        f"{later[row.name].gradient if row.name in later else 0.0:.2g} after 2 steps"
        for row in sorted(at_first, key=lambda row: row.gradient)[:6]
    ]
    together = [row for row in later.values() if row.gradient < PARTED_LATER]
    if at_first and not part:
        together = [*together, *at_first]
    if together:
        least = min(together, key=lambda row: row.gradient)
        return Finding(
            name, "FAIL", least.gradient, PARTED_LATER, "gradient", least.name,
            f"the copies in {least.name} get the same gradient and stay equal: the added width is never used",
            "grow with noise (relative std 0.1 to sqrt(ratio - 1)); it is zero-sum and costs no function",
            tuple(details),
        )  # fmt: skip
    shown = [row for row in at_first if row.name in part] or list(later.values())
    least = min(shown, key=lambda row: row.gradient)
    details.append(f"{len(part)} of {len(at_first)} parameters with copies on the output side part at once, all later")
    return Finding(name, "PASS", least.gradient, PARTED, "gradient", least.name, details=tuple(details))


def _rows(
    parameters: Mapping[str, nn.Parameter],
    widenings: Mapping[str, Widening],
    gradients: Mapping[str, torch.Tensor],
    outputs_only: bool,
) -> list[_Row]:
    """How far apart copies are, for parameters that get a gradient; along output-side dims only, or along all."""
    rows = []
    for name, widening in widenings.items():
        over = _output_side(widening) if outputs_only else [f if _tiles(f) else [_whole(f)] for f in widening.dims]
        gradient = gradients.get(name)
        if over is not None and gradient is not None and bool(gradient.any()):
            rows.append(_Row(name, _deviation(parameters[name].detach(), over), _deviation(gradient, over)))
    return rows


def _after_two_steps(
    pair: Pair, widenings: Mapping[str, Widening]
) -> tuple[dict[str, nn.Parameter], Mapping[str, Widening], dict[str, torch.Tensor]]:
    """Parameters and gradients of a copy of the large model after two steps: by then a part at one end is everywhere.

    The last layer before a tied head, whose table has no noise, parts only when the table has.
    """
    with pair.equally_deep():
        model = copy.deepcopy(pair.large)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(parameters.values(), lr=RATE)
    for _ in range(2):
        for name, gradient in _gradients(pair, model, parameters).items():
            parameters[name].grad = gradient
        optimizer.step()
    return parameters, widenings, _gradients(pair, model, parameters)


def _output_side(widening: Widening) -> list[Factors] | None:
    """The growing dims that no product sums over, the others left whole; None where there are none."""
    open_ = [i for i, factors in enumerate(widening.dims) if i not in widening.contracted and _tiles(factors)]
    if not open_:
        return None
    return [f if i in open_ else [_whole(f)] for i, f in enumerate(widening.dims)]


def _tiles(factors: Factors) -> bool:
    return grows(factors) and not any(isinstance(factor, Mapping) and "pad" in factor for factor in factors)


def _whole(factors: Factors) -> list[int]:
    large = sizes(factors)[1]
    return [large, large]


def _deviation(tensor: torch.Tensor, dims: list[Factors]) -> float:
    """|T - mean of its copies| / |T|."""
    tensor = tensor.double()
    gap = tensor - tiled(averaged(tensor, dims), dims)
    return float(gap.norm() / tensor.norm().clamp_min(torch.finfo(torch.float64).tiny))


def _gradients(pair: Pair, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Gradients of the loss on the batch with respect to the parameters; the model is left as it was."""
    with both_modes_restored(model), preserved_rng(), torch.enable_grad():
        set_mode(model, False)
        loss = pair.loss(model(*pair.args, **pair.kwargs), pair.batch)
        learning = {name: p for name, p in parameters.items() if p.requires_grad}
        found = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
    return {name: g for name, g in zip(learning, found, strict=True) if g is not None}


def _not_zero_sum(pair: Pair) -> tuple[str, float, float] | None:
    """(parameter, relative size of what is left, tolerance) where noise changes the sum over copies of an input."""
    theirs, ours = dict(pair.small.named_parameters()), pair.parameters()
    for name, widening in pair.plan.widenings.items():
        if name not in ours or not any(grows(widening.dims[i]) for i in widening.contracted):
            continue
        weight = ours[name].detach().double()
        expected = widened(theirs[widening.source].detach().double(), widening)
        only = [f if i in widening.contracted else [_whole(f)] for i, f in enumerate(widening.dims)]
        mean, wanted = averaged(weight, only), averaged(expected, only)
        wanted = wanted * fitted(wanted, mean)
        size = float((mean - wanted).norm() / mean.norm().clamp_min(1e-30))
        cosine = float((mean * wanted).sum() / (mean.norm() * wanted.norm()).clamp_min(1e-30))
        limit = 1e-2 * TOLERANCES.get(ours[name].dtype, 0.1) if ours[name].dtype != torch.float64 else 1e-9
        if size > limit and cosine > LIKE_NOISE:
            return name, size, limit
    return None
