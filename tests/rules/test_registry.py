"""The registry knows ops by any of their names, and rules can hold for a while."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.rules import Op, Value, find_function_rule, find_module_rule, override, plain_name


class Powers(nn.Module):
    """A model with an op that abcfx has no rule for."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.emb, self.head = nn.Linear(6, width), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.linalg.vander(self.emb(x))[..., 1])


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x) + x


class WithTwice(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.emb, self.twice, self.head = nn.Linear(6, width), Twice(), nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.twice(self.emb(x)))


def same(op: Op, x: Value) -> Value:
    return op.same(x)


def pointwise(op: Op, x: Value) -> Value:
    return op.pointwise(x)


def kinds(model: nn.Module) -> set[str]:
    result = abcfx.transform(model, torch.randn(4, 6))
    return {node.kind.name for node in result.outcome.dag.nodes}


def test_an_override_holds_inside_of_its_block_only() -> None:
    with override("linalg_vander", pointwise):
        assert "pointwise" in kinds(Powers())
    with pytest.raises(
        abcfx.errors.UnknownOpError, match=r"(?s)vander.*powers of different degrees.*abcfx\.rules\.register_rule"
    ):
        kinds(Powers())


def test_overrides_nest_and_the_rule_before_holds_again() -> None:
    with override("linalg_vander", same):
        with override("linalg_vander", pointwise):
            assert find_function_rule("linalg_vander") is pointwise
        assert find_function_rule("linalg_vander") is same
    assert find_function_rule("linalg_vander") is None
    own = find_function_rule(torch.relu)
    with override("relu", pointwise):
        assert find_function_rule(torch.nn.functional.relu) is pointwise
    assert find_function_rule(torch.relu) is own is not None


def test_an_override_is_taken_back_after_an_exception() -> None:
    with pytest.raises(KeyError), override("linalg_vander", same):
        raise KeyError
    assert find_function_rule("linalg_vander") is None


@pytest.mark.parametrize("method", ["symbolic", "record"])
def test_a_module_stays_one_node_as_long_as_its_rule_holds(method: CaptureMethod) -> None:
    def nodes() -> set[str]:
        result = abcfx.transform(WithTwice(), torch.randn(4, 6), capture=abcfx.Capture(method=method))
        return {node.kind.name for node in result.outcome.dag.nodes}

    def rule(op: Op, module: nn.Module, x: Value) -> Value:
        return op.same(x)

    with override(Twice, rule):
        assert nodes() == {"layer", "vector"}
        with override(Twice, rule):
            pass
        assert nodes() == {"layer", "vector"}
    assert nodes() == {"layer", "vector", "merge", "pointwise"}


def test_a_module_type_of_torch_keeps_its_rule_after_an_override() -> None:
    before = find_module_rule(nn.ReLU())
    with override(nn.ReLU, lambda op, module, x: op.pointwise(x)):
        assert find_module_rule(nn.ReLU()) is not before
    assert find_module_rule(nn.ReLU()) is before is not None


def test_all_spellings_of_an_op_have_one_name() -> None:
    spellings = (torch.relu, torch.nn.functional.relu, torch.Tensor.relu_, "relu_", torch.ops.aten.relu.default)
    assert {plain_name(target) for target in spellings} == {"relu"}
    assert plain_name(operator.truediv) == plain_name(torch.divide) == "div"
    assert plain_name(torch.ops.aten._convolution.default) == "convolution"
    assert plain_name(kinds) is None


def test_a_rule_may_be_registered_by_any_spelling() -> None:
    own = find_function_rule(torch.div)
    with override("true_divide", same):
        assert find_function_rule(torch.div) is same
    assert find_function_rule(torch.div) is own
