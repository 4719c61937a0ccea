"""The plan of every parameter as typed data, and the spec: the same as versioned JSON that travels in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypedDict, cast

from abcfx.errors import InvalidInputError
from abcfx.exponents.dag_program import Binding
from abcfx.exponents.roles import WhyRole
from abcfx.plan.init import Init
from abcfx.plan.own_init import OwnInit
from abcfx.rules.extents import DimPart
from abcfx.support import arguments
from abcfx.support.arguments import wrong
from abcfx.support.choices import choose
from abcfx.theory.optimizer_groups import GroupOption
from abcfx.theory.parametrizations import ROLES

SPEC_VERSION = 1


class OwnInitRow(TypedDict):
    """The entry `own_init` of a parameter's row in the spec: the model's own init has RMS entries ~ width^-exponent.

    `measured` is the exponent before it is rounded.
    """

    exponent: float
    measured: float


class SegmentRow(TypedDict):
    """A part of a spec row: the numbers of some columns of a weight whose input is a concatenation.

    The columns are `start` to `stop` - 1 of the dim `dim`; the other keys mean what they mean for a whole weight.
    """

    dim: int
    start: int
    stop: int
    role: str
    a: float
    b: float
    multiplier: float
    std: float | None


class RequiredSpecRow(TypedDict):
    """The part of a row in the plan (`Spec`) that every parameter has.

    Exponents are of the width ratio; `lr` and `eps` are absolute.

    `a` and `multiplier` are one number, or a dict by DAG node where several uses of the parameter differ.
    """

    role: str
    why: str
    growth: list[float]
    width: float
    a: float | dict[str, float]
    b: float
    c: float
    g: float
    multiplier: float | dict[str, float]
    std: float | None
    lr: float
    eps: float | None
    weight_decay: float
    optimizer: str
    r: float | None
    binding: str
    void: bool
    init_factor: float
    own_init: OwnInitRow | None


class SpecRow(RequiredSpecRow, total=False):
    """The row of one parameter in the plan (`Spec`): its role ("hidden", ...), exponents, and numbers such as lr.

    `options` is there only where an optimizer instance gave some, such as betas; `segments` only for a weight whose
    input is a concatenation of tensors that grow with the width and others that do not.
    """

    options: dict[str, GroupOption]
    segments: list[SegmentRow]


@dataclass(frozen=True)
class SegmentPlan:
    """Exponents and numbers of some columns of a weight whose input is a concatenation.

    Attributes:
        part: the columns.
        role: the role that they would have as a weight of their own.
        a: exponent of their multiplier m^-a (m, the width ratio); `multiplier` is its value.
        b: exponent of their init m^-b; `std` is the RMS entry after init, None where it is not known.
        fold: the factor that `fold()` puts into these columns for good, beside that of the whole parameter.
    """

    part: DimPart
    role: str
    a: float
    b: float
    multiplier: float
    std: float | None
    fold: float

    def row(self) -> SegmentRow:
        """Return these numbers as JSON-able values."""
        start = self.part.start
        return {
            "dim": self.part.index,
            "start": start,
            "stop": start + self.part.size,
            "role": self.role,
            "a": self.a,
            "b": self.b,
            "multiplier": self.multiplier,
            "std": self.std,
        }


@dataclass(frozen=True)
class ParameterPlan:
    """The planned exponents (of the width ratio m) and numbers, such as lr, of one parameter.

    Attributes:
        role: "embedding", "hidden", "readout", "vector", "scalar" or "plain"; `why` says what made it so.
        growth: growth exponent of each dim.
        width: the number that exponents are powers of.
        a: exponent of the multiplier m^-a at each DAG node that uses the parameter; `multiplier` is its value.
        b: exponent of the init m^-b; `std` is the RMS entry after init, None where it is not known.
        c: exponent of the learning rate m^-c; `lr` is the absolute rate.
        g: exponent of an entry of its gradient, m^-g; `eps` follows it.
        r: exponent of the change m^-r of the output at the parameter's first use in the linear program.
        binding: what keeps c from being smaller.
        void: whether a norm divides the multiplier out again, so that none is needed.
        init: what is done to the tensor.
        own_init: how the model's own init scales, where that is known.
        trainable: whether it requires a gradient.
        fold: the factor that `fold()` puts into the parameter for good, for plain weights without multipliers.
        left: the nodes whose multiplier cannot go into the parameter.
        shape_correction: factor in `lr` beside the powers of width, where an optimizer's own factor on a matrix (Muon)
            differs at real shapes from the power of width that c counts.
        options: what the parameter's group of an optimizer instance says beside these numbers, such as betas.
        segments: the numbers of the columns for each of the tensors that are concatenated to make its input, if only
            some of them grow; `role`, `b` and `std` are then those of the columns whose input grows.
    """

    role: str
    why: WhyRole
    growth: tuple[float, ...]
    width: float
    a: dict[str, float]
    b: float
    c: float
    g: float
    multiplier: dict[str, float]
    std: float | None
    lr: float
    eps: float | None
    weight_decay: float
    optimizer: str
    r: float | None
    binding: Binding
    void: bool
    init: Init
    own_init: OwnInit | None
    trainable: bool
    fold: float = 1.0
    left: tuple[str, ...] = ()
    shape_correction: float = 1.0
    options: Mapping[str, GroupOption] = field(default_factory=dict)
    segments: tuple[SegmentPlan, ...] = ()

    def row(self) -> SpecRow:
        """Return the plan of this parameter as a JSON-able row of the spec, the plan that is kept in a checkpoint."""
        own = self.own_init
        row: SpecRow = {
            "role": self.role,
            "why": str(self.why),
            "growth": list(self.growth),
            "width": self.width,
            "a": _one_or_by_node(self.a, 0.0),
            "b": self.b,
            "c": self.c,
            "g": self.g,
            "multiplier": _one_or_by_node(self.multiplier, 1.0),
            "std": self.std,
            "lr": self.lr,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "optimizer": self.optimizer,
            "r": self.r,
            "binding": str(self.binding),
            "void": self.void,
            "init_factor": self.init.factor,
            "own_init": None if own is None else {"exponent": own.exponent, "measured": own.measured},
        }
        if self.options:
            row["options"] = dict(self.options)
        if self.segments:
            row["segments"] = [each.row() for each in self.segments]
        return row


def _one_or_by_node(by_node: Mapping[str, float], unused: float) -> float | dict[str, float]:
    """Return the number that all uses of a parameter have, or a dict by DAG node; `unused` if there is no use."""
    values = set(by_node.values())
    return dict(by_node) if len(values) > 1 else next(iter(values), unused)


def _by_node_or_one(option: str, value: object) -> None:
    """Raise an error unless the entry `option` of a row in the spec is a number or a dict of numbers.

    Raises:
        InvalidInputError: the value is something else.
    """
    for each in value.values() if isinstance(value, Mapping) else [value]:
        _NUMBER(option, each)


def _numbers(option: str, value: object) -> None:
    """Raise an error unless the entry `option` of a row in the spec is a list of numbers.

    Raises:
        InvalidInputError: the value is something else.
    """
    if not isinstance(value, list | tuple):
        raise wrong(option, value, "a list of numbers")
    for each in value:
        _NUMBER(option, each)


def _own_init(option: str, value: object) -> None:
    """Raise an error unless the entry `option` of a row in the spec is a dict with the two numbers of `OwnInitRow`.

    Raises:
        InvalidInputError: the value is something else.
    """
    if not isinstance(value, Mapping) or set(value) != set(OwnInitRow.__annotations__):
        raise wrong(option, value, "a dict with exponent and measured")
    _by_node_or_one(option, value)


def _options(option: str, value: object) -> None:
    """Raise an error unless the entry `option` of a row in the spec is a dict of optimizer options by name.

    Raises:
        InvalidInputError: the value is something else, or an option is no number, text or list.
    """
    if not isinstance(value, Mapping):
        raise wrong(option, value, "a dict of options")
    for name, each in value.items():
        arguments.text(option, name)
        if not isinstance(each, list | tuple | bool | str | None):
            _NUMBER(f"{option}: {name}", each)


_NUMBER = arguments.number()
_POSITIVE = arguments.number(at_least=0)
_ROW: dict[str, arguments.Check] = {
    "role": partial(choose, choices=ROLES),
    "why": arguments.text,
    "growth": _numbers,
    "width": arguments.number(above=0),
    "a": _by_node_or_one,
    "b": _NUMBER,
    "c": _NUMBER,
    "g": _NUMBER,
    "multiplier": _by_node_or_one,
    "std": arguments.optional(_POSITIVE),
    "lr": _POSITIVE,
    "eps": arguments.optional(_POSITIVE),
    "weight_decay": _POSITIVE,
    "optimizer": arguments.text,
    "r": arguments.optional(_NUMBER),
    "binding": arguments.text,
    "void": arguments.flag,
    "init_factor": _NUMBER,
    "own_init": arguments.optional(_own_init),
    "options": _options,
}


def _check_row(name: object, row: object) -> None:
    """Raise an error unless the row of one parameter in a spec is complete, with values of the right kinds.

    Args:
        name: name of the parameter.
        row: its row, as JSON may have it.

    Raises:
        InvalidInputError: the row lacks something, or has a value of another kind.
    """
    arguments.text(f"spec: parameter {name!r}", name)
    if not isinstance(row, Mapping):
        raise wrong(f"spec: {name}", row, "a dict with lr, eps and the other numbers of the parameter")
    if missing := SpecRow.__required_keys__ - set(row):
        raise InvalidInputError(f"spec: the row of {name!r} lacks {', '.join(sorted(missing))}.")
    for key, check in _ROW.items():
        if key in row:
            check(f"spec: {name}: {key}", row[key])


class Spec(Mapping[str, SpecRow]):
    """The durable result of a transform: a row of planned numbers for each parameter, and the version of the format.

    It holds plain numbers and strings only. Keep `spec.to_json()` beside a checkpoint; `Spec.from_json(text)` reads it
    back, and `abcfx.param_groups(module, spec)` makes optimizer groups of it at any time.
    """

    def __init__(self, rows: Mapping[str, SpecRow], version: int = SPEC_VERSION) -> None:
        """Check a row for each parameter and keep it, and the version of their format.

        Raises:
            InvalidInputError: a row lacks something, or has a value of another kind.
        """
        if not isinstance(version, int) or version != SPEC_VERSION:
            raise InvalidInputError(f"spec: version {version!r} is not known; this abcfx reads version {SPEC_VERSION}.")
        if not isinstance(rows, Mapping):
            raise wrong("spec", rows, "a dict of parameter name to row", "Spec.from_json(text)")
        for name, row in rows.items():
            _check_row(name, row)
        self._rows, self.version = dict(rows), version

    def __getitem__(self, name: str) -> SpecRow:
        """Return the row of a parameter, by its name: role ("hidden", ...), exponents, and numbers such as lr."""
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the parameters in the spec, the planned numbers of a model."""
        return iter(self._rows)

    def __len__(self) -> int:
        """Return the number of parameters in the spec, the planned numbers of a model."""
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Spec({len(self)} parameters, version {self.version})"

    def to_dict(self) -> dict[str, object]:
        """Return JSON-able values: `version`, and `parameters` with a row of planned numbers for each."""
        return {"version": self.version, "parameters": dict(self._rows)}

    def to_json(self) -> str:
        """Return the spec (the planned numbers of each parameter) as JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Read a spec (the planned numbers of each parameter) back from the text that `to_json` returned.

        Raises:
            InvalidInputError: the text is no spec of a known version.
        """
        if not isinstance(text, str | bytes):
            raise wrong("spec", text, "the text of result.spec.to_json()")
        try:
            return cls.of(json.loads(text))
        except RecursionError:
            raise InvalidInputError(
                "spec: nested too deeply.\n  expected: the text of result.spec.to_json()."
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"spec: not JSON ({error}).\n  expected: the text of result.spec.to_json()."
            ) from None

    @classmethod
    def of(cls, given: object) -> Spec:
        """Return a `Spec` unchanged, or make one of the dict that `to_dict` returned.

        Raises:
            InvalidInputError: something is missing, or the format is newer than this version of abcfx.
        """
        if isinstance(given, Spec):
            return given
        if not isinstance(given, Mapping) or not isinstance(given.get("parameters"), Mapping):
            raise InvalidInputError(
                "spec: expected a Spec, or a dict with `version` and `parameters`.\n"
                "  To fix: keep result.spec.to_json() and read it with Spec.from_json(text)."
            )
        return cls(cast(Mapping[str, SpecRow], given["parameters"]), cast(int, given.get("version")))
