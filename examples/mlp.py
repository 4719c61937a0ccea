"""An MLP on handwritten digits: the learning rate tuned at width 32 is used at width 1024, as written and transformed.

python -m abcfx.examples.mlp        (ten seconds; needs scikit-learn)
"""

from __future__ import annotations

import torch
from torch import nn

import abcfx
from abcfx.examples.digits import load_digits, train_on_digits

BASE, WIDTH = 32, 1024
LR = 2.0**-6  # the best power of 2 at BASE


def make_mlp(width: int) -> nn.Module:
    """Build an MLP with three hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width),
        nn.ReLU(), nn.Linear(width, 10),
    )  # fmt: skip


def main(width: int = WIDTH, steps: int = 60, lr: float = LR) -> dict[str, object]:
    """Train the small model and the large one in both ways, print the losses, and check the layers over widths."""
    images = load_digits()[0].images[:64]

    # 1. the small model, where the rate was tuned
    torch.manual_seed(0)
    small = make_mlp(BASE)
    at_base = train_on_digits(small, [{"params": list(small.parameters()), "lr": lr}], steps)

    # 2. the large one with that rate, as written
    torch.manual_seed(0)
    plain = make_mlp(width)
    as_written = train_on_digits(plain, [{"params": list(plain.parameters()), "lr": lr}], steps)

    # 3. the large one, transformed
    torch.manual_seed(0)
    result = abcfx.transform(make_mlp(width), images, base=lambda: make_mlp(BASE), optimizer="adam", lr=lr)
    transformed = train_on_digits(result.module, result.param_groups, steps)

    for name, (loss, right) in {
        f"width {BASE}": at_base,
        f"width {width}, as written": as_written,
        f"width {width}, transformed": transformed,
    }.items():
        print(f"{name:24} loss {loss:.3f}, {100 * right:.1f} % of test digits")

    # 4. does every layer learn alike at every width?
    check = abcfx.coord_check(make_mlp, load_digits()[0], widths=(32, 64, 128, 256), optimizer="adam")
    print(check)
    return {"base": at_base, "as written": as_written, "transformed": transformed, "check": check}


if __name__ == "__main__":
    main()
