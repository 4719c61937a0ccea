"""The audit passes what is right in another form, says why it fails, and refuses what it cannot judge."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from models_audited import BASE, CASES, CLASSES, GPT, MLP, Readout, features, tokens, width_of

import abcfx
from abcfx.auditing import Audit
from abcfx.cli import main
from abcfx.errors import CheckFailedError, InvalidInputError
from abcfx.plan.options import ApplyMode

WIDTHS = (BASE, 4 * BASE)


def adam(rates: dict[str, float], default: float = 0.0) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return the function that builds Adam with lr ~ m^-c: c by name of parameter, else the default."""

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        m = width_of(model) / BASE
        named = model.named_parameters()
        return torch.optim.Adam([{"params": [p], "lr": 0.01 * m ** -rates.get(name, default)} for name, p in named])

    return optimizer


class Ntk(nn.Linear):
    """A layer with weights of order 1, whose output is divided by sqrt(fan_in)."""

    def __init__(self, fan_in: int, fan_out: int, on_input: bool = False) -> None:
        super().__init__(fan_in, fan_out, bias=False)
        nn.init.normal_(self.weight)
        self.on_input = on_input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        root = math.sqrt(self.in_features)
        return F.linear(x / root, self.weight) if self.on_input else F.linear(x, self.weight) / root


class OtherTerms(nn.Module):
    """An MLP whose multipliers, inits and rates are muP's in other terms.

    Args:
        width: its width.
        on_input: whether the hidden layers divide their input, not their output.
    """

    def __init__(self, width: int, on_input: bool = False) -> None:
        super().__init__()
        self.width = width
        self.first, self.head = nn.Linear(20, width, bias=False), nn.Linear(width, CLASSES, bias=False)
        self.hidden = nn.ModuleList(Ntk(width, width, on_input) for _ in range(2))
        nn.init.normal_(self.first.weight, std=width**-0.5)
        nn.init.normal_(self.head.weight, std=1 / width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.first(x) * self.width**0.5)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return self.head(x)


IN_OTHER_TERMS = {"first.weight": 0.5, "hidden.0.weight": 0.5, "hidden.1.weight": 0.5, "head.weight": 1.0}


@pytest.mark.parametrize("on_input", [False, True])
def test_muP_in_other_terms_is_right_and_said_to_be(on_input: bool) -> None:
    result = abcfx.audit(lambda width: OtherTerms(width, on_input), adam(IN_OTHER_TERMS), features(), widths=WIDTHS)
    assert result, str(result)
    assert "multiplier m^-0.5, lr m^-0.5" in next(row.reason for row in result.rows if row.name == "hidden.0.weight")


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize("name", IN_OTHER_TERMS)
def test_a_rate_that_is_wrong_in_these_terms_is_found(name: str, on_input: bool) -> None:
    rates = {**IN_OTHER_TERMS, name: IN_OTHER_TERMS[name] - 0.5}
    result = abcfx.audit(lambda width: OtherTerms(width, on_input), adam(rates), features(), widths=WIDTHS)
    assert result.guilty == (name,)
    (row,) = result.failed
    assert row.change is not None
    assert row.change.lr == pytest.approx(0.5)


def of_sp(model: nn.Module, c: float) -> nn.Module:
    """Draw a readout with standard deviation 1 / sqrt(fan_in), as without muP."""
    head = model.get_submodule("head")
    assert isinstance(head, Readout)
    head.multiplier = 1.0
    nn.init.normal_(head.weight, std=head.in_features**-c)
    return model


def test_the_standard_readout_is_right_under_the_weaker_assumption_only() -> None:
    def make(width: int) -> nn.Module:
        return of_sp(MLP(width), 0.5)

    rates = adam({"hidden.0.weight": 1.0, "hidden.1.weight": 1.0, "head.weight": 1.0})
    under_mup = abcfx.audit(make, rates, features(), widths=WIDTHS)
    assert under_mup.guilty == ("head.weight",)
    assert "W dx grows like m^0.5" in under_mup.failed[0].reason
    assert abcfx.audit(make, rates, features(), widths=WIDTHS, parametrization="sp")


def test_rates_of_sgd_under_adam_are_said_to_be_those_of_sgd() -> None:
    case = CASES["mlp"]

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam([{"params": g["params"], "lr": g["lr"]} for g in case.sgd()(model).param_groups])

    result = abcfx.audit(case.make(), optimizer, case.inputs(), widths=WIDTHS)
    assert {"first.weight", "hidden.0.weight", "hidden.1.weight"} <= set(result.guilty)
    assert any("the rates are those of sgd" in note for note in result.notes)


def test_what_another_layer_is_guilty_of_is_no_fault_of_its_own() -> None:
    rates = adam({"hidden.1.weight": 1.0})
    result = abcfx.audit(MLP, rates, features(), widths=WIDTHS)
    assert result.guilty == ("hidden.0.weight",)
    assert "follows from hidden.0.weight" in next(row.reason for row in result.rows if row.name == "head.weight")


def test_a_parameter_without_an_optimizer_fails_and_a_frozen_one_is_skipped() -> None:
    def make(width: int) -> nn.Module:
        model = MLP(width)
        model.first.weight.requires_grad_(False)
        return model

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        m = width_of(model) / BASE
        hidden = [p for name, p in model.named_parameters() if "hidden" in name and p.ndim > 1]
        optimizer = torch.optim.Adam(hidden, lr=0.01 / m)
        optimizer.add_param_group({"params": [model.get_parameter("head.weight")], "lr": 0.01})
        return optimizer

    result = abcfx.audit(make, optimizer, features(), widths=WIDTHS)
    verdicts = {row.name: row.verdict.value for row in result.rows}
    assert verdicts["first.weight"] == "SKIP"
    assert verdicts["first.bias"] == "FAIL"
    assert verdicts["hidden.0.weight"] == "PASS"


@pytest.mark.parametrize("apply", ["absorb", "off"])
def test_our_own_result_is_right(apply: ApplyMode) -> None:
    small = GPT(BASE, fused=False)
    planned = {
        width: abcfx.transform(GPT(width, fused=False), tokens(), base=small, optimizer="adamw", apply=apply)
        for width in WIDTHS
    }
    modules = tuple(planned[width].module for width in WIDTHS)
    optimizers = tuple(torch.optim.AdamW(planned[width].param_groups) for width in WIDTHS)
    result = abcfx.audit((modules[0], modules[1]), (optimizers[0], optimizers[1]), tokens(), widths=WIDTHS)
    assert result, str(result)


def test_the_result_is_data_and_a_page_and_nothing_has_changed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = (MLP(BASE), of_sp(MLP(4 * BASE), 0.5))
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    optimizers = tuple(CASES["mlp"].adam()(model) for model in models)
    result = abcfx.audit((models[0], models[1]), (optimizers[0], optimizers[1]), features(), widths=WIDTHS)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
    found = json.loads(result.to_json())
    assert found["guilty"] == list(result.guilty)
    assert {row["name"] for row in found["rows"]} >= {name for name, _ in models[0].named_parameters()}
    result.to_html(tmp_path / "audit.html")
    assert "head.weight" in (tmp_path / "audit.html").read_text()
    with pytest.raises(CheckFailedError, match=r"head\.weight"):
        result.raise_if_failed()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"make_model": MLP(32)}, "make_model: expected a function of the width"),
        ({"make_optimizer": torch.optim.SGD(MLP(32).parameters())}, "make_optimizer: expected a function of the model"),
        ({"make_optimizer": lambda model: None}, "make_optimizer: expected a torch optimizer"),
        (
            {"make_optimizer": lambda model: torch.optim.SGD(MLP(32).parameters())},
            "holds none of the model's parameters",
        ),
        ({"widths": (64,)}, "widths: expected two"),
        ({"widths": (64, 64)}, "the same sizes"),
        ({"widths": (128, 64)}, "are the two swapped"),
        ({"decay": "none"}, "decay='none'"),
    ],
)
def test_what_cannot_be_judged_is_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"make_model": MLP, "make_optimizer": CASES["mlp"].adam(), "args": features()}
    audit: Callable[..., Audit] = abcfx.audit
    with pytest.raises(InvalidInputError, match=message):
        audit(**{**arguments, **change})


MODELS = """
from models_audited import CASES, MLP, features

make_optimizer = CASES["mlp"].adam()


def broken(width):
    model = MLP(width)
    model.head.multiplier = 1.0
    return model
"""


def test_the_command_has_status_0_on_pass_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "audited_models.py"
    file.write_text(MODELS)
    options = ["--optimizer", "make_optimizer", "--inputs", "features", "--widths", "32,128"]
    assert main(["audit", f"{file}:MLP", *options]) == 0
    assert "audit: PASS" in capsys.readouterr().out
    page = tmp_path / "audit.html"
    assert main(["audit", f"{file}:broken", *options, "--json", "--html", str(page)]) == 1
    assert json.loads(capsys.readouterr().out)["guilty"] == ["head.weight"]
    assert page.exists()
