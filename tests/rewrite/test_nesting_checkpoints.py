"""Hugging Face's switch for activation checkpointing saves memory in transformed models; gradients stay the same."""

from __future__ import annotations

import pytest
import torch
from models_blocks import inputs_of, logits_of, make
from torch import nn

import abcfx
from abcfx.plan.options import ApplyMode

INPUTS, _ = inputs_of("llama", 4)


def transformed(apply: ApplyMode) -> tuple[nn.Module, nn.Module]:
    """Return a transformed Llama, and the part of it that is of Hugging Face's class and has its blocks."""
    torch.manual_seed(0)
    model, base = make("llama", 32), make("llama", 16)
    module = abcfx.transform(model, None, INPUTS, base=base, apply=apply).module.train()
    return module, module.get_submodule("model") if apply == "insert" else module


def step(module: nn.Module) -> tuple[int, dict[str, torch.Tensor]]:
    """Return how many numbers a forward keeps for the backward pass, weights aside, and the gradients."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    sizes: list[int] = []

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        loss = logits_of(module(**INPUTS)).square().mean()
    total = sum(sizes)
    loss.backward()
    return total, {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("apply", ["inplace", "absorb", "insert"])
def test_the_switch_of_hugging_face_saves_memory(apply: ApplyMode) -> None:
    saved, gradients = step(transformed(apply)[0])
    module, owner = transformed(apply)
    owner.gradient_checkpointing_enable()  # type: ignore[operator]
    less, same = step(module)
    assert less < saved / 2 and gradients.keys() == same.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, atol=1e-6, rtol=0)
