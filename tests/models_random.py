"""Random models for property tests: modules that run a random program of ops on tensors of one width."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import strategies as st

FINITE = 6
OPS = (
    "linear", "no_bias", "raw", "relu", "gelu", "tanh", "gate", "swiglu",
    "add", "cat", "mul", "norm", "rms", "again", "scale", "square",
)  # fmt: skip
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh}
Program = list[tuple[str, int]]


class RandomModel(nn.Module):
    """A module that runs a program: each op reads the last tensor and, if it needs a second one, an earlier one."""

    def __init__(self, program: Program, width: int) -> None:
        super().__init__()
        self.program, self.width = program, width
        self.stem = nn.Linear(FINITE, width)
        self.steps = nn.ModuleList(self._module(op) for op, _ in program)
        self.raws = nn.ParameterList(
            nn.Parameter(torch.randn(width, width) * width**-0.5) if op == "raw" else nn.Parameter(torch.zeros(width))
            for op, _ in program
        )
        self.head = nn.Linear(width, FINITE)

    def _module(self, op: str) -> nn.Module:
        width = self.width
        if op in ("linear", "again"):
            return nn.Linear(width, width)
        if op == "no_bias":
            return nn.Linear(width, width, bias=False)
        if op == "swiglu":
            return nn.Linear(width, 2 * width)
        if op == "cat":
            return nn.Linear(2 * width, width)
        return nn.LayerNorm(width) if op == "norm" else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tensors = [self.stem(x)]
        for i, (op, back) in enumerate(self.program):
            tensors.append(self._step(op, tensors[-1], tensors[-1 - back % len(tensors)], self.steps[i], self.raws[i]))
        return self.head(F.layer_norm(tensors[-1], (self.width,)))

    @staticmethod
    def _step(op: str, x: torch.Tensor, y: torch.Tensor, module: nn.Module, raw: torch.Tensor) -> torch.Tensor:
        if op in ("linear", "no_bias", "norm"):
            return module(x)
        if op == "again":
            return module(torch.tanh(module(x)))
        if op == "raw":
            return x @ raw
        if op in ACTIVATIONS:
            return ACTIVATIONS[op](x + raw)
        if op == "gate":
            return torch.sigmoid(y) * x
        if op == "swiglu":
            content, gate = module(x).chunk(2, dim=-1)
            return F.silu(gate) * content
        if op == "cat":
            return module(torch.cat([x, y], dim=-1))
        if op == "rms":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (1 + raw)
        if op == "scale":
            return 0.5 * x
        if op == "square":
            return torch.tanh(x) ** 2
        return x + y if op == "add" else x * y


programs = st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 5)), min_size=0, max_size=7)
