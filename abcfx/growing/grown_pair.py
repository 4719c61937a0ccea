"""A small model and one grown from it, with all that the checks of a growth need, each computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from abcfx.capture.options import Capture
from abcfx.dag.output_loss import OutputLoss
from abcfx.growing.blocks import new_blocks
from abcfx.growing.output_gap import tolerance
from abcfx.growing.plan import GrowthPlan, plan_growth
from abcfx.growing.runs import Compared, Runs, run_and_factor
from abcfx.pairing.blocks import NO_BLOCKS, Blocks
from abcfx.pairing.factors import as_deep_as_base
from abcfx.pairing.pair import PairedModels
from abcfx.support.batch_loss import Loss
from abcfx.support.running import evaluating


@dataclass(frozen=True)
class GrownPair:
    """A small model and the large one that it was grown into, with real inputs, for the checks of a growth.

    Attributes:
        small: the small model.
        large: the large model.
        batch: real inputs with targets, as `loss` takes them.
        args: positional inputs of both models.
        kwargs: keyword inputs of both models.
        given_loss: a function of (output, batch) that returns a scalar, if the user gave one.
        blocks: which block of the small model each block of the large one is a copy of.
        optimizers: those of the small and of the large model, if they are to be checked.
        options: how both models are captured.
        captured: the two models if they were captured before, as `grow` does; they are not captured again then.
    """

    small: nn.Module
    large: nn.Module
    batch: object
    args: tuple[object, ...]
    kwargs: dict[str, object]
    given_loss: Loss | None
    blocks: Blocks
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None = None
    options: Capture = Capture()
    captured: PairedModels | None = None

    @contextmanager
    def equally_deep(self) -> Iterator[None]:
        """Leave the large model, inside the `with` block, only one block for each block of the small model."""
        with as_deep_as_base(self.large, self.blocks):
            yield

    @cached_property
    def plan(self) -> GrowthPlan:
        """The plan by which `grow` would fill this large model from the small one."""
        with self.equally_deep():
            if self.captured is None:
                models = PairedModels(
                    self.large, self.small, self.args, self.kwargs, self.options, is_called=False, blocks=NO_BLOCKS
                )
            else:
                models = PairedModels.of_graphs(self.captured.target_graph, self.captured.base_graph)
            models.factors = run_and_factor(self.small, self.large, self.args, self.kwargs)
            return plan_growth(models)

    @cached_property
    def loss(self) -> Loss:
        """A function of (output, batch) that returns a scalar: the user's, or one on the outputs, not by-products."""
        return self.given_loss or OutputLoss(self.plan.dag.output_paths)

    @cached_property
    def runs(self) -> Runs:
        """The runs of the small and the large model on the batch, with every tensor kept."""
        with self.equally_deep():
            return Runs(self.plan, self.small, self.large)

    @cached_property
    def compared(self) -> list[Compared]:
        """Every tensor of the large model's run, compared with the repeated tensor of the small model's run."""
        return list(self.runs.compared())

    @property
    def tolerance(self) -> float:
        """The largest difference that passes a check of a growth (a large model filled from a small one).

        It is relative to the RMS of the tensor that is compared, and larger for models of over 32 blocks.
        """
        deepest = max((len(twins) for twins in self.blocks.index.values()), default=1)
        return tolerance(self.plan.factors) * max(1.0, math.sqrt(deepest / 32))

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the large model's parameters, under the names they have with as many blocks as the small model."""
        with self.equally_deep():
            return dict(self.large.named_parameters())

    @cached_property
    def drift(self) -> dict[str, float]:
        """The largest entry that each new block, by path, adds to its input, relative to the RMS of that input."""
        found: dict[str, float] = {}
        hooks = [
            self.large.get_submodule(path).register_forward_hook(_measuring(path, found), with_kwargs=True)
            for path in new_blocks(self.blocks)
        ]
        try:
            if hooks:
                with evaluating(self.large):
                    self.large(*self.args, **self.kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return found


Hook = Callable[[nn.Module, tuple[object, ...], dict[str, object], object], None]


def _measuring(path: str, found: dict[str, float]) -> Hook:
    """Return a forward hook that writes into `found`, under `path`, how much a block adds to its input."""

    def measure(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        """Compare a block's output with its first tensor argument, if they have one shape."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        out = output[0] if isinstance(output, tuple | list) else output
        if given and isinstance(out, torch.Tensor) and out.shape == given[0].shape:
            rms = given[0].double().pow(2).mean().sqrt().clamp_min(1e-30)
            found[path] = float((out - given[0]).double().abs().max() / rms)

    return measure
