"""The GPT of `gpt.py`, trained on Python's own sources. It is transformed in place: no op is added to the model.

python -m abcfx.examples.train_gpt        (a minute)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import abcfx
from abcfx.examples.gpt import GPT, GPTConfig
from abcfx.examples.text import characters_of_python

BASE, WIDTH, CONTEXT = 32, 256, 64
LR = 2.0**-6  # tuned at BASE


def make_gpt(width: int) -> GPT:
    """Build the GPT of a width."""
    return GPT(GPTConfig(d_model=width))


def train(module: nn.Module, groups: list[dict[str, object]], steps: int) -> float:
    """Train with AdamW and a tenth of warm-up; return the mean loss of the last ten steps in nats per character."""
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 10 * (step + 1) / steps))
    losses = []
    for ids, targets in characters_of_python(steps, batch=8, context=CONTEXT):
        loss = F.cross_entropy(module(ids).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / len(losses[-10:])


def main(width: int = WIDTH, steps: int = 60, lr: float = LR) -> dict[str, object]:
    """Train the GPT as written and transformed, print the report and both losses, and check the layers over widths."""
    torch.manual_seed(0)
    plain = make_gpt(width)
    as_written = train(plain, [{"params": list(plain.parameters()), "lr": lr}], steps)

    torch.manual_seed(0)
    model, ids = make_gpt(width), torch.zeros(2, CONTEXT, dtype=torch.long)
    base = make_gpt(BASE)
    result = abcfx.transform(model, ids, base=base, optimizer="adamw", lr=lr, apply="inplace")
    # it is `model` itself that is trained: its methods, its hooks and the way it is saved work as before
    transformed = train(model, result.param_groups, steps)
    print(result)
    print(f"\nwidth {width}, lr {lr:g}: loss as written {as_written:.3f}, transformed {transformed:.3f}")

    ids, _ = next(characters_of_python(1, batch=2, context=CONTEXT))
    check = abcfx.coord_check(make_gpt, ids, widths=(32, 64, 128))
    print(check)
    return {"as written": as_written, "transformed": transformed, "check": check}


if __name__ == "__main__":
    main()
