"""Multiplies an optimizer's learning rates beside a scheduler, and a schedule (`wsd`) that says when it decays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler
from torch.utils.hooks import RemovableHandle

from abcfx.errors import InvalidInputError
from abcfx.support import arguments

WARMUP, SHARE_OF_RUN = 100, 0.1


class MultipliedRates:
    """Multiplies the learning rate of each group of an optimizer during each step, and restores it after the step.

    A scheduler never sees the factors, so that it may set or multiply the rates as it likes.

    Args:
        optimizer: its groups hold one parameter each.
        names: name of each group's parameter.

    Attributes:
        factors: number that multiplies the rate, by parameter name; groups that are not named keep their rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, names: Sequence[str]) -> None:
        self.optimizer, self.names = optimizer, names
        self.factors: Mapping[str, float] = {}
        self._changed: dict[int, tuple[float | torch.Tensor, float | torch.Tensor]] = {}
        self._handles: list[RemovableHandle] = [
            optimizer.register_step_pre_hook(self._multiply),
            optimizer.register_step_post_hook(self._restore),
        ]

    def detach(self) -> None:
        """Remove the hooks from the optimizer, so that its learning rates are no longer multiplied."""
        self.restore()
        while self._handles:
            self._handles.pop().remove()

    def _multiply(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Multiply the groups' learning rates before an optimizer step and keep the old ones; an optimizer hook."""
        self.restore()  # a step that raised an exception has not run the hook after it
        for index, (name, group) in enumerate(zip(self.names, optimizer.param_groups, strict=True)):
            if name in self.factors:
                scheduled, group["lr"] = group["lr"], group["lr"] * self.factors[name]
                self._changed[index] = scheduled, group["lr"]

    def _restore(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Set the groups' learning rates back to what they were before the step; a hook of the optimizer."""
        self.restore()

    def restore(self) -> None:
        """Set the groups' learning rates back to what they were before the step, unless someone set others since."""
        for index, (scheduled, multiplied) in self._changed.items():
            group = self.optimizer.param_groups[index]
            if group["lr"] is multiplied:
                group["lr"] = scheduled
        self._changed = {}


@arguments.checked(
    optimizer=arguments.optimizer,
    total=arguments.whole(),
    warmup=arguments.whole(at_least=0),
    decay=arguments.number(at_least=0, at_most=1),
)
def wsd(optimizer: torch.optim.Optimizer, total: int, *, warmup: int = 0, decay: float = 0.2) -> LambdaLR:
    """Make a learning-rate schedule of warm-up, stable phase and decay.

    The rates rise linearly to those of the groups in `warmup` steps, stay, and fall linearly to 0 in the last part of
    the run. The schedule's attribute `decaying` tells `DynamicAlignment(scheduler=...)` to leave its factors as they
    are.

    Args:
        optimizer: the optimizer whose rates are scheduled.
        total: number of steps of the run.
        warmup: number of steps of the warm-up.
        decay: share of the run in which the rates fall.

    Raises:
        InvalidInputError: a number is beyond its limits, or `optimizer` is none.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule, rates = wsd(optimizer, 5, warmup=1, decay=0.4), []
        >>> for _ in range(5):
        ...     rates.append(schedule.get_last_lr()[0])
        ...     optimizer.step()
        ...     schedule.step()
        >>> rates
        [0.5, 1.0, 1.0, 1.0, 0.5]
    """
    start = round(total * (1 - decay))
    if warmup > start:
        raise InvalidInputError(
            f"wsd: warmup={warmup} is longer than the {start} steps before the decay, so the rates would never be "
            f"reached.\n  To fix: wsd(optimizer, {total}, warmup={start // 2}, decay={decay:g})"
        )

    def factor(step: int) -> float:
        """Return what the learning rates are multiplied by at a step: rising, then 1, then falling to 0."""
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 1.0 if step < start else max(0.0, (total - step) / max(1, total - start))

    class Wsd(LambdaLR):
        """A LambdaLR that also tells the length of the run (`total_steps`) and whether it decays."""

        total_steps = total

        @property
        def decaying(self) -> bool:
            """Whether the learning rates have begun to fall."""
            return bool(self.last_epoch >= start)

    return Wsd(optimizer, factor)


def default_warmup(scheduler: LRScheduler | None, total_steps: int | None) -> int:
    """Return the number of steps before alignment is first measured: a tenth of the run, 100 if that is not known.

    Args:
        scheduler: tells the length, if it has `total_steps` or is a CosineAnnealingLR.
        total_steps: the length, where it is given.
    """
    length = total_steps or getattr(scheduler, "total_steps", None)
    if length is None and isinstance(scheduler, CosineAnnealingLR):
        length = scheduler.T_max
    return WARMUP if length is None else round(SHARE_OF_RUN * length)
