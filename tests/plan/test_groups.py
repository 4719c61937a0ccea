"""Optimizer groups can be built again by name at any time."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
from models import Block
from torch import nn

import abcfx
from abcfx.plan.spec import Spec

IDS = torch.zeros(3, 4, dtype=torch.long)


@pytest.fixture
def result() -> abcfx.Transformed:
    return abcfx.transform(Block(64), IDS, base=Block(16), optimizer="adamw", weight_decay=0.1)


def numbers(groups: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel, copy.deepcopy])
def test_groups_are_built_again_by_name(result: abcfx.Transformed, wrap: Callable[[nn.Module], nn.Module]) -> None:
    again = abcfx.param_groups(wrap(result.module), json.loads(result.spec.to_json()))
    assert numbers(again) == numbers(result.param_groups)


def test_a_module_with_other_parameters_is_refused(result: abcfx.Transformed) -> None:
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"'emb\.weight' is in the spec but not in the module"):
        rows = {name.removeprefix("fc."): row for name, row in result.spec.items()}
        abcfx.param_groups(result.module.get_submodule("fc"), Spec(rows))
