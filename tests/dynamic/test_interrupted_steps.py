"""Factors on learning rates do not compound when an optimizer step raises an exception."""

from __future__ import annotations

import pytest
import torch

from abcfx.dynamic.schedules import MultipliedRates


class _Failing(torch.optim.SGD):
    """SGD whose step raises an exception, as an optimizer does that runs out of memory."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Raise the exception."""
        raise RuntimeError("out of memory")


def _interrupted() -> tuple[torch.optim.Optimizer, MultipliedRates]:
    """Return an optimizer, and the object that multiplies its rate by 1.5, after three steps that raised."""
    optimizer = _Failing([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    rates = MultipliedRates(optimizer, ["w"])
    rates.factors = {"w": 1.5}
    for _ in range(3):
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step()
    return optimizer, rates


def test_the_factor_does_not_compound() -> None:
    optimizer, _ = _interrupted()
    assert optimizer.param_groups[0]["lr"] == 1.5


def test_detaching_restores_the_rate() -> None:
    optimizer, rates = _interrupted()
    rates.detach()
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_rate_that_was_set_after_the_exception_stays() -> None:
    optimizer, rates = _interrupted()
    optimizer.param_groups[0]["lr"] = 0.25
    rates.detach()
    assert optimizer.param_groups[0]["lr"] == 0.25
