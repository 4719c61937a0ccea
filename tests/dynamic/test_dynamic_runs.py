"""DynamicAlignment works in compiled runs, with accumulated gradients, autocast, skipped steps, dicts and experts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typed import given

import abcfx
from abcfx.dynamic.first_weights import FirstWeightsMode

TOKENS = torch.randint(0, 50, (16, 12), generator=torch.Generator().manual_seed(0))


class Recall(nn.Module):
    """A small language model with dropout and an argument of its own; called with a dict, it returns one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok, self.mix, self.drop = nn.Embedding(50, width), nn.Linear(width, width), nn.Dropout(0.1)
        self.head = nn.Linear(width, 50, bias=False)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        x = self.tok(input_ids)
        logits = self.head(x + self.drop(F.relu(self.mix(x))))
        return {"logits": logits}


def planned(**options: Any) -> abcfx.Transformed:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"base": Recall(16), "optimizer": "adamw", "lr": 1e-2}
    return abcfx.transform(Recall(64), kwargs={"input_ids": TOKENS}, **(defaults | options))


def dynamic_of(result: abcfx.Transformed, **options: Any) -> tuple[torch.optim.Optimizer, abcfx.DynamicAlignment]:
    optimizer = torch.optim.AdamW(result.groups(per_parameter=True))
    dynamic = abcfx.DynamicAlignment(result, optimizer, **({"warmup": 0, "every": 1} | options))
    dynamic.capture_initial(kwargs={"input_ids": TOKENS})
    return optimizer, dynamic


def without_dropout(module: nn.Module) -> None:
    drop = module.get_submodule("drop")
    assert isinstance(drop, nn.Dropout)
    drop.p = 0.0


def loss_of(module: Callable[..., Any], ids: torch.Tensor = TOKENS) -> torch.Tensor:
    return F.cross_entropy(module(input_ids=ids)["logits"].flatten(0, 1), ids.roll(-1, 1).flatten())


def run(
    result: abcfx.Transformed,
    optimizer: torch.optim.Optimizer,
    dynamic: abcfx.DynamicAlignment,
    module: Callable[..., Any] | None = None,
    steps: int = 3,
) -> list[float]:
    torch.manual_seed(1)
    losses = []
    for _ in range(steps):
        loss = loss_of(result.module if module is None else module)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dynamic.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
@pytest.mark.skipif(shutil.which("gcc") is None and shutil.which("c++") is None, reason="no compiler")
@pytest.mark.parametrize("options", [{}, {"apply": "inplace"}])
def test_a_compiled_module_trains_at_the_rates_of_the_eager_one(options: dict[str, Any]) -> None:
    factors = []
    for compiled in (False, True):
        result = planned(**options)
        without_dropout(result.module)
        optimizer, dynamic = dynamic_of(result)
        run(result, optimizer, dynamic, torch.compile(result.module) if compiled else None)
        factors.append(dynamic.factors)
    assert factors[0] and factors[1] == pytest.approx(factors[0], rel=1e-4)


def test_gradients_may_be_accumulated() -> None:
    results = [planned(), planned()]
    for result in results:
        without_dropout(result.module)
    whole, parts = (dynamic_of(result) for result in results)
    for _ in range(3):
        for result, (optimizer, dynamic), pieces in zip(results, (whole, parts), (1, 4), strict=True):
            optimizer.zero_grad()
            for ids in TOKENS.chunk(pieces):
                (loss_of(result.module, ids) / pieces).backward()
            optimizer.step()
            dynamic.step()
    assert parts[1].factors == pytest.approx(whole[1].factors, rel=1e-3) and parts[1].steps == 3


def test_autocast_and_a_skipped_step() -> None:
    result = planned()
    optimizer, dynamic = dynamic_of(result)
    used = []
    optimizer.register_step_pre_hook(lambda o, *_: used.append([group["lr"] for group in o.param_groups]))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [group["lr"] for group in optimizer.param_groups]
    for step in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(result.module)
            given(dynamic._probe).measure()  # as exact within autocast as without
        optimizer.zero_grad()
        scaler.scale(loss * (float("inf") if step == 2 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            dynamic.step()
    assert len(used) == 3  # one of four was skipped
    assert [group["lr"] for group in optimizer.param_groups] == before and used[-1] != before
    rows = dynamic.history
    assert {row["step"] for row in rows} == {1, 2, 3, 4}
    same = [[row[key] for row in rows if row["step"] == step for key in ("alpha", "omega", "u")] for step in (2, 3)]
    assert same[0] == same[1]


def test_measuring_leaves_everything_as_it_was() -> None:
    result = planned()
    result.module.get_submodule("drop").eval()  # as a user may freeze a part
    optimizer, dynamic = dynamic_of(result)
    run(result, optimizer, dynamic, steps=1)
    assert result.module.training and not result.module.get_submodule("drop").training
    state, grads = torch.get_rng_state(), [given(p.grad).clone() for p in result.module.parameters()]
    dynamic.step()
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled()
    assert all(torch.equal(given(p.grad), g) for p, g in zip(result.module.parameters(), grads, strict=True))


@pytest.mark.parametrize("first_weights", ["sample", "redraw", "keep"])
def test_first_weights_sampled_redrawn_or_kept(first_weights: str) -> None:
    def begin(**options: Any) -> tuple[abcfx.Transformed, torch.optim.Optimizer, abcfx.DynamicAlignment]:
        result = planned()
        torch.manual_seed(3)
        result.init_weights()
        seed = 3 if first_weights == "redraw" else None
        return result, *dynamic_of(result, first_weights=first_weights, seed=seed, **options)

    result, optimizer, dynamic = begin()
    run(result, optimizer, dynamic)
    alphas = {row["node"]: row["alpha"] for row in dynamic.history}
    reference = planned()
    torch.manual_seed(3)
    reference.init_weights()
    whole = dynamic_of(reference, first_weights="keep")
    run(reference, *whole)
    exact = {row["node"]: row["alpha"] for row in whole[1].history}
    assert alphas == pytest.approx(exact, abs=1e-12 if first_weights != "sample" else 0.05)
    kept = dynamic.state_dict()["probe"]["first"]["kept"]
    assert (not kept) if first_weights == "redraw" else set(kept) == {"mix", "head"}
    other, _, resumed = begin()
    other.module.load_state_dict(result.module.state_dict())
    resumed.load_state_dict(dynamic.state_dict())
    dynamic.step()
    resumed.step()
    assert resumed.history == dynamic.history and resumed.factors == dynamic.factors


def test_first_weights_that_cannot_be_had_back_are_refused() -> None:
    result = planned()
    optimizer = torch.optim.AdamW(result.groups(per_parameter=True))
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"seed=seed"):
        abcfx.DynamicAlignment(result, optimizer, first_weights="redraw")
    with pytest.raises(abcfx.errors.InvalidInputError, match="'sample', 'redraw', 'keep'"):
        abcfx.DynamicAlignment(result, optimizer, first_weights=cast("FirstWeightsMode", "all"))
    dynamic = abcfx.DynamicAlignment(result, optimizer, first_weights="redraw", seed=3)
    with pytest.raises(abcfx.errors.InvalidInputError, match=r"is not what seed 3 draws(.|\n)*init_weights"):
        dynamic.capture_initial(kwargs={"input_ids": TOKENS})
    with pytest.raises(abcfx.errors.InvalidInputError, match="before capture_initial"):
        dynamic.step()  # nothing half done
    state = dynamic_of(planned())[1].state_dict()
    with pytest.raises(abcfx.errors.InvalidInputError, match="first_weights='sample'"):
        dynamic.load_state_dict(state)


def test_warm_up_is_a_tenth_of_a_run_of_known_length() -> None:
    result = planned()
    optimizer = torch.optim.AdamW(result.groups(per_parameter=True))
    schedulers = {
        30: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300),
        40: abcfx.dynamic.wsd(optimizer, 400),
        100: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    }
    for expected, scheduler in schedulers.items():
        assert abcfx.DynamicAlignment(result, optimizer, scheduler=scheduler).warmup == expected
    assert abcfx.DynamicAlignment(result, optimizer, total_steps=50).warmup == 5
    assert abcfx.DynamicAlignment(result, optimizer, total_steps=50, warmup=7).warmup == 7


class Mixture(nn.Module):
    """A model with experts in one tensor, used by bmm and by einsum, and a matrix on the left of its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp = nn.Linear(8, width)
        self.up = nn.Parameter(torch.randn(4, width, 2 * width) / width**0.5)
        self.down = nn.Parameter(torch.randn(4, 2 * width, width) / (2 * width) ** 0.5)
        self.left = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        x = torch.matmul(self.left, torch.relu(x).mT).mT
        parts = x.unflatten(0, (4, -1)).flatten(1, 2)  # (experts, tokens, width)
        hidden = torch.relu(torch.bmm(parts, self.up))
        out = torch.einsum("etf,efd->etd", hidden, self.down)
        return self.head(out.unflatten(1, (-1, x.shape[1])).flatten(0, 1))


def test_experts_and_a_matrix_on_the_left_are_measured_with_their_own_inputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 4, 8)
    result = abcfx.transform(Mixture(64), x, base=Mixture(32), lr=1e-2)
    optimizer = torch.optim.AdamW(result.groups(per_parameter=True))
    dynamic = abcfx.DynamicAlignment(result, optimizer, warmup=0, every=1, first_weights="keep")
    dynamic.capture_initial(x)
    probe = given(dynamic._probe)
    before = {name: p.detach().clone() for name, p in result.module.named_parameters()}
    with torch.no_grad():
        for p in (result.module.get_parameter(name) for name in ("up", "down", "left")):
            p.add_(0.1 * torch.randn_like(p))
    assert {layer.node for layer in probe.measured} >= {"up", "down", "left"} and not probe.left_out
    moments = dict(zip((layer.node for layer in probe.measured), probe.measure(), strict=True))
    for name, fan_in in (("up", 64), ("down", 128), ("left", 64)):
        dw = result.module.get_parameter(name).detach() - before[name]
        assert moments[name][0].right == pytest.approx(dw.square().mean().item(), rel=1e-4)
        assert moments[name][0].alignment(fan_in) == pytest.approx(0.5, abs=0.1)
    # each expert with its own inputs: a change along the input of every one is aligned, along another's is not
    layer = next(layer for layer in probe.measured if layer.node == "up")
    mean_input = probe.inputs["up"].mean(1)
    assert layer.matrices == (0,) and mean_input.shape == (4, 64)
    for shift, low, high in ((0, 0.75, 1.05), (1, 0.0, 0.9)):
        change = mean_input.roll(shift, 0)[:, :, None] * torch.randn(4, 1, 128)
        result.module.get_parameter("up").data = before["up"] + change
        at = [layer.node for layer in probe.measured].index("up")
        assert low < given(probe.measure()[at][0].alignment(64)) < high


class Sorted(nn.Module):
    """A model that writes into tensors by index and through a view, as routers of experts do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inp, self.mid, self.head = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = torch.argsort(x[:, 0])
        back = torch.zeros_like(order)
        back[order] = torch.arange(8)
        h = self.inp(x)[order]
        y = torch.relu(self.mid(h)).clone()
        y[:, :4].mul_(3.0)
        return self.head(y[back])


def test_values_written_in_place_are_seen_by_the_measure() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 8)
    result = abcfx.transform(Sorted(32), x, base=Sorted(32))  # no multipliers
    model, seen = Sorted(32), []
    model.load_state_dict(result.module.state_dict())
    model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(x)
    dynamic = abcfx.DynamicAlignment(result, torch.optim.AdamW(result.groups(per_parameter=True)))
    dynamic.capture_initial(x)
    torch.testing.assert_close(given(dynamic._probe).inputs["head"], seen[0].detach())
