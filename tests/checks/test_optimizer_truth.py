"""The optimizer check compares objects, numbers, class and constructor, not names alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import Block, Lion
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import abcfx
from abcfx.support.verdict import Verdict

IDS = torch.zeros(3, 4, dtype=torch.long)
UNDECAYED = abcfx.Overrides(no_decay=["vector", "*.bias"])


def planned(**options: Any) -> abcfx.Transformed:
    return abcfx.transform(Block(64), IDS, **{"base": Block(16), "optimizer": "adamw", **options})


def failed(optimizer: torch.optim.Optimizer, result: abcfx.Transformed, **options: Any) -> str:
    """Return the rows that are not PASS, as text; empty if the check passes."""
    check = abcfx.check_optimizer(optimizer, result, **options)
    rows = [row for row in check.rows if row.verdict is not Verdict.PASS]
    assert bool(check) == (not rows)
    return "\n".join(map(str, rows))


# -- objects


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DDP": DistributedDataParallel,
    "compile": torch.compile,  # type: ignore[dict-item]
    "DataParallel": nn.DataParallel,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile itself
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_hold_the_same_parameters(name: str, one_process: None) -> None:
    result = planned()
    wrapped = WRAPPERS[name](result.module)
    optimizer = torch.optim.AdamW(abcfx.param_groups(wrapped, result.spec))
    assert not failed(optimizer, result)
    assert not failed(optimizer, result, module=wrapped)
    optimizer.param_groups[0]["lr"] *= 2
    assert "lr =" in failed(optimizer, result, module=wrapped)


def test_sharding_replaces_parameters(one_process: None) -> None:
    result = planned()
    early = torch.optim.AdamW(result.param_groups)
    fully_shard(result.module, mesh=init_device_mesh("cpu", (1,)))
    assert "no longer has" in failed(early, result)
    assert not failed(torch.optim.AdamW(abcfx.param_groups(result.module, result.spec)), result)


def test_a_replaced_parameter_is_named() -> None:
    result = planned()
    optimizer = torch.optim.AdamW(result.param_groups)
    owner = result.module.get_submodule("fc")
    owner.weight = nn.Parameter(owner.weight.detach().clone())  # type: ignore[operator]
    told = failed(optimizer, result)
    assert "a tensor for 'fc.weight' that the module no longer has" in told
    assert "'fc.weight' is in no group" in told


def test_another_module_counts_where_it_is_given() -> None:
    result = planned()
    other = copy.deepcopy(result.module)
    optimizer = torch.optim.AdamW(abcfx.param_groups(other, result.spec))
    assert "module=that" in failed(optimizer, result)
    assert not failed(optimizer, result, module=other)
    assert "no longer has" in failed(torch.optim.AdamW(result.param_groups), result, module=other)


def test_a_parameter_that_was_added_later_is_named() -> None:
    result = planned()
    optimizer = torch.optim.AdamW(result.param_groups)
    result.module.get_submodule("fc").register_parameter("low_rank", nn.Parameter(torch.zeros(2)))
    assert "'fc.low_rank' of the module was not there" in failed(optimizer, result)


def test_parameters_that_were_frozen_and_train_now_and_the_reverse() -> None:
    large, small = Block(64), Block(16)
    for model in (large, small):
        model.fc.weight.requires_grad_(False)
    result = abcfx.transform(large, IDS, base=small, optimizer="adamw")
    optimizer, named = torch.optim.AdamW(result.param_groups), dict(result.module.named_parameters())
    assert not failed(optimizer, result)
    named["fc.weight"].requires_grad_(True)
    assert "'fc.weight' is in no group of this optimizer, so it does not learn; it was frozen" in failed(
        optimizer, result
    )
    later = torch.optim.AdamW(result.param_groups)
    assert "FAIL fc.weight: it was frozen when the plan was made, and trains now" in failed(later, result)
    named["fc.weight"].requires_grad_(False)
    named["head.weight"].requires_grad_(False)
    assert failed(optimizer, result).startswith("WEAK head.weight: it trained when the plan was made")


# -- numbers


@pytest.mark.parametrize(
    ("key", "name", "value", "told"),
    [
        ("weight_decay", "norm.bias", 0.1, "weight_decay = 0.1 for .*expected 0, as planned"),
        ("weight_decay", "fc.weight", 0.0, "weight_decay = 0 for .*expected 0.4, as planned"),
        ("eps", "fc.weight", 0.0, "eps = 0 for .*expected 2.5e-09"),
        ("lr", "fc.weight", 1e-3, "lr = 0.001; expected 0.00025"),
        ("lr", "fc.weight", float("nan"), "lr = nan; expected 0.00025"),
        ("lr", "fc.weight", torch.tensor(1e-3), "lr = 0.001; expected 0.00025"),
    ],
)
def test_each_number_of_a_group(key: str, name: str, value: object, told: str) -> None:
    result = planned(weight_decay=0.1, overrides=UNDECAYED)
    optimizer = torch.optim.AdamW(result.param_groups)
    assert not failed(optimizer, result)
    for group in optimizer.param_groups:
        if name in group["param_names"]:
            group[key] = value
    with pytest.raises(abcfx.errors.CheckFailedError, match=told):
        abcfx.check_optimizer(optimizer, result).raise_if_failed()


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_one_decay_in_every_group_is_not_what_was_planned(value: float) -> None:
    result = planned(weight_decay=0.0 if value else 0.3)
    optimizer = torch.optim.AdamW(result.param_groups)
    for group in optimizer.param_groups:
        group["weight_decay"] = value
    assert "weight_decay =" in failed(optimizer, result)


@pytest.mark.parametrize("key", ["weight_decay", "eps"])
def test_another_multiple_of_the_plan_everywhere_is_told(key: str) -> None:
    result = planned(weight_decay=0.1)
    optimizer = torch.optim.AdamW(result.param_groups)
    for group in optimizer.param_groups:
        group[key] *= 10
    assert failed(optimizer, result).startswith(f"WEAK {key} of all groups: every group has 10 times the planned {key}")


def test_betas_of_an_instance_belong_to_the_plan() -> None:
    base = Block(16)
    result = planned(base=base, optimizer=torch.optim.AdamW(base.parameters(), betas=(0.8, 0.9)))
    optimizer = torch.optim.AdamW(result.param_groups)
    assert not failed(optimizer, result)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, [g["lr"] for g in optimizer.param_groups], 10)
    assert optimizer.param_groups[0]["betas"] != (0.8, 0.9)  # it cycles them
    assert "betas" not in failed(optimizer, result)
    optimizer = torch.optim.AdamW(result.param_groups)
    optimizer.param_groups[1]["betas"] = (0.9, 0.999)
    assert r"betas = (0.9, 0.999) for" in failed(optimizer, result)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"weight_decay": 0.3}, "transform(..., weight_decay=0.3)"),
        ({"weight_decay": 0.2, "lr": 0.5}, "transform(..., weight_decay=0.2)"),
        ({"eps": 1e-3}, "transform(..., eps=0.001)"),
        ({"weight_decay": 0.1}, ""),  # what transform was given
        ({"lr": 1.0}, ""),  # many optimizers have to get one
        ({"betas": (0.9, 0.95)}, ""),  # takes effect, since groups of a plan by name have none
        ({"amsgrad": True}, ""),
    ],
)
def test_what_the_constructor_was_given_and_groups_overrule(given: dict[str, Any], told: str) -> None:
    result = planned(weight_decay=0.1, overrides=abcfx.Overrides(decay_mode="independent"))
    said = failed(torch.optim.AdamW(result.param_groups, **given), result)
    assert (told in said) if told else not said
    if told:
        assert f"has no effect: every group brings a value of its own\n  To fix: {told}" in said


def test_betas_of_the_constructor_that_the_plan_overrules() -> None:
    base = Block(16)
    result = planned(base=base, optimizer=torch.optim.AdamW(base.parameters(), betas=(0.8, 0.9)))
    assert not failed(torch.optim.AdamW(result.param_groups, betas=(0.8, 0.9)), result)
    assert "give betas=(0.7, 0.9) to the optimizer instance" in failed(
        torch.optim.AdamW(result.param_groups, betas=(0.7, 0.9)), result
    )


# -- class


class AdamW(torch.optim.Optimizer):
    """Of another package, whose step nobody knows."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""


def test_a_class_that_is_not_known_cannot_be_judged() -> None:
    result = planned()
    check = abcfx.check_optimizer(AdamW(result.param_groups), result)
    assert check.verdict is Verdict.INCONCLUSIVE
    assert f"{__name__}.AdamW: the plan is for adamw" in str(check)
    check.raise_if_failed()
    declared = planned(optimizer=abcfx.OptimizerFamily("own", update="sign", has_eps=True))
    assert not failed(AdamW(declared.param_groups), declared)


@pytest.mark.parametrize(
    ("plan", "live", "fits"),
    [
        ("adamw", torch.optim.Adam, True),  # they differ in weight decay alone, and there is none
        ("adamw", torch.optim.RMSprop, True),
        ("adamw", torch.optim.SGD, False),
        ("adamw", torch.optim.Adafactor, False),
        ("adamw", Lion, False),
        ("lion", torch.optim.AdamW, False),  # its eps would not follow
        ("lion", Lion, True),
        ("sgd", torch.optim.SGD, True),
    ],
)
def test_the_class_is_the_one_that_was_planned(plan: str, live: Callable[..., Any], fits: bool) -> None:
    result = planned(optimizer=plan)
    said = failed(live([{k: v for k, v in g.items() if k != "eps"} for g in result.param_groups]), result)
    if fits:
        assert "planned for" not in said
    else:
        assert f"whose numbers were planned for {plan}" in said


def test_adafactor_that_takes_no_rate_fails() -> None:
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    result = planned(optimizer="adafactor")
    assert not failed(adafactor(result.param_groups, lr=1e-3, relative_step=False), result)
    assert "relative_step=True" in failed(adafactor(result.param_groups), result)
    assert "planned for adafactor" in failed(
        adafactor(result.param_groups, lr=1e-3, relative_step=False, scale_parameter=False), result
    )


# -- guises


def test_the_model_may_be_a_part_of_the_module_that_trains() -> None:
    class Holder(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.net, self.beside = model, nn.Linear(2, 2)

    result = planned()
    optimizer = torch.optim.AdamW(result.param_groups)
    assert not failed(optimizer, result, module=nn.ModuleDict({"net": WRAPPERS["compile"](result.module)}))
    assert "'beside.weight' of the module was not there" in failed(optimizer, result, module=Holder(result.module))
    optimizer.param_groups[0]["lr"] *= 2
    assert "lr =" in failed(optimizer, result, module=nn.ModuleDict({"net": result.module}))


@pytest.mark.parametrize(("key", "value"), [("betas", (0.5, 0.9)), ("amsgrad", True), ("maximize", True)])
def test_options_in_which_groups_differ_are_told(key: str, value: object) -> None:
    result = planned()
    optimizer = torch.optim.AdamW(result.param_groups)
    for group in optimizer.param_groups:
        group["foreach"] = False
    optimizer.param_groups[0]["foreach"] = True  # how a step is computed changes nothing
    assert not failed(optimizer, result)
    optimizer.param_groups[0][key] = value
    assert f"{key} of the groups" in failed(optimizer, result)
    for group in optimizer.param_groups:
        group[key] = value  # the user's own, and the same for all
    assert not failed(optimizer, result)


def test_rates_below_zero_and_parameters_held_twice() -> None:
    result = planned()
    optimizer = torch.optim.AdamW(result.param_groups)
    group = optimizer.param_groups[0]
    group["params"].append(group["params"][0])
    group["param_names"].append(group["param_names"][0])
    assert "holds it 2 times" in failed(optimizer, result)
    optimizer = torch.optim.AdamW(result.param_groups)
    for group in optimizer.param_groups:
        group["lr"] *= -1
    assert "which is below 0" in failed(optimizer, result)


def test_what_is_no_optimizer_no_result_and_no_module_is_named() -> None:
    class Outside:
        """A wrapper that is no torch optimizer, as DeepSpeed's and Fabric's."""

        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    result = planned()
    optimizer = torch.optim.AdamW(result.param_groups)
    check: Callable[..., Any] = abcfx.check_optimizer
    assert check(Outside(optimizer), result)
    for arguments, told in (
        ((None, result), "optimizer is a NoneType"),
        (([optimizer], result), "optimizer is a list"),
        ((optimizer, result.module), "result is a Block"),
    ):
        with pytest.raises(abcfx.errors.InvalidInputError, match=told):
            check(*arguments)
    with pytest.raises(abcfx.errors.InvalidInputError, match="module is a str"):
        check(optimizer, result, module="block")


def test_groups_whose_names_do_not_fit_any_more_are_judged_by_their_parameters() -> None:
    result = planned()
    optimizer = torch.optim.AdamW(result.param_groups)
    gone = optimizer.param_groups[0]["params"].pop()
    name = next(name for name, each in result.module.named_parameters() if each is gone)
    assert f"{name!r} is in no group" in failed(optimizer, result)
    optimizer.param_groups[0]["params"] += [gone, gone]
    assert f"{name}: the optimizer holds it 2 times" in failed(optimizer, result)
