"""`upcycle`: fills a mixture of experts with copies of a trained dense MLP; shapes say how, outputs confirm it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from abcfx.capture.examples import canonical
from abcfx.capture.given_models import given_model
from abcfx.errors import GrowthError
from abcfx.growing.fill.experts import LAYOUTS, OF_ONE, TRANSPOSED, Filling, fill_experts
from abcfx.growing.grown import Grown
from abcfx.growing.optimizer_state import Group, plain_groups
from abcfx.growing.output_gap import TOLERANCES, difference, outputs_of
from abcfx.growing.refusals import same_constant
from abcfx.growing.steps import Upcycled
from abcfx.pairing.factors.index_maps import IndexMap
from abcfx.support import arguments
from abcfx.support.running import evaluating

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


@torch.inference_mode(False)
@arguments.checked(
    kwargs=arguments.keywords,
    optimizer=arguments.optional(arguments.optimizer),
    noise=arguments.number(at_least=0),
    seed=arguments.seed,
)
def upcycle(
    dense: nn.Module,
    into: nn.Module | Callable[[], nn.Module],
    args: object = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> Grown:
    """Fill a mixture of experts, of the same width, so that it computes what a trained dense model does.

    Every expert becomes a copy of the MLP in its place. That keeps the function if the weights of the chosen experts
    add up to one, whatever the router says; the router keeps its own random init. Experts become different because
    they see different tokens.

    Main arguments:
        dense: the trained model; it is not changed.
        into: the mixture, filled in place, or a function that builds it. Parameters with the same name are copied;
            experts may be stacked in one tensor (experts, ...), or numbered submodules.
        args: example positional inputs; a bare tensor counts as one argument.
        kwargs: example keyword inputs.
        optimizer: the dense model's optimizer, whose state is carried along for parameters outside the mixtures.
            Experts and routers take the hyperparameters of the MLP and start without state.

    Other arguments:
        noise: standard deviation of noise on the experts, relative to the RMS of each tensor. It changes the function
            by about as much, and the report says so.
        seed: of the noise.

    Returns:
        The mixture with parameter groups and state for its optimizer, and a report.

    Raises:
        GrowthError: no filling gives the same outputs (weights of the chosen experts that do not add up to one, other
            constants), or a router is zero. The mixture then has its own weights again.

    Example:
        >>> import torch, abcfx
        >>> from abcfx.examples.gpt import GPT, GPTConfig
        >>> from abcfx.examples.grow_gpt import MixtureGPT
        >>> config = GPTConfig(d_model=32, n_layer=1)
        >>> dense, tokens = GPT(config), torch.zeros(1, 8, dtype=torch.long)
        >>> mixture = abcfx.upcycle(dense, MixtureGPT(config, experts=4, top_k=2), tokens).module
        >>> torch.allclose(mixture(tokens), dense(tokens), atol=1e-4)
        True
    """
    dense = given_model("dense", dense, on_device=True).model
    mixture = given_model("into", into, on_device=True).model
    given, named = canonical(args, kwargs)
    models = _Models(dense, mixture, given or (), named or {}, _match(dense, mixture))
    _refuse(models)
    gap, plan = _filled(models)
    notes: tuple[str, ...] = ()
    if noise:
        fill_experts(mixture, models.tensors(), plan, noise, seed)
        gap = models.gap()
        notes = (f"noise of {noise:g} on the experts changes the function",)
    step = Upcycled(difference=gap, kept=not noise, notes=notes, fillings=plan, noise=noise)
    groups, state = list[Group](), None
    if optimizer is not None:
        groups, state = _carried_along(optimizer, models, plan)
    return Grown(mixture, groups, state, (step,), dict.fromkeys(dict(mixture.named_parameters()), 1.0))


def _filled(models: _Models) -> tuple[float, dict[str, Filling]]:
    """Fill the mixture of experts in the first way that gives the same outputs as the dense model.

    Returns:
        The difference of the outputs, and for each tensor of experts of which dense matrices it is made.

    Raises:
        GrowthError: there is none; the mixture then has its own weights again.
    """
    dense, mixture, match = models.dense, models.mixture, models.match
    before = {name: p.detach().clone() for name, p in mixture.named_parameters() if name not in match.routers}
    _copy_common(dense, mixture, match)
    tensors, limit = models.tensors(), _tolerance(dense)
    best: tuple[float, dict[str, Filling]] | None = None
    try:
        for plan in _plans(match, tensors):
            fill_experts(mixture, tensors, plan)
            gap = models.gap()
            if best is None or gap < best[0]:
                best = gap, plan
            if gap <= limit:
                return gap, plan
        raise GrowthError(_no_filling(match, best))
    except GrowthError:
        with torch.no_grad():
            for name, parameter in mixture.named_parameters():
                if name in before:
                    parameter.copy_(before[name])
        raise


def _carried_along(
    optimizer: torch.optim.Optimizer, models: _Models, plan: Mapping[str, Filling]
) -> tuple[list[Group], Group]:
    """Make groups and state for the mixture's optimizer from those of the dense model's optimizer.

    Args:
        optimizer: the dense model's optimizer.
        models: the two models.
        plan: for each tensor of experts, of which dense matrices it is made.
    """
    match = models.match
    origin = {name: name for name in match.common} | {name: each.sources[0] for name, each in plan.items()}
    first = next(iter(plan.values())).sources[0]
    origin |= dict.fromkeys(match.routers, first)
    return plain_groups(optimizer, models.dense, models.mixture, origin, match.common)


@dataclass(frozen=True)
class _Expert:
    """A parameter of the mixture of experts that holds weights of experts, all of them or one.

    Attributes:
        stacked: whether the tensor holds all experts, along its first dim.
        shape: the shape of one expert.
        sources: names of the dense tensors that may be its source.
    """

    stacked: bool
    shape: tuple[int, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class _Match:
    """The parameters of a mixture of experts, sorted into those common with the dense model, routers and experts.

    Attributes:
        common: names of the parameters that the dense model has too.
        routers: names of the routers' parameters.
        experts: name -> tensor of experts.
    """

    common: tuple[str, ...]
    routers: tuple[str, ...]
    experts: Mapping[str, _Expert]


@dataclass(frozen=True)
class _Models:
    """A dense model and a mixture for `upcycle`, example inputs, and what each parameter of the mixture is."""

    dense: nn.Module
    mixture: nn.Module
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    match: _Match

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the parameters of the dense model by name."""
        return {name: parameter.detach() for name, parameter in self.dense.named_parameters()}

    def gap(self) -> float:
        """Return the largest difference between outputs of the dense model and the mixture, relative to their RMS.

        Raises:
            GrowthError: the two return no tensor in common.
        """
        with evaluating(self.dense, self.mixture):
            theirs, ours = (outputs_of(model, self.args, self.kwargs) for model in (self.dense, self.mixture))
        shared = [p for p, t in theirs.items() if p in ours and t.is_floating_point() and t.shape == ours[p].shape]
        if not shared:
            raise GrowthError(
                f"The models return no tensor in common: {sorted(theirs)} against {sorted(ours)}.\n"
                f"  To fix: let both return their outputs in the same structure."
            )
        return max(difference(theirs[p], ours[p], [*map(IndexMap.unchanged, theirs[p].shape)]) for p in shared)


def _match(dense: nn.Module, mixture: nn.Module) -> _Match:
    """Sort the parameters of a mixture of experts into those that the dense model has too, routers and experts.

    Raises:
        GrowthError: there is no mixture, or some parameter is none of the three.
    """
    ours, theirs = dict(mixture.named_parameters()), dict(dense.named_parameters())
    common = tuple(n for n, p in ours.items() if n in theirs and p.shape == theirs[n].shape)
    only_dense = [name for name in theirs if name not in common]
    new = [name for name in ours if name not in common]
    if not new or not only_dense:
        raise GrowthError(
            "The two models have the same parameters: there is no dense MLP that becomes a mixture of experts.\n"
            "  To fix: abcfx.grow(small, into=large) widens and deepens."
        )
    homes = {name: _home(name, only_dense) for name in new}
    routers, experts = list[str](), dict[str, _Expert]()
    for home in dict.fromkeys(homes.values()):
        here = [name for name in new if homes[name] == home]
        sources = tuple(name for name in only_dense if _home(name, new) == home)
        numbered = _numbered(here, home)
        counts = {len(each) for each in numbered.values()} or {ours[n].shape[0] for n in here if ours[n].ndim == 3}
        for name in here:
            if any(name in each for each in numbered.values()):
                experts[name] = _Expert(False, tuple(ours[name].shape), sources)
            elif ours[name].ndim == 3 or (not numbered and ours[name].ndim == 2 and _is_bias(ours, name, here)):
                experts[name] = _Expert(True, tuple(ours[name].shape[1:]), sources)
            elif set(ours[name].shape) & counts:
                routers.append(name)
            else:
                raise GrowthError(
                    f"{name} {tuple(ours[name].shape)} is neither a router nor an expert, and the dense model has no "
                    f"parameter of that name.\n"
                    f"  expected: routers (experts, width) and experts of the shapes of the dense MLP.\n"
                    f"  To fix: build both models by the same code outside of the mixtures."
                )
    return _Match(common, tuple(routers), experts)


def _home(name: str, others: list[str]) -> str:
    """Return the longest module path that the parameter `name` shares with one of the other names."""
    parts = name.split(".")[:-1]
    pairs = (zip(parts, other.split(".")[:-1], strict=False) for other in others)
    alike = [sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pair)) for pair in pairs]
    return ".".join(parts[: max(alike, default=0)])


def _numbered(names: list[str], home: str) -> dict[str, list[str]]:
    """Return groups of names that differ only in numbers behind `home`, as the experts of a ModuleList do.

    They are given by the pattern that has "*" in place of the numbers.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        rest = name.removeprefix(home)
        pattern = _NUMBER.sub("*", rest)
        if pattern != rest:
            found.setdefault(pattern, []).append(name)
    return {pattern: each for pattern, each in found.items() if len(each) > 1}


def _is_bias(parameters: Mapping[str, nn.Parameter], name: str, here: list[str]) -> bool:
    """Whether a tensor of the mixture holds the biases (experts, rows) of stacked matrices (experts, ., .).

    Args:
        parameters: the parameters of the mixture.
        name: name of the tensor.
        here: names of the parameters in the same mixture of experts.
    """
    shape = parameters[name].shape
    stacked = [parameters[n].shape for n in here if parameters[n].ndim == 3]
    return any(shape[0] == s[0] and shape[1] in s[1:] for s in stacked) and "bias" in name


def _refuse(models: _Models) -> None:
    """Raise an error unless the mixture of experts has routers, none is zero, and constants equal the dense model's.

    Raises:
        GrowthError: it has no router, a router is zero, or a constant differs.
    """
    dense, mixture, match = models.dense, models.mixture, models.match
    ours = dict(mixture.named_parameters())
    for name in match.routers:
        if ours[name].ndim > 1 and not bool(ours[name].detach().any()):
            raise GrowthError(
                f"The router {name} is zero: ties would send all tokens to the same experts, and it would\n"
                f"  never learn, since equal experts give it no gradient.\n"
                f"  To fix: torch.nn.init.normal_(model.get_parameter({name!r}), std=0.02)"
            )
    if not match.routers:
        raise GrowthError(
            "The mixture has no router that could be told from its experts.\n"
            "  expected: a parameter (experts, width) beside the experts.\n"
            "  To fix: give the number of experts another value than the widths."
        )
    buffers = dict(dense.named_buffers())
    for name, buffer in mixture.named_buffers():
        if name in buffers and not same_constant(buffer, buffers[name]):
            raise GrowthError(
                f"The constant {name} differs between the two models, so that they cannot compute the same.\n"
                f"  To fix: build both with the same options (rope theta, length)."
            )


def _copy_common(dense: nn.Module, mixture: nn.Module, match: _Match) -> None:
    """Copy into the mixture of experts those parameters and buffers that the dense model has under the same names."""
    ours, theirs = dict(mixture.named_parameters()), dict(dense.named_parameters())
    with torch.no_grad():
        for name in match.common:
            ours[name].copy_(theirs[name])
        buffers = dict(dense.named_buffers())
        for name, buffer in mixture.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])


def _plans(match: _Match, theirs: Mapping[str, torch.Tensor]) -> Iterator[dict[str, Filling]]:
    """Yield every way to make all tensors of experts out of dense tensors whose shapes fit; blocks are filled alike.

    Args:
        match: the parameters of the mixture, sorted.
        theirs: the dense model's parameters by name.
    """
    kinds: dict[str, list[str]] = {}
    for name in match.experts:
        kinds.setdefault(_NUMBER.sub("*", name), []).append(name)
    options = [list(_options(match.experts[names[0]], theirs)) for names in kinds.values()]
    for choice in itertools.product(*options):
        used = [source for sources, _ in choice for source in sources]
        if len(set(used)) < len(used):
            continue
        plan = {}
        for names, (sources, layout) in zip(kinds.values(), choice, strict=True):
            for name in names:
                expert = match.experts[name]
                plan[name] = Filling(tuple(_like(s, expert.sources) for s in sources), layout, expert.stacked)
        yield plan


def _like(source: str, names: tuple[str, ...]) -> str:
    """Return the one of `names` that differs from the parameter name `source` only in numbers."""
    return next(name for name in names if _NUMBER.sub("*", name) == _NUMBER.sub("*", source))


def _options(expert: _Expert, theirs: Mapping[str, torch.Tensor]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each way to put one or two tensors of the dense model together in the shape of one expert's tensor.

    Args:
        expert: the expert's tensor: its shape, and the dense tensors that it may be filled from.
        theirs: the dense model's tensors by name.

    Yields:
        (names of the dense tensors, key of `LAYOUTS`: how they are joined, as "one behind another").
    """
    for count in (1, 2):
        for sources in itertools.permutations(expert.sources, count):
            parts = [theirs[source] for source in sources]
            if len({part.shape for part in parts}) > 1:
                continue
            for layout, lay in LAYOUTS.items():
                if (layout in OF_ONE) != (count == 1) or (parts[0].ndim == 1 and layout in TRANSPOSED):
                    continue
                if tuple(lay(parts).shape) == expert.shape:
                    yield sources, layout


def _tolerance(model: nn.Module) -> float:
    """Return the largest difference of outputs, relative to their RMS, that counts as the same function."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    exact = max((TOLERANCES.get(dtype, 0.1) for dtype in dtypes), default=1e-4)
    return max(exact, 1e-5)  # routers commonly compute in float32


def _no_filling(match: _Match, best: tuple[float, dict[str, Filling]] | None) -> str:
    """Return the message that no way of filling the mixture of experts gives equal outputs; `best` comes nearest."""
    fix = (
        "renormalise the weights of the chosen experts so that they add up to 1 (norm_topk_prob=True), "
        "and give both models the same constants (norm eps, rope theta)"
    )
    if best is None:
        shapes = {name: expert.shape for name, expert in list(match.experts.items())[:3]}
        return (
            f"The experts cannot be made of the dense MLP: no layout has the shapes {shapes}.\n"
            f"  To fix: build the mixture with experts as wide as the dense MLP."
        )
    return (
        f"No layout of the dense MLP in the experts gives the same outputs; the nearest is {best[0]:.2g} of their RMS "
        f"off.\n  To fix: {fix}."
    )
