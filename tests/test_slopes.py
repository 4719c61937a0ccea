"""Every layer of fifteen transformers architectures trains as fast at width 512 as at 64, with AdamW's one lr 1e-3.

Statistic: rms((W_3 - W_0) x) of each weight op after three steps on one batch, with all multipliers in x.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from slopes import Slope, slopes, updates

import abcfx

slope_models = pytest.importorskip("slope_models", reason="needs transformers")

WIDTHS, LR, TOLERANCE = (64, 128, 256, 512), 1e-3, 0.15


def measure(
    name: str, widths: tuple[int, ...], seeds: int, **options: Any
) -> tuple[dict[str, Slope], dict[str, Slope], abcfx.Transformed]:
    """(slopes transformed, slopes as written, transformed model of the largest width); the base is the first width."""
    inputs = slope_models.ARCHITECTURES[name].inputs()
    of = slope_models.loss(**inputs)

    def as_written(width: int, seed: int) -> dict[str, float]:
        model = slope_models.build(name, width, seed)
        return updates(model, model.parameters(), of, lr=LR, weight_decay=0.0)

    plain = [[as_written(width, seed) for seed in range(seeds)] for width in widths]
    ours = plain[:1]  # at the base width nothing changes
    for width in widths[1:]:
        model, base = slope_models.build(name, width), slope_models.build(name, widths[0])
        result = abcfx.transform(
            model, (), inputs, base=base, optimizer="adamw", lr=LR, scales="absorb", verify=False, **options
        )
        ours.append([])
        for seed in range(seeds):
            drawn = dict(slope_models.build(name, width, seed).named_parameters())
            with torch.no_grad():  # one plan serves every seed: it changes an init by a factor
                for key, parameter in result.module.named_parameters():
                    parameter.copy_(drawn[key] * result.spec[key]["init_factor"])
            ours[-1].append(updates(result.module, result.param_groups, of))
    return slopes(widths, ours), slopes(widths, plain), result


def check(name: str, widths: tuple[int, ...], seeds: int) -> None:
    ours, plain, result = measure(name, widths, seeds)
    spec = result.spec
    layers = {data["parameter"] for _, data in result.dag.nodes(data=True) if data["weight"]}
    assert {key.split()[0] for key in ours} >= {key for key in layers if len(spec[key]["growth"]) > 1}
    rates = [row["c"] for row in spec.values() if row["role"] == "hidden"]
    assert rates == pytest.approx([1.0] * len(rates), abs=0.02)  # xLSTM rounds a width up
    frozen = {key for key, parameter in result.module.named_parameters() if not parameter.requires_grad}
    without = {key for key, slope in ours.items() if slope.mean is None}
    assert {key.split()[0] for key in without} <= frozen, "an update is 0 that should not be"
    wrong = {key: slope for key, slope in ours.items() if slope.mean is not None and abs(slope.mean) > TOLERANCE}
    assert not wrong
    hidden = [s.mean for key, s in plain.items() if spec[key.split()[0]]["role"] == "hidden" and s.mean is not None]
    assert max(hidden) > 0.4
    print(f"| {name} | {max(abs(s.mean) for s in ours.values() if s.mean is not None):.2f} | {max(hidden):+.2f} |")


@pytest.mark.filterwarnings("ignore")  # of transformers' own
@pytest.mark.parametrize("name", ["BERT", "ViT"])
def test_two_of_them(name: str) -> None:
    check(name, WIDTHS[:3], seeds=6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(getattr(slope_models, "ARCHITECTURES", ())))
def test_all(name: str) -> None:
    check(name, WIDTHS, seeds=6)


@pytest.mark.filterwarnings("ignore")
def test_the_check_sees_rates_that_are_too_large() -> None:
    """Alignment "no" gives hidden layers m^-1/2 instead of m^-1."""
    ours, _, result = measure("ViT", WIDTHS[:3], 4, alignment="no")
    hidden = [slope.mean for key, slope in ours.items() if result.spec[key.split()[0]]["role"] == "hidden"]
    assert min(hidden) > 0.15
