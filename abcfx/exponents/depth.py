"""What a model with more residual blocks than its base gets: factors on residual branches, and their rates and eps.

With L / L0 times as many blocks, a branch is multiplied by (L / L0)^-x, x = 1 ("completep", Dey et al. 2025, arXiv
2505.01618, table 1) or 1/2 ("mup", depth-muP). The sum of L updates must stay O(1): for Adam and its kin rates in the
branches follow (L / L0)^(x - 1), for SGD (L / L0)^(2x - 1); gradients, and so eps, are ~ (L / L0)^-x.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from abcfx.dag.layer_dag import LayerDag
from abcfx.dag.queries import Branch, absorbing_parameters, is_serial, residual_branches
from abcfx.errors import InvalidInputError
from abcfx.pairing.blocks import Blocks
from abcfx.rules import Layer, Vector
from abcfx.theory.optimizers import OptimizerFamily

BRANCH_EXPONENT = {"none": 0.0, "mup": 0.5, "completep": 1.0}


@dataclass(frozen=True)
class DepthExponents:
    """Exponents of the ratio of depths, in the meaning that b, c, g have for width; `decay` of weight decay."""

    b: float = 0.0
    c: float = 0.0
    g: float = 0.0
    decay: float = 0.0

    def moved(self, a: float, family: OptimizerFamily) -> DepthExponents:
        """With a factor ratio^-a moved into the parameter."""
        return DepthExponents(self.b + a, self.c + family.rate_shift(a), self.g - a, self.decay + family.decay_shift(a))


@dataclass(frozen=True)
class DepthScaling:
    """How a model with more blocks than its base is scaled; empty where it has as many.

    Attributes:
        a: exponent of the factor ratio^-a on every residual branch.
        branches: merge that adds a branch -> number of blocks of the target over that of the base.
        ratios: the same ratio for each parameter inside a branch.
        inserted: exponents of each such parameter where factors multiply the branches.
        absorbed: exponents of each such parameter where the factors are moved into parameters.
        left: merges whose factor no parameter can take.
        notes: sentences for the report.
    """

    a: float = 0.0
    branches: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    inserted: Mapping[str, DepthExponents] = field(default_factory=dict)
    absorbed: Mapping[str, DepthExponents] = field(default_factory=dict)
    left: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def scale_depth(
    option: str, dag: LayerDag, blocks: Blocks, families: Mapping[str, OptimizerFamily], decay: str
) -> DepthScaling:
    """Depth scaling of a model whose base has another number of blocks; nothing when it has the same.

    Args:
        option: "none", "mup" or "completep".
        dag: the layer DAG.
        blocks: which blocks are repeated.
        families: of each parameter.
        decay: weight decay mode, as in `transform`.

    Raises:
        InvalidInputError: another option, or blocks without residual branches.
    """
    if option not in BRANCH_EXPONENT:
        raise InvalidInputError(f"depth={option!r}; expected one of {', '.join(BRANCH_EXPONENT)}.")
    if not blocks.index:
        return DepthScaling()
    a, branches = BRANCH_EXPONENT[option], residual_branches(dag, blocks.index)
    branch_ratios = {merge: _ratio(branch, blocks) for merge, branch in branches.items()}
    if option == "none":
        return DepthScaling(
            notes=_described(branch_ratios, "Parametrization(depth='none') leaves branches and rates alone")
        )
    serial = [container for container in blocks.index if is_serial(dag, container)]
    if not branches and not serial:  # experts, heads: no matter of depth
        return DepthScaling()
    if not branches:
        raise InvalidInputError(
            f"depth={option!r}: the repeated blocks ({', '.join(serial)}) have no residual branches.\n"
            f"  expected: x + f(x) inside each block. To fix: parametrization=Parametrization(depth='none')."
        )
    inserted: dict[str, DepthExponents] = {}
    ratios: dict[str, float] = {}
    for merge, branch in branches.items():
        for node in branch.inside:
            kind = dag.kind(node)
            if isinstance(kind, Layer | Vector):
                c = (1 - 2 * a) if families[kind.parameter].update == "gradient" else 1 - a
                inserted[kind.parameter] = DepthExponents(c=c, g=a, decay=c if decay == "independent" else 0.0)
                ratios[kind.parameter] = branch_ratios[merge]
    absorbed, left = dict(inserted), set()
    for merge, branch in branches.items():
        names = absorbing_parameters(dag, branch.node)
        for name in names:
            absorbed[name] = absorbed[name].moved(a, families[name])
        if not names:
            left.add(merge)
        elif decay == "coupled":  # one number for all where no factor is left
            for name in names:
                inserted[name] = replace(inserted[name], decay=-families[name].decay_shift(a))
                absorbed[name] = replace(absorbed[name], decay=0.0)
    notes = _described(branch_ratios, f"residual branches are multiplied by ratio^-{a:g} (depth={option!r})")
    return DepthScaling(a, branch_ratios, ratios, inserted, absorbed, frozenset(left), notes)


def _described(ratios: Mapping[str, float], what: str) -> tuple[str, ...]:
    counts = Counter(ratios.values())
    return tuple(f"depth: {ratio:g} times the base's blocks ({n} branches): {what}" for ratio, n in counts.items())


def _ratio(branch: Branch, blocks: Blocks) -> float:
    """Blocks of the target over those of the base, in the container that the branch lies in."""
    ours, theirs = max((blocks.counts[container] for container in branch.containers), default=(1, 1))
    return ours / theirs
