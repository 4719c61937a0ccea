"""`Request`: what one call of `transform` asks for, with its options checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from abcfx.capture.emitted import graphs_within
from abcfx.capture.given_models import given_model
from abcfx.capture.options import Capture
from abcfx.errors import InvalidInputError
from abcfx.exponents.options import Parametrization
from abcfx.pairing.pair import Shapes
from abcfx.passes import scale_nodes
from abcfx.plan.options import (
    DEFAULT_LR,
    ApplyMode,
    ByRole,
    InitLike,
    InitMode,
    Instance,
    Overrides,
    PlanOptions,
    Schedule,
)
from abcfx.rewrite.once import was_transformed
from abcfx.support.arguments import wrong
from abcfx.theory.optimizer_groups import shared_number
from abcfx.theory.optimizers import Optimizer


@dataclass(frozen=True)
class Request:
    """What one call of `transform` asks for, checked.

    Attributes:
        model: the model, without wrappers.
        base: the base as a module, as shapes by parameter name, or None.
        inputs: positional and keyword example inputs.
        optimizer: the optimizer, or one for each role or pattern.
        parametrization: the table, with alignment, attention and depth.
        options: the options that decide numbers.
        given_apart: names of the numbers that the user gave for all parameters.
        init: what is done to the weights.
        capture: how models are captured.
        notes: sentences on what was taken off the models.
    """

    model: nn.Module
    base: nn.Module | Shapes | None
    inputs: tuple[object, Mapping[str, object] | None]
    optimizer: Optimizer | Mapping[str, Optimizer]
    parametrization: Parametrization
    options: PlanOptions
    given_apart: Collection[str]
    init: InitMode | InitLike
    capture: Capture
    notes: tuple[str, ...]


def plan_options(
    optimizer: Optimizer | Mapping[str, Optimizer],
    lr: ByRole | None,
    weight_decay: float | None,
    eps: float | None,
    apply: ApplyMode,
    init: InitMode | InitLike,
    overrides: Overrides,
    schedule: Schedule,
) -> PlanOptions:
    """Check the options of `transform` that decide numbers, and return them as one object.

    A learning rate or weight decay that was not given (None) is taken from optimizer instances, if there are any.

    Raises:
        InvalidInputError: `overrides` or `schedule` is no object of its class.
    """
    for option, value, wanted in (("overrides", overrides, Overrides), ("schedule", schedule, Schedule)):
        if not isinstance(value, wanted):
            name = f"abcfx.{wanted.__name__}"
            raise wrong(option, value, f"an {name}", f"{option}={name}(...), or leave it out.")
    return PlanOptions(
        lr=shared_number(optimizer, "lr", DEFAULT_LR) if lr is None else lr,
        weight_decay=shared_number(optimizer, "weight_decay", 0.0) if weight_decay is None else weight_decay,
        eps=eps,
        apply=apply,
        init="auto" if isinstance(init, InitLike) else init,
        overrides=overrides,
        schedule=schedule,
    )


def refuse_transformed(argument: str, model: nn.Module) -> None:
    """Raise an error for a model that an earlier `transform` changed: its multipliers would count twice.

    Args:
        argument: the option it was given for ("model", "base"), for the message.
        model: the model.

    Raises:
        InvalidInputError: the model's weights, hooks or graph hold what a transform put there.
    """
    if was_transformed(model):
        raise InvalidInputError(
            f"{argument} was transformed before: its init factors and multipliers would count twice.\n"
            f"  To fix: transform a model built anew; result.fold() of the earlier transform makes plain weights of it."
        )
    scales = [node for graph in graphs_within(model) for node in scale_nodes(graph)]
    if scales:
        raise InvalidInputError(
            f"{argument} was transformed before: its graphs have {len(scales)} scale nodes, which "
            f"would count twice.\n  To fix: transform the original model."
        )


def built_base(
    base: Instance | Shapes | None, init: InitMode | InitLike
) -> tuple[nn.Module | Shapes | None, tuple[str, ...]]:
    """Return the base (smaller model to compare with) as a module, as shapes by name, or None; and notes.

    The module is taken out of wrappers such as DDP; the notes say so.

    Args:
        base: a model, a function that builds it, a dict of parameter name to shape, or None.
        init: what is to be done to the weights, which says whether shapes alone will do.

    Raises:
        InvalidInputError: shapes were given, but nothing that says how the base is initialised; or no model.
    """
    if base is None:
        return None, ()
    if isinstance(base, Mapping):
        if init != "keep" and not isinstance(init, InitLike):
            raise InvalidInputError(
                "base: shapes do not say how the base is initialised.\n"
                "  To fix: give a base model, or init=InitLike(small, large): two tiny instances; or init='keep'."
            )
        for name, shape in base.items():
            if not isinstance(shape, Sequence) or not all(isinstance(size, int) for size in shape):
                raise InvalidInputError(f"base: the shape of {name!r} is {shape!r}; expected whole numbers.")
        return base, ()
    given = given_model("base", base)
    refuse_transformed("base", given.model)
    return given.model, given.notes


def given_apart_of(**numbers: float | None) -> set[str]:
    """Return the names of the numbers that are not None: lr, weight decay or eps that the user gave for all parameters.

    These override the numbers of an optimizer instance.
    """
    return {key for key, value in numbers.items() if value is not None}
