"""The recursion at the rates that the linear program solved gives what the program says, without a solver."""

from __future__ import annotations

import pytest
from models_audited import CASES, MLP, features

import abcfx
from abcfx.exponents.recursion import follow


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("name", ["mlp", "moe", "resnet"])
def test_solved_rates_leave_nothing_unstable_and_no_room(name: str, optimizer: str) -> None:
    case = CASES[name]
    result = abcfx.transform(case.build(128), case.inputs(), base=case.build(32), optimizer=optimizer)
    outcome = result.outcome
    course = follow(outcome.fixed, outcome.solution.c, outcome.alignments)
    assert course.unstable(1e-6) == []
    matrices = {layer.parameter for _, layer in outcome.dag.layers()}
    assert {n: round(room, 6) for n, room in course.slack().items() if n in matrices and abs(room) > 1e-6} == {}


def test_a_hidden_layer_in_front_of_a_number_is_kept_stable_itself() -> None:
    """The number 1 / m in front of the readout does not let the hidden layer change by more with width."""
    result = abcfx.transform(MLP(128), features(), base=MLP(32), optimizer="adam")
    assert [round(result.plan[f"hidden.{i}.weight"].c, 6) for i in range(2)] == [1.0, 1.0]
    assert result.plan["head.weight"].c == 0.0
