"""Small models of many kinds, each a function of the width with a batch and a loss, for checks over widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from abcfx.examples.gpt import GPT, GPTConfig
from abcfx.examples.mlp import make_mlp
from abcfx.support.batch_loss import Loss


class SqueezeExcite(nn.Module):
    """A convnet whose channels are gated by a small network on their means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.GroupNorm(4, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.down, self.up = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.conv(x)
        gate = torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3))))))
        return self.head((x + y * gate[:, :, None, None]).mean((2, 3)))


class UNet(nn.Module):
    """Two levels down, two up, with a skip by concatenation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.join = nn.Conv2d(2 * width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.silu(self.enter(x))
        b = F.silu(self.middle(F.silu(self.down(a))))
        return self.leave(F.silu(self.join(torch.cat([a, self.up(b)], 1))))


class GraphNet(nn.Module):
    """Two rounds of messages over a fixed graph, then the mean over nodes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.message = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor, links: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.enter(x))
        for message, own in zip(self.message, self.own, strict=True):
            h = torch.relu(own(h) + links @ message(h))
        return self.head(h.mean(1))


class TwoTowers(nn.Module):
    """A tower for users and one for items, added and read out as one number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.user, self.item = nn.Linear(8, width), nn.Linear(12, width)
        self.score = nn.Linear(width, 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.score(torch.relu(self.user(user) + self.item(item)))


class Seq2Seq(nn.Module):
    """A GRU that reads, and a GRU that writes from where it stopped."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(32, width), nn.Embedding(32, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 32)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        _, state = self.encoder(self.source(source))
        out, _ = self.decoder(self.target(target), state)
        return self.head(out)


class WaveNet(nn.Module):
    """Dilated gated convolutions with a sum of skips."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv1d(4, width, 1)
        self.filters = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(2))
        self.gates = nn.ModuleList(nn.Conv1d(width, width, 2, dilation=2**i) for i in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(2))
        self.leave = nn.Conv1d(width, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        total: torch.Tensor | float = 0.0
        for i, (filters, gates, skip) in enumerate(zip(self.filters, self.gates, self.skips, strict=True)):
            padded = F.pad(x, (2**i, 0))
            y = torch.tanh(filters(padded)) * torch.sigmoid(gates(padded))
            total = total + skip(y)
            x = x + y
        return self.leave(torch.relu(torch.as_tensor(total)))


class Autoencoder(nn.Module):
    """A variational autoencoder with a code of fixed size; the noise is an input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.mean, self.spread = nn.Linear(width, 4), nn.Linear(width, 4)
        self.decoder = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.leave = nn.Linear(width, 16)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        h = self.encoder(x)
        return self.leave(self.decoder(self.mean(h) + torch.exp(self.spread(h) / 2) * noise))


class Perceiver(nn.Module):
    """A few learned latents that attend to the inputs, then to themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 16
        self.latents = nn.Parameter(torch.randn(4, width))
        self.enter = nn.Linear(6, width)
        self.norm, self.norm_inputs = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.keys_values = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out, self.mlp = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        latents = self.latents.expand(count, -1, -1)
        keys, values = self.keys_values(self.norm_inputs(self.enter(x))).chunk(2, -1)
        q, k, v = (
            t.reshape(count, -1, self.heads, 16).transpose(1, 2) for t in (self.query(self.norm(latents)), keys, values)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(count, 4, -1)
        latents = latents + self.out(y)
        latents = latents + self.mlp(F.gelu(latents))
        return self.head(latents.mean(1))


class Mixer(nn.Module):
    """Patches mixed along the tokens, then along the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(self.norm(x).mean(1))


class StateSpace(nn.Module):
    """A gated linear recurrence with a decay for each channel, as in Mamba and its kin."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tok = nn.Embedding(32, width)
        self.norm = nn.LayerNorm(width)
        self.enter, self.gate, self.step = (nn.Linear(width, width) for _ in range(3))
        self.decay = nn.Parameter(torch.zeros(width))
        self.leave, self.head = nn.Linear(width, width), nn.Linear(width, 32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tok(ids)
        y = self.norm(x)
        u, gate, step = self.enter(y), F.silu(self.gate(y)), F.softplus(self.step(y))
        state = torch.zeros_like(u[:, 0])
        states = []
        for t in range(8):
            state = state * torch.exp(-step[:, t] * torch.exp(self.decay)) + step[:, t] * u[:, t]
            states.append(state)
        return self.head(x + self.leave(torch.stack(states, 1) * gate))


class ResNet(nn.Module):
    """A stem and two residual blocks with batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(torch.relu(norm(x)))
        return self.head(torch.relu(x).mean((2, 3)))


class Case(NamedTuple):
    """A model over widths with what it is trained on.

    Attributes:
        make: builds the model of a width.
        batch: inputs and targets.
        loss: the loss; None for the check's own.
    """

    make: Callable[[int], nn.Module]
    batch: object
    loss: Loss | None = None


def cases() -> dict[str, Case]:
    """Return every case by name. Batches are drawn from one seed."""
    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
    ids = torch.randint(0, 32, (4, 8))
    links = torch.rand(4, 5, 5).softmax(-1)
    return {
        "mlp": Case(make_mlp, (torch.randn(16, 64), torch.randint(10, (16,)))),
        "gpt": Case(lambda width: GPT(GPTConfig(d_model=width)), torch.randint(0, 128, (4, 16))),
        "resnet": Case(ResNet, (images, labels)),
        "squeeze-excite": Case(SqueezeExcite, (images, labels)),
        "unet": Case(UNet, (images, torch.randn(8, 3, 8, 8)), nn.MSELoss()),
        "graph": Case(GraphNet, ((torch.randn(4, 5, 6), links), torch.randint(4, (4,)))),
        "towers": Case(TwoTowers, ((torch.randn(16, 8), torch.randn(16, 12)), torch.randn(16, 1)), nn.MSELoss()),
        "seq2seq": Case(Seq2Seq, ((ids, ids.flip(1)), ids)),
        "wavenet": Case(WaveNet, (torch.randn(4, 4, 16), torch.randn(4, 4, 16)), nn.MSELoss()),
        "vae": Case(Autoencoder, ((x := torch.randn(16, 16), torch.randn(16, 4)), x), nn.MSELoss()),
        "perceiver": Case(Perceiver, (torch.randn(4, 10, 6), torch.randint(5, (4,)))),
        "mixer": Case(Mixer, (images, labels)),
        "ssm": Case(StateSpace, (ids, ids)),
    }
