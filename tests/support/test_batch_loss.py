"""The user's loss: what it may be called with, and what is said where it fails."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.errors import InvalidInputError
from abcfx.support.batch_loss import Loss, scalar_loss

OUTPUT = torch.arange(6.0).reshape(2, 3).requires_grad_()
TARGETS = torch.ones(2, 3)


@pytest.mark.parametrize("batch", [(OUTPUT, TARGETS), {"x": OUTPUT, "labels": TARGETS}])
@pytest.mark.parametrize("loss", [nn.MSELoss(), F.mse_loss, partial(F.mse_loss, reduction="mean")])
def test_a_loss_of_torch_is_called_with_output_and_targets(loss: Loss, batch: object) -> None:
    checked = scalar_loss(loss)
    assert checked is not None
    assert checked(OUTPUT, batch) == F.mse_loss(OUTPUT, TARGETS)


def test_a_function_of_ones_own_is_called_with_output_and_batch() -> None:
    checked = scalar_loss(lambda output, batch: (output["score"] - batch[1]).square().mean())
    assert checked is not None
    assert checked({"score": OUTPUT}, (OUTPUT, TARGETS)) == F.mse_loss(OUTPUT, TARGETS)


def test_a_loss_without_targets_is_refused_with_what_to_give() -> None:
    checked = scalar_loss(nn.MSELoss())
    assert checked is not None
    with pytest.raises(InvalidInputError, match=r"MSELoss takes \(output, targets\).*\n.*batch=\(inputs, targets\)"):
        checked(OUTPUT, OUTPUT)


def test_an_error_within_the_loss_says_what_it_was_called_with() -> None:
    checked = scalar_loss(lambda output, y: (output["score"] - y).mean())
    assert checked is not None
    wanted = r"raised TypeError.*dict of 'score': a tensor \(2, 3\); .* a tuple of \(a tensor \(2, 3\), a tensor"
    with pytest.raises(InvalidInputError, match=wanted):
        checked({"score": OUTPUT}, (OUTPUT, TARGETS))


def test_the_class_of_a_loss_is_refused_with_the_call() -> None:
    with pytest.raises(InvalidInputError, match=r"loss=MSELoss\(\)"):
        scalar_loss(nn.MSELoss)  # type: ignore[arg-type]


def test_a_check_trains_on_a_loss_of_torch() -> None:
    def regression(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 1))

    batch = torch.randn(8, 5), torch.randn(8, 1)
    check = abcfx.coord_check(regression, batch, widths=(16, 32), loss=nn.MSELoss(), seeds=1, steps=1, control=False)
    assert {row.name for row in check.rows} >= {"0.weight", "2.weight"}
