"""Small models made of blocks: a GPT, a Llama, a ViT and a mixture of experts, with inputs."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

import abcfx
from abcfx.capture.options import CaptureMethod

METHODS: tuple[CaptureMethod, ...] = ("symbolic", "export", "record")
VOCABULARY = 64

# Where each model has its blocks.
BLOCKS = {"gpt": "blocks", "llama": "model.layers", "vit": "vit.layers", "moe": "model.layers"}


class Attention(nn.Module):
    """Causal attention with fused projections, called with keywords, which returns more than one value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 8
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, *, causal: bool = True) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the output, and the keys in a dict."""
        q, k, v = torch.chunk(self.qkv(x), 3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, 8)).transpose(1, 2) for part in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.proj(y.transpose(1, 2).flatten(2)), {"keys": k}


class Block(nn.Module):
    """A block of a transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the stream after attention and MLP."""
        attended, _ = self.attention(self.norm1(x), causal=True)
        x = x + attended
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A small GPT."""

    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def make(name: str, width: int) -> nn.Module:
    """Build a model."""
    labels: dict[str, Any] = {"num_labels": VOCABULARY}
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": 2, "intermediate_size": 2 * width}
    if name == "gpt":
        return GPT(width)
    if name == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **sizes, num_attention_heads=width // 8, vocab_size=VOCABULARY, use_cache=False, pad_token_id=None
            )
        )
    if name == "vit":
        return transformers.ViTForImageClassification(
            transformers.ViTConfig(**sizes, num_attention_heads=width // 8, image_size=16, patch_size=8, **labels)
        )
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **sizes, num_attention_heads=width // 8, num_key_value_heads=1, vocab_size=VOCABULARY, use_cache=False,
            num_local_experts=4, num_experts_per_tok=4, pad_token_id=None,
        )
    )  # fmt: skip


def inputs_of(name: str, batch: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return keyword inputs of a model and targets of the same batch."""
    generator = torch.Generator().manual_seed(seed)
    if name == "vit":
        images = torch.randn(batch, 3, 16, 16, generator=generator)
        return {"pixel_values": images}, torch.randint(0, VOCABULARY, (batch, 1), generator=generator)
    ids = torch.randint(0, VOCABULARY, (batch, 12), generator=generator)
    return {"input_ids": ids}, ids.roll(-1, 1)


def logits_of(output: object) -> torch.Tensor:
    """Return the logits, batch x positions x classes, in what a model returned."""
    logits = output if isinstance(output, torch.Tensor) else output.logits  # type: ignore[attr-defined]
    assert isinstance(logits, torch.Tensor)
    return logits if logits.ndim == 3 else logits[:, None]


def flat(result: abcfx.Transformed) -> nn.Module:
    """Return the module with the one flat graph that analyses see."""
    return result.outcome.captured.module
