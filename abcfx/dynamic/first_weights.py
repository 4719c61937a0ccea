"""The weights as they were when training began: some rows of each, all of them, or drawn again from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict, get_args

import torch

from abcfx.dynamic.sampling import SampledLayer
from abcfx.errors import InvalidInputError
from abcfx.plan.init import Init
from abcfx.support.choices import choose

FirstWeightsMode: TypeAlias = Literal["sample", "redraw", "keep"]
_TO_FIX = (
    "  To fix: torch.manual_seed(seed); result.init_weights(), before anything else is done to the weights, and\n"
    "  DynamicAlignment(..., first_weights='redraw', seed=seed); or first_weights='sample', which needs no seed."
)


class FirstWeightsState(TypedDict):
    """The saved state of a `FirstWeights`, which remembers a model's weights at the start of training.

    Attributes:
        mode: "sample", "keep" or "redraw".
        seed: the seed that draws the weights again, for "redraw".
        kept: remembered rows of the weight of each layer, by layer name; empty for "redraw".
    """

    mode: str
    seed: int | None
    kept: dict[str, torch.Tensor]


class FirstWeights:
    """Remembers the weights of a model's layers as they were at the start of training (when `take` was called).

    Args:
        mode: "sample" keeps some rows of each weight, "keep" all rows, "redraw" none: weights are then drawn again at
            each measurement, in the way `torch.manual_seed(seed); result.init_weights()` drew them.
        seed: the seed for "redraw".
        inits: how each parameter was drawn, by name, in the order of drawing.

    Attributes:
        kept: the remembered rows, (rows, fan_in), by layer name; stacked matrices (experts) have a leading dim.

    Raises:
        InvalidInputError: there is no such mode, or "redraw" has no seed.
    """

    def __init__(self, mode: FirstWeightsMode, seed: int | None, inits: Mapping[str, Init]) -> None:
        mode = choose("first_weights", mode, get_args(FirstWeightsMode))
        if mode == "redraw" and seed is None:
            raise InvalidInputError(
                f"DynamicAlignment: first_weights='redraw' needs the seed that the weights were drawn from.\n{_TO_FIX}"
            )
        self.mode, self.seed, self.inits = mode, seed, inits
        self.kept: dict[str, torch.Tensor] = {}

    @property
    def whole(self) -> bool:
        """Whether all rows of a weight, not just a sample of them, are compared with the weight's values at step 0."""
        return self.mode != "sample"

    def take(self, layers: Sequence[SampledLayer], parameters: Mapping[str, torch.Tensor]) -> None:
        """Keep the weights as they are now: some rows, all rows, or only that the seed draws them (mode "redraw").

        Args:
            layers: the layers whose weights are needed later.
            parameters: the model's parameters by name.

        Raises:
            InvalidInputError: the mode is "redraw", and the seed does not draw these weights.
        """
        if self.mode != "redraw":
            self.kept = {layer.node: layer.weight(parameters[layer.parameter]).clone() for layer in layers}
            return
        for name, drawn in self._drawn(layers, parameters):
            if not torch.equal(drawn, parameters[name].detach()):
                raise InvalidInputError(
                    f"DynamicAlignment: first_weights='redraw', but {name} is not what seed {self.seed} draws, so its "
                    f"first value could not be drawn again later.\n{_TO_FIX}"
                )

    def weights(
        self, layers: Sequence[SampledLayer], parameters: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[SampledLayer, torch.Tensor]]:
        """Yield each layer with the measured rows of its first weight, (rows, fan_in).

        In the mode "redraw" only one parameter is drawn and held in memory at a time, so layers come in the order of
        parameters.

        Args:
            layers: the layers whose weights are needed.
            parameters: the model's parameters by name; their shapes and devices are used.
        """
        if self.mode != "redraw":
            yield from ((layer, self.kept[layer.node]) for layer in layers)
            return
        for name, drawn in self._drawn(layers, parameters):
            yield from ((layer, layer.weight(drawn)) for layer in layers if layer.parameter == name)

    def _drawn(
        self, layers: Sequence[SampledLayer], parameters: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the name and the first value of each layer's weight, drawn again from the seed.

        Other parameters are drawn too, so that the random numbers come in the same order as they did at first.
        """
        wanted = {layer.parameter for layer in layers}
        generators = {p.device: torch.Generator(p.device) for p in parameters.values()}
        for generator in generators.values():
            generator.manual_seed(self.seed or 0)
        for name, parameter in parameters.items():
            drawn = self.inits[name].draw(torch.empty_like(parameter.detach()), generators[parameter.device])
            if name in wanted:
                yield name, drawn

    def state_dict(self) -> FirstWeightsState:
        """Return the state to save: the mode, the seed and the remembered first weights."""
        return {"mode": self.mode, "seed": self.seed, "kept": dict(self.kept)}

    def load_state_dict(
        self, state: FirstWeightsState, layers: Sequence[SampledLayer], parameters: Mapping[str, torch.Tensor]
    ) -> None:
        """Restore a state saved by `state_dict`, moving the remembered weights to the devices of the model.

        Args:
            state: the saved state.
            layers: the layers of this model.
            parameters: its parameters by name.

        Raises:
            InvalidInputError: the state has another mode, or is of another model.
        """
        if state["mode"] != self.mode:
            raise InvalidInputError(
                f"load_state_dict: the state was saved with first_weights={state['mode']!r}, and this object has "
                f"first_weights={self.mode!r}.\n"
                f"  To fix: DynamicAlignment(..., first_weights={state['mode']!r})"
            )
        nodes = {layer.node for layer in layers}
        if self.mode != "redraw" and set(state["kept"]) != nodes:
            other = sorted(set(state["kept"]) ^ nodes)[0]
            raise InvalidInputError(
                f"load_state_dict: the layer {other!r} is in only one of this model and the saved state; expected the "
                f"state of the same model."
            )
        if self.mode == "redraw" and state["seed"] != self.seed:
            raise InvalidInputError(
                f"load_state_dict: the state was saved with seed={state['seed']}, and this object has "
                f"seed={self.seed}: the first weights would be those of another model.\n"
                f"  To fix: DynamicAlignment(..., first_weights='redraw', seed={state['seed']})"
            )
        devices = {layer.node: parameters[layer.parameter].device for layer in layers}
        self.seed, self.kept = state["seed"], {node: w.to(devices[node]) for node, w in state["kept"].items()}
