"""Helpers run a model from a seed, on one thread or in eval mode, and restore the state afterwards."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.support.batch_loss import default_loss
from abcfx.support.running import call_with_batch, evaluating, forward_arguments, one_thread, seeded

X, Y = torch.ones(2, 4), torch.tensor([0, 1])


class Two(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left - right


def test_a_seed_repeats_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(2)
    with seeded(3):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_number_of_threads_comes_back_after_an_error() -> None:
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads


def test_models_evaluate_and_come_back_as_they_were() -> None:
    one, two = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)), nn.Linear(2, 2)
    one[1].eval()
    random.seed(0)
    drawn = random.getstate()
    with evaluating(one, two):
        assert not one.training and not two.training and not torch.is_grad_enabled()
        random.random()
    assert (one.training, one[0].training, one[1].training, two.training) == (True, True, False, True)
    assert random.getstate() == drawn
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("batch", [((X, X), Y), [(X, X), Y], {"left": X, "right": X}, ({"left": X, "right": X}, Y)])
def test_every_batch_calls_the_model_in_one_way(batch: object) -> None:
    output = call_with_batch(Two(), batch)
    assert isinstance(output, torch.Tensor)
    assert not output.any()


def test_labels_go_only_where_the_forward_takes_them() -> None:
    assert forward_arguments(nn.Linear(4, 2), {"input": X, "labels": Y}) == ((), {"input": X})
    assert forward_arguments(nn.Linear(4, 2), X) == ((X,), {})


def test_the_default_loss_finds_its_targets() -> None:
    logits = torch.zeros(2, 5)
    for batch in ((X, Y), {"input": X, "labels": Y}, ({"input": X}, {"labels": Y})):
        assert default_loss(logits, batch) == pytest.approx(torch.tensor(5.0).log())
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert default_loss({"logits": torch.zeros(2, 3, 7)}, ids) == pytest.approx(torch.tensor(7.0).log())
    assert default_loss({"loss": torch.tensor(2.5)}, ids) == 2.5
    with pytest.raises(InvalidInputError, match="neither targets nor token ids"):
        default_loss(logits, X)
    with pytest.raises(InvalidInputError, match="expected logits"):
        default_loss("text", X)
