"""The properties that `transform` and `grow` have for every model, as checks of one recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

import abcfx
from abcfx.errors import AbcfxError
from abcfx.plan.options import ApplyMode
from abcfx.support.trees import tensors

from .recipes import Recipe

TOLERANCE = 1e-9
MODES: tuple[ApplyMode, ...] = ("insert", "absorb")
OPTIMIZERS: tuple[tuple[str, Callable[[abcfx.Transformed], torch.optim.Optimizer]], ...] = (
    ("adamw", lambda result: torch.optim.AdamW(result.param_groups)),
    ("sgd", lambda result: torch.optim.SGD(result.param_groups, momentum=0.9)),
)


class Flag(NamedTuple):
    """A property that a model lacks, or what was refused, with the reason."""

    name: str
    detail: str

    @property
    def is_refusal(self) -> bool:
        """Whether a result was refused, and none was wrong."""
        return self.name.startswith("refused")


def difference(left: object, right: object) -> float:
    """Return the largest difference of two outputs, relative to the largest entry."""
    pairs = list(zip(tensors(left), tensors(right), strict=True))
    return max(float((x - y).detach().abs().max() / (y.detach().abs().max() + 1e-12)) for x, y in pairs)


def run(module: nn.Module, x: torch.Tensor, training: bool) -> object:
    """Run a model in train or eval mode from a seed, and leave its buffers as they were."""
    kept = copy.deepcopy(dict(module.named_buffers()))
    was = module.training
    module.train(training)
    torch.manual_seed(9)
    output: object = module(x)
    module.train(was)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(kept[name])
    return output


def train(result: abcfx.Transformed, recipe: Recipe) -> torch.Tensor:
    """Train a transformed model for three steps; return its output in eval mode."""
    optimizer = OPTIMIZERS[recipe.seed % len(OPTIMIZERS)][1](result)
    result.module.train()
    for step in range(3):
        torch.manual_seed(step)
        loss = sum((each.sin() ** 2).mean() for each in tensors(result.module(recipe.inputs(step))))
        optimizer.zero_grad()
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()
    return tensors(run(result.module, recipe.inputs(99), training=False))[0].detach()


def flags(recipe: Recipe) -> list[Flag]:
    """Return what is wrong with, or refused for, the model of a recipe; an error that is none of abcfx's is wrong."""
    found: list[Flag] = []
    for check in (_base_width, _applied, _grown):
        try:
            found += check(recipe)
        except AbcfxError as error:
            found.append(Flag(f"refused {check.__name__.strip('_')}", str(error)))
        except Exception as error:  # whatever a model may bring to light is a flag
            found.append(Flag("crash", f"{check.__name__.strip('_')}: {type(error).__name__}: {error}"))
    return list(dict.fromkeys(found))


def _base_width(recipe: Recipe) -> Iterator[Flag]:
    """At the width of the base the transformed model is the model, and the model that was given is not touched."""
    model = recipe.build()
    before = copy.deepcopy(model.state_dict())
    result = abcfx.transform(model, recipe.inputs(0), base=recipe.build())
    if any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()):
        yield Flag("touched", "the given model has other weights or buffers")
    if list(result.module.state_dict()) != list(before):
        yield Flag("keys", "the state dict has other keys")
    for training in (True, False):
        for batch in (3, 5):
            x = recipe.inputs(batch, batch)
            if (gap := difference(run(result.module, x, training), run(model, x, training))) > TOLERANCE:
                yield Flag("equality", f"training={training}, batch {batch}: {gap:.1e}")


def _applied(recipe: Recipe) -> Iterator[Flag]:
    """Scale nodes, absorbed and folded multipliers give the same trajectory; groups have each parameter once."""
    optimizer = OPTIMIZERS[recipe.seed % len(OPTIMIZERS)][0]
    inserted, absorbed = (
        abcfx.transform(
            recipe.build(4),
            recipe.inputs(0),
            base=recipe.build(),
            apply=mode,
            optimizer=optimizer,
            lr=0.01,
            weight_decay=0.1,
            eps=1e-5,  # else rounding decides where the gradient is zero
        )
        for mode in MODES
    )
    grouped = [id(p) for group in inserted.param_groups for p in group["params"]]
    if sorted(grouped) != sorted(id(p) for p in inserted.module.parameters() if p.requires_grad):
        yield Flag("groups", "the optimizer groups do not have each trained parameter once")
    expected = train(inserted, recipe)
    if not bool(expected.isfinite().all()):
        yield Flag("finite", "training diverged")
    if (gap := difference(train(absorbed, recipe), expected)) > TOLERANCE:
        yield Flag("absorb", f"{gap:.1e}")
    for result in (inserted, absorbed):
        try:
            folded = result.fold()
        except AbcfxError as error:
            yield Flag("refused fold", str(error))
            continue
        if (
            gap := difference(
                run(folded, recipe.inputs(99), training=False), run(result.module, recipe.inputs(99), training=False)
            )
        ) > TOLERANCE:
            yield Flag("fold", f"{result.header.apply}: {gap:.1e}")


def _grown(recipe: Recipe) -> Iterator[Flag]:
    """A grown model computes what the small one does, which is not touched; what has no grown model is refused."""
    small, large = recipe.build(), recipe.build(2, seed=3)
    before = copy.deepcopy(small.state_dict())
    try:
        grown = abcfx.grow(small, large, recipe.inputs(0)).module
    except AbcfxError:
        return
    x = recipe.inputs(7)
    if (gap := difference(run(grown, x, training=False), run(small, x, training=False))) > TOLERANCE:
        yield Flag("grow", f"{gap:.1e}")
    if any(not torch.equal(value, before[name]) for name, value in small.state_dict().items()):
        yield Flag("touched", "the small model was changed by grow")
