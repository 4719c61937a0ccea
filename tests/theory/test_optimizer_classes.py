"""Which class of optimizer belongs to which family: by its package and its options, not by its name alone."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from models import Block
from torch import nn

import abcfx
from abcfx.errors import InvalidInputError
from abcfx.theory.optimizers import FAMILIES, family

IDS = torch.zeros(3, 4, dtype=torch.long)


def made(module: str, name: str, **attributes: object) -> type[torch.optim.Optimizer]:
    """Make a class as a package would have it, with attributes that its instances have."""

    def __init__(self: torch.optim.Optimizer, params: Any, lr: float = 1e-3, **defaults: object) -> None:
        torch.optim.Optimizer.__init__(self, params, {"lr": lr, "weight_decay": 0.0, **defaults})

    body = {"__init__": __init__, "step": lambda self: None, "__module__": module, **attributes}
    return type(name, (torch.optim.Optimizer,), body)


def instance(cls: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
    return cls([nn.Parameter(torch.ones(2, 2))], **options)


@pytest.mark.parametrize("module", ["timm.optim.muon", "pytorch_optimizer", "dion", "torch_optimizer.adam", "__main__"])
@pytest.mark.parametrize("name", ["Muon", "AdamW", "Lion", "Lamb", "FusedAdam", "Shampoo"])
def test_a_class_of_another_package_is_refused_by_its_path(module: str, name: str) -> None:
    cls = made(module, name)
    for given in (cls, instance(cls)):
        with pytest.raises(
            InvalidInputError, match=rf"{module}\.{name} is none of.*\n.*\n  To fix: .*OptimizerFamily\("
        ):
            family(given)


@pytest.mark.parametrize(
    ("module", "name", "attributes", "known"),
    [
        ("apex.optimizers.fused_adam", "FusedAdam", {"adam_w_mode": 1}, "adamw"),
        ("apex.optimizers.fused_adam", "FusedAdam", {"adam_w_mode": 0}, "adam"),
        ("deepspeed.ops.adam.cpu_adam", "DeepSpeedCPUAdam", {"adam_w_mode": False}, "adam"),
        ("deepspeed.ops.adam.fused_adam", "FusedAdam", {}, "adamw"),
        ("deepspeed.ops.lion.fused_lion", "FusedLion", {}, "lion"),
        ("bitsandbytes.optim.adamw", "PagedAdamW32bit", {}, "adamw"),
        ("bitsandbytes.optim.adam", "Adam8bit", {}, "adamw"),
        ("torchao.optim.adam", "AdamW4bit", {"is_adamw": True}, "adamw"),
        ("torchao.optim.adam", "AdamFp8", {"is_adamw": False}, "adam"),
        ("lion_pytorch.lion_pytorch", "Lion", {}, "lion"),
    ],
)
def test_known_packages(module: str, name: str, attributes: dict[str, object], known: str) -> None:
    found, expected = family(instance(made(module, name, **attributes))), FAMILIES[known]
    assert (found.update, found.decay) == (expected.update, expected.decay)


def test_adam_w_mode_may_stand_among_the_options() -> None:
    cls = made("apex.optimizers.fused_adam", "FusedAdam")
    assert family(instance(cls, adam_w_mode=False)).decay == "gradient"
    assert family(instance(cls, adam_w_mode=True)).decay == "decoupled"


def test_a_derived_class_belongs_to_its_parent_unless_it_steps_in_its_own_way() -> None:
    class Named(torch.optim.AdamW):
        """Changes nothing that a step does."""

    class Other(torch.optim.AdamW):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    for _ in range(2):  # torch wraps `step` when the first instance is made
        assert family(Named) == family(instance(Named)) == FAMILIES["adamw"]
        with pytest.raises(InvalidInputError, match="Other is none of"):
            family(instance(Other))


def test_a_wrapper_is_what_it_holds() -> None:
    wrapper = made("accelerate.optimizer", "AcceleratedOptimizer")
    inner = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=0.5)
    outer = instance(wrapper)
    outer.optimizer, outer.param_groups = inner, inner.param_groups  # type: ignore[attr-defined]
    assert family(outer) == FAMILIES["adam"]
    result = abcfx.transform(Block(16), IDS, base=Block(16), optimizer=outer)
    assert {group["lr"] for group in result.param_groups} == {0.5}


def test_a_declared_family_has_the_rates_of_what_it_declares() -> None:
    own = abcfx.OptimizerFamily("mine", update="Sign", has_eps=True)  # type: ignore[arg-type]
    both: dict[str, Any] = {"hidden": own, "default": "sgd"}
    mine = abcfx.transform(Block(64), IDS, base=Block(16), optimizer=both, apply="absorb")
    both["hidden"] = "adamw"
    adamw = abcfx.transform(Block(64), IDS, base=Block(16), optimizer=both, apply="absorb")
    assert mine.spec["fc.weight"]["lr"] == adamw.spec["fc.weight"]["lr"] == pytest.approx(1e-3 / 4)
    for wanted in (own, "mine"):
        (group,) = mine.groups_for(wanted)
        assert group["param_names"] == ["fc.weight"]
        assert "eps" in group
    assert [abcfx.OptimizerFamily("x", update).absorb for update in ("sign", "gradient", "relative", "spectral")] == [
        1, 2, 0, 1,
    ]  # fmt: skip
    cls = made("dion", "Muon", abcfx_family=own)
    assert family(cls) is family(instance(cls)) is own
    with pytest.raises(InvalidInputError, match=r"update='signs' is not known"):
        abcfx.OptimizerFamily("x", "signs")  # type: ignore[arg-type]


def adafactor(parameters: Any, **options: Any) -> torch.optim.Optimizer:
    return pytest.importorskip("transformers.optimization").Adafactor(parameters, **options)


@pytest.mark.parametrize(("scaled", "c"), [(False, (0, 1, 1)), (True, (0, 0.5, 0))])
def test_adafactor_of_transformers_by_its_options(scaled: bool, c: tuple[float, ...]) -> None:
    model = Block(16)
    given = adafactor(model.parameters(), lr=0.5, scale_parameter=scaled, relative_step=False)
    result = abcfx.transform(Block(64), IDS, base=model, optimizer=given, apply="absorb")
    assert [result.spec[f"{name}.weight"]["c"] for name in ("emb", "fc", "head")] == pytest.approx(list(c))
    assert result.spec["fc.bias"]["lr"] == 0.5
    again = adafactor(result.param_groups, lr=1.0, relative_step=False)  # the groups bring `scale_parameter`
    assert {group["scale_parameter"] for group in again.param_groups} == {scaled}


@pytest.mark.parametrize("scaled", [False, True])
def test_weight_decay_of_adafactor_shrinks_a_weight_by_the_share_of_its_family(scaled: bool) -> None:
    """One step at gradient zero, for weights of two sizes: the share follows the size for "ratio" alone."""
    shares = []
    for size in (1.0, 4.0):
        weight = nn.Parameter(torch.full((3, 3), size))
        optimizer = adafactor([weight], lr=0.1, scale_parameter=scaled, relative_step=False, weight_decay=0.1)
        weight.grad = torch.zeros(3, 3)
        optimizer.step()
        shares.append(1 - float(weight.detach().mean()) / size)
    assert family(optimizer).decay == ("ratio" if scaled else "decoupled")
    assert shares[1] / shares[0] == pytest.approx(4.0 if scaled else 1.0, rel=1e-3)


def test_adafactor_that_takes_no_rate_is_refused() -> None:
    weight = [nn.Parameter(torch.ones(2, 2))]
    with pytest.raises(InvalidInputError, match=r"relative_step=True.*\n  To fix: .*relative_step=False"):
        family(adafactor(weight))
    with pytest.raises(InvalidInputError, match=r"relative_step=True.*\n  To fix: give an instance"):
        family(type(adafactor(weight)))
    assert family(torch.optim.Adafactor) == family(torch.optim.Adafactor(weight)) == FAMILIES["adafactor"]
    with pytest.raises(InvalidInputError, match=r"1 / sqrt\(step\)"):
        family(torch.optim.Adafactor(weight, lr=1.0))


@pytest.mark.parametrize(
    ("kind", "reason", "nearest"),
    [
        (torch.optim.Adadelta, "earlier updates", "adamw"),
        (torch.optim.Rprop, "a step of its own", "adamw"),
        (torch.optim.LBFGS, "one lr for all", "adamw"),
        (torch.optim.ASGD, "lowers its rate", "sgd"),
        (torch.optim.SparseAdam, "sparse gradients", "adam"),
    ],
)
def test_classes_of_torch_without_rates_say_why(kind: type, reason: str, nearest: str) -> None:
    for given in (kind, kind([nn.Parameter(torch.ones(2))])):
        with pytest.raises(InvalidInputError, match=rf"(?s){reason}.*To fix: optimizer='{nearest}'"):
            family(given)


def test_what_is_no_optimizer_says_what_to_write() -> None:
    weight = [nn.Parameter(torch.ones(2, 2))]
    given: Any = [torch.optim.Muon(weight), torch.optim.AdamW(weight)]
    with pytest.raises(InvalidInputError, match=r"list of 2 does not say.*\n  To fix: a dict"):
        family(given)
    given = functools.partial(torch.optim.AdamW, lr=0.1)
    with pytest.raises(InvalidInputError, match=r"partial of 'AdamW'.*\n  To fix: call it"):
        family(given)
