"""The models that a check trains: one architecture at many widths, transformed or as written, drawn from a seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from abcfx.capture.options import Capture
from abcfx.checks.variants import TRANSFORMED, Variant
from abcfx.errors import InvalidInputError
from abcfx.pipeline import TransformOptions, transform
from abcfx.plan.groups import OptimizerGroup, groups_of, param_groups
from abcfx.plan.init import redraw_
from abcfx.plan.options import ByRole
from abcfx.plan.spec import Spec
from abcfx.support.running import forward_arguments, seeded
from abcfx.theory.optimizers import Optimizer, family
from abcfx.transformed import Transformed

MakeModel = Callable[[int], nn.Module]
Optimizers = Sequence[torch.optim.Optimizer]
Prepare = Callable[[Transformed, int], torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None]
Factors = Mapping[str, float]  # on the planned rates, by role; "default" for all others

_TORCH: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
    "adafactor": torch.optim.Adafactor,
    "sgd": torch.optim.SGD,
    "muon": torch.optim.Muon,
    "muonrms": lambda groups, **more: torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw", **more),
}


class CheckOptions(TransformOptions, total=False):
    """The options of `transform` that checks pass on, and the base learning rate."""

    lr: ByRole


def checked_widths(widths: Sequence[int]) -> list[int]:
    """Return the widths in increasing order. Raises InvalidInputError unless there are two different positive ones."""
    found = sorted(set(widths))
    if len(found) < 2 or found[0] <= 0:
        raise InvalidInputError(f"widths={list(widths)}; expected at least two different positive widths.")
    return found


def seeds_of(seeds: int | Sequence[int]) -> list[int]:
    """Return the seeds: those given, or as many as the number says."""
    return list(range(seeds)) if isinstance(seeds, int) else list(seeds)


@dataclass
class ModelSweep:
    """One architecture at several widths: each is captured and planned once, then drawn anew for every seed.

    Attributes:
        make_model: builds the model of a width, drawing its weights from torch's default generator.
        batch: on which it is captured.
        base_width: where transformed and standard model are the same.
        optimizer: as for `transform`.
        options: other options of `transform`.
        prepare: see `coord_check`.
    """

    make_model: MakeModel
    batch: object
    base_width: int
    optimizer: Optimizer | Mapping[str, Optimizer]
    options: CheckOptions
    prepare: Prepare | None = None
    _results: dict[int, Transformed] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name in ("model", "args", "kwargs", "base", "optimizer"):
            if name in self.options:
                raise InvalidInputError(
                    f"{name}= is not an option here: make_model(width) gives model and base, the batch its inputs.\n"
                    f"  To fix: leave it out; base_width= says which width is the base."
                )
        if self.options.get("apply") == "inplace":
            raise InvalidInputError(
                "apply='inplace' is not an option here, since the model as written is needed too.\n"
                "  To fix: apply='absorb', which changes a copy in the same way."
            )

    def __getstate__(self) -> dict[str, object]:
        """Leave out the plans when pickled: a worker plans for itself."""
        return {**self.__dict__, "_results": {}}

    def build(self, width: int, seed: int) -> nn.Module:
        """Build the model as written. Raises InvalidInputError if `make_model` returns anything but a module."""
        with seeded(seed):
            model = self.make_model(width)
        if not isinstance(model, nn.Module):
            raise InvalidInputError(f"make_model({width}) returned {type(model).__name__}; expected a torch module.")
        return model.train()

    def result(self, width: int) -> Transformed:
        """Transform the model of a width, once. Only the first capture is verified: the other widths are alike."""
        if width not in self._results:
            model, base = self.build(width, 0), self.build(self.base_width, 0)
            args, kwargs = forward_arguments(model, self.batch)
            asked = Capture.of(self.options.get("capture", "auto"))
            capture = replace(asked, verify=asked.verify and not self._results)
            options: CheckOptions = {**self.options, "capture": capture}
            self._results[width] = transform(model, args, kwargs, base=base, optimizer=self.optimizer, **options)
        return self._results[width]

    def make(
        self, variant: Variant, width: int, seed: int, factors: Factors | None = None
    ) -> tuple[nn.Module, Optimizers]:
        """Return the model of a width with the weights of a seed, and its optimizers; `factors` multiply the rates."""
        made = self._transformed if variant == TRANSFORMED else self._standard
        return made(width, seed, factors or {})

    def _transformed(self, width: int, seed: int, factors: Factors) -> tuple[nn.Module, Optimizers]:
        result = self.result(width)
        draw(result, self.build(width, seed))
        made = None if self.prepare is None else self.prepare(result, width)
        if made is None:
            return result.module, self._optimizers(result.module, result.spec, factors)
        optimizers = [made] if isinstance(made, torch.optim.Optimizer) else list(made)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factors.get("default", 1.0)
        return result.module, optimizers

    def _standard(self, width: int, seed: int, factors: Factors) -> tuple[nn.Module, Optimizers]:
        """Return the model as written, with the hyperparameters of the base width."""
        model, spec = self.build(width, seed), self.result(self.base_width).spec
        return model, self._optimizers(model, spec, factors)

    def _optimizers(self, module: nn.Module, spec: Spec, factors: Factors) -> Optimizers:
        if factors:
            default = factors.get("default", 1.0)
            rows = spec.items()
            spec = Spec({name: {**row, "lr": row["lr"] * factors.get(row["role"], default)} for name, row in rows})
        return make_optimizers(param_groups(module, spec), spec, self.optimizer)


def draw(result: Transformed, model: nn.Module) -> None:
    """Start the transformed model again from the weights and buffers of another draw of the model as written."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    result.module.train()
    with torch.no_grad():
        for name, parameter in result.module.named_parameters():
            init = result.inits[name]
            parameter.copy_(parameters[name] if init.redraw else parameters[name] * init.factor)
            parameter.grad = None
            if init.redraw and init.std is not None:
                redraw_(parameter, init.std)
        for name, buffer in result.module.named_buffers():
            if name in buffers and buffers[name].shape == buffer.shape:
                buffer.copy_(buffers[name])


def make_optimizers(
    groups: list[OptimizerGroup], spec: Spec, optimizer: Optimizer | Mapping[str, Optimizer]
) -> Optimizers:
    """Make torch's optimizers for the groups of a plan. Raises InvalidInputError if torch has none of that name."""
    if isinstance(optimizer, Mapping):
        distinct = {family(each).name: each for each in optimizer.values()}
        return [_make(groups_of(groups, spec, each), each) for each in distinct.values()]
    return [_make(groups, optimizer)]


def _make(groups: list[OptimizerGroup], optimizer: Optimizer) -> torch.optim.Optimizer:
    if isinstance(optimizer, torch.optim.Optimizer):
        taken = inspect.signature(type(optimizer).__init__).parameters
        defaults = {key: value for key, value in optimizer.defaults.items() if key in taken}
        return type(optimizer)(groups, **defaults)
    if isinstance(optimizer, type):
        return optimizer(groups)  # type: ignore[call-arg]
    key = optimizer.lower().replace("-", "").replace("_", "") if isinstance(optimizer, str) else ""
    if key not in _TORCH:
        raise InvalidInputError(
            f"optimizer={optimizer!r}: torch has no optimizer of this name to train with.\n"
            f"  To fix: prepare=lambda result, width: YourOptimizer(result.param_groups)"
        )
    return _TORCH[key](groups)
