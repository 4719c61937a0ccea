"""A small ResNet on handwritten digits, with batch norm and strided skips: its channels grow, its kernels do not.

python -m abcfx.examples.resnet_digits        (ten seconds; needs scikit-learn)
"""

from __future__ import annotations

import torch
from torch import nn

import abcfx
from abcfx.examples.digits import load_digits, train_on_digits

BASE, WIDTH = 16, 64
LR = 2.0**-6


class Block(nn.Module):
    """Two convolutions beside a skip; the skip is a convolution of 1 x 1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.skip(x))


class ResNet(nn.Module):
    """A ResNet of three blocks: images (B, 1, 8, 8) to logits (B, 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


def main(width: int = WIDTH, steps: int = 30, lr: float = LR) -> dict[str, object]:
    """Train the transformed model, print the report and the result, and check the layers over widths."""
    torch.manual_seed(0)
    images = load_digits()[0].images[:16]
    result = abcfx.transform(ResNet(width), images, base=lambda: ResNet(BASE), optimizer="adam", lr=lr)
    print(result)
    loss, right = train_on_digits(result.module, result.param_groups, steps)
    print(f"\nwidth {width}: loss {loss:.3f}, {100 * right:.1f} % of test digits")
    check = abcfx.coord_check(ResNet, load_digits()[0], widths=(16, 32, 64), optimizer="adam")
    print(check)
    return {"loss": loss, "right": right, "check": check}


if __name__ == "__main__":
    main()
