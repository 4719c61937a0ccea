"""Fake tensors: the only place that touches them; torch has no public import for the mode that makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree  # see signature.py


def replace_meta_weights(model: nn.Module) -> None:
    """Put fake CPU tensors in the place of all weights on the meta device; ties stay ties.

    A capture then behaves as on a CPU, constants made in forward included, and allocates nothing. The caller undoes
    it with `preserved(model)`.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    with mode:
                        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                    made[id(tensor)] = (
                        nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
                    )
                tensors[name] = made[id(tensor)]  # type: ignore[assignment]


def off_meta(inputs: Any) -> Any:
    """Example inputs with tensors on the meta device replaced by zeros on the CPU."""

    def real(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor

    return pytree.tree_map_only(torch.Tensor, real, inputs)
