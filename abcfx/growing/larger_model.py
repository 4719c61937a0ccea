"""`grow`: fills a larger model so that it computes what a trained smaller one does, and carries its optimizer along."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from abcfx.capture.examples import canonical
from abcfx.capture.given_models import given_model
from abcfx.capture.options import Capture, CaptureMethod
from abcfx.errors import GrowthError
from abcfx.growing.blocks import adding_parameters, is_within, new_blocks, pair_blocks, refuse_parallel_blocks
from abcfx.growing.fill.depth import BLOCK_ORDERS, BlockOrder, deepen
from abcfx.growing.fill.width import widen
from abcfx.growing.grown import Grown
from abcfx.growing.optimizer_state import Group, grown_groups, grown_state, growth_of, refuse_unknown_state
from abcfx.growing.output_gap import output_gap, tolerance
from abcfx.growing.plan import GrowthPlan, plan_growth
from abcfx.growing.refusals import Refusal, refusals
from abcfx.growing.steps import Deepened, GrowthStep, Widened
from abcfx.pairing.blocks import NO_BLOCKS, Blocks
from abcfx.pairing.factors import as_deep_as_base
from abcfx.pairing.pair import PairedModels
from abcfx.support import arguments
from abcfx.support.choices import choose
from abcfx.theory.optimizers import family


@torch.inference_mode(False)
@arguments.checked(
    kwargs=arguments.keywords,
    optimizer=arguments.optional(arguments.optimizer),
    noise=arguments.number(at_least=0),
    seed=arguments.seed,
    zero_output=arguments.flag,
)
def grow(
    small: nn.Module,
    into: nn.Module | Callable[[], nn.Module],
    args: object = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    noise: float = 0.1,
    seed: int = 0,
    block_order: BlockOrder = "stack",
    zero_output: bool = True,
    capture: Capture | CaptureMethod = "auto",
) -> Grown:
    """Fill a larger model of the same architecture so that it computes what the small one does.

    Every tensor is repeated along the dims that grow and multiplied by a power of their ratio, which linear equations
    over the layer DAG (graph of layers and ops) give. New blocks add nothing to the residual stream. A model that
    becomes wider and deeper is widened first.

    Main arguments:
        small: the trained model; it is not changed.
        into: the larger model, which is filled in place, or a function that builds it.
        args: example positional inputs; a bare tensor counts as one argument.
        kwargs: example keyword inputs.
        optimizer: the small model's optimizer, whose state and hyperparameters are carried along.

    Other arguments:
        noise: standard deviation of zero-sum noise on contracted weights, relative to their RMS. It makes
            copies different without changing the function; up to sqrt(ratio - 1) is useful, 0 keeps the training
            trajectory of the small model.
        seed: of the noise.
        block_order: where new blocks go: "stack" (0 1 0 1), "interleave" (0 0 1 1), "append" (0 1 1 1).
        zero_output: set to zero the weights by which new blocks add to the residual stream. Otherwise the function
            changes, and `Grown.steps` says by how much.
        capture: name of a capture method, or a `Capture`; both models are captured once.

    Returns:
        The large model with parameter groups and state for its optimizer, and a report.

    Raises:
        GrowthError: the function cannot be kept, or the optimizer's state is not known; nothing has been written then.
            Also if outputs differ after all; the message then says that weights were overwritten.
        PairingError, InfeasibleError, CaptureError, UnknownOpError: see `abcfx.transform`.

    Example:
        >>> import torch, abcfx
        >>> def mlp(width):
        ...     return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
        >>> small, x = mlp(4), torch.randn(2, 3)
        >>> large = abcfx.grow(small, mlp(8), x).module
        >>> torch.allclose(large(x), small(x), atol=1e-6)
        True
    """
    Capture.of(capture).refuse_base_inputs("grow")
    order = choose("block_order", block_order, BLOCK_ORDERS)
    small = given_model("small", small, on_device=True).model
    large = given_model("into", into, on_device=True).model
    _refuse_shared(small, large)
    if optimizer is not None:
        family(optimizer)
        refuse_unknown_state(optimizer)
        _refuse_foreign(optimizer, small)
    given, named = canonical(args, kwargs)
    models = _Models(small, large, given or (), named or {}, pair_blocks(small, large, order))
    paired = PairedModels(
        large, small, models.args, models.kwargs, Capture.of(capture), is_called=False, blocks=NO_BLOCKS
    )
    with as_deep_as_base(large, models.blocks):
        plan = plan_growth(paired)
        refuse_parallel_blocks(models.blocks, plan.dag)
        if against := refusals(plan, small, large):
            raise GrowthError(_refused(against))
        steps: list[GrowthStep] = [_widen(models, plan, noise, seed)]
    if models.blocks.index:
        steps.append(_deepen(models, plan, zero_output))
    recipes = {name: plan.widenings[models.blocks.twin(name)] for name, _ in large.named_parameters()}
    groups, state = list[Group](), None
    if optimizer is not None:
        groups = grown_groups(optimizer, recipes, small, large)
        new = new_blocks(models.blocks)
        old = {name: each for name, each in recipes.items() if not is_within(name, new)}
        state = grown_state(optimizer, groups, old, small)
    rates = {name: growth_of(each).weight for name, each in recipes.items()}
    return Grown(large, groups, state, tuple(steps), rates, paired)


@dataclass(frozen=True)
class _Models:
    """A small and a large model for `grow`, example inputs for both, and which small block each large block copies."""

    small: nn.Module
    large: nn.Module
    args: Sequence[object]
    kwargs: Mapping[str, object]
    blocks: Blocks

    def gap(self, plan: GrowthPlan) -> float:
        """Return the largest difference between the outputs of the small and of the large model, relative to their RMS.

        The large model has been filled before; `plan` says which entry of the small model's outputs each entry of the
        large model's should equal.
        """
        return output_gap(self.small, self.large, self.args, self.kwargs, plan.output_dims())


def _refuse_shared(small: nn.Module, large: nn.Module) -> None:
    """Refuse two models with a parameter in common, which filling the large one would change in the small one too.

    Raises:
        GrowthError: names the parameter.
    """
    theirs = {id(parameter) for parameter in small.parameters()}
    for name, parameter in large.named_parameters():
        if id(parameter) in theirs:
            raise GrowthError(
                f"into: its parameter {name!r} is one of the small model's, which would be overwritten.\n"
                f"  expected: a model with parameters of its own.\n"
                f"  To fix: build it anew, into=lambda: Model(width=64)"
            )


def _refuse_foreign(optimizer: torch.optim.Optimizer, small: nn.Module) -> None:
    """Refuse an optimizer that trains no parameter of the small model, so that there is no state to carry along.

    Raises:
        GrowthError: it is one of another model, such as a copy.
    """
    ours = {id(parameter) for parameter in small.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not any(id(parameter) in ours for parameter in held):
        raise GrowthError(
            f"optimizer: none of the {len(held)} tensors that it trains is a parameter of the small model.\n"
            f"  expected: the optimizer with which the small model was trained.\n"
            f"  To fix: give that one, made from small.parameters(); without it, state and rates start anew."
        )


def _refused(against: Sequence[Refusal]) -> str:
    """Return the message that a large model cannot be filled from the small one, with the reasons."""
    shown = "\n  ".join(map(str, against[:8]))
    more = f"\n  and {len(against) - 8} more" if len(against) > 8 else ""
    return f"The large model cannot be filled so that it computes what the small one does:\n  {shown}{more}"


def _widen(models: _Models, plan: GrowthPlan, noise: float, seed: int) -> Widened:
    """Fill the large model, which has as many blocks as the small one here, and compare the outputs of both.

    Args:
        models: the two models.
        plan: for each tensor, which entries are copied where and what they are multiplied by.
        noise: standard deviation of zero-sum noise, relative to the RMS of each weight.
        seed: seed of the noise.

    Raises:
        GrowthError: the outputs differ.
    """
    tensors = dict(models.small.named_parameters()) | dict(models.small.named_buffers())
    widen(models.large, tensors, plan.widenings, noise, plan.noised, seed)
    gap, limit = models.gap(plan), tolerance(plan.factors)
    if not gap <= limit:
        raise GrowthError(
            f"The large model was filled, and its outputs are {gap:.2g} (relative) off: more than {limit:g}.\n"
            f"  Its weights have been overwritten.\n"
            f"  To fix: abcfx.verify_growth(small, large, ...) names the first tensor that is off."
        )
    return Widened(difference=gap, tensors=plan.widenings, noise=noise, noised=plan.noised, seed=seed)


def _deepen(models: _Models, plan: GrowthPlan, zero_output: bool) -> Deepened:
    """Copy trained blocks into the new ones, and compare the outputs with those of the small model.

    Args:
        models: the two models.
        plan: the plan by which the large model was widened.
        zero_output: set the parameters to zero by which new blocks add to the residual stream.
    """
    copies = new_blocks(models.blocks)
    zeroed = adding_parameters(models.blocks, plan.dag) if zero_output else ()
    deepen(models.large, copies, zeroed)
    gap = models.gap(plan)
    kept = gap <= tolerance(plan.factors)
    notes: tuple[str, ...] = ()
    if zero_output and not kept:
        notes = ("new blocks change the function although the weights above were set to zero: something else adds to "
                 "the stream, or the stream itself goes through them (a norm after the sum)",)  # fmt: skip
    if not zero_output:
        notes = ("new blocks are whole copies: the function changes, as in G_stack (Du et al. 2024)",)
    return Deepened(difference=gap, kept=kept, notes=notes, copies=copies, zeroed=zeroed)
