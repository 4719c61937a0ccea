"""Check C3 of `verify_growth`: whether the copies of an entry can become different, judged by the gradients of the real
loss.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from abcfx.growing.check_result import GrowthCheckRow, judged
from abcfx.growing.expected_scales import fitted
from abcfx.growing.fill.width import Widening, widened
from abcfx.growing.grown_pair import GrownPair
from abcfx.growing.output_gap import TOLERANCES
from abcfx.pairing.factors.index_maps import IndexMap, averaged, tiled
from abcfx.support.running import evaluating
from abcfx.support.verdict import Verdict

DIFFERENT = 1e-4
"""Least relative deviation of gradients from the mean of their copies; without noise it is below 3e-16."""
DIFFERENT_LATER = 1e-6
"""The same after two steps, over all copies."""
RATE = 1e-3
"""Root mean square of the change of a parameter's entries in a step."""
LIKE_NOISE = 0.9
"""Cosine between averaged and expected weight above which a deviation is noise, and not another order of copies."""


@dataclass(frozen=True)
class _Deviation:
    """A measurement of how far the copies of entries in one parameter, and in its gradient, are from their mean.

    Attributes:
        name: name of the parameter.
        weight: distance from the mean of the copies, over the norm of the parameter.
        gradient: the same of its gradient.
    """

    name: str
    weight: float
    gradient: float


def symmetry(pair: GrownPair) -> GrowthCheckRow:
    """Check that copies of entries get different gradients, so that they can become different (check C3).

    It also fails if noise that was added to copies changes the sum over the copies of an input of a layer.
    """
    uneven = _not_zero_sum(pair)
    if uneven is not None:
        weight, size, limit = uneven
        return judged(
            "C3", Verdict.FAIL,
            f"the noise on {weight} does not add up to zero over the copies of an input, so it changes the function",
            "use zero-sum noise, as abcfx.grow(noise=...) does",
            value=size, tolerance=limit, node="noise", path=weight,
        )  # fmt: skip
    recipes = {name: each for name, each in pair.plan.widenings.items() if any(dim.repeats for dim in each.dims)}
    parameters = pair.parameters()
    at_first = _deviations(parameters, recipes, _gradients(pair, pair.large, parameters), outputs_only=True)
    later = {row.name: row for row in _deviations(*_after_two_steps(pair, recipes), outputs_only=False)}
    if not later:
        return judged("C3", Verdict.SKIP, "no parameter has copies")
    different = {row.name for row in at_first if row.gradient >= DIFFERENT}
    details = [
        f"{row.name}: weights {row.weight:.2g}, gradients {row.gradient:.2g} at first, "
        f"{later[row.name].gradient if row.name in later else 0.0:.2g} after 2 steps"
        for row in sorted(at_first, key=lambda row: row.gradient)[:6]
    ]
    equal = [row for row in later.values() if row.gradient < DIFFERENT_LATER]
    if at_first and not different:
        equal = [*equal, *at_first]
    if equal:
        least = min(equal, key=lambda row: row.gradient)
        return judged(
            "C3", Verdict.FAIL,
            f"the copies in {least.name} get the same gradient and stay equal: the added width is never used",
            "grow with noise (relative std 0.1 to sqrt(ratio - 1)); it is zero-sum and keeps the function",
            value=least.gradient, tolerance=DIFFERENT_LATER, node="gradient", path=least.name, details=details,
        )  # fmt: skip
    shown = [row for row in at_first if row.name in different] or list(later.values())
    least = min(shown, key=lambda row: row.gradient)
    details.append(
        f"{len(different)} of {len(at_first)} parameters with copies on the output side become different at once, all "
        f"within two steps"
    )
    return judged("C3", Verdict.PASS, value=least.gradient, tolerance=DIFFERENT, node="gradient", path=least.name,
                  details=details)  # fmt: skip


def _deviations(
    parameters: Mapping[str, nn.Parameter],
    recipes: Mapping[str, Widening],
    gradients: Mapping[str, torch.Tensor],
    outputs_only: bool,
) -> list[_Deviation]:
    """Measure how far copies of entries are from their mean, in each parameter with a gradient, and in its gradient.

    Args:
        parameters: those of the large model, by name.
        recipes: how each parameter with copies was filled.
        gradients: the gradients by name.
        outputs_only: compare copies along the dims that no product sums over only, not along all.
    """
    rows = []
    for name, widening in recipes.items():
        over = _output_side(widening) if outputs_only else [d if d.repeats else _whole(d) for d in widening.dims]
        gradient = gradients.get(name)
        if over is not None and gradient is not None and bool(gradient.any()):
            rows.append(_Deviation(name, _deviation(parameters[name].detach(), over), _deviation(gradient, over)))
    return rows


def _after_two_steps(
    pair: GrownPair, recipes: Mapping[str, Widening]
) -> tuple[dict[str, nn.Parameter], Mapping[str, Widening], dict[str, torch.Tensor]]:
    """Train a copy of the large model for two steps; return its parameters, how they were filled, and its gradients.

    `recipes` say how each parameter was filled. A difference at one end of the model is everywhere after two steps. The
    last layer before a tied head, whose table has no noise, becomes different only when the table has. Each parameter
    moves along its gradient, as far as Adam would move it. It must not move by Adam's first update, the sign of the
    gradient: copies whose gradients have the same signs and unequal sizes, as most do behind a ReLU, move alike there,
    and become different only much later.
    """
    with pair.equally_deep():
        model = copy.deepcopy(pair.large)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for _ in range(2):
        for name, gradient in _gradients(pair, model, parameters).items():
            reached = gradient[gradient != 0].double()  # few rows of an embedding are
            if reached.numel():
                with torch.no_grad():
                    parameters[name].sub_(gradient, alpha=RATE / float(reached.square().mean().sqrt()))
    return parameters, recipes, _gradients(pair, model, parameters)


def _output_side(widening: Widening) -> list[IndexMap] | None:
    """Return how a parameter's dims grow by copies, with only those dims growing that no product sums over.

    `widening` says how the parameter was filled. None if there is no such dim.
    """
    open_ = [i for i, dim in enumerate(widening.dims) if i not in widening.contracted and dim.repeats]
    if not open_:
        return None
    return [dim if i in open_ else _whole(dim) for i, dim in enumerate(widening.dims)]


def _whole(dim: IndexMap) -> IndexMap:
    """Return the index map of a dim that counts as not growing: each entry of the large model stands for itself."""
    return IndexMap.unchanged(dim.sizes[1])


def _deviation(tensor: torch.Tensor, dims: list[IndexMap]) -> float:
    """Return |T - M| / |T| for a tensor T of the large model, with M the mean over the copies of each entry.

    `dims` says, for each dim, which entries are copies of one entry of the small model; |.| is the Frobenius norm.
    """
    tensor = tensor.double()
    gap = tensor - tiled(averaged(tensor, dims), dims)
    return float(gap.norm() / tensor.norm().clamp_min(torch.finfo(torch.float64).tiny))


def _gradients(pair: GrownPair, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Return the gradient of the loss on the batch for each parameter; the model is left as it was."""
    with evaluating(model), torch.enable_grad():
        loss = pair.loss(model(*pair.args, **pair.kwargs), pair.batch)
        learning = {name: p for name, p in parameters.items() if p.requires_grad}
        found = torch.autograd.grad(loss, list(learning.values()), allow_unused=True)
    return {name: g for name, g in zip(learning, found, strict=True) if g is not None}


def _not_zero_sum(pair: GrownPair) -> tuple[str, float, float] | None:
    """Find a parameter whose noise changes the sum over the copies of an input, although it should add up to zero.

    Returns:
        (name, what the noise adds up to relative to the weight, tolerance); None where all noise is zero-sum.
    """
    theirs, ours = dict(pair.small.named_parameters()), pair.parameters()
    for name, widening in pair.plan.widenings.items():
        if name not in ours or not any(widening.dims[i].grows for i in widening.contracted):
            continue
        weight = ours[name].detach().double()
        expected = widened(theirs[widening.source].detach().double(), widening)
        only = [dim if i in widening.contracted else _whole(dim) for i, dim in enumerate(widening.dims)]
        mean, wanted = averaged(weight, only), averaged(expected, only)
        wanted = wanted * fitted(wanted, mean)
        size = float((mean - wanted).norm() / mean.norm().clamp_min(1e-30))
        cosine = float((mean * wanted).sum() / (mean.norm() * wanted.norm()).clamp_min(1e-30))
        limit = 1e-2 * TOLERANCES.get(ours[name].dtype, 0.1) if ours[name].dtype != torch.float64 else 1e-9
        if size > limit and cosine > LIKE_NOISE:
            return name, size, limit
    return None
