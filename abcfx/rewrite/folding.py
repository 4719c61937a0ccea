"""`Fold`: how the multipliers of a trained model are put into its weights for good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from abcfx.errors import InvalidInputError
from abcfx.rewrite.once import forget_transformed
from abcfx.rewrite.query_features import FeatureScale
from abcfx.rules.extents import DimPart


@dataclass
class Fold:
    """The factors that turn a trained model into plain weights, without scale nodes (multiplications) or hooks.

    Attributes:
        factors: the factor of each parameter, by name.
        features: factors on parts of fused parameters.
        columns: for weights whose input is a concatenation, the columns of each tensor with their further factor.
        left: what no weight can take, for the error message; empty if the model can be folded.
        hooks: the hooks on the model's own object, which are removed when it is folded.
        find_features: computes `features` when they are first needed.
    """

    factors: dict[str, float] = field(default_factory=dict)
    features: Sequence[FeatureScale] = ()
    columns: Sequence[tuple[DimPart, float]] = ()
    left: Sequence[str] = ()
    hooks: list[RemovableHandle] = field(default_factory=list)
    find_features: Callable[[], Sequence[FeatureScale]] | None = None

    def apply_to(self, model: nn.Module) -> None:
        """Multiply the factors into the parameters of a model of the original class, and remove the model's hooks.

        Raises:
            InvalidInputError: some factor cannot be put into a weight; nothing has been changed then.
        """
        if self.left:
            raise InvalidInputError(
                f"fold: {self.left[0]} cannot be put into weights: no parameter can take it, or one would need two.\n"
                f"  To fix: keep the transformed module for inference; untie a tied parameter before training."
            )
        parameters = dict(model.named_parameters())
        features = self.find_features() if self.find_features is not None else self.features
        with torch.no_grad():
            for name, factor in self.factors.items():
                if factor != 1.0:
                    parameters[name].mul_(factor)
            for part, factor in self.columns:
                parameters[part.parameter].narrow(part.index, part.start, part.size).mul_(factor)
            done = set[str]()
            for each in features:
                each.apply_to(parameters, done)
        if self.hooks:  # the model's own object: a second call finds plain weights
            self.factors, self.features, self.columns = {}, (), ()
        while self.hooks:
            self.hooks.pop().remove()
        forget_transformed(model)
