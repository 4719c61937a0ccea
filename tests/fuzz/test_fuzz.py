"""Random models of fixed seeds: nothing is wrong with any of them, and few are refused."""

from __future__ import annotations

import pytest

from fuzz.oracle import node_flags
from fuzz.properties import flags
from fuzz.recipes import recipe

FAST, ALL = 4, 60
SEEDS = [pytest.param(seed, marks=pytest.mark.slow if seed >= FAST else ()) for seed in range(ALL)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.filterwarnings("ignore")
def test_a_random_model_has_all_properties(seed: int) -> None:
    wrong = [flag for flag in flags(recipe(seed)) if not flag.name.startswith("refused")]
    assert not wrong, recipe(seed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_few_random_models_are_refused_and_nothing_is_wrong_with_the_others() -> None:
    found = {seed: flags(recipe(seed)) for seed in range(ALL, 3 * ALL)}
    assert not [(seed, flag) for seed, each in found.items() for flag in each if not flag.is_refusal]
    refused = [seed for seed, each in found.items() if any(flag.name != "refused fold" for flag in each)]
    assert len(refused) <= 0.04 * len(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_oracle_sees_a_rate_that_grows_with_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """With standard parametrization's one rate for all, the hidden layers of an MLP change more the wider they are."""
    import abcfx
    from fuzz import oracle

    drawn = recipe(0)
    right = node_flags(drawn)

    def with_one_rate(result: abcfx.Transformed) -> list[dict[str, object]]:
        return [{"params": list(result.module.parameters()), "lr": 1e-3}]

    monkeypatch.setattr(oracle, "groups_of", with_one_rate)
    assert len(node_flags(drawn)) > len(right)
