"""`verify_growth`: checks that a large model, whoever filled it, is the small one grown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import nn

from abcfx.capture.given_models import given_model
from abcfx.capture.options import Capture, CaptureMethod
from abcfx.errors import AbcfxError
from abcfx.growing.blocks import pair_blocks
from abcfx.growing.check_result import CheckName, GrowthCheckResult, GrowthCheckRow, judged
from abcfx.growing.fill.depth import BLOCK_ORDERS, BlockOrder
from abcfx.growing.function_checks import constants, layers, outputs, routers, sanity
from abcfx.growing.grown import Grown
from abcfx.growing.grown_pair import GrownPair
from abcfx.growing.symmetry import symmetry
from abcfx.growing.trajectory import trajectory
from abcfx.support import arguments
from abcfx.support.batch_loss import Loss, scalar_loss
from abcfx.support.choices import choose
from abcfx.support.running import evaluating, forward_arguments
from abcfx.support.verdict import Verdict

CHECKS: dict[CheckName, Callable[[GrownPair], GrowthCheckRow]] = {
    "C0": sanity,
    "C1": constants,
    "C2": routers,
    "C3": symmetry,
    "C4": layers,
    "C5": trajectory,
    "C6": outputs,
}


@torch.inference_mode(False)
def _two_optimizers(option: str, value: object) -> None:
    """Raise an error unless the value of an option is a pair: the optimizers of the small and of the large model.

    Raises:
        InvalidInputError: it is no pair of torch optimizers.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise arguments.wrong(option, value, "the optimizers of both models", "optimizers=(of_small, of_large)")
    for each in value:
        arguments.optimizer(f"{option}: each", each)


@arguments.checked(raises=arguments.flag, checks=arguments.words, optimizers=arguments.optional(_two_optimizers))
def verify_growth(
    small: nn.Module,
    large: nn.Module | Grown,
    batch: object,
    *,
    loss: Loss | None = None,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer] | None = None,
    block_order: BlockOrder = "stack",
    checks: Sequence[CheckName] = get_args(CheckName),
    raises: bool = True,
    capture: Capture | CaptureMethod = "auto",
) -> GrowthCheckResult:
    """Check that a large model computes what the small one does, can go on from there, and trains along its trajectory.

    The large model may have been filled by any code; neither model is changed. docs/growth.md explains each check.

    Main arguments:
        small: the model that was grown.
        large: the model that it was grown into, before any further step; or the result of `grow`, whose captures of
            both models are used again.
        batch: real inputs: a tensor, a dict of keyword arguments, or (inputs, targets).
        loss: function of (output, batch) that returns a scalar, or a loss of torch (`nn.MSELoss()`, `F.mse_loss`),
            which is called with output and targets; by default the model's own, else cross entropy of its outputs (as
            `transform` chooses them) on targets, labels or the next token.
        optimizers: of the small and of the large model, if their states and rates are to be checked too.

    Other arguments:
        block_order: where new blocks were put, as in `grow`.
        checks: which to run, of C0 to C6.
        raises: raise an error if a check fails.
        capture: name of a capture method, or a `Capture`; both models are captured once.

    Returns:
        One row for each check, in the order of causes; true if all that had something to check pass.

    Raises:
        CheckFailedError: a check failed; the message has its place, the reason and what to write.

    Example:
        >>> import torch, abcfx
        >>> def mlp(width):
        ...     return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 1))
        >>> small, x = mlp(4), torch.randn(2, 3)
        >>> grown = abcfx.grow(small, mlp(8), x)
        >>> checked = abcfx.verify_growth(small, grown, x, checks=("C0", "C1", "C4"))
        >>> print(checked.verdict)
        PASS
    """
    Capture.of(capture).refuse_base_inputs("verify_growth")
    chosen = {choose("checks", each, CHECKS) for each in checks}
    order = choose("block_order", block_order, BLOCK_ORDERS)
    module, captured = (large.module, large.models) if isinstance(large, Grown) else (large, None)
    small = given_model("small", small, on_device=True).model
    module = given_model("large", module, on_device=True).model
    args, kwargs = forward_arguments(module, batch)
    for name, each in (("small", small), ("large", module)):
        with evaluating(each), arguments.run_on(f"batch ({name})", each):
            each(*args, **kwargs)
    pair = GrownPair(
        small,
        module,
        batch,
        args,
        kwargs,
        scalar_loss(loss),
        pair_blocks(small, module, order),
        optimizers,
        Capture.of(capture),
        captured,
    )
    result = GrowthCheckResult(rows=_rows(pair, [name for name in CHECKS if name in chosen]))
    if raises:
        result.raise_if_failed()
    return result


def _rows(pair: GrownPair, checks: Sequence[CheckName]) -> tuple[GrowthCheckRow, ...]:
    """Run the asked checks of a growth (a large model filled from a small one) in order and return their rows.

    If the two models cannot be compared, C1 fails and the checks that compare them are skipped.
    """
    unpaired = _why_unpaired(pair) if set(checks) - {"C0"} else None
    found = []
    for name in checks:
        if name == "C0" or unpaired is None:
            found.append(_run(name, pair))
        elif name == "C1" or "C1" not in checks:
            found.append(judged(name, Verdict.FAIL, unpaired))
        else:
            found.append(judged(name, Verdict.SKIP, "the two models could not be paired, see C1"))
    return tuple(found)


def _why_unpaired(pair: GrownPair) -> str | None:
    """Return why the small and the large model cannot be compared; None where they can."""
    try:
        assert pair.plan
    except AbcfxError as error:
        return str(error)
    return None


def _run(name: CheckName, pair: GrownPair) -> GrowthCheckRow:
    """Run one check of a growth (a large model filled from a small one); an error of abcfx counts as a failure."""
    try:
        return CHECKS[name](pair)
    except AbcfxError as error:  # the runs cannot be paired, or the loss does not fit
        return judged(name, Verdict.FAIL, str(error))
