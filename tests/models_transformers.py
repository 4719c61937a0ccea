"""Fifteen architectures of transformers at any width, with random weights and heads of a fixed size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers as hf
from torch import nn

HEAD, TOKENS, VOCABULARY = 16, 8, 32
LABELS: dict[str, Any] = {"num_labels": 8}
Inputs = dict[str, torch.Tensor]


class Architecture(NamedTuple):
    """A class of transformers, its config at a width, and keyword arguments for its forward."""

    cls: str
    config: Callable[[int], Any]
    inputs: Callable[[], Inputs]


def _ids() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randperm(VOCABULARY - 4, generator=generator)[:TOKENS] + 4 for _ in range(2)])


def _text() -> Inputs:
    return {"input_ids": _ids()}


def _pair() -> Inputs:
    return {"input_ids": _ids(), "decoder_input_ids": _ids().flip(1)}


def _image() -> Inputs:
    return {"pixel_values": torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))}


def _sound() -> Inputs:
    features = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1))
    return {"input_features": features, "decoder_input_ids": _ids()}


def _t5(cls: Any, **more: Any) -> Callable[[int], Any]:
    return lambda n: cls(
        d_model=n, d_kv=HEAD, d_ff=2 * n, num_layers=2, num_decoder_layers=2, num_heads=n // HEAD,
        vocab_size=VOCABULARY, dropout_rate=0.0, use_cache=False, decoder_start_token_id=0, **more,
    )  # fmt: skip


ARCHITECTURES = {
    "Falcon": Architecture(
        "FalconForCausalLM",
        lambda n: hf.FalconConfig(
            hidden_size=n, num_hidden_layers=2, num_attention_heads=n // HEAD, vocab_size=VOCABULARY, use_cache=False,
            bos_token_id=0, eos_token_id=0,
        ),
        _text,
    ),
    "GPT-J": Architecture(
        "GPTJForCausalLM",
        lambda n: hf.GPTJConfig(
            n_embd=n, n_layer=2, n_head=n // HEAD, rotary_dim=8, n_positions=16, vocab_size=VOCABULARY, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
        ),
        _text,
    ),
    "MPT": Architecture(
        "MptForCausalLM",
        lambda n: hf.MptConfig(
            d_model=n, n_layers=2, n_heads=n // HEAD, max_seq_len=16, vocab_size=VOCABULARY, use_cache=False
        ),
        _text,
    ),
    "BLOOM": Architecture(
        "BloomForCausalLM",
        lambda n: hf.BloomConfig(
            hidden_size=n, n_layer=2, n_head=n // HEAD, vocab_size=VOCABULARY, hidden_dropout=0.0,
            attention_dropout=0.0, use_cache=False,
        ),
        _text,
    ),
    "CodeGen": Architecture(
        "CodeGenForCausalLM",
        lambda n: hf.CodeGenConfig(
            n_embd=n, n_layer=2, n_head=n // HEAD, rotary_dim=8, n_positions=16, n_ctx=16, vocab_size=VOCABULARY,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0,
        ),
        _text,
    ),
    "Mamba": Architecture(
        "MambaForCausalLM",
        lambda n: hf.MambaConfig(
            hidden_size=n, state_size=8, time_step_rank=n // 4, num_hidden_layers=2, vocab_size=VOCABULARY,
            use_cache=False,
        ),
        _text,
    ),
    "RWKV": Architecture(
        "RwkvForCausalLM",
        lambda n: hf.RwkvConfig(
            hidden_size=n, num_hidden_layers=2, context_length=16, vocab_size=VOCABULARY, use_cache=False
        ),
        _text,
    ),
    "RecurrentGemma": Architecture(
        "RecurrentGemmaForCausalLM",
        lambda n: hf.RecurrentGemmaConfig(
            hidden_size=n, intermediate_size=6 * n, num_hidden_layers=2, num_attention_heads=n // HEAD, lru_width=n,
            attention_window_size=16, block_types=["recurrent", "attention"], vocab_size=VOCABULARY, use_cache=False,
        ),
        _text,
    ),
    "xLSTM": Architecture(
        "xLSTMForCausalLM",
        lambda n: hf.xLSTMConfig(
            hidden_size=n, num_hidden_layers=2, num_heads=n // HEAD, chunk_size=8, vocab_size=VOCABULARY,
            ffn_round_up_to_multiple_of=8, use_cache=False,
        ),
        _text,
    ),
    "T5": Architecture("T5ForConditionalGeneration", _t5(hf.T5Config), _pair),
    "mT5": Architecture("MT5ForConditionalGeneration", _t5(hf.MT5Config), _pair),
    "LongT5": Architecture("LongT5ForConditionalGeneration", _t5(hf.LongT5Config, local_radius=3), _pair),
    "BERT": Architecture(
        "BertForMaskedLM",
        lambda n: hf.BertConfig(
            hidden_size=n, num_hidden_layers=2, num_attention_heads=n // HEAD, intermediate_size=4 * n,
            max_position_embeddings=16, vocab_size=VOCABULARY, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        _text,
    ),
    "ViT": Architecture(
        "ViTForImageClassification",
        lambda n: hf.ViTConfig(
            hidden_size=n, num_hidden_layers=2, num_attention_heads=n // HEAD, intermediate_size=4 * n, image_size=8,
            patch_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **LABELS,
        ),
        _image,
    ),
    "Whisper": Architecture(
        "WhisperForConditionalGeneration",
        lambda n: hf.WhisperConfig(
            d_model=n, encoder_layers=2, decoder_layers=2, encoder_attention_heads=n // HEAD,
            decoder_attention_heads=n // HEAD, encoder_ffn_dim=4 * n, decoder_ffn_dim=4 * n, num_mel_bins=8,
            max_source_positions=8, max_target_positions=16, vocab_size=VOCABULARY, dropout=0.0, use_cache=False,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        ),
        _sound,
    ),
}  # fmt: skip


def build(name: str, width: int) -> nn.Module:
    architecture = ARCHITECTURES[name]
    cls, config = getattr(hf, architecture.cls), architecture.config(width)
    model: nn.Module = cls._from_config(config)
    return model.float()


def loss(output: Any, batch: Inputs) -> torch.Tensor:
    """Return the cross entropy of all positions against fixed targets."""
    logits = output.logits
    targets = torch.arange(logits.shape[-2] if logits.ndim > 2 else 1) * 3 % logits.shape[-1]
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.expand(logits.shape[:-1]).flatten())
