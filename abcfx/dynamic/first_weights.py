"""The weights as they were when training began: a sample of them, all of them, or drawn again from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from abcfx.dynamic.sampling import Sampled
from abcfx.errors import InvalidInputError
from abcfx.plan.init import Init

MODES = ("sample", "redraw", "keep")


class FirstWeights:
    """What a probe's layers had for weights at `take`.

    Args:
        mode: "sample" keeps some rows of each weight, "keep" all of them, "redraw" none: they are drawn again at each
            measure, as `torch.manual_seed(seed); result.init_weights()` drew them.
        seed: that of "redraw".
        inits: how each parameter was drawn, in the order of drawing.
    """

    def __init__(self, mode: str, seed: int | None, inits: Mapping[str, Init]) -> None:
        if mode not in MODES:
            raise InvalidInputError(f"w0={mode!r}; expected one of {', '.join(MODES)}.")
        if mode == "redraw" and seed is None:
            raise InvalidInputError(f"w0='redraw' needs the seed of the weights.\n{_TO_FIX}")
        self.mode, self.seed, self.inits = mode, seed, inits
        self.kept: dict[str, torch.Tensor] = {}

    @property
    def whole(self) -> bool:
        """Whether every row of a weight is looked at."""
        return self.mode != "sample"

    def take(self, layers: Sequence[Sampled], parameters: Mapping[str, torch.Tensor]) -> None:
        """Remember the weights as they are. Raises InvalidInputError when they cannot be drawn again."""
        if self.mode != "redraw":
            self.kept = {layer.node: layer.weight(parameters[layer.parameter]).clone() for layer in layers}
            return
        for name, drawn in self._drawn(layers, parameters):
            if not torch.equal(drawn, parameters[name].detach()):
                raise InvalidInputError(
                    f"w0='redraw': {name} is not what seed {self.seed} draws, so that it cannot be had back later.\n"
                    f"{_TO_FIX}"
                )

    def weights(
        self, layers: Sequence[Sampled], parameters: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[Sampled, torch.Tensor]]:
        """(layer, its rows then) of every layer; drawn again, one parameter is in memory at a time."""
        if self.mode != "redraw":
            yield from ((layer, self.kept[layer.node]) for layer in layers)
            return
        for name, drawn in self._drawn(layers, parameters):
            yield from ((layer, layer.weight(drawn)) for layer in layers if layer.parameter == name)

    def _drawn(
        self, layers: Sequence[Sampled], parameters: Mapping[str, torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight that is looked at, as the seed draws it; the others are drawn as well, and forgotten."""
        wanted = {layer.parameter for layer in layers}
        generators = {p.device: torch.Generator(p.device) for p in parameters.values()}
        for generator in generators.values():
            generator.manual_seed(self.seed or 0)
        for name, parameter in parameters.items():
            drawn = self.inits[name].draw(torch.empty_like(parameter.detach()), generators[parameter.device])
            if name in wanted:
                yield name, drawn

    def state_dict(self) -> dict[str, Any]:
        return {"mode": self.mode, "seed": self.seed, "kept": dict(self.kept)}

    def load_state_dict(
        self, state: Mapping[str, Any], layers: Sequence[Sampled], parameters: Mapping[str, torch.Tensor]
    ) -> None:
        """Raises InvalidInputError for a state of another mode, or of another model."""
        if state["mode"] != self.mode:
            raise InvalidInputError(
                f"load_state_dict: the state has w0={state['mode']!r}, this one w0={self.mode!r}.\n"
                f"  To fix: DynamicAlignment(..., w0={state['mode']!r})"
            )
        nodes = {layer.node for layer in layers}
        if self.mode != "redraw" and set(state["kept"]) != nodes:
            other = sorted(set(state["kept"]) ^ nodes)[0]
            raise InvalidInputError(f"load_state_dict: {other!r} is no layer of both this model and the saved one.")
        devices = {layer.node: parameters[layer.parameter].device for layer in layers}
        self.seed, self.kept = state["seed"], {node: w.to(devices[node]) for node, w in state["kept"].items()}


_TO_FIX = (
    "  To fix: torch.manual_seed(seed); result.init_weights(), before anything else is done to the weights, and\n"
    "  DynamicAlignment(..., w0='redraw', seed=seed); or w0='sample', which needs no seed."
)
