"""A checkpoint of weights that a graph multiplies is loaded by that graph's module, and by nothing else."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import sequential, unmarked
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.cli.load import load_weights
from abcfx.errors import InvalidInputError
from abcfx.plan.options import ApplyMode

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
State = dict[str, torch.Tensor]


def mlp(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return sequential(width, 4, 2)


def transformed(
    base: int = 8, apply: ApplyMode = "insert", capture: CaptureMethod | abcfx.Capture = "auto"
) -> abcfx.Transformed:
    return abcfx.transform(mlp(16), X, base=mlp(base), optimizer="adamw", apply=apply, capture=capture)


def saved(state: State) -> State:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: State = torch.load(file, weights_only=True)
    return loaded


def averaged(state: State) -> State:
    model = transformed()
    moving = AveragedModel(model.module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(20):
        moving.update_parameters(model.module)
    return dict(moving.module.state_dict())


PASSED_ON: list[Callable[[State], State]] = [
    saved,
    averaged,
    copy.deepcopy,
    lambda state: {name: tensor.bfloat16() for name, tensor in state.items()},
    lambda state: {name: (tensor + tensor + tensor) / 3 for name, tensor in state.items()},
]


@pytest.mark.parametrize("passed_on", PASSED_ON)
def test_plain_class_refuses_and_the_same_transform_loads(passed_on: Callable[[State], State]) -> None:
    result = transformed()
    state = passed_on(result.module.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*fold\(\) first"):
        mlp(16).load_state_dict(state)
    result.module.load_state_dict(state)
    transformed(capture="export").module.load_state_dict(state)
    with pytest.raises(InvalidInputError, match="another transform"):
        transformed(base=4).module.load_state_dict(state)


def test_no_weight_is_loaded_that_belongs_to_other_multipliers() -> None:
    other = transformed(base=4).module
    state = {name: tensor + 1 for name, tensor in other.state_dict().items()}
    for module in (transformed().module, transformed(apply="off").module):
        before = copy.deepcopy(module.state_dict())
        for strict in (True, False):
            with pytest.raises(InvalidInputError, match=r"To fix: .*result.fold\(\)"):
                module.load_state_dict(other.state_dict() if strict else state, strict=strict)
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_weights_without_a_mark_load_as_before() -> None:
    module = transformed().module
    plain = mlp(16).state_dict()
    assert module.load_state_dict(plain) == ([], [])
    assert list(unmarked(module.state_dict())) == list(plain)
    assert len(module.state_dict()) == len(plain) + 1


@pytest.mark.parametrize("result", [transformed(base=16), transformed(apply="absorb"), transformed(apply="off")])
def test_graphs_that_multiply_nothing_bear_no_mark(result: abcfx.Transformed) -> None:
    mlp(16).load_state_dict(result.module.state_dict())
    assert list(result.module.state_dict()) == list(mlp(16).state_dict())


def test_folded_weights_bear_no_mark() -> None:
    result, plain = transformed(), mlp(16)
    plain.load_state_dict(result.fold().state_dict())
    torch.testing.assert_close(plain(X), result.module(X))


def test_marks_of_the_user_bear_a_mark() -> None:
    class Model(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.body = abcfx.scaled(nn.Linear(4, width), 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.body(x)
            return out

    result = abcfx.transform(Model(16), X, base=Model(4), apply="off")
    with pytest.raises(RuntimeError, match=r"fold\(\) first"):
        Model(16).load_state_dict(result.module.state_dict())


def test_module_planned_without_weights_is_marked_after_they_come() -> None:
    with torch.device("meta"):
        large, small = mlp(16), mlp(8)
    like = abcfx.InitLike(lambda: mlp(4), lambda: mlp(8))
    empty = abcfx.transform(large, X, base=small, optimizer="adamw", init=like).module
    filled = copy.deepcopy(empty).to_empty(device="cpu")
    state = transformed().module.state_dict()
    filled.load_state_dict(state)
    assert filled.load_state_dict(filled.state_dict()) == ([], [])
    empty.load_state_dict(mlp(16).state_dict(), assign=True)
    transformed().module.load_state_dict(empty.state_dict())


def test_command_line_says_fold(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(transformed().module.state_dict(), file)
    with pytest.raises(InvalidInputError, match=r"To fix: torch.save\(result.fold\(\).state_dict\(\)"):
        load_weights("--large-weights", mlp(16), file)
