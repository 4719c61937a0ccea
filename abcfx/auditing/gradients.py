"""How large the gradients of a model are at init, to compare them with the eps of its optimizer."""

from __future__ import annotations

import math

import torch
from torch import nn

from abcfx.capture.structure import tensors_by_path
from abcfx.errors import AbcfxError
from abcfx.support.running import preserved_rng

SEED = 0


def gradient_sizes(
    model: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], paths: tuple[str, ...]
) -> dict[str, float]:
    """Return the RMS of the entries of each parameter's gradient that are not zero, for a loss of order 1.

    The loss is the model's own if it returns a scalar; else for each row of the outputs the scalar product with a
    random direction, averaged over rows: the gradient of a cross entropy is as large. The model is not changed. The
    result is empty where the model cannot be run, as on the meta device.

    Args:
        model: the model.
        args: example positional inputs.
        kwargs: example keyword inputs.
        paths: where the outputs are in what the model returns.
    """
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if any(each.is_meta for each in parameters.values()):
        return {}
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    with preserved_rng(), torch.enable_grad():
        torch.manual_seed(SEED)
        try:
            output = torch.func.functional_call(model, buffers, args, kwargs)
            loss = _loss(output, paths)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        except AbcfxError:
            raise
        except Exception:  # a forward that needs a device or inputs that are not there; the check of eps is left out
            return {}
    return {name: size for name, each in zip(parameters, found, strict=True) if (size := _rms(each))}


def _loss(output: object, paths: tuple[str, ...]) -> torch.Tensor:
    """Return a loss of a model's outputs: its own scalar, else a mean over rows of scalar products of order 1."""
    tensors = tensors_by_path(output)
    chosen = [tensors[path] for path in paths if path in tensors] or list(tensors.values())
    chosen = [each for each in chosen if each.requires_grad]
    scalars = [each for each in chosen if each.numel() == 1]
    if scalars:
        return torch.stack([each.reshape(()) for each in scalars]).sum()
    parts = []
    for each in chosen:
        directions = nn.functional.normalize(torch.randn(each.shape, device=each.device), dim=-1).to(each.dtype)
        parts.append((each * directions).sum() * each.shape[-1] / each.numel())
    return torch.stack(parts).sum()


def _rms(gradient: torch.Tensor | None) -> float:
    """Return the RMS of a gradient's entries that are not zero; 0 if all are."""
    if gradient is None:
        return 0.0
    entries = gradient.detach().abs().double().flatten()
    entries = entries[entries > 0]
    return math.sqrt(float(entries.square().mean())) if entries.numel() else 0.0
