"""Every example runs, passes its check, and trains as its docstring says."""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import abcfx
from abcfx.examples import lightning_module, nanochat_like
from abcfx.examples.text import VOCABULARY, characters_of_python

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "examples.md"
PARTS_OF_OTHERS = {"__init__", "gpt", "hyper_gpt", "digits", "text"}


def passed(name: str, **options: Any) -> dict[str, Any]:
    found = importlib.import_module(f"abcfx.examples.{name}").main(**options)
    assert found["check"], found["check"].failed
    assert found["check"].control == "FAIL"
    return found


def test_the_page_lists_every_example_with_its_command() -> None:
    text = PAGE.read_text(encoding="utf-8")
    files = {path.stem for path in (ROOT / "examples").glob("*.py")} - PARTS_OF_OTHERS
    listed = set(re.findall(r"^\| \[`(\w+)\.py`\]\(\.\./examples/\1\.py\) \|", text, re.M))
    assert files <= listed
    for name in set(re.findall(r"python -m abcfx\.examples\.(\w+)", text)):
        assert callable(importlib.import_module(f"abcfx.examples.{name}").main)


def test_the_nanochat_like_model_is_planned_without_weights() -> None:
    result = nanochat_like.plan(4096, multiplier=1.0)
    assert all(parameter.is_meta for parameter in result.module.parameters())
    rates = {row["role"]: row["lr"] for row in result.spec.values()}
    m = 4096 / nanochat_like.BASE
    assert rates == pytest.approx(
        {"embedding": 0.05, "hidden": 0.02, "readout": 0.004 * m**-0.5}  # muon's update is bounded in operator norm
    )
    twice = nanochat_like.plan(4096, multiplier=2.0)
    assert all(twice.spec[name]["lr"] == pytest.approx(2 * row["lr"]) for name, row in result.spec.items())


def test_groups_for_a_module_whose_parameters_are_others_by_now() -> None:
    result = nanochat_like.plan(128)
    module, (muon, adamw) = nanochat_like.materialise(result)
    held = [p for optimizer in (muon, adamw) for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in module.parameters()} and not any(p.is_meta for p in held)
    assert {p.ndim for group in muon.param_groups for p in group["params"]} == {2}
    for ours, planned in zip(result.groups_for("adamw", module), result.groups_for("adamw"), strict=True):
        assert ours["param_names"] == planned["param_names"] and ours["lr"] == planned["lr"]
    with pytest.raises(abcfx.errors.InvalidInputError, match="no parameter belongs"):
        result.groups_for("sgd", module)
    with pytest.raises(abcfx.errors.InvalidInputError):
        result.groups_for("muon", torch.nn.Linear(2, 2))


def test_groups_for_keeps_one_group_for_each_parameter() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    result = abcfx.transform(model, torch.rand(3, 8), optimizer="adam")
    of_module = result.groups_for("adam", result.module, per_parameter=True)
    assert len(of_module) == len(result.groups_for("adam", per_parameter=True)) == 4


def test_the_lightning_module_trains_as_a_trainer_would() -> None:
    torch.manual_seed(0)
    module = lightning_module.LightningGPT(width=64, base_width=32, lr=2**-6, steps=20)
    configured: Any = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    planned = {name: row["lr"] for name, row in module.spec.items()}
    losses = []
    for index, batch in enumerate(characters_of_python(20, batch=8, context=32)):
        loss = module.training_step(batch, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if index == 9:
            ratios = {group["lr"] / planned[name] for group in optimizer.param_groups for name in group["param_names"]}
            assert max(ratios) / min(ratios) == pytest.approx(1.0) and max(ratios) < 0.6
    assert losses[-1] < losses[0] - 1
    assert all(name.startswith("model.") for name in module.state_dict())


@pytest.mark.slow
def test_mlp() -> None:
    pytest.importorskip("sklearn")
    found = passed("mlp")
    assert found["transformed"][0] < found["base"][0] < found["as written"][0]


@pytest.mark.slow
def test_resnet_digits() -> None:
    pytest.importorskip("sklearn")
    found = passed("resnet_digits")
    assert found["loss"] < 0.5 and found["right"] > 0.7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*NestedTensor:UserWarning")
def test_vit_digits() -> None:
    pytest.importorskip("sklearn")
    found = passed("vit_digits")
    assert found["transformed"][0] < found["as written"][0] - 0.3


@pytest.mark.slow
def test_moe() -> None:
    losses = passed("moe")["losses"]
    assert losses[-1] < losses[0] - 1


@pytest.mark.slow
def test_train_gpt() -> None:
    found = passed("train_gpt")
    assert found["transformed"] < found["as written"] - 0.05


@pytest.mark.slow
def test_nanochat_like() -> None:
    found = passed("nanochat_like")
    assert found["transformed"] < found["base"] < math.log(VOCABULARY) - 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_hf_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    found = passed("hf_trainer", folder=str(tmp_path))
    assert found["losses"][-1] < found["losses"][0]


@pytest.mark.slow
def test_a_hugging_face_model_is_still_itself() -> None:
    hf_trainer = importlib.import_module("abcfx.examples.hf_trainer")
    pytest.importorskip("transformers")
    model, result = hf_trainer.prepare(128)
    assert result.module is model and type(model).__name__ == "LlamaForCausalLM"
    ids = next(characters_of_python(1, batch=2, context=16))[0]
    before = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert torch.allclose(model(input_ids=ids, labels=ids).loss, before, atol=1e-5)
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (2, 18)
