"""Properties that `transform` has for any model, tested on random ones."""

from __future__ import annotations

import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import unmarked
from models_random import FINITE, Program, RandomModel, programs
from torch.func import functional_call

import abcfx

CHECKED = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def _model(program: Program, width: int, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return RandomModel(program, width).double()


def _inputs(seed: int = 1) -> torch.Tensor:
    return torch.randn(4, FINITE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _gradients(module: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    module(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@given(programs, st.sampled_from(["adam", "sgd", "adafactor"]))
@CHECKED
def test_at_the_base_width_transform_is_the_identity(program: Program, optimizer: str) -> None:
    model, x = _model(program, 8), _inputs()
    result = abcfx.transform(model, (x,), base=_model(program, 8, seed=5), optimizer=optimizer, lr=0.1)
    assert torch.equal(result.module(x), model(x))
    ours, theirs = _gradients(result.module, x), _gradients(model, x)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())
    assert {group["lr"] for group in result.param_groups} == {0.1}


@given(programs, st.sampled_from(["mup", "ntk", "sp", "mfp"]))
@CHECKED
def test_forward_equals_the_model_with_multiplied_weights(program: Program, parametrization: str) -> None:
    x = _inputs()
    model = _model(program, 32)
    result = abcfx.transform(model, (x,), base=_model(program, 8), parametrization=parametrization)
    weights = {name: p * _factor(result.spec[name]["multiplier"]) for name, p in result.module.named_parameters()}
    expected = functional_call(model, weights, (x,))
    torch.testing.assert_close(result.module(x), expected, rtol=1e-9, atol=1e-11)


def _factor(multiplier: object) -> float:
    assert isinstance(multiplier, float), "every use of a parameter has the same multiplier in these models"
    return multiplier


@given(programs)
@CHECKED
def test_state_dict_and_parameters_keep_names_and_load_both_ways(program: Program) -> None:
    model, x = _model(program, 16), _inputs()
    result = abcfx.transform(model, (x,), base=_model(program, 8))
    weights = unmarked(result.module.state_dict())
    assert list(weights) == list(model.state_dict())
    model.load_state_dict(weights)
    result.module.load_state_dict(model.state_dict())
    names = [name for group in result.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(dict(model.named_parameters()))
    assert sum(len(g["params"]) for g in result.param_groups) == len(names)


@given(programs, st.sampled_from(["adam", "sgd"]))
@CHECKED
def test_solution_is_stable_and_every_rate_is_held_by_a_constraint(program: Program, optimizer: str) -> None:
    """Every change r is at least min(0, s), and some constraint holds each c."""
    x = _inputs()
    result = abcfx.transform(_model(program, 16), (x,), base=_model(program, 8), optimizer=optimizer)
    solved = result.solution
    for node, r in solved.r.items():
        assert r >= min(0.0, solved.s[node]) - 1e-9
    for name in solved.solution.c:
        assert not math.isclose(solved.c[str(name)], -4.0), f"{name} is held by nothing"
        assert solved.binding[str(name)]
