"""A Sequential with multipliers inside is indexed, sliced, changed and extended as an `nn.Sequential` is."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod
from abcfx.rewrite.sequences import EmittedSequential


def build(width: int) -> nn.Sequential:
    inner = nn.Sequential(
        nn.Linear(width, width), nn.Dropout(), nn.GELU(), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
    )
    return nn.Sequential(nn.Linear(8, width), inner, nn.Linear(width, 2))


def inner_of(method: CaptureMethod = "auto") -> tuple[EmittedSequential, nn.Module]:
    """Return the inner Sequential of a model with a multiplier at each layer, and the same one with folded weights."""
    torch.manual_seed(0)
    result = abcfx.transform(build(32), torch.rand(4, 8), base=build(16), parametrization="ntk", capture=method)
    found = result.module.get_submodule("1")
    assert isinstance(found, EmittedSequential)
    return found.eval(), result.fold().get_submodule("1").eval()


@pytest.mark.parametrize("method", ["symbolic", "record"])  # an exported layer has its multiplier inside
def test_slices_run_their_parts_with_the_multipliers(method: CaptureMethod) -> None:
    inner, folded = inner_of(method)
    assert isinstance(folded, nn.Sequential)
    x = torch.rand(4, 32)
    for index in (slice(1, None), slice(None, -1), slice(None), slice(0, 4, 3), slice(-2, None), slice(3, None)):
        assert torch.allclose(inner[index](x), folded[index](x), atol=1e-6)
        assert len(inner[index]) == len(list(folded[index].children()))
        assert list(inner[index].state_dict()) == list(folded[index].state_dict())
    assert torch.allclose(inner[2:](inner[:2](x)), inner(x)) and torch.equal(inner[1:][2:](x), inner[3:](x))
    assert inner[3:].get_parameter("3.weight") is inner[3].weight


def test_parts_without_a_multiplier_are_a_plain_sequential() -> None:
    inner, _ = inner_of()
    assert type(inner[1:3]) is nn.Sequential and len(inner[1:3]) == 2
    assert type(inner[5:]) is nn.Sequential and len(inner[5:]) == 0


def test_parts_are_replaced_and_added() -> None:
    inner, _ = inner_of()
    x = torch.rand(4, 32)
    before = inner(x)
    assert inner.append(nn.ReLU()) is inner and len(inner) == 6
    assert torch.equal(inner(x), before.relu()) and torch.equal(copy.deepcopy(inner)(x), before.relu())
    inner[5] = nn.Identity()
    assert torch.equal(inner(x), before)


def test_an_unpickled_one_says_that_its_multipliers_have_lost_their_parts() -> None:
    inner, _ = inner_of("symbolic")
    twin = pickle.loads(pickle.dumps(inner))
    assert torch.equal(twin(x := torch.rand(4, 32)), inner(x))
    with pytest.raises(abcfx.AbcfxError, match="slice"):
        twin[1:]
