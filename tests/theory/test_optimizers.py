"""Optimizer families are known by any spelling and give the exponents, rates and decay of the theory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from models import Block
from torch import nn

import abcfx
from abcfx.plan.options import ApplyMode, DecayMode
from abcfx.theory.optimizers import FAMILIES, Optimizer, family

NO_SCHEDULE = abcfx.Schedule()


def rates(
    optimizer: Optimizer | Mapping[str, Optimizer],
    width: int = 64,
    base: int = 16,
    lr: float | None = None,
    weight_decay: float | None = None,
    schedule: abcfx.Schedule = NO_SCHEDULE,
) -> tuple[abcfx.Transformed, dict[str, float]]:
    """Transform with absorbed multipliers and return the result with c of each parameter."""
    result = abcfx.transform(
        Block(width), torch.zeros(3, 4, dtype=torch.long), base=Block(base), optimizer=optimizer,
        apply="absorb", lr=lr, weight_decay=weight_decay, schedule=schedule,
    )  # fmt: skip
    return result, {name: row["c"] for name, row in result.spec.items()}


# (embedding, hidden, readout) with multipliers absorbed: theory 1.3 and 1.4
TABLE = {
    "adam": (0, 1, 1), "lion": (0, 1, 1), "adamatan2": (0, 1, 1), "soap": (0, 1, 1), "adagrad": (0, 1, 1),
    "sgd": (-1, 0, 1), "adafactor": (0, 0.5, 0), "lamb": (0, 0.5, 0), "muon": (-0.5, 0, 0.5), "muon_rms": (0, 0.5, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_rates_of_the_maximal_class(name: str) -> None:
    optimizer: str | dict[str, Optimizer] = (
        {"emb": name, "fc": name, "head": name, "default": "adam"} if name.startswith("muon") else name
    )
    _, c = rates(optimizer)
    assert (c["emb.weight"], c["fc.weight"], c["head.weight"]) == pytest.approx(TABLE[name])


@pytest.mark.parametrize("name", ["muon", "muon_rms"])
@pytest.mark.parametrize("grows", [(1, 1), (0, 1), (1, 0)])
def test_size_of_a_spectral_update_is_the_one_measured(name: str, grows: tuple[int, int]) -> None:
    """One step of torch's own Muon, applied to the direction that the gradient came from."""

    def size(m: int) -> float:
        rows, columns = (8 * m if grows[1] else 8), (8 * m if grows[0] else 8)
        torch.manual_seed(0)
        x, delta = torch.randn(columns), torch.randn(rows)
        weight = nn.Parameter(torch.zeros(rows, columns))
        adjust = "match_rms_adamw" if name == "muon_rms" else "original"
        optimizer = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, adjust_lr_fn=adjust)
        weight.grad = torch.outer(delta, x)
        optimizer.step()
        return float((weight.detach() @ x).square().mean().sqrt() / x.square().mean().sqrt())

    measured = math.log(size(64) / size(4)) / math.log(64 / 4)
    assert measured == pytest.approx(FAMILIES[name].spectral_growth(*grows), abs=0.12)


def test_optimizer_may_be_a_class_or_an_instance() -> None:
    model = Block(4)
    assert family(torch.optim.AdamW) == FAMILIES["adamw"]
    assert family(torch.optim.Adam(model.parameters(), decoupled_weight_decay=True)).decay == "decoupled"
    matrix = [nn.Parameter(torch.ones(2, 2))]
    assert family(torch.optim.Muon(matrix, adjust_lr_fn="match_rms_adamw")).name == "muon_rms"
    assert family("AdamW8bit") == family("PagedAdamW32bit") == FAMILIES["adamw"]
    assert family("Adam-atan2") == FAMILIES["adamatan2"]
    assert family("ADAM") == FAMILIES["adam"]
    assert family("Muon-RMS") == FAMILIES["muon_rms"]


def test_unknown_names_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        abcfx.errors.InvalidInputError, match=r"optimizer='adamm' is not known.*\n.*\n  To fix: optimizer='adam'"
    ):
        family("adamm")
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"\n  To fix: optimizer='adamw'"):
        family(torch.optim.LBFGS)


def test_numbers_of_an_instance_are_the_defaults() -> None:
    model = Block(16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25, weight_decay=0.5, eps=1e-4)
    result, _ = rates(optimizer, width=16)
    assert {(g["lr"], g["weight_decay"], g["eps"]) for g in result.param_groups} == {(0.25, 0.5, 1e-4)}
    result, _ = rates(optimizer, width=16, lr=1.0)
    assert {g["lr"] for g in result.param_groups} == {1.0}


def test_several_optimizers_share_a_model() -> None:
    both: dict[str, Optimizer] = {"hidden": torch.optim.Muon, "default": "adamw"}
    result, c = rates(both)
    muon, adamw = result.groups_for("muon"), result.groups_for(torch.optim.AdamW)
    assert [name for group in muon for name in group["param_names"]] == ["fc.weight"]
    assert len(muon) + len(adamw) == len(result.param_groups)
    torch.optim.Muon(muon), torch.optim.AdamW(adamw)
    assert (c["fc.weight"], c["emb.weight"]) == (0, 0)
    with pytest.raises(abcfx.errors.InvalidInputError, match="adamw, muon"):
        result.groups_for("sgd")


def test_muon_for_vectors_is_refused_with_the_line_that_splits() -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"fc\.bias.*\n.*'hidden': 'muon'.*groups_for"):
        rates("muon")


@pytest.mark.parametrize("scales", ["insert", "absorb"])
def test_weight_decay_modes(scales: ApplyMode) -> None:
    def decays(mode: DecayMode, name: str) -> tuple[float, float]:
        result = abcfx.transform(
            Block(64), torch.zeros(3, 4, dtype=torch.long), base=Block(16), optimizer="adamw", weight_decay=0.1,
            apply=scales, overrides=abcfx.Overrides(no_decay=["vector", "head"], decay_mode=mode),
        )  # fmt: skip
        assert result.spec["head.weight"]["weight_decay"] == result.spec["norm.weight"]["weight_decay"] == 0
        return result.spec[name]["weight_decay"], result.spec[name]["lr"] * result.spec[name]["weight_decay"]

    for name in ("emb.weight", "fc.weight"):
        assert decays("independent", name)[1] == pytest.approx(1e-4)
        assert decays("fixed", name)[0] == 0.1
    assert decays("coupled", "fc.weight") == pytest.approx((0.1, 0.1 * 1e-3 / 4))
    # with its multiplier m^(1/2) inserted, an embedding is m^(1/2) smaller, and so is the rate
    assert decays("coupled", "emb.weight")[1] == pytest.approx(1e-4)


def test_batch_size_and_horizon_multiply_rates() -> None:
    """The laws of the sources: sqrt for Adam, linear for SGD, tokens^-0.32, decay by its time scale."""
    plain, _ = rates("adamw", weight_decay=0.1)
    more, _ = rates("adamw", weight_decay=0.1, schedule=abcfx.Schedule(batch_ratio=4.0, tokens_ratio=10.0))
    for old, new in zip(plain.param_groups, more.param_groups, strict=True):
        assert new["lr"] / old["lr"] == pytest.approx(2 * 10**-0.32)
        steps = 10 / 4  # of the longer run, in those of the shorter
        assert steps * new["lr"] * new["weight_decay"] == pytest.approx(old["lr"] * old["weight_decay"])
    sgd, faster = rates("sgd")[0], rates("sgd", schedule=abcfx.Schedule(batch_ratio=4.0))[0]
    assert faster.param_groups[0]["lr"] == pytest.approx(4 * sgd.param_groups[0]["lr"])
    with pytest.raises(abcfx.errors.InvalidInputError, match="batch_ratio"):
        rates("adamw", schedule=abcfx.Schedule(batch_ratio=0.0))
