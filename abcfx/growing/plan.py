"""What a larger model is filled with: index maps from factors of dims, powers of ratios from the log-scale solve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from abcfx.capture import CapturedGraph, capture
from abcfx.dag.layer_dag import LayerDag, build_dag
from abcfx.growing.fill.width import Widening
from abcfx.growing.linear import Form
from abcfx.growing.scales import Scales, solve_scales
from abcfx.pairing.factors import Dim, Factors, factor_models, factors_of, sizes
from abcfx.pairing.factors.atoms import Atom, legs, plain_atoms, root
from abcfx.pairing.widths import PairedGrowth
from abcfx.rules import Layer


@dataclass(frozen=True)
class GrowthPlan:
    """How the tensors of a large model are made of those of a small one that has as many blocks.

    Attributes:
        widenings: name -> how the tensor is made; parameters, and the buffers that training changes.
        factors: dims of every tensor of a run of both, in common factors.
        scales: exponents of the parameters' factors.
        dag: the layer DAG of the large model.
        noised: parameters that may get zero-sum noise: every use contracts the same dims, and one of them grows.
    """

    widenings: Mapping[str, Widening]
    factors: Factors
    scales: Scales
    dag: LayerDag
    noised: tuple[str, ...]

    def output_dims(self) -> list[list[Any] | None]:
        """Factors of every output's dims; None for what the model itself goes on to use, such as a cache of keys."""
        padded = {id(atom) for atom in padded_atoms(self.factors)}
        used = {ref for call in self.factors.large.calls for ref in call.inputs}
        return [
            None if ref in used else [with_pads(dim, padded) for dim in self.factors.of(ref)]
            for ref in self.factors.large.outputs
        ]


def plan_growth(small: nn.Module, large: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> GrowthPlan:
    """The plan for two models with equal numbers of blocks; neither is changed.

    Raises:
        PairingError: they are not instances of one architecture.
        InfeasibleError: no factors keep the function; names the node.
        CaptureError, UnknownOpError: see `abcfx.transform`.
    """
    captured, base = (_captured(model, args, kwargs) for model in (large, small))
    pairs = (small, large), (base.module, captured.module)
    factors = factor_models(*pairs, args=args, kwargs=kwargs)
    dag = build_dag(captured)
    growth = PairedGrowth(captured, base)
    scales = solve_scales(dag, growth)
    padded = {id(atom) for atom in padded_atoms(factors)}
    widenings = {}
    for name, ref in (factors.large.parameters | factors.large.buffers).items():
        if name in factors.large.buffers and name not in factors.statistics:
            continue
        dims = factors.of(ref)
        contracted = tuple(i for i in range(len(dims)) if (name, i) in factors.contracted)
        if name in scales.exponents or name not in factors.large.parameters:
            factor = _factor(scales.exponents.get(name, {}), growth.scale)
        else:  # no output depends on it
            factor = math.prod(sizes(dims[i])[0] / sizes(dims[i])[1] for i in contracted)
        widenings[name] = Widening(name, tuple(with_pads(dim, padded) for dim in dims), factor, contracted)
    summed = {name for name, nodes in dag.uses().items() if _is_summed_alike(dag, nodes)}
    noised = tuple(name for name, each in widenings.items() if each.contracted and name in summed)
    return GrowthPlan(widenings, factors, scales, dag, noised)


def _captured(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CapturedGraph:
    return capture(model, tuple(args), dict(kwargs), verify=False, modes=("train",), sizes="fixed")


def _is_summed_alike(dag: LayerDag, nodes: Sequence[str]) -> bool:
    """Whether all uses of a parameter sum over the same dims of it, and none divides it by its norm."""
    kinds = [dag.kind(node) for node in nodes]
    over = {kind.fan_in for kind in kinds if isinstance(kind, Layer) and not kind.normalised}
    return len(over) == 1 and all(isinstance(kind, Layer) and kind.fan_in in over for kind in kinds)


def _factor(exponents: Form, scale: float) -> float:
    """The product of (ratio of sizes) ** exponent: exact for powers of two."""
    total = 1.0
    for e, power in exponents.items():
        ratio = scale ** float(e)
        whole = round(ratio)
        total *= (float(whole) if math.isclose(ratio, whole, rel_tol=1e-9) else ratio) ** float(power)
    return total


def padded_atoms(factors: Factors) -> Iterator[Atom]:
    """Dims that grow by new entries, not by copies: rows of tables that are looked up, and what is only returned."""
    contracted = {
        id(atom) for name, place in factors.contracted for atom in plain_atoms(factors.parameter(name)[place])
    }
    indexed = list(factors.indexed)
    returned = [dim for ref in factors.large.outputs for dim in factors.of(ref)]
    for dim in (*indexed, *returned):
        whole = legs(dim)
        atom = root(whole[0].atom) if len(whole) == 1 else None
        if atom and atom.large > atom.small and id(atom) not in contracted and not atom.segments:
            yield atom


def with_pads(dim: Dim, padded: set[int]) -> list[Any]:
    """Factors of a dim as plain data; `padded`: ids of the atoms that grow by new entries."""
    whole = legs(dim)
    if len(whole) == 1 and id(atom := root(whole[0].atom)) in padded:
        return [{"pad": [*atom.size]}]
    return factors_of(dim)
