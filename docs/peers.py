"""What mup and unit-scaling do with examples/gpt.py: the README's table. Needs `pip install mup unit-scaling`."""

from __future__ import annotations

import copy
from collections.abc import Callable

import mup
import torch
from torch import nn
from unit_scaling.transforms import unit_scale

import abcfx
from abcfx.examples.gpt import GPT, GPTConfig

IDS = torch.zeros(2, 64, dtype=torch.long)


def gpt(width: int) -> GPT:
    return GPT(GPTConfig(d_model=width))


def with_mup_readout(width: int) -> nn.Module:
    model = gpt(width)
    model.head = mup.MuReadout(width, 128, bias=False)
    return model


def copied_after_mup() -> object:
    model = with_mup_readout(256)
    mup.set_base_shapes(model, with_mup_readout(64), delta=with_mup_readout(128))
    return copy.deepcopy(model)(IDS).shape


ATTEMPTS: dict[str, Callable[[], object]] = {
    "abcfx, unedited": lambda: abcfx.transform(gpt(256), IDS, base=gpt(64)).module(IDS).shape,
    "abcfx, then deepcopy": lambda: copy.deepcopy(abcfx.transform(gpt(256), IDS, base=gpt(64)).module)(IDS).shape,
    "mup, unedited": lambda: mup.set_base_shapes(gpt(256), gpt(64), delta=gpt(128)),
    "mup, readout replaced, then deepcopy": copied_after_mup,
    "unit_scale, unedited": lambda: unit_scale(gpt(256))(IDS).shape,
}

if __name__ == "__main__":
    for name, attempt in ATTEMPTS.items():
        try:
            print(f"{name}: runs, {attempt()}")
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:110]}")
