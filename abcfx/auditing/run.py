"""`audit`: whether the parametrization that a model already has is right, read off two widths without training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import get_args

import torch
from torch import nn

from abcfx.auditing.audit_result import Audit, AuditRow
from abcfx.auditing.audit_rows import audit_rows
from abcfx.auditing.comparison import Comparison, DecayMode
from abcfx.auditing.faults import guilty
from abcfx.auditing.fixes import Fix
from abcfx.auditing.gradients import gradient_sizes
from abcfx.auditing.groups import right_groups
from abcfx.auditing.notes import audit_notes
from abcfx.auditing.reading import Held, held_by, is_zero, read_init, read_rates
from abcfx.auditing.state import AuditState
from abcfx.auditing.target import right_state
from abcfx.capture.given_models import given_model
from abcfx.capture.options import Capture, CaptureMethod
from abcfx.errors import InvalidInputError
from abcfx.exponents.assign import assign_exponents
from abcfx.exponents.fixed import FixedExponents
from abcfx.exponents.options import Parametrization
from abcfx.pairing.pair import PairedModels
from abcfx.support import arguments
from abcfx.support.choices import choose
from abcfx.support.numbers import check_whole
from abcfx.support.running import seeded
from abcfx.theory.optimizers import FAMILIES, OptimizerFamily

Optimizers = torch.optim.Optimizer | Iterable[torch.optim.Optimizer]
MakeModel = Callable[[int], nn.Module] | tuple[nn.Module, nn.Module]
MakeOptimizer = Callable[[nn.Module], Optimizers] | tuple[Optimizers, Optimizers]
MUP = Parametrization("mup", alignment="worst")


@torch.inference_mode(False)
def audit(
    make_model: MakeModel,
    make_optimizer: MakeOptimizer,
    args: object = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    widths: Sequence[int] = (64, 256),
    parametrization: Parametrization | str = MUP,
    decay: DecayMode = "independent",
    roles: Mapping[str, str] | None = None,
    capture: Capture | CaptureMethod = "auto",
) -> Audit:
    """Judge the parametrization that a model already has: its own init, multipliers and optimizer groups.

    Nothing is trained. The model is built at two widths; its graph, its draws and its optimizers at both say how
    multipliers, init, rates, eps and weight decay scale, and the recursion of the linear program says what they lead
    to: which layers blow up as the width grows, which learn ever less, and which could be faster.

    Main arguments:
        make_model: builds the model of a width, with the user's own init; or the two models, the smaller one first.
        make_optimizer: builds the optimizer of a model, or several; or the optimizers of the two models.
        args: example positional inputs, as in `torch.export.export`; a bare tensor counts as one argument.
        kwargs: example keyword inputs.

    Other arguments:
        widths: the smaller and the larger width; all factors are of the larger against the smaller.
        parametrization: what counts as right. By default everything that is stable and learns at every width, also
            where what is learnt lines up with the readout, as muP assumes; "sp" judges by the weaker assumption under
            which standard parametrization with a rate for each layer is right.
        decay: what weight decay is to do: "independent", the weight shrinks by the same share in a step at every width;
            "coupled", its number stays.
        roles: glob pattern on parameter names -> role ("hidden", "readout", ...), where the graph does not tell it.
        capture: name of a capture method, or a `Capture`, with the outputs that a loss is made of, for example.

    Returns:
        An `Audit`: true if all is right. A row names the parameter that is wrong, what it leads to and what to multiply
        by how much; `param_groups` has the groups that would do it.

    Raises:
        InvalidInputError: arguments that do not fit together.
        CaptureError, UnknownOpError, PairingError: as for `transform`.

    Example:
        >>> import abcfx
        >>> def mlp(width):
        ...     return torch.nn.Sequential(torch.nn.Linear(8, width), torch.nn.ReLU(), torch.nn.Linear(width, 2))
        >>> def adam(model):
        ...     return torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> abcfx.audit(mlp, adam, torch.rand(4, 8)).guilty
        ('2.weight',)

    Source: the recursion is that of Everett et al. 2024, arXiv 2407.05872, on the model's graph.
    """
    small, large = (check_whole("widths: each", width) for width in _pair("widths", widths))
    models = _models(make_model, (small, large))
    optimizers = _optimizers(make_optimizer, models)
    decay = choose("decay", decay, get_args(DecayMode))
    asked = Parametrization.of(parametrization)
    pair = PairedModels(models[1], models[0], args, kwargs, Capture.of(capture), is_called=False)
    known = _compare(pair, optimizers, asked, roles, decay, large)
    rows = audit_rows(known)
    return Audit(
        rows=rows,
        widths=(small, large),
        width_ratio=known.width_ratio,
        optimizer=", ".join(dict.fromkeys(type(each).__name__ for each in optimizers[1])),
        guilty=tuple(dict.fromkeys(known.guilty_names)),
        notes=(*pair.growth.notes, *audit_notes(known)),
        param_groups=right_groups(pair.target_graph.model, known, _changed(rows)),
    )


def _pair(option: str, values: object) -> tuple[object, object]:
    """Return two values that the user gave, the smaller one first.

    Raises:
        InvalidInputError: they are not two.
    """
    found = tuple(values) if isinstance(values, Iterable) else (values,)
    if len(found) != 2:
        raise InvalidInputError(f"{option}: expected two, of the smaller and the larger model, got {len(found)}.")
    return found[0], found[1]


def _models(make_model: MakeModel, widths: tuple[int, int]) -> tuple[nn.Module, nn.Module]:
    """Return the smaller and the larger model, out of wrappers such as DDP, with weights from seeds of their own.

    Raises:
        InvalidInputError: the function gives no models, or is no function of a width.
    """
    if isinstance(make_model, nn.Module):
        raise InvalidInputError(
            "make_model: expected a function of the width, or two models, got one model.\n"
            "  To fix: audit(lambda width: Model(width), ...)"
        )
    if callable(make_model):
        arguments.refuse_call("make_model", make_model, "a function of the width alone", widths[0])
        built = []
        for seed, width in enumerate(widths):
            with seeded(seed):
                built.append(make_model(width))
    else:
        built = list(make_model)
        _pair("make_model", built)
    small, large = (given_model(f"make_model({width})", each).model for width, each in zip(widths, built, strict=True))
    return small, large


def _optimizers(
    make_optimizer: MakeOptimizer, models: tuple[nn.Module, nn.Module]
) -> tuple[tuple[torch.optim.Optimizer, ...], tuple[torch.optim.Optimizer, ...]]:
    """Return the optimizers of the smaller and of the larger model.

    Raises:
        InvalidInputError: something else was given.
    """
    if isinstance(make_optimizer, torch.optim.Optimizer):
        raise InvalidInputError(
            "make_optimizer: expected a function of the model, got one optimizer.\n"
            "  To fix: audit(make_model, lambda model: torch.optim.AdamW(groups_of(model)), ...)"
        )
    if callable(make_optimizer):
        arguments.refuse_call("make_optimizer", make_optimizer, "a function of the model alone", models[0])
        given: tuple[object, object] = make_optimizer(models[0]), make_optimizer(models[1])
    else:
        given = _pair("make_optimizer", make_optimizer)
    small, large = (tuple(each) if isinstance(each, Iterable) else (each,) for each in given)
    for each in (*small, *large):
        found = each if isinstance(each, torch.optim.Optimizer) else None
        if found is None:
            raise arguments.wrong("make_optimizer", each, "a torch optimizer, or several")
    return small, large


def _compare(
    pair: PairedModels,
    optimizers: tuple[tuple[torch.optim.Optimizer, ...], tuple[torch.optim.Optimizer, ...]],
    asked: Parametrization,
    roles: Mapping[str, str] | None,
    decay: DecayMode,
    width: int,
) -> Comparison:
    """Read off how a model scales between two widths, and find out what would be right and who is guilty.

    Args:
        pair: both models side by side.
        optimizers: those of the smaller and of the larger model.
        asked: what counts as right.
        roles: roles of parameters that the user gave.
        decay: what weight decay is to do.
        width: the larger width.
    """
    dag, growth = pair.target_dag, pair.growth
    if growth.width_ratio == 1.0:
        raise InvalidInputError("audit: both models have the same sizes, so nothing says how they scale with width.")
    asked.check_base(growth.width_ratio)
    large, small = dict(pair.target_graph.model.named_parameters()), growth.base_parameters
    decided = assign_exponents(dag, growth, large, asked.table, roles)
    held = held_by(optimizers[0], small), held_by(optimizers[1], large)
    families = {name: _family_of(held[1], name) for name in large}
    planned = FixedExponents(dag, growth, decided, families)
    alignment = asked.alignments(dag, decided)
    own_init = read_init(small, large, planned)
    drawn = {name: each.exponent for name, each in own_init.items()}
    rates = read_rates(held[0], held[1], growth.width_ratio)
    right = right_state(planned, alignment, drawn)
    c = {name: each.c for name, each in rates.items() if name in right.c}
    state = AuditState(right.frame, alignment, drawn, c, {})
    zeros = {name for name, each in own_init.items() if is_zero(each.draw)}
    graph = pair.target_graph
    gradients = gradient_sizes(graph.model, graph.args or (), graph.kwargs or {}, dag.output_paths)
    names = tuple(guilty(state, right, zeros))
    return Comparison(planned, state, right, own_init, rates, zeros, names, decay, gradients, width)


def _family_of(held: Mapping[str, Held], name: str) -> OptimizerFamily:
    """Return how large the updates of a parameter are; those of one that is in no optimizer do not matter."""
    return held[name].family if name in held else FAMILIES["adamw"]


def _changed(rows: Iterable[AuditRow]) -> dict[str, Fix]:
    """Return the factors that put each parameter right, of those that need any."""
    found: dict[str, Fix] = {}
    for row in rows:
        if row.change is not None:
            known = found.get(row.name, Fix({}))
            found[row.name] = replace(
                row.change,
                lr=known.lr * row.change.lr,
                eps=known.eps * row.change.eps,
                weight_decay=known.weight_decay * row.change.weight_decay,
            )
    return found
