"""Functions under `torch.fx.wrap`, which a symbolic trace calls as one node, are captured with the ops inside them."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

import abcfx
from abcfx.errors import UnknownOpError
from abcfx.rules import Op, Value


def drop_path(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Leave out whole rows at random, as torchvision's stochastic_depth does."""
    if not training or p == 0.0:
        return x
    noise = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
    return x * noise.bernoulli_(1 - p).div_(1 - p)


def windows(x: torch.Tensor, size: int) -> torch.Tensor:
    """Cut a sequence into windows; its length decides in Python, as in torchvision's shifted windows."""
    if x.shape[1] % size:
        x = nn.functional.pad(x, (0, 0, 0, size - x.shape[1] % size))
    return x.unflatten(1, (x.shape[1] // size, size)).mean(2)


fx.wrap("drop_path")
fx.wrap("windows")


class Wrapped(nn.Module):
    """A residual branch and windows, both by functions under `torch.fx.wrap`."""

    def __init__(self, width: int) -> None:
        """Make three layers."""
        super().__init__()
        self.inner, self.hidden, self.head = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of each window."""
        x = self.inner(x)
        x = x + drop_path(torch.relu(self.hidden(x)), 0.1, self.training)
        return self.head(windows(x, 4))


X = torch.randn(3, 8, 4)


def test_wrapped_functions_are_opened() -> None:
    """Without a rule for them, `auto` goes on to a way of capturing that shows their ops."""
    result = abcfx.transform(Wrapped(16), X, base=Wrapped(8))
    assert {name: row["role"] for name, row in result.spec.items() if name.endswith("weight")} == {
        "inner.weight": "embedding",
        "hidden.weight": "hidden",
        "head.weight": "readout",
    }


def test_a_rule_keeps_a_wrapped_function_whole() -> None:
    """With rules for both the symbolic trace is taken, and the rules are asked; without, it refuses them by name."""
    asked = []

    def same(op: Op, x: Value, *_: object) -> Value:
        """Say that the change passes through, and note that the rule was asked."""
        asked.append(op)
        return op.same(x)

    with abcfx.rules.override(drop_path, same), abcfx.rules.override(windows, same):
        abcfx.transform(Wrapped(16), X, base=Wrapped(8))
    assert asked
    with pytest.raises(UnknownOpError, match="drop_path"):
        abcfx.transform(Wrapped(16), X, base=Wrapped(8), capture="symbolic")
