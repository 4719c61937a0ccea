"""The options of `transform` that turn exponents into numbers: constants, init, overrides, schedule, how to apply."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from abcfx.errors import InvalidInputError
from abcfx.exponents.given import GivenExponents
from abcfx.support.arguments import wrong
from abcfx.support.choices import choose
from abcfx.support.numbers import check_number
from abcfx.support.patterns import match_patterns
from abcfx.theory.optimizer_groups import GroupNumbers
from abcfx.theory.optimizers import OptimizerFamily
from abcfx.theory.parametrizations import ROLES

ApplyMode = Literal["insert", "absorb", "inplace", "off"]
InitMode = Literal["auto", "keep", "redraw"]
DecayMode = Literal["independent", "coupled", "fixed"]
ByRole = float | Mapping[str, float]
Instance = nn.Module | Callable[[], nn.Module]
DEFAULT_LR, DEFAULT_EPS = 1e-3, 1e-8


def _of_role(value: ByRole, role: str, default: float) -> float:
    """Return the number that an option has for a role ("hidden", ...): its one number, or from a dict, or `default`."""
    return float(value.get(role, value.get("default", default)) if isinstance(value, Mapping) else value)


def _check_constants(option: str, value: ByRole) -> None:
    """Raise an error for an option with numbers that are not positive and finite, or for roles that do not exist.

    Roles are "embedding", "hidden", "readout" and the like.

    Raises:
        InvalidInputError: names the option and the value.
    """
    numbers = value if isinstance(value, Mapping) else {None: value}
    if isinstance(value, Mapping) and (unknown := set(value) - {*ROLES, "default"}):
        raise InvalidInputError(
            f"{option}: unknown role {sorted(unknown, key=str)[0]!r}; expected {', '.join(ROLES)} or default."
        )
    for role, number in numbers.items():
        check_number(option if role is None else f"{option}[{role!r}]", number, above=0)


@dataclass(frozen=True)
class Overrides:
    """Decisions of the user's own that replace what the graph and the linear program say.

    Args:
        roles: glob pattern on parameter names -> role ("embedding", "hidden", "readout", "vector", "scalar", "plain").
        exponents: glob pattern -> exponents (a, b) or (a, b, c) of width, or a list of those in the order in which the
            layers run.
        std: constant that multiplies the init of every weight, or a dict of role to it.
        no_decay: roles and glob patterns of the parameters without weight decay, such as ("vector", "scalar").
        decay_mode: "independent" keeps lr x weight decay of each parameter independent of width; "coupled" lets the
            product shrink as the lr does (one weight decay for all once multipliers are absorbed); "fixed" writes the
            same weight decay into every group.

    Raises:
        InvalidInputError: a role, a mode or a constant is not one of these.

    >>> Overrides(roles={"head": "plain"}).decay_mode
    'independent'
    """

    roles: Mapping[str, str] | None = None
    exponents: GivenExponents | None = None
    std: ByRole = 1.0
    no_decay: Sequence[str] = ()
    decay_mode: DecayMode = "independent"

    def __post_init__(self) -> None:
        """Check every option, and bring names such as "Independent" into their usual spelling."""
        object.__setattr__(self, "decay_mode", choose("decay_mode", self.decay_mode, get_args(DecayMode)))
        if self.roles is not None and not isinstance(self.roles, Mapping):
            raise InvalidInputError(
                f"roles={self.roles!r}: expected a dict of pattern to role.\n  To fix: roles={{'head.*': 'readout'}}"
            )
        roles = {pattern: choose(f"roles: {pattern!r}", role, ROLES) for pattern, role in (self.roles or {}).items()}
        object.__setattr__(self, "roles", roles if self.roles is not None else None)
        _check_constants("std", self.std)
        if self.exponents is not None and not isinstance(self.exponents, Mapping | list | tuple):
            raise wrong(
                "exponents",
                self.exponents,
                "a dict of pattern to (a, b), or a list of those",
                "exponents={'head': (0, 1)}",
            )
        if isinstance(self.no_decay, str):
            raise InvalidInputError(
                f"no_decay={self.no_decay!r}: expected a list of roles and patterns.\n"
                f"  To fix: no_decay=[{self.no_decay!r}]"
            )
        if not isinstance(self.no_decay, Collection) or not all(isinstance(each, str) for each in self.no_decay):
            raise InvalidInputError(f"no_decay={self.no_decay!r}: expected a list of roles and patterns.")
        object.__setattr__(self, "no_decay", tuple(self.no_decay))

    def without_decay(self, roles: Mapping[str, str]) -> set[str]:
        """Return the names of the parameters that `no_decay` takes out of weight decay.

        Args:
            roles: role of every parameter, by name.

        Raises:
            InvalidInputError: a pattern matches no parameter.
        """
        patterns = [key for key in self.no_decay if key not in ROLES]
        matched = match_patterns("no_decay", dict.fromkeys(patterns, True), roles)
        return {name for name, role in roles.items() if name in matched or role in self.no_decay}


@dataclass(frozen=True)
class InitLike:
    """A pair of tiny instances with real weights, off which a model's own init is read if it is on the meta device.

    Args:
        small: an instance, or a function that builds it.
        large: a wider instance of the same architecture, or a function that builds it.
    """

    small: Instance
    large: Instance


@dataclass(frozen=True)
class Schedule:
    """How much longer and with how much larger batches the model trains than the run in which the lr was tuned.

    Args:
        batch_ratio: batch size over that of the tuning run. lr grows as its square root (SGD: in proportion).
        tokens_ratio: number of training tokens over that of the tuning run. lr shrinks as its power -0.32.

    Raises:
        InvalidInputError: a ratio is not a positive, finite number.

    Source: lr ~ batch^1/2 for Adam and its kin (Malladi et al. 2022, arXiv 2205.10287), ~ batch for SGD (Goyal et al.
    2017, arXiv 1706.02677), ~ tokens^-0.32 (Bjorck et al. 2024, arXiv 2409.19913). Weight decay keeps its time scale
    as a share of the run, tokens x lr x decay / batch (Wang and Aitchison 2024, arXiv 2405.13698).

    >>> Schedule(batch_ratio=4.0).tokens_ratio
    1.0
    """

    batch_ratio: float = 1.0
    tokens_ratio: float = 1.0

    def __post_init__(self) -> None:
        """Check that the ratios of batch sizes and of training tokens are positive, finite numbers."""
        for name in ("batch_ratio", "tokens_ratio"):
            check_number(name, getattr(self, name), above=0)

    def factors(self, family: OptimizerFamily) -> tuple[float, float]:
        """Return the factors on learning rate and weight decay for a run with larger batches or more tokens.

        They follow from `batch_ratio` and `tokens_ratio` by rules that depend on the kind of optimizer.
        """
        power = 1.0 if family.update == "gradient" else 0.5
        lr = float(self.batch_ratio**power * self.tokens_ratio**-0.32)
        return lr, self.batch_ratio / self.tokens_ratio / lr


@dataclass(frozen=True)
class PlanOptions:
    """The options of one `transform` from which numbers follow: lr, weight decay, eps, init, overrides, schedule.

    Attributes:
        lr: learning rate at the base width, or one by role with an optional "default"; None where groups of an
            optimizer instance give several.
        weight_decay: weight decay at the base width; None where groups of an optimizer instance give several.
        eps: eps at the base width; None for the optimizer's usual one.
        apply: where multipliers go: "insert", "absorb", "inplace" or "off".
        init: "auto", "keep" or "redraw".
        overrides: the user's own decisions on roles, exponents, init and decay.
        schedule: ratios of batch size and number of tokens to the tuning run.
    """

    lr: ByRole | None = DEFAULT_LR
    weight_decay: float | None = 0.0
    eps: float | None = None
    apply: ApplyMode = "insert"
    init: InitMode = "auto"
    overrides: Overrides = Overrides()
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        """Check every option, and bring names such as "Insert" into their usual spelling."""
        object.__setattr__(self, "apply", choose("apply", self.apply, get_args(ApplyMode)))
        object.__setattr__(self, "init", choose("init", self.init, get_args(InitMode)))
        if self.lr is not None:
            _check_constants("lr", self.lr)
        for name in ("weight_decay", "eps"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, at_least=0)

    @property
    def absorbs(self) -> bool:
        """Whether multipliers go into init and rates, so that no op is added to the model."""
        return self.apply in ("absorb", "inplace")

    def lr_of(self, role: str, own: GroupNumbers) -> float:
        """Return the user's learning rate for a parameter of a role ("hidden", ...), at the base width.

        Args:
            role: the role. If a dict of rates leaves it out, the rate of the parameter's group holds.
            own: the numbers of the parameter's group in an optimizer instance, if there is one.
        """
        usual = DEFAULT_LR if own.lr is None else own.lr
        return usual if self.lr is None else _of_role(self.lr, role, usual)

    def decay_of(self, own: GroupNumbers) -> float:
        """Return the user's weight decay for a parameter; `own` has the numbers of its group in an optimizer."""
        return (own.weight_decay or 0.0) if self.weight_decay is None else self.weight_decay

    def eps_of(self, own: GroupNumbers) -> float:
        """Return the user's eps for a parameter; `own` has the numbers of its group in an optimizer."""
        return next((eps for eps in (self.eps, own.eps) if eps is not None), DEFAULT_EPS)

    def std_of(self, role: str) -> float:
        """Return the constant by which the user multiplies the init of all parameters with a role ("hidden", ...)."""
        return _of_role(self.overrides.std, role, 1.0)
