"""A ViT on handwritten digits: patches of 2 x 2 pixels, PyTorch's own encoder layers, a class token.

python -m abcfx.examples.vit_digits        (ten seconds; needs scikit-learn)
"""

from __future__ import annotations

import torch
from torch import nn

import abcfx
from abcfx.examples.digits import load_digits, train_on_digits

BASE, WIDTH, HEAD_DIM = 32, 128, 16
LR = 2.0**-8  # the best of 2^-8 to 2^-5 at BASE


class ViT(nn.Module):
    """A vision transformer: images (B, 1, 8, 8) to logits (B, 10)."""

    def __init__(self, width: int, layers: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(
            width, width // HEAD_DIM, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(images.size(0), -1, -1), patches], dim=1) + self.position
        return self.head(self.encoder(x)[:, 0])


def main(width: int = WIDTH, steps: int = 60, lr: float = LR) -> dict[str, object]:
    """Train the model transformed and as written, print the report and both results, and check the layers."""
    torch.manual_seed(0)
    images = load_digits()[0].images[:16]
    result = abcfx.transform(ViT(width), images, base=lambda: ViT(BASE), optimizer="adam", lr=lr)
    print(result)
    transformed = train_on_digits(result.module, result.param_groups, steps)

    torch.manual_seed(0)
    plain = ViT(width)
    as_written = train_on_digits(plain, [{"params": list(plain.parameters()), "lr": lr}], steps)
    for name, (loss, right) in {"as written": as_written, "transformed": transformed}.items():
        print(f"width {width}, {name:12} loss {loss:.3f}, {100 * right:.1f} % of test digits")

    check = abcfx.coord_check(ViT, load_digits()[0], widths=(32, 128, 256), optimizer="adam", lr=3e-4)
    print(check)
    return {"as written": as_written, "transformed": transformed, "check": check}


if __name__ == "__main__":
    main()
