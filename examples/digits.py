"""Handwritten digits for the examples: the 1,797 images of 8 x 8 pixels that scikit-learn brings along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from abcfx.errors import InvalidInputError

TRAINING = 1500  # images; the others are for testing
BATCH = 64


class Digits(NamedTuple):
    """Images (N, 1, 8, 8) of mean 0 and standard deviation 1 with their labels (N,) from 0 to 9, in random order."""

    images: torch.Tensor
    labels: torch.Tensor


def load_digits() -> tuple[Digits, Digits]:
    """Load the digits for training and the digits for testing."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise InvalidInputError("The digits come with scikit-learn.\n  To fix: pip install scikit-learn") from error
    pixels, labels = load(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    images = (images - images.mean()) / images.std()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, targets = images[order], torch.tensor(labels)[order]
    return Digits(images[:TRAINING], targets[:TRAINING]), Digits(images[TRAINING:], targets[TRAINING:])


def train_on_digits(module: nn.Module, groups: Sequence[dict[str, object]], steps: int) -> tuple[float, float]:
    """Train with Adam; return the mean loss of the last ten steps and the share of test images read correctly."""
    train, test = load_digits()
    optimizer = torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        picked = torch.randint(TRAINING, (BATCH,), generator=generator)
        loss = F.cross_entropy(module(train.images[picked]), train.labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    module.eval()
    with torch.no_grad():
        right = (module(test.images).argmax(1) == test.labels).float().mean().item()
    return sum(losses[-10:]) / len(losses[-10:]), right
