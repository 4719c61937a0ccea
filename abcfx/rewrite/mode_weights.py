"""Refuse multipliers on weights that a module folds together when it goes into eval mode: it does not know of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from abcfx.capture.mode_weights import FoldingModule
from abcfx.errors import InvalidInputError
from abcfx.plan.spec import ParameterPlan


def refuse_unfollowed(folding: Iterable[FoldingModule], *, is_kept: bool) -> None:
    """Refuse what no graph can follow: a model whose own `train` changes weights, a module whose `train` makes some.

    Args:
        folding: the modules that write into weights when the mode changes.
        is_kept: whether the model's own object is kept, with its forward.

    Raises:
        InvalidInputError: names the module and the parameter.
    """
    for each in folding:
        if is_kept:
            return
        if not each.path:
            raise InvalidInputError(
                f"{each.place} has a train() or eval() that changes {each.changed[0]}, and no graph calls it: the "
                "result would compute something else in eval mode.\n"
                "  To fix: apply='inplace', which keeps the model's own train() and eval()."
            )
        if each.made:
            raise InvalidInputError(
                f"{each.place} has the parameter {each.made[0]} in one of train and eval mode only.\n"
                "  expected: the same parameters in both modes.\n"
                "  To fix: apply='inplace', which keeps the model's own forward; or let eval() make a buffer of it."
            )


def refuse_folding(folding: Iterable[FoldingModule], plan: Mapping[str, ParameterPlan]) -> None:
    """Refuse multipliers that a graph would give to the weights of a module that folds weights in eval mode.

    It would put them together without the multipliers, and compute something else in eval mode than in train mode.

    Args:
        folding: the modules that write into weights when the mode changes.
        plan: the multipliers of every parameter that the graph will have.

    Raises:
        InvalidInputError: names the module, what it folds and a multiplier.
    """
    for each in folding:
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
