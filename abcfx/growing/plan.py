"""Plans how to fill a larger model: which entries are copied where, and what the copies are multiplied by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from abcfx.dag.layer_dag import LayerDag
from abcfx.growing.equations import Form
from abcfx.growing.fill.width import Widening
from abcfx.growing.scales import Scales, solve_scales
from abcfx.pairing.factors import Dim, Factors, index_map, sizes
from abcfx.pairing.factors.atoms import Atom, expanded, plain_atoms, root
from abcfx.pairing.factors.index_maps import IndexMap, Padding
from abcfx.pairing.pair import PairedModels
from abcfx.rules import Layer
from abcfx.support import arguments


@dataclass(frozen=True)
class GrowthPlan:
    """A plan for filling a large model from a small one that has as many blocks: a recipe for each tensor.

    Attributes:
        widenings: for each parameter, and each buffer that training changes, by name: which entries are copied where,
            and what they are multiplied by.
        factors: the dims of every tensor of a run of both models, as products of factors that both share.
        scales: the factor of each parameter, as powers of the width ratio.
        dag: the layer DAG of the large model.
        noised: parameters that may get zero-sum noise: every use sums over the same dims of them, and one of these
            grows.
    """

    widenings: Mapping[str, Widening]
    factors: Factors
    scales: Scales
    dag: LayerDag
    noised: tuple[str, ...]

    def output_dims(self) -> list[list[IndexMap] | None]:
        """Return for each dim of each output of the large model which small model's entry each of its entries copies.

        None stands for an output that the model itself uses too, such as a cache.
        """
        padded = {id(atom) for atom in padded_atoms(self.factors)}
        used = {ref for call in self.factors.large.calls for ref in call.inputs}
        return [
            None if ref in used else [padded_index_map(dim, padded) for dim in self.factors.of(ref)]
            for ref in self.factors.large.outputs
        ]


@arguments.checked(models=arguments.instance_of(PairedModels, "PairedModels"))
def plan_growth(models: PairedModels) -> GrowthPlan:
    """Plan how to fill a large model from a small one with as many blocks; neither model is changed.

    Args:
        models: both models, captured side by side: the large one as target, the small one as base.

    Returns:
        For each tensor of the large model, which entries of the small one are copied where, and what they are
        multiplied by, so that the large model computes the same.

    Raises:
        PairingError: the models are not instances of one architecture.
        InfeasibleError: no factors keep the function; names the node of the layer DAG.
        CaptureError, UnknownOpError: see `abcfx.transform`.
    """
    factors, dag, growth = models.factors, models.target_dag, models.measured_growth
    assert growth is not None, "there is a base"
    scales = solve_scales(dag, growth)
    widenings = _widenings(factors, scales, growth.width_ratio)
    summed = {name for name, nodes in dag.uses().items() if _contracts_alike(dag, nodes)}
    noised = tuple(name for name, each in widenings.items() if each.contracted and name in summed)
    return GrowthPlan(widenings, factors, scales, dag, noised)


def _widenings(factors: Factors, scales: Scales, width_ratio: float) -> dict[str, Widening]:
    """Return for every parameter, and every buffer that training changes, how it is filled.

    Args:
        factors: the dims of all tensors in runs of both models, as products of factors that both share.
        scales: the factor of each parameter, as powers of the width ratio.
        width_ratio: width of the large model over that of the small one.
    """
    padded = {id(atom) for atom in padded_atoms(factors)}
    found = {}
    for name, ref in (factors.large.parameters | factors.large.buffers).items():
        if name in factors.large.buffers and name not in factors.statistics:
            continue
        dims = factors.of(ref)
        contracted = tuple(i for i in range(len(dims)) if (name, i) in factors.contracted)
        if name in scales.exponents or name not in factors.large.parameters:
            factor = _factor(scales.exponents.get(name, {}), width_ratio)
        else:  # no output depends on it
            factor = math.prod(sizes(dims[i])[0] / sizes(dims[i])[1] for i in contracted)
        found[name] = Widening(name, tuple(padded_index_map(dim, padded) for dim in dims), factor, contracted)
    return found


def _contracts_alike(dag: LayerDag, nodes: Sequence[str]) -> bool:
    """Whether every use of a parameter sums over the same dims of it, and none divides it by its norm."""
    kinds = [dag.kind(node) for node in nodes]
    over = {kind.fan_in for kind in kinds if isinstance(kind, Layer) and not kind.normalised}
    return len(over) == 1 and all(isinstance(kind, Layer) and kind.fan_in in over for kind in kinds)


def _factor(exponents: Form, width_ratio: float) -> float:
    """Return the number that a product of powers of the width ratio is; exact for powers of two.

    Args:
        exponents: {e: q} for the product of width_ratio ** (e q).
        width_ratio: width of the large model over that of the small one.
    """
    total = 1.0
    for e, power in exponents.items():
        ratio = width_ratio ** float(e)
        whole = round(ratio)
        total *= (float(whole) if math.isclose(ratio, whole, rel_tol=1e-9) else ratio) ** float(power)
    return total


def padded_atoms(factors: Factors) -> Iterator[Atom]:
    """Yield the factors of dims that grow by new entries, not by copies: rows of tables, dims of outputs alone."""
    contracted = {
        id(atom) for name, place in factors.contracted for atom in plain_atoms(factors.parameter(name)[place])
    }
    returned = [dim for ref in factors.large.outputs for dim in factors.of(ref)]
    for dim in (*factors.indexed, *returned):
        whole = expanded(dim)
        atom = root(whole[0].atom) if len(whole) == 1 else None
        if atom and atom.large > atom.small and id(atom) not in contracted and not atom.segments:
            yield atom


def padded_index_map(dim: Dim, padded: set[int]) -> IndexMap:
    """Return for a dim which entry in the small model each entry in the large one is a copy of.

    Where the dim is padded, the large model has new entries instead.

    Args:
        dim: the dim, as a product of factors.
        padded: ids of the factors that grow by new entries.
    """
    whole = expanded(dim)
    if len(whole) == 1 and id(atom := root(whole[0].atom)) in padded:
        return IndexMap((Padding(*atom.size),))
    return index_map(dim)
