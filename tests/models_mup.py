"""The reference architectures of the cross-check with microsoft/mup, in plain PyTorch.

Each takes a width; the base has width 64 and the target 256, so the multiplier is 4. Parameters have the names of
tests/data/mup_reference.json, which was made with mup.MuReadout in place of the readouts here.

All initialisers are PyTorch's defaults. Only `width` scales: inputs, vocabulary, classes, kernels and lengths are
finite. The head dim of the transformers is 16 at any width: the number of heads grows, and logits need no scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB, SEQ, CLASSES, IN = 96, 32, 10, 48


class MLP(nn.Module):
    """Four linear layers with ReLU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc_in = nn.Linear(IN, width)
        self.fc_h1 = nn.Linear(width, width)
        self.fc_h2 = nn.Linear(width, width)
        self.readout = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc_in(x))
        x = F.relu(self.fc_h1(x))
        x = F.relu(self.fc_h2(x))
        return self.readout(x)


class CNN(nn.Module):
    """Two convolutions with pooling and two linear layers; images of 3x16x16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fc = nn.Linear(2 * width * 4 * 4, 4 * width)
        self.readout = nn.Linear(4 * width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc(x.flatten(1)))
        return self.readout(x)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm and a skip, which is a convolution where the sizes differ."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.short = None
        if stride != 1 or cin != cout:
            self.short = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.short is None else self.short(x)))


class SmallResNet(nn.Module):
    """Two stages of two residual blocks; the second has twice the channels and half the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(ResidualBlock(width, width, 1), ResidualBlock(width, width, 1))
        self.layer2 = nn.Sequential(ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 2 * width, 1))
        self.readout = nn.Linear(2 * width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.layer2(self.layer1(x))
        return self.readout(x.mean((2, 3)))


class Attention(nn.Module):
    """Causal attention whose logits are multiplied by `scale`."""

    def __init__(self, d: int, heads: int, scale: float) -> None:
        super().__init__()
        self.h, self.scale = heads, scale
        self.q = nn.Linear(d, d)
        self.k = nn.Linear(d, d)
        self.v = nn.Linear(d, d)
        self.o = nn.Linear(d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = (m(x).view(b, t, self.h, d // self.h).transpose(1, 2) for m in (self.q, self.k, self.v))
        a = (q @ k.transpose(-1, -2)) * self.scale
        a = a.masked_fill(torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1), float("-inf"))
        return self.o((a.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    """Attention and an MLP, each after a layer norm and with a skip."""

    def __init__(self, d: int, heads: int, scale: float) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(d)
        self.attn = Attention(d, heads, scale)
        self.ln2 = nn.LayerNorm(d)
        self.up = nn.Linear(d, 4 * d)
        self.down = nn.Linear(4 * d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class Transformer(nn.Module):
    """A decoder; the readout of a tied one is the table of its tokens."""

    def __init__(self, width: int, tied: bool, layers: int = 2) -> None:
        super().__init__()
        self.tok = nn.Embedding(VOCAB, width)
        self.pos = nn.Embedding(SEQ, width)
        self.blocks = nn.ModuleList(Block(width, width // 16, 16**-0.5) for _ in range(layers))
        self.lnf = nn.LayerNorm(width)
        self.readout = nn.Linear(width, VOCAB, bias=False)
        if tied:
            self.readout.weight = self.tok.weight

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        x = self.tok(idx) + self.pos(torch.arange(idx.shape[1], device=idx.device))
        for b in self.blocks:
            x = b(x)
        return self.readout(self.lnf(x))


@dataclass(frozen=True)
class Architecture:
    """A model of any width with an example of its input."""

    build: Callable[[int], nn.Module]
    inputs: Callable[[], torch.Tensor]


def images() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16)


def vectors() -> torch.Tensor:
    return torch.randn(8, IN)


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (4, SEQ))


ARCHITECTURES = {
    "mlp": Architecture(MLP, vectors),
    "cnn": Architecture(CNN, images),
    "resnet": Architecture(SmallResNet, images),
    "transformer_untied_headcount": Architecture(lambda width: Transformer(width, tied=False), tokens),
    "transformer_tied_headcount": Architecture(lambda width: Transformer(width, tied=True), tokens),
}
