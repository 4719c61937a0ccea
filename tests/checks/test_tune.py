"""`tune` finds rates by role, and `transform` and `transfer_check` take its result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import abcfx
from abcfx.checks.rate_search import RateSearch, sum_of_moves
from abcfx.checks.sweep import Job, Run
from abcfx.checks.tune_result import Tuned


class Net(nn.Module):
    """A model whose embedding needs a larger rate than its other layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.mid, self.head = nn.Embedding(32, width), nn.Linear(width, width), nn.Linear(width, 32)
        nn.init.normal_(self.tok.weight, std=4.0)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mid(self.tok(ids))))


def batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 32, (40, 64), generator=generator)
    return [(row, (row * 5 + 3) % 32) for row in ids]


def tuned(**options: Any) -> Tuned:
    defaults: dict[str, Any] = {
        "width": 16,
        "budget": 30,
        "seeds": 1,
        "steps": 30,
        "lr": 2.0**-7,
        "backend": "sequential",
    }
    return abcfx.tune(Net, batches, **(defaults | options))


def test_the_rates_found_are_taken_by_transform_and_transfer_check() -> None:
    result = tuned(budget=20, steps=10)
    assert set(result) == {"default", "embedding", "hidden", "readout"}
    assert len(result.trials) <= 20
    assert set(result.fresh_seeds).isdisjoint(result.seeds)
    assert result.gain == pytest.approx(result.single_loss - result.loss)
    spec = abcfx.transform(Net(32), torch.arange(8), base=Net(16), lr=result).spec
    assert spec["tok.weight"]["lr"] == pytest.approx(result["embedding"] * 2 ** -spec["tok.weight"]["c"])
    assert spec["mid.bias"]["lr"] == pytest.approx(result["default"])
    checked = abcfx.transfer_check(
        Net,
        batches,
        widths=(16, 32),
        lr=result,
        lrs=[0.5, 1, 2],
        seeds=1,
        steps=30,
        backend="sequential",
        control=False,
    )
    assert checked.lr is result and isinstance(result, Tuned)
    assert json.loads(checked.to_json())["lr"] == result.rates
    assert json.loads(result.to_json())["rates"] == result.rates
    assert "one for all" in str(result)
    pytest.importorskip("matplotlib")
    assert len(result.plot().axes) == 4


def test_optuna_searches_as_well_and_is_left_as_it_was() -> None:
    optuna = pytest.importorskip("optuna")
    level = optuna.logging.get_verbosity()
    result = tuned(method="optuna", budget=20)
    assert len(result.trials) == 20
    assert min(trial.loss for trial in result.trials) < 3.0
    assert optuna.logging.get_verbosity() == level


class Bowl:
    """A sweep without training: its loss is a quadratic whose minimum is no common rate."""

    def __init__(self, **minimum: float) -> None:
        self.minimum = minimum

    def run_jobs(self, jobs: Sequence[Job], title: str) -> list[Run]:
        def loss(job: Job) -> float:
            found = {role: torch.tensor(factor).log2().item() for role, factor in job.factors}
            return 1.0 + sum((found[role] - x) ** 2 for role, x in self.minimum.items())

        return [Run(job, loss(job), 1000.0) for job in jobs]


def test_the_coordinate_search_finds_a_minimum_within_its_budget() -> None:
    bowl = Bowl(default=-1.0, embedding=3.0, hidden=-2.0)
    search = RateSearch(bowl, 16, ("embedding", "hidden"), [0], 80)
    best = search.by_coordinates(search.best_common_rate())
    assert len(search.losses) <= 80
    assert best[0] == pytest.approx(-1.0, abs=0.5)
    assert best[0] + best[1] == pytest.approx(3.0, abs=0.5)
    assert best[0] + best[2] == pytest.approx(-2.0, abs=0.5)


def test_the_best_single_rate_may_lie_outside_of_the_first_sweep() -> None:
    bowl = Bowl(default=7.0)
    search = RateSearch(bowl, 16, (), [0], 40)
    assert search.best_common_rate() == (7.0,)


def test_moves_that_help_are_added_up() -> None:
    loss: dict[tuple[float, ...], float] = {(2.0, 0.0): 1.0, (-2.0, 0.0): 2.0, (0.0, 2.0): 3.0}
    assert sum_of_moves((0.0, 0.0), [(2.0, 0.0), (-2.0, 0.0), (0.0, 2.0)], loss.__getitem__) == (2.0, 2.0)


@pytest.mark.parametrize(
    "options", [{"roles": ("head",)}, {"roles": ()}, {"budget": 3}, {"method": "grid"}, {"lr": 0.0}]
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"tune: |method=|roles|lr="):
        tuned(**options)
