"""The layers of fifteen transformers architectures train as fast at width 512 as at 64, with the same lr."""

from __future__ import annotations

import os
from typing import Any

import pytest

import abcfx

models_transformers = pytest.importorskip("models_transformers", reason="needs transformers")

WIDTHS = (64, 128, 256, 512)
PART, PARTS = map(int, os.environ.get("ABCFX_ZOO_PART", "0/1").split("/"))


def measure(name: str, widths: tuple[int, ...], seeds: int, **options: Any) -> Any:
    return abcfx.coord_check(
        lambda width: models_transformers.build(name, width),
        models_transformers.ARCHITECTURES[name].inputs(),
        widths=widths,
        loss=models_transformers.loss,
        seeds=seeds,
        **options,
    )


def check(name: str, widths: tuple[int, ...], seeds: int) -> None:
    """Check the mean slopes alone: with so few seeds one layer of forty is inconclusive now and then."""
    result = measure(name, widths, seeds)
    last = [s for s in result.slopes if s.statistic == "update" and s.step == result.steps and s.mean is not None]
    ours = [s for s in last if s.model == "transformed" and s.low is not None]
    wrong = [s for s in ours if not s.low - 0.15 <= s.mean <= s.high + 0.15]
    assert not wrong
    assert not result.failed, str(result)
    assert result.control == "FAIL"
    written = [s.mean for s in last if s.model == "standard"]
    assert max(written) > 0.4
    print(f"| {name} | {max(abs(s.mean) for s in ours):.2f} | {max(written):+.2f} |")


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")  # of transformers' own
@pytest.mark.parametrize("name", list(getattr(models_transformers, "ARCHITECTURES", ()))[PART::PARTS])
def test_all(name: str) -> None:
    check(name, WIDTHS, seeds=6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_check_sees_rates_that_are_too_large() -> None:
    """Alignment "no" gives hidden layers m^-1/2 instead of m^-1."""
    result = measure("ViT", WIDTHS[:3], 3, parametrization=abcfx.Parametrization(alignment="no"), control=False)
    assert len([row for row in result.failed if "layers" in row.name]) > 8
