"""The transfer check finds the best rates, tells whether they move with width, and runs in parallel."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import nn
from typed import given

import abcfx
from abcfx.checks.curves import Curve, Shift, minimum
from abcfx.checks.sweep import Job, Run, Sweep
from abcfx.checks.transfer_result import TrainingRun, TransferCheck
from abcfx.checks.transfer_study import judge_transfer
from abcfx.examples.digits import load_digits
from abcfx.examples.mlp import make_mlp
from abcfx.support.verdict import Verdict, worst

WIDTHS = (16, 32, 64)


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mid(torch.relu(self.stem(x)))))


def batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(40):
        x = torch.randn(32, 8, generator=generator)
        found.append((x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] * x[:, 3] > 0).long()))
    return found


def check(**options: Any) -> TransferCheck:
    defaults: dict[str, Any] = {
        "widths": WIDTHS,
        "lr": 2.0**-6,
        "steps": 40,
        "seeds": 1,
        "backend": "sequential",
        "control": False,
    }
    return abcfx.transfer_check(Net, batches, **(defaults | options))


def test_the_result_holds_rows_figures_and_data() -> None:
    result = check(control=True, seeds=2)
    assert {run.width for run in result.runs} == set(WIDTHS)
    assert len([run for run in result.runs if run.width == 16]) == 2 * len(result.curve(16).factors) * 2
    assert result.curve(16).losses == result.curve(16, "standard").losses
    assert result.curve(64).losses != result.curve(64, "standard").losses
    assert abs(given(result.shift).mean) < abs(given(result.control).mean)
    assert result.curve(16).regret == 0.0
    assert json.loads(result.to_json())["verdict"] == result.verdict
    assert "transfer check: " in str(result)
    assert max(map(len, str(result).splitlines())) <= 120
    pytest.importorskip("matplotlib")
    assert len(result.plot().axes) == 2


def test_the_grid_grows_where_its_minimum_is_on_an_edge() -> None:
    low = check(widths=(16, 32), lrs=[2.0**-k for k in (11, 10, 9)])
    assert max(low.curve(16).factors) * given(low.centre) > 2.0**-8
    assert not low.curve(16).on_edge
    stuck = check(widths=(16, 32), lrs=[2.0**-k for k in (30, 29, 28)])
    assert stuck.verdict == Verdict.INCONCLUSIVE
    assert "beyond the grid" in stuck.reasons[0]


def test_the_minimum_is_that_of_a_parabola() -> None:
    factors = [2.0**k for k in range(-3, 4)]
    losses = [(k - 0.3) ** 2 for k in range(-3, 4)]
    assert minimum(factors, losses) == pytest.approx(0.3)
    uneven = [0.25, 1.0, 2.0]
    assert minimum(uneven, [(math.log2(f) - 0.2) ** 2 for f in uneven]) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("mean", "error", "last", "on_edge", "verdict"),
    [
        (0.1, 0.05, 1.9, False, Verdict.PASS),
        (-0.6, 0.1, 1.9, False, Verdict.FAIL),
        (0.6, 0.1, 1.9, False, Verdict.FAIL),
        (0.3, 0.1, 1.9, False, Verdict.INCONCLUSIVE),
        (0.0, 0.0, 1.9, True, Verdict.INCONCLUSIVE),
        (0.0, 0.0, 2.1, False, Verdict.WEAK),
    ],
)
def test_verdicts(mean: float, error: float, last: float, on_edge: bool, verdict: Verdict) -> None:
    def curve(width: int, loss: float) -> Curve:
        return Curve("transformed", width, (1.0,), (loss,), (0.0,), 1.0, loss, 0.0, on_edge, 0.0, 0.0)

    rows = judge_transfer([curve(16, 2.0), curve(32, last)], Shift(mean, error, ()))
    assert worst(row.verdict for row in rows) is verdict


def test_a_run_that_diverges_is_capped() -> None:
    assert Run(Job("transformed", 16, 0, ()), math.inf, 4.0).capped == 6.0
    assert Run(Job("transformed", 16, 0, ()), 50.0, 4.0).capped == 6.0
    assert Run(Job("transformed", 16, 0, ()), 4.1, 4.0).capped == 4.1
    result = check(widths=(16, 32), lrs=[2.0**-7, 2.0**-6, 2.0**-5, 1e6])
    assert any(run.diverged for run in result.runs)
    assert all(math.isfinite(loss) for loss in result.curve(32).losses)


def test_rates_by_role_move_together() -> None:
    result = check(widths=(16, 32), lr={"default": 2.0**-6, "embedding": 2.0**-4}, lrs=[0.5, 1.0, 2.0])
    assert result.centre is None
    assert result.curve(32).factors[:3] == (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lrs": [0.1, 0.2]}, "three different"),
        ({"backend": "threading"}, "loky"),
        ({"steps": 41}, "40 for 41 steps"),
        ({"steps": 2}, "at least 5"),
        ({"widths": (16,)}, "at least two"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match=message):
        check(**options)


def test_a_list_of_batches_must_be_long_enough() -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match="memorise"):
        abcfx.transfer_check(Net, batches(0)[:10], widths=WIDTHS, steps=40)


def installed(**options: Any) -> tuple[TrainingRun, ...]:
    """Return the runs of a check whose model and batches every process can import or is sent whole."""
    digits = load_digits()[0]
    rows = [(digits.images[i : i + 32], digits.labels[i : i + 32]) for i in range(0, 640, 32)]
    rates = [2.0**-7, 2.0**-6, 2.0**-5]
    defaults: dict[str, Any] = {
        "widths": (16, 32),
        "lr": 2.0**-6,
        "lrs": rates,
        "steps": 20,
        "seeds": 1,
        "control": False,
    }
    return abcfx.transfer_check(make_mlp, rows, **(defaults | options)).runs


@pytest.mark.slow
def test_processes_give_the_same_numbers() -> None:
    pytest.importorskip("joblib")
    assert installed(backend="loky", n_jobs=2) == installed(backend="sequential")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of dask's own
def test_a_dask_cluster_gives_the_same_numbers() -> None:
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with cluster, distributed.Client(cluster):
        assert installed(backend="dask") == installed(backend="sequential")


def test_the_sweep_is_sent_without_what_was_planned() -> None:
    import pickle

    from abcfx.checks.sweep_models import ModelSweep
    from abcfx.support.batch_loss import default_loss

    models = ModelSweep(Net, batches(0)[0], 16, "adamw", {})
    models.result(16)
    sweep = Sweep(models, batches, default_loss, 40, "sequential")
    assert not pickle.loads(pickle.dumps(sweep)).models._results
