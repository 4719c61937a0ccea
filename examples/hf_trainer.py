"""A Hugging Face model in Hugging Face's Trainer: transformed in place, with its optimizer handed over.

python -m abcfx.examples.hf_trainer        (needs transformers and accelerate; nothing is downloaded)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

import abcfx
from abcfx.examples.text import VOCABULARY, characters_of_python

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

CONTEXT = 32
BASE, WIDTH = 64, 128
LR = 2.0**-8


def make_llama(width: int) -> LlamaForCausalLM:
    """Build a small Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=width // 16, num_key_value_heads=width // 32, head_dim=16, max_position_embeddings=64,
            use_cache=False, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def prepare(width: int, lr: float = LR) -> tuple[LlamaForCausalLM, abcfx.Transformed]:
    """Transform a Llama in place; return it, still a LlamaForCausalLM that saves and generates, with the plan."""
    model, ids = make_llama(width), torch.zeros(2, CONTEXT, dtype=torch.long)
    inputs = {"input_ids": ids, "labels": ids}
    base = make_llama(BASE)
    result = abcfx.transform(model, kwargs=inputs, base=base, optimizer="adamw", lr=lr, apply="inplace")
    return model, result


def main(width: int = WIDTH, steps: int = 20, folder: str = "out") -> dict[str, object]:
    """Train the transformed Llama, print its losses and check its layers over widths."""
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    model, result = prepare(width)

    # one dict for each sequence; Trainer shuffles and stacks them
    rows = [{"input_ids": ids[0], "labels": ids[0]} for ids, _ in characters_of_python(8 * steps, 1, CONTEXT)]
    optimizer = torch.optim.AdamW(result.param_groups)
    arguments = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=8, logging_steps=steps // 2, report_to=[],
        save_strategy="no", lr_scheduler_type="linear", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()

    # a schedule must multiply all rates by one factor; this sees whether it did
    abcfx.check_optimizer(optimizer, result).raise_if_failed()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    print(f"width {width}: loss {losses[0]:.3f} -> {losses[-1]:.3f} nats per character")

    batch = {"input_ids": torch.stack([row["input_ids"] for row in rows[:4]])}
    check = abcfx.coord_check(make_llama, batch, widths=(64, 128, 256), lr=3e-4)
    print(check)
    return {"losses": losses, "check": check}


if __name__ == "__main__":
    main()
