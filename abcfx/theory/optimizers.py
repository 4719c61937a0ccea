"""Families of optimizers: how large an update is before the learning rate, and how decay and eps are applied."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.support.arguments import flag, wrong
from abcfx.support.choices import choose
from abcfx.support.numbers import check_whole
from abcfx.support.patterns import match_patterns
from abcfx.theory.optimizer_classes import NOT_PLANNED, PACKED, decays_decoupled, inner_optimizer, known_name
from abcfx.theory.parametrizations import ROLES

UpdateSize: TypeAlias = Literal["sign", "gradient", "relative", "spectral"]
DecayWay: TypeAlias = Literal["decoupled", "gradient", "ratio"]
ShapeFactor: TypeAlias = Literal["", "tall", "rms"]
_ABSORBED: Mapping[UpdateSize, int] = {"sign": 1, "gradient": 2, "relative": 0, "spectral": 1}


@dataclass(frozen=True)
class OptimizerFamily:
    """A family of optimizers whose updates depend on width in the same way.

    For an optimizer that abcfx does not know, say in these terms what one step does, and give the object to `transform`
    in place of a name. Of several optimizers, `result.groups_for(family)` has the groups of this one. A class that has
    it as its attribute `abcfx_family` is known wherever the class or an instance is given.

    Main arguments:
        name: a name of your choice; the report and `Transformed.groups_for` use it.
        update: size of the change of a weight in one step with lr = 1 and without weight decay: "sign", every entry is
            about 1, whatever the size of the gradient: it is divided by the root of its own mean square (Adam, Lion,
            SOAP); "gradient", every entry is as large as the gradient's (SGD); "relative", every entry is as large as
            the weight's own: a step of "sign" times the RMS of the weight (Adafactor, LAMB); "spectral", the matrix is
            orthogonalised, so that all its singular values are about 1 (Muon).

    Other arguments:
        absorb: number of times that a is added to c (rate m^-c; m, the width ratio) when a multiplier m^-a moves into
            the weight. It follows from `update` (1, 2, 0, 1 in the order above) and need not be given.
        has_eps: whether each group has an `eps` that is added to the root of the mean square of the gradient, as in
            Adam.
        decay: how weight decay acts: "decoupled", the weight shrinks by the share lr x decay, as in AdamW; "gradient",
            decay x weight is added to the gradient, as in SGD and Adam; "ratio", the weight shrinks by the share lr x
            decay x RMS of the weight, as in LAMB, where it is added to the update before that is scaled.
        shape: factor that the optimizer itself puts on a spectral update of a matrix as it is stored: "" none; "tall"
            sqrt(max(1, rows / columns)), torch's Muon; "rms" sqrt(max(rows, columns)), its "match_rms_adamw". Constant
            factors, such as 0.2, do not count.

    Raises:
        InvalidInputError: one of the words is not known.

    Example:
        >>> OptimizerFamily("normalised_sgd", update="spectral").absorb
        1
    """

    name: str
    update: UpdateSize
    absorb: int | None = None
    has_eps: bool = False
    decay: DecayWay = "decoupled"
    shape: ShapeFactor = ""
    is_built_in: bool = field(default=False, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        """Check the options that are words ("sign", "decoupled", ...), and derive `absorb` if it was not given."""
        if not isinstance(self.name, str) or not self.name:
            raise wrong("OptimizerFamily: name", self.name, "a word")
        flag("OptimizerFamily: has_eps", self.has_eps)
        object.__setattr__(self, "update", choose("update", self.update, get_args(UpdateSize)))
        object.__setattr__(self, "decay", choose("decay", self.decay, get_args(DecayWay)))
        object.__setattr__(self, "shape", choose("shape", self.shape, get_args(ShapeFactor)))
        if self.absorb is None:
            object.__setattr__(self, "absorb", _ABSORBED[self.update])
        check_whole("OptimizerFamily: absorb", self.absorb, at_least=-2)

    def rate_shift(self, a: float) -> float:
        """Return what to add to c (rate m^-c; m, the width ratio) when a multiplier m^-a moves into the weight."""
        return (self.absorb or 0) * a

    def decay_shift(self, a: float) -> float:
        """Return x, where weight decay changes by m^x (m, the width ratio) when a weight absorbs a multiplier m^-a."""
        if self.update == "gradient":
            return 2.0 * a
        if self.decay == "gradient":
            return 2.0 * a
        return a if self.update != "relative" or self.decay == "ratio" else 0.0

    def independent_decay(self, c: float, b: float) -> float:
        """Return x for a weight decay ~ m^x (m, the width ratio) that takes the same share of a weight at every width.

        Args:
            c: exponent of the learning rate, m^-c.
            b: exponent of the weight's size, m^-b.
        """
        return c + b if self.decay == "ratio" else c

    def spectral_growth(self, e_in: float, e_out: float, stored: tuple[float, float] | None = None) -> float:
        """Return y, where rms(dW x) / rms(x) grows like m^y for an update dW with lr = 1 (m, the width ratio).

        It is that of the operator norm: |dW x|_rms <= |dW|_op sqrt(fan_in / fan_out) |x|_rms, with equality for the
        singular vectors that matter.

        Args:
            e_in: growth exponent of fan_in.
            e_out: growth exponent of fan_out.
            stored: growth exponents of the rows and columns of the stored matrix; (e_out, e_in) if not given.
        """
        return (e_in - e_out) / 2 + self.shape_growth(*(stored or (e_out, e_in)))

    def shape_growth(self, rows: float, columns: float) -> float:
        """Return x, where the optimizer's own factor on updates of a matrix is ~ m^x (m, the width ratio).

        Args:
            rows: growth exponent of the matrix's number of rows, which is ~ m^rows.
            columns: that of its number of columns.
        """
        return {"": 0.0, "tall": max(0.0, rows - columns) / 2, "rms": max(rows, columns) / 2}[self.shape]

    def shape_factor(self, rows: int, columns: int = 1) -> float:
        """Return the factor that the optimizer itself puts on updates of a matrix (rows, columns), up to a constant."""
        return math.sqrt({"": 1.0, "tall": max(1.0, rows / columns), "rms": max(rows, columns)}[self.shape])


Optimizer: TypeAlias = str | type[torch.optim.Optimizer] | torch.optim.Optimizer | OptimizerFamily


def _built_in(
    name: str,
    *,
    update: UpdateSize,
    has_eps: bool = False,
    decay: DecayWay = "decoupled",
    shape: ShapeFactor = "",
) -> OptimizerFamily:
    """Make a family that abcfx itself knows; the arguments are those of `OptimizerFamily`."""
    return OptimizerFamily(name, update, None, has_eps, decay, shape, is_built_in=True)


def _families() -> dict[str, OptimizerFamily]:
    """Return every optimizer that abcfx knows, by name, as an `OptimizerFamily`: what one step of it does to a weight.

    From `update` follows c, the exponent of the learning rate m^-c (m, the width ratio). The comments have as examples
    the c of an embedding, a hidden and a readout matrix in muP, with multipliers absorbed.
    `Layer.change` in abcfx/rules/kinds.py writes for each layer the row from which c is solved.
    """
    found = [
        # "sign": entries of about 1, whose sum over fan_in grows as fan_in does: c = (0, 1, 1), 1 where fan_in grows
        _built_in("adam", update="sign", has_eps=True, decay="gradient"),
        _built_in("adamw", update="sign", has_eps=True),
        _built_in("adamax", update="sign", has_eps=True, decay="gradient"),
        _built_in("nadam", update="sign", has_eps=True, decay="gradient"),
        _built_in("radam", update="sign", has_eps=True, decay="gradient"),
        _built_in("rmsprop", update="sign", has_eps=True, decay="gradient"),
        _built_in("adagrad", update="sign", has_eps=True, decay="gradient"),
        _built_in("soap", update="sign", has_eps=True),
        _built_in("adamatan2", update="sign"),
        _built_in("lion", update="sign"),
        _built_in("sign", update="sign"),
        # "gradient": entries that shrink like 1 / fan_out besides: c = (-1, 0, 1), lower by 1 where fan_out grows
        _built_in("sgd", update="gradient", decay="gradient"),
        # "relative": entries as large as the weight's own, m^-b with b = (0, 1/2, 1): c = (0, 1/2, 0), lower by b
        _built_in("adafactor", update="relative"),
        _built_in("lamb", update="relative", has_eps=True, decay="ratio"),
        # "spectral": singular values of about 1, times the optimizer's own factor `shape`: c = (-1/2, 0, 1/2) for
        # "tall", (0, 1/2, 1) for "rms"
        _built_in("muon", update="spectral", shape="tall"),
        _built_in("muon_rms", update="spectral", shape="rms"),
    ]
    return {each.name: each for each in found}


FAMILIES: dict[str, OptimizerFamily] = _families()
_BY_KEY = {name.replace("_", ""): each for name, each in FAMILIES.items()}


def family(optimizer: Optimizer) -> OptimizerFamily:
    """Find the family of an optimizer: an object that says how its updates depend on gradient, weight and width.

    Args:
        optimizer: a name in any case, a class, an instance, or a family itself. Low-precision, fused and paged variants
            belong to the optimizer that they implement (AdamW8bit, FusedAdam). A class counts by the package that it
            comes from: another package's Muon is another optimizer.

    Raises:
        InvalidInputError: how large its update is is not known, or it takes no learning rate.

    >>> family("AdamW").update
    'sign'
    """
    if isinstance(optimizer, OptimizerFamily):
        return optimizer
    if isinstance(optimizer, str):
        return _by_name(optimizer)
    if isinstance(optimizer, torch.optim.Optimizer):
        held = inner_optimizer(optimizer)
        found = {_of_instance(held, {**held.defaults, **group}) for group in optimizer.param_groups}
        if len(found) > 1:
            raise InvalidInputError(
                f"optimizer: the groups of this {type(held).__name__} differ in how updates or weight decay depend on "
                f"width.\n"
                f"  To fix: one optimizer for each kind of group, optimizer={{'hidden': ..., 'default': ...}}"
            )
        return found.pop()
    if isinstance(optimizer, type):
        named = _by_class(optimizer)
        if named.name == "adafactor" and "relative_step" in inspect.signature(optimizer).parameters:
            raise InvalidInputError(
                "optimizer=transformers' Adafactor: by default (relative_step=True) it takes its rate from the step, "
                "whatever lr is.\n"
                "  To fix: give an instance, Adafactor(model.parameters(), lr=1e-3, relative_step=False, "
                "scale_parameter=...)"
            )
        return named
    raise InvalidInputError(_no_optimizer(optimizer))


def _no_optimizer(given: object) -> str:
    """Return the message that something else was given than an optimizer, with what to write in its place."""
    if isinstance(given, list | tuple):
        return (
            f"optimizer: a {type(given).__name__} of {len(given)} does not say which of them trains what.\n"
            f"  To fix: a dict of role or pattern to one, optimizer={{'hidden': muon, 'default': adamw}}"
        )
    if isinstance(given, functools.partial):
        return (
            f"optimizer: a functools.partial of {getattr(given.func, '__name__', given.func)!r} is neither a class nor "
            f"an instance.\n  To fix: call it on the parameters of the base, optimizer=make(base.parameters())"
        )
    return _not_known(repr(given), "")


def _by_name(name: str) -> OptimizerFamily:
    """Return the family of an optimizer (how its updates depend on width) by its name, in any spelling.

    Raises:
        InvalidInputError: the name is not known.
    """
    key = name.lower().replace("-", "").replace("_", "")
    found = _BY_KEY.get(key) or _BY_KEY.get(PACKED.sub("", key))
    if found is None:
        raise InvalidInputError(_not_known(repr(name), key))
    return found


def _not_known(told: str, key: str, reason: str = "", nearest: str = "") -> str:
    """Return the message that an optimizer is not known, with the nearest known name.

    Args:
        told: what the user gave, as it is shown in the message.
        key: its name in lower case without dashes, to be compared with the known names.
        reason: why no rates can be planned for it, where it is known nevertheless.
        nearest: the optimizer that comes next to it; found by its name if not given.
    """
    close = [nearest] if nearest else [_BY_KEY[near].name for near in get_close_matches(key, _BY_KEY, n=1)] or ["adamw"]
    unknown = " is not known, so the size of its update is not either"
    why = f": no rates can be solved, since {reason}" if reason else unknown
    return (
        f"optimizer={told}{why}.\n"
        f"  Expected one of {', '.join(sorted(FAMILIES))}; or a class or an instance of one of them.\n"
        f"  To fix: optimizer={close[0]!r}, or the one whose update is as large: 'adamw' for entries of O(1)"
    )


def _by_class(optimizer: type) -> OptimizerFamily:
    """Return the family (how updates depend on width) of an optimizer class that is known or declares its family.

    Raises:
        InvalidInputError: the class is not known; one of the same name from elsewhere is another optimizer.
    """
    if isinstance(declared := getattr(optimizer, "abcfx_family", None), OptimizerFamily):
        return declared
    if (name := known_name(optimizer)) is not None:
        return FAMILIES[name]
    path = f"{optimizer.__module__}.{optimizer.__qualname__}"
    key = optimizer.__name__.lower().replace("_", "")
    like = _BY_KEY.get(key) or _BY_KEY.get(PACKED.sub("", key))
    if like is None and optimizer.__module__.startswith("torch."):
        reason, nearest = NOT_PLANNED.get(key, ("", ""))
        raise InvalidInputError(_not_known(path, key, reason, nearest))
    alike = f"; or optimizer={like.name!r}, if it does what that optimizer does in torch" if like else ""
    update, shape = (like.update, like.shape) if like else ("sign", "")
    more = f", shape={shape!r}" if shape else ""
    raise InvalidInputError(
        f"optimizer: {path} is none of the classes that abcfx knows, so the size of its update is not known.\n"
        f"  Expected a class of torch.optim, or its behaviour in the terms of abcfx.OptimizerFamily.\n"
        f"  To fix: optimizer=abcfx.OptimizerFamily({optimizer.__name__.lower()!r}, update={update!r}{more}), with the "
        f"size of its update; or the same as an attribute `abcfx_family` of the class{alike}"
    )


def _of_instance(optimizer: torch.optim.Optimizer, options: Mapping[str, object]) -> OptimizerFamily:
    """Return the family (how updates depend on width) of an optimizer instance, by the options of one group."""
    found = _by_class(type(optimizer))
    if found.name == "adafactor":
        return _adafactor(options)
    decoupled = decays_decoupled(optimizer, options)
    if decoupled is False and found.name == "adamw":
        return FAMILIES["adam"]
    if decoupled and found.decay == "gradient":
        return _built_in(found.name, update=found.update, has_eps=found.has_eps)
    if found.name == "muon" and options.get("adjust_lr_fn") == "match_rms_adamw":
        return FAMILIES["muon_rms"]
    return found


def _adafactor(options: Mapping[str, object]) -> OptimizerFamily:
    """Return the family (how updates depend on width) of an Adafactor by its options.

    torch's Adafactor always scales by the RMS of the weight: lr bounds a relative step, min(lr, 1 / sqrt(step)) times
    max(eps2, RMS of the weight), and weight decay is lr x decay. transformers: the rate is lr if relative_step is off,
    times that size if scale_parameter is on, for the update and for weight decay alike.
    """
    if options.get("relative_step"):
        raise InvalidInputError(
            "optimizer: Adafactor with relative_step=True takes its rate from the step, whatever lr is, so planned "
            "rates would have no effect.\n"
            "  To fix: Adafactor(..., lr=1e-3, relative_step=False)"
        )
    if "scale_parameter" not in options:
        if isinstance(lr := options.get("lr"), int | float | torch.Tensor) and float(lr) >= 1.0:
            raise InvalidInputError(
                f"optimizer: torch's Adafactor bounds its relative step by 1 / sqrt(step), so lr={float(lr):g} has no "
                f"effect after the first step.\n  To fix: Adafactor(..., lr=0.01)"
            )
        return FAMILIES["adafactor"]
    if options["scale_parameter"]:
        return _built_in("adafactor", update="relative", decay="ratio")
    return _built_in("adafactor", update="sign")


def assign_optimizers(
    optimizer: Optimizer | Mapping[str, Optimizer], roles: Mapping[str, str], names: Collection[str]
) -> dict[str, Optimizer]:
    """Find which of the given optimizers trains each parameter.

    Args:
        optimizer: one optimizer for all, or a dict of role, glob pattern or "default" to one. A pattern is stronger
            than a role, and a role stronger than "default".
        roles: role of each parameter.
        names: names of the parameters.

    Raises:
        InvalidInputError: a parameter gets no optimizer, or a key matches nothing.
    """
    if not isinstance(optimizer, Mapping):
        return dict.fromkeys(names, optimizer)
    for each in optimizer.values():
        family(each)  # also those that no parameter gets
    patterns = {key: each for key, each in optimizer.items() if key not in (*ROLES, "default")}
    matched = match_patterns("optimizer", patterns, names)
    missing = [n for n in names if n not in matched and roles[n] not in optimizer and "default" not in optimizer]
    if missing:
        raise InvalidInputError(
            f"optimizer: {missing[0]!r} (role {roles[missing[0]]}) and {len(missing) - 1} more get no optimizer.\n"
            f"  To fix: optimizer={{..., 'default': 'adamw'}}"
        )
    return {n: matched[n] if n in matched else optimizer.get(roles[n], optimizer.get("default", "")) for n in names}


def assign_families(
    assigned: Mapping[str, Optimizer], parameters: Mapping[str, nn.Parameter]
) -> dict[str, OptimizerFamily]:
    """Return for each parameter the family (how updates depend on width) of the optimizer that trains it.

    Args:
        assigned: the optimizer of each parameter.
        parameters: the parameters by name.

    Raises:
        InvalidInputError: an optimizer is not known, or Muon gets something else than a matrix.
    """
    found_of = {id(each): family(each) for each in assigned.values()}
    found = {name: found_of[id(each)] for name, each in assigned.items()}
    for name, each in found.items():
        if each.update == "spectral" and parameters[name].ndim < 2 and parameters[name].requires_grad:
            raise InvalidInputError(
                f"optimizer: {each.name} takes matrices only, and {name!r} has shape {tuple(parameters[name].shape)}.\n"
                f"  To fix: optimizer={{'hidden': {each.name!r}, 'default': 'adamw'}}, "
                f"then Muon(result.groups_for({each.name!r})) and AdamW(result.groups_for('adamw'))"
            )
    return found
