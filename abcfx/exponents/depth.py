"""Depth scaling: factors on the residual branches of a model with more blocks than its base, their rates and eps.

With L / L0 times as many blocks, a branch is multiplied by (L / L0)^-x, with x = 1 ("completep") or 1/2 ("mup"). The
sum of L updates must stay O(1): in the branches, rates follow (L / L0)^(x - 1) for Adam and optimizers like it, and
(L / L0)^(2x - 1) for SGD; gradients, and with them eps, follow (L / L0)^-x.

Sources: Dey et al. 2025 (arXiv 2505.01618), table 1, for "completep"; depth-muP for "mup".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from abcfx.dag.queries import Branch, absorbing_parameters, is_serial, residual_branches
from abcfx.errors import InvalidInputError
from abcfx.exponents.fixed import FixedExponents
from abcfx.pairing.blocks import Blocks
from abcfx.rules import Layer, Vector
from abcfx.theory.optimizers import OptimizerFamily

DepthTable = Literal["none", "mup", "completep"]
BRANCH_EXPONENT: Mapping[DepthTable, float] = {"none": 0.0, "mup": 0.5, "completep": 1.0}


@dataclass(frozen=True)
class DepthExponents:
    """The exponents of the ratio of depths (blocks of the model over blocks of the base) for one parameter's numbers.

    Attributes:
        b: of the init, ratio^-b.
        c: of the learning rate, ratio^-c.
        g: of the gradient, ratio^-g, which eps follows.
        decay: of weight decay, ratio^decay.
    """

    b: float = 0.0
    c: float = 0.0
    g: float = 0.0
    decay: float = 0.0

    def moved(self, a: float, family: OptimizerFamily) -> DepthExponents:
        """Return the exponents after a factor (ratio of depths)^-a has moved into the parameter.

        Args:
            a: exponent of the factor.
            family: the optimizer, which decides how the learning rate has to follow.
        """
        return DepthExponents(self.b + a, self.c + family.rate_shift(a), self.g - a, self.decay + family.decay_shift(a))


@dataclass(frozen=True)
class DepthScaling:
    """The factors, rates and eps for a model with more blocks than its base (a smaller instance of it).

    They are empty for equal numbers of blocks. `ratio` is the number of blocks over that of the base.

    Attributes:
        a: exponent of the factor ratio^-a on every residual branch.
        branches: the ratio, by the DAG node (merge) that adds a branch to the stream.
        ratios: the ratio for each parameter inside a branch.
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


def scale_depth(table: DepthTable, fixed: FixedExponents, decay: str) -> DepthScaling:
    """Find factors on residual branches, rates and eps for a model with other numbers of blocks than its base.

    The base is a smaller instance of the model, for which the user's learning rate was tuned.

    Args:
        table: "none", "mup" or "completep".
        fixed: the layer DAG, the numbered blocks of target and base, and the optimizer of each parameter.
        decay: how weight decay follows: "independent", "coupled" or "fixed".

    Returns:
        An empty result for equal numbers of blocks. A branch whose parameters are all frozen gets no factor.

    Raises:
        InvalidInputError: the blocks have no residual branches.
    """
    dag, blocks, families = fixed.dag, fixed.widths.blocks, fixed.families
    if not blocks.index:
        return DepthScaling()
    a, every = BRANCH_EXPONENT[table], residual_branches(dag, blocks.index)
    branches = {merge: branch for merge, branch in every.items() if _learns(fixed, branch)}
    ratios = {merge: _ratio(branch, blocks) for merge, branch in branches.items()}
    if table == "none":
        return DepthScaling(notes=_described(ratios, "Parametrization(depth='none') leaves branches and rates alone"))
    serial = [container for container in blocks.index if is_serial(dag, container)]
    if not branches and (every or not serial):  # frozen; or experts, heads: no matter of depth
        return DepthScaling()
    if not branches:
        raise InvalidInputError(
            f"depth={table!r}: the repeated blocks ({', '.join(serial)}) have no residual branches.\n"
            f"  expected: x + f(x) inside each block. To fix: parametrization=Parametrization(depth='none')."
        )
    ratio_of = {
        kind.parameter: ratios[merge]
        for merge, branch in branches.items()
        for node in branch.inside
        if isinstance(kind := dag.kind(node), Layer | Vector)
    }
    inserted = {name: _inside_branch(a, families[name], decay) for name in ratio_of}
    absorbed, left = dict(inserted), set()
    for merge, branch in branches.items():
        names = fixed.trained(absorbing_parameters(dag, branch.node))
        for name in names:
            absorbed[name] = absorbed[name].moved(a, families[name])
        if not names:
            left.add(merge)
        elif decay == "coupled":  # one number for all parameters, once no factor is left
            for name in names:
                inserted[name] = replace(inserted[name], decay=-families[name].decay_shift(a))
                absorbed[name] = replace(absorbed[name], decay=0.0)
    notes = _described(ratios, f"residual branches are multiplied by ratio^-{a:g} (depth={table!r})")
    return DepthScaling(a, ratios, ratio_of, inserted, absorbed, frozenset(left), notes)


def _learns(fixed: FixedExponents, branch: Branch) -> bool:
    """Whether a residual branch has a parameter that is not frozen, or has no parameters at all."""
    names = [name for node in branch.inside if (name := fixed.dag.node(node).parameter) is not None]
    return not names or any(not fixed.parameters[name].frozen for name in names)


def _inside_branch(a: float, family: OptimizerFamily, decay: str) -> DepthExponents:
    """Return the depth exponents of a parameter inside a residual branch that is multiplied by ratio^-a.

    Args:
        a: exponent of that factor; ratio is the number of blocks over that of the base.
        family: the optimizer of the parameter.
        decay: how weight decay follows: "independent", "coupled" or "fixed".
    """
    c = (1 - 2 * a) if family.update == "gradient" else 1 - a
    return DepthExponents(c=c, g=a, decay=c if decay == "independent" else 0.0)


def _described(ratios: Mapping[str, float], what: str) -> tuple[str, ...]:
    """Return a sentence for the report on each ratio of depths: the model's blocks over those of its base.

    The base is a smaller instance of the model. `ratios` has the ratio by the node that adds a branch, `what` says what
    is done for it.
    """
    counts = Counter(ratios.values())
    return tuple(f"depth: {ratio:g} times the base's blocks ({n} branches): {what}" for ratio, n in counts.items())


def _ratio(branch: Branch, blocks: Blocks) -> float:
    """Return the ratio of depths, blocks of the model over those of its base, in the container of a residual branch.

    The base is a smaller instance of the model.
    """
    ours, theirs = max((blocks.counts[container] for container in branch.containers), default=(1, 1))
    return ours / theirs
