"""Tells from the entries of a tensor how it was drawn: which part is random, and which is structure that stays.

Structure is a constant, a mean (also one for each slice, or on the diagonal), zero rows (padding), a value that many
entries share, orthogonal rows, and an order of the entries that is no accident, as in an identity, in log-spaced decays
or in a table of sines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum

import torch

from abcfx.plan.structure import BLOCK, SIGMAS, centres, is_ordered, orthogonal_blocks, shared_entries

SAMPLE = 1 << 16  # entries that are looked at
QUANTILES = 1024  # entries that are kept of a distribution that is neither normal nor uniform
FEW_IN_MATRIX, FEW_IN_VECTOR = 8, 32  # entries, of fewer of which it cannot be told how they were drawn
LEVEL = 1e-4  # probability below which entries are not taken for those of torch's own layers
ROOT_3 = math.sqrt(3.0)  # the bound of a uniform distribution over its standard deviation


class Law(Enum):
    """A way in which the entries of a tensor come about: at random, orthogonal, constant, ..."""

    RANDOM = "random"  # drawn one by one
    ORTHOGONAL = "orthogonal"  # a random rotation
    CONSTANT = "constant"
    FIXED = "fixed"  # in an order that is no accident
    FEW = "few"  # too few of them to tell


@dataclass(frozen=True)
class Draw:
    """A description of how the entries of one tensor were drawn at init: by which law, and how large they are.

    Attributes:
        law: how its entries come about.
        count: number of entries that were looked at.
        rms: RMS entry.
        mean: the mean of random entries, where it differs from 0 by more than its sampling error; else 0.
        spread: RMS distance of random entries from `mean`; of other laws the RMS entry.
        log_variance: variance over seeds of the logarithm of `spread`.
        constant: the value of all entries where they are equal; else None.
        is_uniform: whether its entries are spread evenly between two bounds.
        from_torch: whether it is what torch's own layers draw, whose `spread` is known exactly.
        blocks: number of blocks of rows, each of which is orthogonal.
        centre: tensor around which random entries scatter, if that is more than one number; it broadcasts.
        kept: True at entries of a random tensor that are structure, such as zero rows; it broadcasts to the tensor.
        values: the entries at `kept`, or all entries of a tensor that is not random or has too few entries to tell;
            None if they are zero.
        quantiles: sorted entries minus mean over spread, where they are neither normal nor uniform; else None.
    """

    law: Law
    count: int
    rms: float
    mean: float = 0.0
    spread: float = 0.0
    log_variance: float = 0.0
    constant: float | None = None
    is_uniform: bool = False
    from_torch: bool = False
    blocks: int = 1
    centre: torch.Tensor | None = field(default=None, repr=False, compare=False)
    kept: torch.Tensor | None = field(default=None, repr=False, compare=False)
    values: torch.Tensor | None = field(default=None, repr=False, compare=False)
    quantiles: torch.Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, tensor: torch.Tensor, weight: torch.Tensor | None = None, is_centred: bool = False) -> Draw:
        """Describe how the entries of a tensor were drawn at init, judged by their values.

        Args:
            tensor: the tensor.
            weight: the weight of its layer, which is the tensor itself or the one beside a bias; None if there is none.
            is_centred: whether the means of its parts were subtracted.
        """
        values = as_real(tensor.detach())
        entries = sampled_entries(values)
        if not entries.numel():
            return cls(Law.CONSTANT, 0, 0.0)
        rms = math.sqrt(float(entries.square().mean()))
        if bool((entries == entries[0]).all()) and bool((values == values.flatten()[0]).all()):
            rounding = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
            return cls(Law.CONSTANT, len(entries), rms, 0.0, rms, rounding**2, constant=float(entries[0]))
        kept, block = shared_entries(values)
        for centre in centres(values, block) if kept is None and not is_centred else ():
            around = cls.of(values - centre, is_centred=True)
            if around.law is Law.RANDOM:
                return replace(around, rms=rms, centre=centre)
        is_partly_shared = kept is not None and kept.shape == values.shape
        if kept is None:
            drawn = entries
        else:
            drawn = sampled_entries(values[~kept]) if is_partly_shared else entries[entries != 0]
        blocks = orthogonal_blocks(values) if kept is None or not is_partly_shared else 0
        structure = torch.where(kept, values, 0.0) if kept is not None and is_partly_shared else None
        if weight is not None and len(drawn) > 1 and is_from_torch(drawn, weight, is_weight=tensor is weight):
            return replace(cls.of_torch(weight, len(drawn), rms), kept=kept, values=structure)
        if not blocks and (len(drawn) < 2 or is_ordered(drawn[None, : BLOCK[1]] if is_partly_shared else block)):
            return cls(Law.FIXED, len(entries), rms, 0.0, rms, values=values.clone())
        if len(drawn) < (FEW_IN_MATRIX if values.ndim > 1 else FEW_IN_VECTOR):
            return cls(Law.FEW, len(entries), rms, 0.0, rms, values=values.clone())
        return cls._random(drawn, rms, blocks, kept, structure)

    @classmethod
    def of_torch(cls, weight: torch.Tensor, count: int, rms: float) -> Draw:
        """Return the description of what torch's own layers draw: uniform between -fan_in^-1/2 and fan_in^-1/2.

        That holds for weights and biases alike.

        Args:
            weight: the weight of the layer, which sums over fan_in terms.
            count: number of entries of the tensor.
            rms: its RMS entry.
        """
        spread = _fan_in(weight) ** -0.5 / ROOT_3
        size = rms if count >= FEW_IN_VECTOR else spread
        return cls(Law.RANDOM, count, size, spread=spread, is_uniform=True, from_torch=True)

    @classmethod
    def _random(
        cls, drawn: torch.Tensor, rms: float, blocks: int, kept: torch.Tensor | None, values: torch.Tensor | None
    ) -> Draw:
        """Describe how a tensor with random entries was drawn at init, judged by its entries.

        Args:
            drawn: its random entries, or a sample of them.
            rms: RMS entry of the whole tensor.
            blocks: number of orthogonal blocks of rows; 0 if there are none.
            kept: True at entries that are not random, such as zero rows.
            values: their values; None if they are zero.
        """
        count = len(drawn)
        mean, spread = float(drawn.mean()), float(drawn.std(correction=0))
        if blocks or abs(mean) <= SIGMAS * spread / math.sqrt(count):
            mean, spread = 0.0, math.sqrt(float(drawn.square().mean()))
        scaled = (drawn - mean).div_(spread)
        kurtosis = float(scaled.square().square_().mean())
        is_normal, is_uniform = _family(kurtosis, count)
        return cls(
            Law.ORTHOGONAL if blocks else Law.RANDOM,
            count,
            rms,
            mean,
            spread,
            max(kurtosis - 1.0, 0.8) / (4.0 * count),
            is_uniform=is_uniform,
            blocks=blocks or 1,
            kept=kept,
            values=values,
            quantiles=None if is_normal or is_uniform else _quantiles(scaled),
        )

    @property
    def is_mixed(self) -> bool:
        """Whether the tensor is random in part, and has a mean or other structure (such as zero rows) beside that."""
        return self.law is Law.RANDOM and bool(self.mean or self.has_structure or self.kept is not None)

    @property
    def has_structure(self) -> bool:
        """Whether what is not random in the tensor is more than zeros and one mean, such as a mean for each row."""
        return self.values is not None or self.centre is not None

    def rms_after(self, factor: float, whole: float) -> float:
        """Return the tensor's RMS entry once its random part is multiplied by one factor, the rest by another.

        Args:
            factor: number that multiplies the random part.
            whole: number that multiplies its mean and structure (what is not random, such as zero rows).
        """
        if factor == whole or not (self.mean or self.has_structure):
            return self.rms * factor
        structure = sum(float(each.double().square().mean()) for each in (self.values, self.centre) if each is not None)
        share = 1.0 if self.kept is None else 1.0 - float(self.kept.double().mean())
        return math.sqrt(structure * whole**2 + share * ((self.mean * whole) ** 2 + (self.spread * factor) ** 2))

    def carried(self, spread: float, shape: torch.Size) -> Draw:
        """Return the description of a tensor of another shape that the same code draws.

        Zero rows keep their distance from the nearer end, other entries that are not random keep their relative place.
        Few entries count as drawn from a normal distribution. An order of the entries is left out.

        Args:
            spread: RMS of its random entries around their mean; of structure, RMS of all entries.
            shape: its shape.
        """
        by = spread / self.spread if self.spread else 1.0
        is_few, kept, values = self.law is Law.FEW, self.kept, None if self.law is Law.FEW else self.values
        if kept is not None and self.law is Law.RANDOM:
            is_of_rows = kept.ndim > 1 and all(size == 1 for size in kept.shape[1:])
            kept = _moved_rows(kept, shape[0]) if is_of_rows else _stretched(kept, shape)
            values = None if values is None else _stretched(values, shape)
        centre = self.centre
        if centre is not None and (centre.ndim == 1 or all(size == 1 for size in centre.shape[1:])):
            centre = _stretched(centre, shape)
        return replace(
            self,
            law=Law.RANDOM if is_few else self.law,
            centre=centre,
            kept=kept,
            values=values,
            rms=math.hypot(self.mean, spread) if self.mean else self.rms * by,
            spread=spread,
            constant=None if self.constant is None else self.constant * by,
        )

    def fill_(self, tensor: torch.Tensor, factor: float, whole: float, generator: torch.Generator | None) -> None:
        """Fill a tensor with new values drawn as this one was; zero rows, means and other structure stay the same.

        Args:
            tensor: the tensor to fill.
            factor: number that multiplies the random part.
            whole: number that multiplies its mean and structure (what is not random, such as zero rows).
            generator: source of random numbers; torch's default if None.
        """
        if self.law in (Law.FIXED, Law.FEW) and self.values is not None:
            tensor.copy_(like_sharded(self.values, tensor)).mul_(whole)
            return
        mean, spread = self.mean * whole, self.spread * factor
        if self.law is Law.ORTHOGONAL:
            rotations = torch.empty(tensor.shape, device=tensor.device)
            for part in rotations.chunk(self.blocks):
                block = part.reshape(-1, part.shape[-1]) if self.blocks > 1 else part
                torch.nn.init.orthogonal_(block, generator=generator)
            tensor.copy_(like_sharded(rotations, tensor)).mul_(spread / math.sqrt(float(rotations.square().mean())))
        elif self.quantiles is not None:
            place = torch.rand(tensor.shape, generator=generator, device=tensor.device) * (len(self.quantiles) - 1)
            below = place.floor().long().clamp_(max=len(self.quantiles) - 2)
            known = self.quantiles.to(tensor.device)
            drawn = known[below].lerp(known[below + 1], place - below).mul_(spread).add_(mean)
            tensor.copy_(like_sharded(drawn, tensor))
        elif self.is_uniform:
            tensor.uniform_(mean - ROOT_3 * spread, mean + ROOT_3 * spread, generator=generator)
        else:
            tensor.normal_(mean, spread, generator=generator)
        self.restore_(tensor, whole)

    def restore_(self, tensor: torch.Tensor, whole: float) -> None:
        """Add what is not random in the described tensor, such as a mean or zero rows, times `whole`, to a tensor."""
        if self.centre is not None:
            tensor.add_(like_sharded(self.centre, tensor), alpha=whole)
        if self.kept is None:
            return
        kept = like_sharded(self.kept, tensor)
        if self.values is None:
            tensor.masked_fill_(kept, 0.0)
        else:
            tensor.copy_(torch.where(kept, like_sharded(self.values, tensor) * whole, tensor))


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """Return a complex tensor as a real one whose last dim has real and imaginary parts; other tensors as they are."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def sampled_entries(tensor: torch.Tensor) -> torch.Tensor:
    """Return at most 2^16 entries of a tensor as float64, spread over all rows and columns, without copying it."""
    flat = as_real(tensor.detach()).reshape(-1)
    stride = max(1, flat.numel() // SAMPLE)
    while stride > 1 and math.gcd(stride, tensor.shape[-1]) > 1:
        stride += 1
    return flat[::stride].double()


def like_sharded(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return values moved to the device of another tensor and, if that is a DTensor, sharded as it is."""
    values = values.to(like.device)
    if type(like).__name__ != "DTensor" and not hasattr(like, "placements"):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(values.expand(like.shape).contiguous(), like.device_mesh, like.placements)


def _moved_rows(kept: torch.Tensor, height: int) -> torch.Tensor:
    """Return a mask of rows for `height` rows: those that `kept` marks lie as far from the nearer end as there."""
    moved = torch.zeros(height, *kept.shape[1:], dtype=torch.bool, device=kept.device)
    for row in kept.flatten().nonzero().flatten().tolist():
        moved[row if 2 * row < len(kept) else row - len(kept)] = True
    return moved


def _stretched(values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return a tensor of another shape with the entries that lie at the same relative place."""
    for dim, size in enumerate(shape):
        if size != values.shape[dim] != 1:
            places = torch.arange(size, device=values.device) * values.shape[dim] // size
            values = values.index_select(dim, places)
    return values


def is_from_torch(entries: torch.Tensor, weight: torch.Tensor, is_weight: bool = False) -> bool:
    """Whether entries of a weight or bias were likely drawn by torch's own layers: within +- fan_in^-1/2.

    The largest must not be much smaller than that. The entries of a bias are so few that its weight is looked at as
    well.

    Args:
        entries: entries of a weight or bias.
        weight: the weight of the layer, which sums over fan_in terms.
        is_weight: whether they are those of the weight.
    """
    if weight.ndim < 2 or not weight.numel() or weight.is_complex():
        return False
    largest = float(entries.abs().max()) * _fan_in(weight) ** 0.5
    is_likely = LEVEL ** (1.0 / len(entries)) <= largest <= 1.0001
    return is_likely and (is_weight or is_from_torch(sampled_entries(weight), weight, is_weight=True))


def _fan_in(weight: torch.Tensor) -> int:
    """Return the number of terms that a layer of torch sums over, given its weight (out, in, ...)."""
    return weight[0].numel()


def _family(kurtosis: float, count: int) -> tuple[bool, bool]:
    """Return whether a kurtosis, of `count` entries, is that of a normal, and of a uniform distribution.

    It is allowed its sampling error.
    """
    reach = 5.0 * math.sqrt(24.0 / count)
    from_normal, from_uniform = abs(kurtosis - 3.0), abs(kurtosis - 1.8)
    is_uniform = from_uniform < min(reach, from_normal)
    return from_normal < reach and not is_uniform, is_uniform


def _quantiles(entries: torch.Tensor) -> torch.Tensor:
    """Return at most 1024 of the entries, sorted and evenly spread in that order, to record their distribution."""
    ordered = entries[: 16 * QUANTILES].sort().values
    places = torch.linspace(0, len(ordered) - 1, min(QUANTILES, len(ordered)), device=entries.device)
    return ordered.index_select(0, places.round().long()).float()
