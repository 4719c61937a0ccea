"""Hand-written muP, right and broken in one place: the audit names what was broken, and its fix makes it right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch.nn as nn
from models_audited import BASE, CASES, Attention, Case, Edit, EditGroup, Group, Readout

import abcfx
from abcfx.auditing import Audit

WIDTHS = (BASE, 4 * BASE)


@dataclass(frozen=True)
class Planted:
    """One place in which a right model is broken.

    Attributes:
        guilty: the names that the audit has to give, and no others.
        model: changes the model of a width, given the ratio of widths.
        group: changes the numbers of a parameter.
    """

    guilty: tuple[str, ...]
    model: Edit | None = None
    group: EditGroup | None = None


def rate(*names: str, power: float) -> Planted:
    """Return the fault of learning rates that are m^power of what they should be."""

    def edit(name: str, group: Group, m: float) -> Group:
        return replace(group, lr=group.lr * m**power) if name in names else group

    return Planted(names, group=edit)


def init(name: str, power: float) -> Planted:
    """Return the fault of an init that is m^power of what it should be."""

    def edit(model: nn.Module, m: float) -> None:
        model.get_parameter(name).mul_(m**power)

    return Planted((name,), edit)


def multiplier(module: str, power: float, parameter: str | None = None) -> Planted:
    """Return the fault of a multiplier that is m^power of what it should be."""

    def edit(model: nn.Module, m: float) -> None:
        place = model.get_submodule(module)
        assert isinstance(place, Readout)
        place.multiplier *= m**power

    return Planted((parameter or f"{module}.weight",), edit)


def attention(model: nn.Module, m: float) -> None:
    """Divide the logits by sqrt(head_dim)."""
    for place in model.modules():
        if isinstance(place, Attention):
            place.scale = BASE**-0.5 * m**-0.5


def zero_readout(model: nn.Module, m: float) -> None:
    """Let the readout start as zeros."""
    model.get_parameter("head.weight").zero_()


def treated_as_hidden(name: str) -> Planted:
    """Return the fault of a table with the init and the rate of a hidden layer."""
    return Planted((name,), init(name, -0.5).model, rate(name, power=-1.0).group)


def numbers(names: tuple[str, ...], change: Callable[[Group, float], Group]) -> Planted:
    """Return the fault of other numbers in the groups of some parameters."""
    return Planted(names, group=lambda name, group, m: change(group, m) if name in names else group)


def large_eps(*names: str) -> Planted:
    """Return the fault of an eps that is large, and the same at every width."""
    return numbers(names, lambda group, m: replace(group, eps=1e-3))


def coupled(*names: str) -> Planted:
    """Return the fault of a weight decay that is the same number at every width."""
    return numbers(names, lambda group, m: replace(group, weight_decay=0.1))


def of_blocks(*names: str) -> tuple[str, ...]:
    """Return names within both blocks."""
    return tuple(f"blocks.{i}.{name}" for i in range(2) for name in names)


PLANTED: dict[str, dict[str, Planted]] = {
    "mlp": {
        "rate": rate("hidden.0.weight", power=1.0),
        "rate too small": rate("hidden.1.weight", power=-1.0),
        "rate of the readout": rate("head.weight", power=0.5),
        "init": init("hidden.1.weight", 0.5),
        "init too small": init("hidden.0.weight", -0.5),
        "init of the readout": init("head.weight", 0.5),
        "init of the first layer": init("first.weight", 0.5),
        "multiplier missing": multiplier("head", 1.0),
        "multiplier applied twice": multiplier("head", -1.0),
        "zero readout, rate too small": Planted(("head.weight",), zero_readout, rate("head.weight", power=-1.0).group),
        "bias rate scaled": rate("hidden.0.bias", power=-1.0),
        "wrong group": rate("hidden.0.weight", "hidden.1.weight", power=1.0),
        "eps": large_eps("hidden.1.weight"),
        "decay": coupled("hidden.0.weight", "hidden.1.weight"),
        "first layer treated as hidden": treated_as_hidden("first.weight"),
    },
    "gpt": {
        "rate": rate("blocks.1.attn.qkv.weight", power=1.0),
        "init": init("blocks.0.down.weight", 0.5),
        "multiplier missing": multiplier("head", 1.0),
        "multiplier applied twice": multiplier("head", -1.0),
        "attention": Planted(of_blocks("attn"), attention),
        "zero readout, rate too small": Planted(("head.weight",), zero_readout, rate("head.weight", power=-1.0).group),
        "wrong group": rate(*of_blocks("up.weight"), power=1.0),
        "bias rate scaled": rate(*of_blocks("up.bias"), power=-1.0),
        "gains treated as hidden": rate(*of_blocks("ln1.weight"), power=-1.0),
        "eps": large_eps(*of_blocks("attn.qkv.weight")),
        "decay": coupled(*of_blocks("up.weight", "down.weight")),
        "embedding treated as hidden": treated_as_hidden("tok.weight"),
    },
    "split": {
        "rate": rate("blocks.0.attn.q.weight", power=1.0),
        "rate of values": rate("blocks.0.attn.v.weight", power=1.0),
        "init": init("blocks.1.attn.k.weight", 0.5),
        "attention": Planted(of_blocks("attn"), attention),
        "wrong group": rate(*of_blocks("attn.q.weight", "attn.k.weight", "attn.v.weight"), power=1.0),
        "embedding treated as hidden": treated_as_hidden("pos.weight"),
    },
    "tied": {
        "rate": rate("blocks.0.up.weight", power=1.0),
        "multiplier missing": multiplier("head", 1.0, "tok.weight"),
        "multiplier applied twice": multiplier("head", -1.0, "tok.weight"),
        "table treated as hidden": treated_as_hidden("tok.weight"),
        "attention": Planted(of_blocks("attn"), attention),
    },
    "resnet": {
        "rate": rate("blocks.0.conv1.weight", power=1.0),
        "rate of the last convolution": rate("mix.weight", power=1.0),
        "init": init("mix.weight", 0.5),
        "init before a norm": init("blocks.1.conv2.weight", 0.5),
        "multiplier missing": multiplier("head", 1.0),
        "bias rate scaled": rate("stem.bias", power=-1.0),
        "stem treated as hidden": treated_as_hidden("stem.weight"),
        "wrong group": rate("blocks.0.conv1.weight", "blocks.1.conv1.weight", power=1.0),
    },
    "moe": {
        "rate of experts": rate("up", power=1.0),
        "init of experts": init("down", 0.5),
        "router's multiplier missing": multiplier("router", 1.0),
        "rate of the router": rate("router.weight", power=1.0),
        "multiplier missing": multiplier("head", 1.0),
        "embedding treated as hidden": treated_as_hidden("tok.weight"),
    },
    "ssm": {
        "rate": rate("enter.weight", power=1.0),
        "rate of steps": rate("step.weight", power=1.0),
        "init": init("leave.weight", 0.5),
        "decays treated as hidden": rate("decay", power=-1.0),
        "multiplier missing": multiplier("head", 1.0),
        "embedding treated as hidden": treated_as_hidden("tok.weight"),
    },
}
SLOW = ("gpt", "split", "tied", "ssm")
EVERY = [
    pytest.param(case, fault, marks=[pytest.mark.slow] * (case in SLOW and i > 2))
    for case, own in PLANTED.items()
    for i, fault in enumerate(own)
]


def audited(case: Case, model: Edit | None = None, group: EditGroup | None = None) -> Audit:
    """Audit a case at both widths."""
    return abcfx.audit(case.make(model), case.adam(group), case.inputs(), widths=WIDTHS)


def wrong(result: Audit) -> set[str]:
    """Return the names of the rows that did not pass."""
    return {row.name for row in result.rows if row.verdict.value not in ("PASS", "SKIP")}


@pytest.mark.parametrize("name", CASES)
def test_what_is_right_by_hand_passes(name: str) -> None:
    case = CASES[name]
    assert audited(case), str(audited(case))
    result = abcfx.audit(case.make(), case.sgd(), case.inputs(), widths=WIDTHS)
    assert result, str(result)


@pytest.mark.parametrize(("name", "fault"), EVERY)
def test_a_planted_fault_is_found_by_name_and_its_fix_makes_it_right(name: str, fault: str) -> None:
    case, planted = CASES[name], PLANTED[name][fault]
    result = audited(case, planted.model, planted.group)
    assert not result
    assert wrong(result) == set(planted.guilty), str(result)
    assert set(result.guilty) == set(planted.guilty) or fault in ("eps", "decay")
    changes = {row.name: row.change for row in result.rows if row.change is not None}

    def mended_model(model: nn.Module, m: float) -> None:
        """Break a model, then carry out what the audit says."""
        if planted.model is not None:
            planted.model(model, m)
        for path, change in changes.items():
            if m > 1:
                for factor in change.multiplier.values():
                    place = model.get_submodule(path if path.endswith("attn") else "head")
                    key = "scale" if path.endswith("attn") else "multiplier"
                    setattr(place, key, getattr(place, key) * factor)
                if change.init != 1.0:
                    model.get_parameter(path).mul_(change.init)

    def mended_group(path: str, group: Group, m: float) -> Group:
        """Break a group, then carry out what the audit says."""
        broken = group if planted.group is None else planted.group(path, group, m)
        change = changes.get(path)
        if change is None or m == 1:
            return broken
        return Group(broken.lr * change.lr, broken.weight_decay * change.weight_decay, broken.eps * change.eps)

    mended = audited(case, mended_model, mended_group)
    assert mended, str(mended)
