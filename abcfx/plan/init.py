"""Plans how each tensor is initialised: the model's own values kept, their random part multiplied, or drawn again.

With a base, the law of the model's own init is known: what is random in a tensor is ~ m^-beta (m, the width ratio). The
factor m^(beta - b) then makes it ~ m^-b, whatever the scheme is (constant, fan-in, orthogonal, zero). It is exactly 1
at the base width. What is not random (constants, means, zero rows, identities) stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from abcfx.errors import InvalidInputError
from abcfx.plan.draws import Draw, Law, as_real, like_sharded
from abcfx.support import arguments
from abcfx.support.patterns import plain_name


class ColumnFactor(NamedTuple):
    """A factor on some columns of a weight, beside what the rest of it is multiplied by.

    Attributes:
        dim: the dim of the weight that the columns are a part of.
        start: the first of them.
        size: how many they are.
        factor: number that multiplies what is random in them.
        whole: number that multiplies them where they are constant or not random, such as zero rows.
    """

    dim: int
    start: int
    size: int
    factor: float
    whole: float = 1.0


@dataclass(frozen=True)
class Init:
    """A plan of how one tensor is initialised: its values kept, their random part multiplied, or drawn again.

    Attributes:
        factor: number by which the random part of the model's own values is multiplied.
        std: RMS entry that the tensor then has, or, if it is drawn anew, standard deviation; None where it is not known
            (the meta device).
        fill: the value of all entries of a constant tensor, such as a gain; else None.
        redraw: whether the random part is drawn from a normal distribution with standard deviation `std` instead.
        whole: the part of `factor`, from absorbed multipliers, that also multiplies mean and structure (such as zero
            rows).
        values: the entries of a frozen tensor, which it always gets; else None.
        own: how the model drew the tensor; None where it has no values.
        columns: further factors on some of the columns.
    """

    factor: float = 1.0
    std: float | None = None
    fill: float | None = None
    redraw: bool = False
    whole: float = 1.0
    values: torch.Tensor | None = field(default=None, repr=False, compare=False)
    own: Draw | None = field(default=None, repr=False)
    columns: tuple[ColumnFactor, ...] = ()

    @classmethod
    def of_frozen(cls, parameter: torch.Tensor, own: Draw | None) -> Init:
        """Return a plan that gives a frozen tensor the values it has; on the meta device, those that its code draws.

        Args:
            parameter: the frozen tensor. Its storage is shared, not copied.
            own: how the model's own code draws it, where that is known.
        """
        kept = cls.scaled(own)
        return kept if parameter.is_meta else replace(kept, values=parameter.detach())

    @classmethod
    def scaled(cls, own: Draw | None, factor: float = 1.0, whole: float = 1.0) -> Init:
        """Return a plan that initialises a tensor by multiplying what the model itself drew.

        Args:
            own: how the model drew the tensor; None where it has no values, and then nothing is known.
            factor: number that multiplies the random part, or the constant.
            whole: the part of `factor` that also multiplies mean and structure (what is not random, such as zero rows).
        """
        if own is None:
            return cls()
        fill = None if own.constant is None else own.constant * factor
        if own.law in (Law.FIXED, Law.FEW):
            factor = whole
        std = own.rms_after(factor, whole)
        return cls(factor, std, fill if std else 0.0, whole=whole, own=own)

    @classmethod
    def drawn_anew(cls, own: Draw | None, std: float, whole: float = 1.0) -> Init:
        """Return a plan that initialises a tensor by drawing its random part from a normal distribution.

        Args:
            own: how the model drew the tensor; None where it has no values.
            std: the standard deviation.
            whole: number that multiplies its mean and structure (what is not random, such as zero rows).
        """
        return cls(std=std, redraw=True, whole=whole, own=own)

    def times(self, factor: float) -> Init:
        """Return the plan of an init with all values, means as well, multiplied by one more factor."""
        std, fill = (None if value is None else value * factor for value in (self.std, self.fill))
        return replace(self, factor=self.factor * factor, std=std, fill=fill, whole=self.whole * factor)

    def std_of(self, column: int) -> float | None:
        """Return the RMS entry that column number `column` of the weight gets; None where it is not known."""
        found = (each.factor for each in self.columns if each.start <= column < each.start + each.size)
        return None if self.std is None else self.std * next(found, 1.0)

    def is_known_for(self, tensor: torch.Tensor) -> bool:
        """Whether the plan can fill a tensor of this shape that has no values yet."""
        if self.values is not None or self.fill is not None:
            return True
        needed = (
            []
            if self.own is None
            else [each for each in (self.own.kept, self.own.values, self.own.centre) if each is not None]
        )
        shape = as_real(tensor).shape
        return self.std is not None and all(
            len(each.shape) == len(shape) and all(a in (1, b) for a, b in zip(each.shape, shape, strict=True))
            for each in needed
        )

    def apply_(self, tensor: torch.Tensor) -> None:
        """Turn the values that the model itself drew into those that are planned; do nothing on the meta device."""
        if tensor.is_meta:
            return
        if self.redraw:
            self.draw(tensor)
            return
        self._multiply_(tensor)
        self._multiply_columns_(tensor)

    def _multiply_columns_(self, tensor: torch.Tensor) -> None:
        """Multiply the columns that have a factor of their own; nothing if the values are kept as they are."""
        if self.values is not None:
            return
        is_random = self.redraw or self.own is None or self.own.law in (Law.RANDOM, Law.ORTHOGONAL)
        for each in self.columns:
            factor = each.factor if is_random else each.whole
            if factor != 1.0:
                along = torch.ones(tensor.shape[each.dim], dtype=tensor.dtype, device=tensor.device)
                along[each.start : each.start + each.size] = factor
                shaped = along.view([-1 if i == each.dim else 1 for i in range(tensor.ndim)])
                tensor.mul_(like_sharded(shaped, tensor))

    def _multiply_(self, tensor: torch.Tensor) -> None:
        """Multiply what is random in the values by `factor`, and mean, zero rows and the like by `whole`."""
        real, own = as_real(tensor), self.own
        if own is None or self.factor == self.whole or own.law is not Law.RANDOM:
            real.mul_(self.factor)
            return
        if own.centre is not None:
            real.sub_(like_sharded(own.centre, real))
        if own.mean:
            real.sub_(own.mean).mul_(self.factor).add_(own.mean * self.whole)
        else:
            real.mul_(self.factor)
        own.restore_(real, self.whole)

    def draw(self, tensor: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Fill a tensor with new values as planned, whatever it held before, and return it."""
        self._fill_(tensor, generator)
        self._multiply_columns_(tensor)
        return tensor

    def _fill_(self, tensor: torch.Tensor, generator: torch.Generator | None) -> None:
        """Fill a tensor with new values, which are not yet multiplied by factors on columns."""
        real, own = as_real(tensor), self.own
        if self.values is not None:
            tensor.copy_(like_sharded(self.values, tensor)).mul_(self.factor)
        elif self.fill is not None:
            tensor.fill_(self.fill)
        elif own is None:
            real.normal_(0.0, self.std or 0.0, generator=generator)
        elif self.redraw:
            real.normal_(own.mean * self.whole, self.std or 0.0, generator=generator)
            own.restore_(real, self.whole)
        else:
            own.fill_(real, self.factor, self.whole, generator)


def initialise(module: torch.nn.Module, inits: Mapping[str, Init]) -> None:
    """Fill every parameter of a module with new values as planned: after `to_empty`, or to start again.

    Raises:
        InvalidInputError: a parameter was not planned, or its init is not known; nothing has been written then.
    """
    arguments.module("init_weights: module", module)
    parameters = {plain_name(name, inits): parameter for name, parameter in module.named_parameters()}
    missing = next((name for name in inits if name not in parameters), None)
    if missing is not None and parameters.keys() <= inits.keys():
        raise InvalidInputError(
            f"init_weights: {missing!r} of the plan is no parameter of this {type(module).__name__}.\n"
            f"  expected: result.module, or a module with the same parameter names, maybe wrapped."
        )
    for name, parameter in parameters.items():
        init = inits.get(name)
        if init is None:
            known = ", ".join(list(inits)[:3])
            raise InvalidInputError(f"init_weights: {name!r} is not a parameter of the plan, which has {known}, ...")
        if init.std is None and init.fill is None:
            raise InvalidInputError(
                f"init_weights: how {name!r} is initialised is not known, since the model was on the meta device.\n"
                f"  To fix: transform(..., init=InitLike(small, large)), two tiny instances with real weights."
            )
        if not init.is_known_for(parameter):
            raise InvalidInputError(
                f"init_weights: the entries of {name!r} follow an order that instances of other sizes do not tell;\n"
                f"  expected values for shape {tuple(parameter.shape)}, got those of a smaller one.\n"
                f"  To fix: give transform a model with real weights, or InitLike instances in which it has that shape."
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            inits[name].draw(parameter)
