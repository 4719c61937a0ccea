"""`DynamicAlignment` looks at the optimizers that it is given: wrappers, copies of the model, other objects."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import sequential

import abcfx
from abcfx.errors import InvalidInputError

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


class Around(torch.optim.Optimizer):
    """A wrapper around an optimizer, like Accelerate's: no optimizer of its own, so that its hooks never run."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)


def transformed() -> abcfx.Transformed:
    torch.manual_seed(0)
    return abcfx.transform(sequential(16, 4, 2), X, base=sequential(8, 4, 2), optimizer="adamw")


def test_the_optimizer_in_a_wrapper_is_the_one_that_steps() -> None:
    result = transformed()
    inner = torch.optim.AdamW(result.groups(per_parameter=True))
    dynamic = abcfx.DynamicAlignment(result, Around(inner), warmup=0, every=1)
    dynamic.capture_initial(X)
    dynamic.factors.update(dict.fromkeys(result.plan, 0.0))
    for rates in dynamic._rates:
        rates.factors = dynamic.factors
    before = copy.deepcopy(dict(result.module.named_parameters()))
    result.module(X).square().mean().backward()
    inner.step()
    assert all(torch.equal(each, before[name]) for name, each in result.module.named_parameters())


def test_a_copy_of_the_model_is_refused() -> None:
    result = transformed()
    other = copy.deepcopy(result.module)
    optimizer = torch.optim.AdamW(abcfx.param_groups(other, result.spec, per_parameter=True))
    with pytest.raises(InvalidInputError, match=r"group 0 is not one of the transformed model.*and not a copy"):
        abcfx.DynamicAlignment(result, optimizer)


def test_other_objects_are_named() -> None:
    result = transformed()
    optimizer = torch.optim.AdamW(result.groups(per_parameter=True))
    dynamic: Callable[..., object] = abcfx.DynamicAlignment
    with pytest.raises(InvalidInputError, match="expected an optimizer or a list of them, got NoneType"):
        dynamic(result, None)
    with pytest.raises(InvalidInputError, match="result is a Sequential"):
        dynamic(result.module, optimizer)
