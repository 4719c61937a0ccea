"""Hugging Face models grow to twice their widths: the function is kept, and every check passes."""

from __future__ import annotations

import os

import hf
import pytest
import torch
from torch import nn

import abcfx
from abcfx.errors import GrowthError

FAMILIES = ["gpt2 (clm)", "llama (clm)", "bert (mlm)", "resnet (image)"]
MORE = [
    "mixtral (clm)", "gpt_neox (clm)", "opt (clm)", "mamba (clm)", "qwen3 (clm)", "qwen2 (clm)",
    "persimmon (clm)", "deepseek_v3 (clm)", "gptj (clm)", "codegen (clm)", "olmo (clm)", "phi (clm)", "t5 (seq2seq)",
    "vit (image)", "convnextv2 (image)", "swin (image)", "electra (mlm)", "granitemoe (clm)",
]  # fmt: skip
PART, PARTS = map(int, os.environ.get("ABCFX_ZOO_PART", "0/1").split("/"))
REFUSED = {
    "bloom (clm)": "count along a dim that grows",  # slopes of heads
    "ctrl (clm)": "not a tiling",
    "minimax (clm)": "slope_rate",
}


def pair(name: str) -> tuple[nn.Module, nn.Module, dict[str, torch.Tensor]]:
    kind = next(each for each in hf.types() if each.name == name)
    torch.manual_seed(0)
    small, _ = hf.build(kind)
    large, inputs = hf.build(kind, times=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in small.parameters():
            std = 0.1 if parameter.ndim < 2 else 0.03
            parameter.add_(std * torch.randn(parameter.shape, generator=generator))
    return small, large, inputs


def first_output(output: object, batch: torch.Tensor) -> torch.Tensor:
    tensors = torch.utils._pytree.tree_leaves(output)
    return next(t for t in tensors if torch.is_tensor(t) and t.is_floating_point()).float().sin().pow(2).mean()


def grows(name: str) -> None:
    small, large, inputs = pair(name)
    grown = abcfx.grow(small, large, (), inputs, noise=0.3)
    assert grown.steps[0].difference < 1e-5
    assert abcfx.verify_growth(small, large, inputs, loss=first_output)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str) -> None:
    grows(name)


@pytest.mark.zoo
@pytest.mark.parametrize("name", MORE[PART::PARTS])
def test_more_families(name: str) -> None:
    grows(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_constants_that_follow_the_width_are_refused(name: str) -> None:
    small, large, inputs = pair(name)
    with pytest.raises(GrowthError, match=REFUSED[name]):
        abcfx.grow(small, large, (), inputs)
