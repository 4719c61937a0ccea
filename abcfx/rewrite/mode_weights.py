"""Refuse multipliers on weights that a module folds together when it goes into eval mode: it does not know of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from abcfx.capture.mode_weights import folding_modules
from abcfx.errors import InvalidInputError
from abcfx.plan.spec import ParameterPlan


def refuse_folding(model: nn.Module, plan: Mapping[str, ParameterPlan]) -> None:
    """Raise an error if a graph would multiply weights that a module puts together in eval mode, as LoRA does.

    It would put them together without the multipliers, and compute something else in eval mode than in train mode.

    Args:
        model: the model, whose modules may write into weights when the mode changes.
        plan: the multipliers of every parameter that the graph will have.

    Raises:
        InvalidInputError: names the module, what it folds and a multiplier.
    """
    for each in folding_modules(model):
        for name, row in plan.items():
            factor = next((value for value in row.multiplier.values() if value != 1.0), None)
            if factor is not None and each.holds(name):
                raise InvalidInputError(
                    f"{each.place} folds weights together when it goes into eval mode (it changes {each.changed[0]}), "
                    f"without the multiplier {factor:.4g} that the graph gives {name}: eval mode would compute "
                    "something else than train mode.\n"
                    "  To fix: apply='absorb' or apply='inplace', which need no multiplier; or keep the weights apart "
                    "in eval mode (in loralib, merge_weights=False)."
                )
