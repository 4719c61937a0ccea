"""The mark of a checkpoint goes through DDP, FSDP2 and distributed checkpoints; sharded models are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from models import sequential
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import abcfx
from abcfx.errors import InvalidInputError

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
Wrap = Callable[[nn.Module], nn.Module]


def mlp(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    return sequential(width, 4, 2)


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    return model


def flat(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"))


def unflat(model: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


def of_shards(model: nn.Module) -> nn.Module:
    layer = next(each for each in model.modules() if isinstance(each, nn.Linear))
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)]))
    return model


@pytest.mark.parametrize("wrap", [DistributedDataParallel, sharded])
@pytest.mark.parametrize("full", [False, True])
def test_checkpoints_of_wrapped_results(wrap: Wrap, full: bool, one_process: None) -> None:
    options = StateDictOptions(full_state_dict=full)
    module = wrap(abcfx.transform(mlp(16), X, base=mlp(8), optimizer="adamw").module)
    assert module.load_state_dict(module.state_dict()) == ([], [])
    state = get_model_state_dict(module, options=options)
    assert set_model_state_dict(module, state, options=options) == ([], [])
    with pytest.raises(RuntimeError, match=r"fold\(\) first"):
        set_model_state_dict(wrap(mlp(16)), get_model_state_dict(module, options=options), options=options)
    other = wrap(abcfx.transform(mlp(16), X, base=mlp(4), optimizer="adamw").module)
    with pytest.raises(InvalidInputError, match="another transform"):
        set_model_state_dict(other, get_model_state_dict(module, options=options), options=options)


@pytest.mark.filterwarnings("ignore")  # of FSDP itself
@pytest.mark.parametrize(
    ("wrap", "words"),
    [(sharded, "FSDP2"), (flat, "FSDP: its"), (unflat, "FSDP: its"), (of_shards, "0.weight is a DTensor")],
)
def test_sharded_models_are_refused_by_name(wrap: Wrap, words: str, one_process: None) -> None:
    calls: list[Callable[[], object]] = [
        lambda: abcfx.transform(wrap(mlp(16)), X, base=mlp(8)),
        lambda: abcfx.transform(mlp(16), X, base=wrap(mlp(8))),
        lambda: abcfx.grow(wrap(mlp(8)), mlp(16), X),
        lambda: abcfx.verify_growth(wrap(mlp(8)), mlp(16), X),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError, match=rf"{words}(?s:.*)To fix: "):
            call()


@pytest.mark.filterwarnings("ignore:DTensor random operators")
def test_weights_are_drawn_into_shards(one_process: None) -> None:
    result = abcfx.transform(mlp(16), X, base=mlp(8), optimizer="adamw")
    sharded(result.module)
    assert result.init_weights() is result.module
    assert len(result.groups_for("adamw")) == len(result.param_groups)
