"""Sections of `verify` on the transformed model: what it computes, its keys, init, multipliers and learning rates."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch

from abcfx.capture.emitted import graphs_within
from abcfx.capture.state_mark import MARK
from abcfx.passes import scale_nodes
from abcfx.pipeline import transform
from abcfx.transformed import Transformed
from abcfx.verification.evidence import Evidence, number
from abcfx.verification.models import MLP, build, noise

WIDTH, BASE, LR = 128, 48, 0.01
EXPONENTS = {"stem": (-0.5, 0.5, 0.5), "hidden.0": (0.0, 0.5, 1.0), "head": (0.5, 0.5, 0.5)}  # muP: a, b, c
ERRORS = 5.0  # standard errors of a measured standard deviation


class ScaleAt(NamedTuple):
    """A node of a transformed model's graph that multiplies a tensor by a constant.

    Attributes:
        name: name of the node.
        factor: the constant.
        operand: name of the tensor that it multiplies.
        users: names of the nodes that the result goes into.
    """

    name: str
    factor: float
    operand: str
    users: str


def module_semantics() -> Evidence:
    """Compare a transformed MLP with hand-written code: section "Module semantics" of `verify`.

    It checks outputs, and that the user's own model, `state_dict` keys, copies and the folded model (multipliers moved
    into weights) are right.

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence = Evidence()
    model, x = _mlp(WIDTH), noise(32, 16)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = transform(model, x, base=lambda: _mlp(BASE))
    module = result.module
    nodes = _scale_nodes(result)
    up = (WIDTH / BASE) ** 0.5
    table = evidence.table(
        f"scale nodes, width {WIDTH} over base width {BASE}", "node", "factor", "multiplies", "goes into"
    )
    for node in nodes:
        table.add(*node)
    factors = [node.factor for node in nodes]
    evidence.close(
        "each layer whose a is not 0 has one scale node, with the factor (width / base)^-a", factors, [up, 1 / up]
    )
    evidence.check(
        "the layer whose a is 0 has no scale node",
        not any("hidden" in node.name for node in nodes),
        f"{len(nodes)} nodes",
    )
    weights = dict(module.named_parameters())
    with torch.no_grad():
        y = torch.relu(up * (x @ weights["stem.weight"].T))
        y = torch.relu(y @ weights["hidden.0.weight"].T)
        y = (y @ weights["head.weight"].T) / up
    _near(evidence, "the output is the one computed by hand with m^-a W, layer by layer", module(x), y)
    ours = model.state_dict()
    untouched = ours.keys() == before.keys() and all(torch.equal(ours[key], before[key]) for key in before)
    evidence.check("the user's own model is left as it was", untouched)
    state = module.state_dict()
    evidence.check(
        "the state_dict has the keys of the user's model, and a mark that keeps plain classes from loading it",
        [key for key in state if key != MARK] == list(before) and MARK in state,
        f"{len(before)}",
    )
    _near(evidence, "a deep copy computes the same", copy.deepcopy(module)(x), module(x))
    _near(
        evidence,
        "the folded model computes the same",
        result.fold()(x),
        module(x),
    )
    evidence.check("the folded model has the original class", type(result.fold()) is MLP, type(result.fold()).__name__)
    same = transform(model, x, base=lambda: MLP(WIDTH))
    at_base = torch.equal(same.module(x), model(x)) and not _scale_nodes(same)
    evidence.check("at the base width transform changes nothing, bit for bit", at_base)
    off = _difference(_trained(result, x), _trained(_absorbed(model, x), x))
    evidence.check(
        "with absorbed multipliers, 10 training steps give the same output", off < 1e-5, f"off by {number(off)}"
    )
    return evidence


def initialisation() -> Evidence:
    """Compare multipliers, init and learning rates with powers of the width: section "Initialisation" of `verify`.

    This is checked for a model without a base (powers of the width itself) and with one (powers of width / base width).

    Returns:
        Claims, each with whether it holds and the numbers that decided it, and tables of numbers.
    """
    evidence, x = Evidence(), noise(32, 16)
    _check_without_base(evidence, transform(_mlp(WIDTH), x, lr=LR))
    relative = transform(_mlp(WIDTH), x, lr=LR, base=lambda: _mlp(BASE))
    _check_with_base(evidence, relative)
    redrawn = build(lambda: relative.init_weights(copy.deepcopy(relative.module)), 1)
    pairs = zip(redrawn.parameters(), relative.module.parameters(), strict=True)
    off = max(abs(float(new.detach().std() / old.detach().std()) - 1) for new, old in pairs)
    evidence.check("init_weights draws weights of the same std again", 0 < off <= 0.1, f"off by {100 * off:.2f} %")
    return evidence


def _check_without_base(evidence: Evidence, absolute: Transformed) -> None:
    """Add claims that each layer of an MLP has multiplier n^-a, std n^-b and learning rate lr n^-c, with n the width.

    Args:
        evidence: where claims and a table are added.
        absolute: the MLP, transformed without a base.
    """
    caption = f"Planned by muP at width {WIDTH}, no base, lr {LR}: n = {WIDTH}"
    table = evidence.table(caption, "layer", "multiplier", "n^-a", "std", "n^-b", "lr", "lr n^-c")
    weights = dict(absolute.module.named_parameters())
    for layer, (a, b, c) in EXPONENTS.items():
        row, weight = absolute.plan[f"{layer}.weight"], weights[f"{layer}.weight"].detach()
        std, error = float(weight.std()), ERRORS / math.sqrt(2 * weight.numel())
        expected = WIDTH**-a, WIDTH**-b, LR * WIDTH**-c
        (multiplier,) = row.multiplier.values()
        cells = zip((multiplier, std, row.lr), expected, strict=True)
        table.add(layer, *(value for pair in cells for value in pair))
        evidence.close(f"{layer}: multiplier is n^-a, lr is lr n^-c", [multiplier, row.lr], [expected[0], expected[2]])
        off = abs(std / expected[1] - 1)
        claim = (
            f"{layer}: std is n^-b within {100 * error:.1f} %, {ERRORS:g} standard errors of {weight.numel():,} entries"
        )
        evidence.check(claim, off <= error, f"off by {100 * off:.2f} %")


def _check_with_base(evidence: Evidence, relative: Transformed) -> None:
    """Add claims that each layer of an MLP has multiplier m^-a and rate lr m^-c, and its own std times m^-b.

    m is width / base width.

    Args:
        evidence: where claims are added.
        relative: the MLP, transformed with a base.
    """
    ratio, own = WIDTH / BASE, {"stem": 16, "hidden.0": BASE, "head": BASE}
    weights = dict(relative.module.named_parameters())
    for layer, (a, b, c) in EXPONENTS.items():
        row, weight = relative.plan[f"{layer}.weight"], weights[f"{layer}.weight"].detach()
        found = [*row.multiplier.values(), row.lr]
        evidence.close(
            f"{layer} over base width {BASE}: multiplier and lr are powers of {ratio:.3g}",
            found,
            [ratio**-a, LR * ratio**-c],
        )
        expected_std = ratio**-b / math.sqrt(3 * own[layer])  # nn.Linear draws from U(-1, 1) / sqrt(fan_in)
        off = abs(float(weight.std()) / expected_std - 1)
        evidence.check(
            f"{layer} over base width {BASE}: std is that of the base times {ratio:.3g}^-b",
            off <= 0.1,
            f"off by {100 * off:.2f} %",
        )


def _mlp(width: int) -> MLP:
    """Build an MLP of a width, always from the same seed."""
    return build(lambda: MLP(width))


def _scale_nodes(result: Transformed) -> list[ScaleAt]:
    """Return the nodes of a transformed model's graph that multiply by a constant which `transform` put there."""
    found = []
    for node in (node for graph in graphs_within(result.module) for node in scale_nodes(graph)):
        operand, factor = node.args
        assert isinstance(factor, float)
        found.append(ScaleAt(node.name, factor, str(operand), ", ".join(user.name for user in node.users)))
    return found


def _absorbed(model: torch.nn.Module, x: torch.Tensor) -> Transformed:
    """Transform an MLP so that multipliers are moved into weights and learning rates (apply="absorb").

    A narrower MLP is given as the base, with which widths are compared.

    Args:
        model: the MLP.
        x: an input of it.
    """
    return transform(model, x, base=lambda: _mlp(BASE), apply="absorb")


def _trained(result: Transformed, x: torch.Tensor) -> torch.Tensor:
    """Train a transformed model for ten steps of Adam on random targets and return its output for the inputs x."""
    targets = noise(32, 10, seed=1)
    optimizer = torch.optim.Adam(result.param_groups)
    for _ in range(10):
        optimizer.zero_grad()
        (result.module(x) - targets).square().mean().backward()
        optimizer.step()
    output: torch.Tensor = result.module(x).detach()
    return output


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference between two tensors, relative to the largest entry of the second one."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _near(evidence: Evidence, claim: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Add the claim that two outputs are the same up to rounding (largest difference below 1e-5, relative).

    Args:
        evidence: where the claim is added.
        claim: the claim as a sentence.
        ours, theirs: the two outputs.
    """
    off = _difference(ours.detach(), theirs.detach())
    evidence.check(claim, off < 1e-5, f"off by {number(off)}")
