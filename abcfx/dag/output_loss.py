"""The loss of a batch where the user gives none: of those returned tensors that `transform` takes for outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abcfx.capture.structure import tensors_by_path
from abcfx.support.batch_loss import default_loss


@dataclass(frozen=True)
class OutputLoss:
    """A function that returns the loss of a model's output on a batch: the model's own, else cross entropy.

    Cross entropy is that of the outputs, and not of by-products such as attention maps.

    Attributes:
        paths: the paths of the outputs in what the model returns, as `LayerDag.output_paths` has them. Without any, and
            where the model returns other things than while it was captured, all returned tensors may be logits.
    """

    paths: tuple[str, ...] = ()

    def __call__(self, output: object, batch: object) -> torch.Tensor:
        """Return the loss of a model's output on a batch, as a scalar tensor.

        Raises:
            InvalidInputError: there are no logits, or no targets that fit them.
        """
        found = tensors_by_path(output)
        chosen = [path for path in self.paths if path in found]
        if not chosen:
            chosen = [path for path, tensor in found.items() if tensor.ndim >= 2]
        named = [path for path in chosen if path.rpartition(".")[2] == "logits"]
        return default_loss(output, batch, [found[path] for path in named or chosen])
