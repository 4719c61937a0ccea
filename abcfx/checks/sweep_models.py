"""Builds the models that a check trains: one architecture at many widths and seeds, transformed or unchanged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from abcfx.capture.given_models import given_model
from abcfx.capture.options import Capture
from abcfx.checks.variants import TRANSFORMED, Variant
from abcfx.dag.output_loss import OutputLoss
from abcfx.errors import InvalidInputError
from abcfx.exponents.options import Parametrization
from abcfx.pipeline import TransformOptions, transform
from abcfx.plan.groups import OptimizerGroup, groups_of, param_groups
from abcfx.plan.options import ByRole
from abcfx.plan.spec import Spec
from abcfx.support import arguments
from abcfx.support.batch_loss import Loss, scalar_loss
from abcfx.support.numbers import check_whole
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
    # torch has Muon since 2.9.
    "muon": lambda groups, **more: torch.optim.Muon(groups, **more),
    "muonrms": lambda groups, **more: torch.optim.Muon(groups, adjust_lr_fn="match_rms_adamw", **more),
}


class CheckOptions(TransformOptions, total=False):
    """The keyword options of `transform` that checks pass on, and `lr`: a base learning rate.

    `lr` may be a dict by role of parameter ("embedding", "hidden", ...).
    """

    lr: ByRole


def checked_widths(widths: Sequence[int]) -> list[int]:
    """Return the widths sorted and without repeats. Raises InvalidInputError unless two positive ones remain."""
    given = list(widths) if isinstance(widths, Iterable) else [widths]
    found = sorted({check_whole("widths: each", width) for width in given})
    if len(found) < 2:
        raise InvalidInputError(f"widths={given}; expected at least two different positive widths.")
    return found


def seeds_of(seeds: int | Sequence[int]) -> list[int]:
    """Return a list of seeds: the given ones, or 0, 1, ... up to as many as the given number says.

    Raises:
        InvalidInputError: there are none.
    """
    if not isinstance(seeds, Iterable):
        return list(range(check_whole("seeds", seeds)))
    if found := [check_whole("seeds: each", seed, at_least=0) for seed in seeds]:
        return found
    raise InvalidInputError("seeds: expected at least one, got none.")


@dataclass
class ModelSweep:
    """One architecture at several widths: each is transformed once, then its weights are drawn for every seed.

    Attributes:
        make_model: builds the model of a width, drawing its weights from torch's default generator.
        batch: a training batch, whose inputs the model is traced with.
        base_width: the width at which `transform` changes nothing.
        optimizer: name, class or instance, or a dict of role or glob pattern to them, as for `transform`.
        options: other options of `transform`.
        prepare: function of (result of `transform`, width) that may change the module and return its optimizers, as in
            `coord_check`; None makes the planned optimizer.
        _results: the transformed models made so far, by width.
    """

    make_model: MakeModel
    batch: object
    base_width: int
    optimizer: Optimizer | Mapping[str, Optimizer]
    options: CheckOptions
    prepare: Prepare | None = None
    _results: dict[int, Transformed] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Raise InvalidInputError for options of `transform` that a check over widths sets itself or cannot use."""
        if isinstance(self.make_model, nn.Module) or not callable(self.make_model):
            raise InvalidInputError(
                f"make_model: expected a function of the width that builds a model, got "
                f"{type(self.make_model).__name__}.\n  To fix: lambda width: Model(width)"
            )
        arguments.refuse_call("make_model", self.make_model, "a function of the width alone", self.base_width)
        check_whole("base_width", self.base_width)
        if self.prepare is not None:
            arguments.function("prepare", self.prepare)
            arguments.refuse_call("prepare", self.prepare, "a function of (result, width)", None, self.base_width)
        for name in ("model", "args", "kwargs", "base", "optimizer"):
            if name in self.options:
                raise InvalidInputError(
                    f"{name}= is not an option here: make_model(width) gives model and base, the batch its inputs.\n"
                    f"  To fix: leave it out; base_width= says which width is the base."
                )
        Capture.of(self.options.get("capture", "auto")).refuse_base_inputs("a check over widths")
        if self.options.get("apply") == "inplace":
            raise InvalidInputError(
                "apply='inplace' is not an option here, since the model as written is needed too.\n"
                "  To fix: apply='absorb', which changes a copy in the same way."
            )

    def __getstate__(self) -> dict[str, object]:
        """Return the state to pickle, without the transformed models: each worker process transforms for itself."""
        return {**self.__dict__, "_results": {}}

    def build(self, width: int, seed: int) -> nn.Module:
        """Build the user's unchanged model of a width, in train mode, with weights drawn from a seed.

        Raises:
            InvalidInputError: `make_model` returned something that is no torch module.
        """
        with seeded(seed):
            model = given_model("make_model", partial(self.make_model, width)).model
        return model.train()

    def result(self, width: int) -> Transformed:
        """Return the `Transformed` (result of `transform`) of a width; it is made on the first call and kept.

        Only the first capture is verified against the model, since models of other widths have the same code.
        """
        if width not in self._results:
            model, base = self.build(width, 0), self.build(self.base_width, 0)
            args, kwargs = forward_arguments(model, self.batch)
            asked = Capture.of(self.options.get("capture", "auto"))
            capture = replace(asked, verify=asked.verify and not self._results)
            scaled = replace(Parametrization.of(self.options.get("parametrization", "mup")), wider_base=True)
            options: CheckOptions = {**self.options, "capture": capture, "parametrization": scaled}
            self._results[width] = transform(model, args, kwargs, base=base, optimizer=self.optimizer, **options)
        return self._results[width]

    def loss(self, given: Loss | None) -> Loss:
        """Return the loss that a user gave; else one on what the transformed model of the base width takes for outputs.

        Raises:
            InvalidInputError: it is no function.
        """
        found = scalar_loss(given)
        return OutputLoss(self.result(self.base_width).outcome.dag.output_paths) if found is None else found

    def make(
        self, variant: Variant, width: int, seed: int, factors: Factors | None = None
    ) -> tuple[nn.Module, Optimizers]:
        """Return a model with the weights of a seed, ready for training, and its optimizers.

        Args:
            variant: "transformed", or "standard" for the user's unchanged model.
            width: width of the model.
            seed: seed of the weights.
            factors: role of parameter ("embedding", "hidden", ...) -> number that multiplies its learning rate;
                "default" for all roles not named.
        """
        made = self._transformed if variant == TRANSFORMED else self._standard
        return made(width, seed, factors or {})

    def _transformed(self, width: int, seed: int, factors: Factors) -> tuple[nn.Module, Optimizers]:
        """Return the transformed model of a width with the weights of a seed, and its optimizers.

        If `prepare` returns optimizers, only the factor "default" is applied to their learning rates.

        Args:
            width, seed: of the model.
            factors: role of parameter ("embedding", "hidden", ...) -> number that multiplies its planned learning rate.
        """
        result = self.result(width)
        draw(result, self.build(width, seed))
        made = None if self.prepare is None else self.prepare(result, width)
        if made is None:
            return result.module, self._optimizers(result.module, result.spec, factors)
        optimizers = list(made) if isinstance(made, Iterable) else [made]
        for optimizer in optimizers:
            arguments.optimizer("prepare: each value that the function returns", optimizer)
            for group in optimizer.param_groups:
                group["lr"] *= factors.get("default", 1.0)
        return result.module, optimizers

    def _standard(self, width: int, seed: int, factors: Factors) -> tuple[nn.Module, Optimizers]:
        """Return the user's unchanged model of a width, and optimizers with the rates planned for the base width.

        Args:
            width, seed: of the model.
            factors: role of parameter ("embedding", "hidden", ...) -> number that multiplies its learning rate.
        """
        model, spec = self.build(width, seed), self.result(self.base_width).spec
        return model, self._optimizers(model, spec, factors)

    def _optimizers(self, module: nn.Module, spec: Spec, factors: Factors) -> Optimizers:
        """Make the optimizers of a module from planned hyperparameters.

        Args:
            module: the module to train.
            spec: planned learning rate, weight decay, ... of each parameter.
            factors: role of parameter ("embedding", "hidden", ...) -> number that multiplies its learning rate;
                "default" for all roles not named.
        """
        if factors:
            default = factors.get("default", 1.0)
            rows = spec.items()
            spec = Spec({name: {**row, "lr": row["lr"] * factors.get(row["role"], default)} for name, row in rows})
        return make_optimizers(param_groups(module, spec), spec, self.optimizer)


def draw(result: Transformed, model: nn.Module) -> None:
    """Overwrite weights and buffers of a transformed model by those of a freshly drawn one, with the planned init.

    What is random in each weight is multiplied by the planned factor, or drawn again with the planned standard
    deviation. Gradients are cleared, and the module is put in train mode.

    Args:
        result: the transformed model, changed in place.
        model: the user's unchanged model at the same width, with freshly drawn weights.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    result.module.train()
    with torch.no_grad():
        for name, parameter in result.module.named_parameters():
            parameter.copy_(parameters[name])
            result.inits[name].apply_(parameter)
            parameter.grad = None
        for name, buffer in result.module.named_buffers():
            if name in buffers and buffers[name].shape == buffer.shape:
                buffer.copy_(buffers[name])


def make_optimizers(
    groups: list[OptimizerGroup], spec: Spec, optimizer: Optimizer | Mapping[str, Optimizer]
) -> Optimizers:
    """Make torch optimizers for parameter groups: one, or one for each kind of optimizer where `optimizer` is a dict.

    Args:
        groups: parameter groups with planned hyperparameters.
        spec: the plan, which says which parameter belongs to which optimizer.
        optimizer: name, class or instance of an optimizer, or a dict of role or glob pattern to them.

    Raises:
        InvalidInputError: torch has no optimizer of the given name.
    """
    if isinstance(optimizer, Mapping):
        distinct = {family(each).name: each for each in optimizer.values()}
        return [_make(groups_of(groups, spec, each), each) for each in distinct.values()]
    return [_make(groups, optimizer)]


def _make(groups: list[OptimizerGroup], optimizer: Optimizer) -> torch.optim.Optimizer:
    """Make an optimizer for parameter groups: from a name ("adamw"), a class, or an instance with its options."""
    if isinstance(optimizer, torch.optim.Optimizer):
        taken = inspect.signature(type(optimizer).__init__).parameters
        defaults = {key: value for key, value in optimizer.defaults.items() if key in taken}
        return type(optimizer)(groups, **defaults)
    if isinstance(optimizer, type):
        return optimizer(groups)  # type: ignore[call-arg]
    key = optimizer.lower().replace("-", "").replace("_", "") if isinstance(optimizer, str) else ""
    if key not in _TORCH or ("muon" in key and not hasattr(torch.optim, "Muon")):
        raise InvalidInputError(
            f"optimizer={optimizer!r}: torch has no optimizer of this name to train with.\n"
            f"  To fix: prepare=lambda result, width: YourOptimizer(result.param_groups)"
        )
    return _TORCH[key](groups)
