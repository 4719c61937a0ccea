"""`verify_growth`: is a large model, however it was filled, the small one grown? Seven checks that can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from abcfx.errors import AbcfxError, GrowthError, InvalidInputError
from abcfx.growing.fill.depth import ORDERS
from abcfx.growing.finding import Finding, Verification
from abcfx.growing.function_checks import constants, layers, outputs, routers, sanity
from abcfx.growing.grown import pair_blocks
from abcfx.growing.pair import Loss, Pair
from abcfx.growing.symmetry import symmetry
from abcfx.growing.trajectory import course
from abcfx.support.batch_loss import default_loss
from abcfx.support.running import forward_arguments

CHECKS: dict[str, Callable[[Pair], Finding]] = {
    "C0": sanity,
    "C1": constants,
    "C2": routers,
    "C3": symmetry,
    "C4": layers,
    "C5": course,
    "C6": outputs,
}


def verify_growth(
    small: nn.Module,
    large: nn.Module,
    batch: Any,
    *,
    loss: Loss | None = None,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None = None,
    depth: str = "stack",
    checks: tuple[str, ...] = tuple(CHECKS),
    raises: bool = True,
) -> Verification:
    """Check that a large model computes what the small one does, can go on from there, and trains along its course.

    It may have been filled by any code; neither model is changed. docs/growth.md says what each check means.

    Args:
        small: the model that was grown.
        large: the model that it was grown into, before any further step.
        batch: real inputs: a tensor, a dict of keyword arguments, or (inputs, targets).
        loss: loss(output, batch) -> scalar; by default cross entropy on targets, labels or the next token.
        optimizers: of the small and of the large model, if their states and rates are to be checked too.
        depth: where new blocks were put, as in `grow`.
        checks: which to run, of C0 to C6.
        raises: raise when one fails; otherwise the result is false.

    Raises:
        GrowthError: a check failed; the message has its place, the cause and what to write.
    """
    unknown = [each for each in checks if each not in CHECKS]
    if unknown or depth not in ORDERS:
        raise InvalidInputError(
            f"checks={checks!r}, depth={depth!r}; expected some of {', '.join(CHECKS)}, and one of {', '.join(ORDERS)}."
        )
    args, kwargs = forward_arguments(large, batch)
    pair = Pair(small, large, batch, args, kwargs, loss or default_loss, pair_blocks(small, large, depth), optimizers)
    found: list[Finding] = []
    for name in CHECKS:
        if name in checks:
            found.append(_run(name, pair, found))
    verification = Verification(tuple(found))
    if raises and not verification:
        failed = "\n".join(str(each) for each in found if each.status == "FAIL")
        raise GrowthError(f"The large model is not the small one grown.\n{failed}")
    return verification


def _run(name: str, pair: Pair, before: list[Finding]) -> Finding:
    check = CHECKS[name]
    title = (check.__doc__ or name).split(":")[0]
    if name != "C0" and any(each.check.startswith("C1") and each.node == "plan" for each in before):
        return Finding(title, "SKIP", cause="the two models could not be paired, see C1")
    try:
        return check(pair)
    except AbcfxError as error:  # what cannot be paired or solved is no growth
        text, _, fix = str(error).partition("\n  To fix: ")
        return Finding("C1 constants and geometry" if name == "C1" else title, "FAIL", node="plan", cause=text, fix=fix)
