"""Turns exponents into numbers: multiplier, init, lr, eps and weight decay of every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from abcfx.exponents.dag_program import SolvedDag
from abcfx.exponents.depth import DepthExponents, DepthScaling
from abcfx.exponents.fixed import FixedExponents, ParameterExponents
from abcfx.plan.absorb import AppliedExponents, absorbed_exponents, solved_exponents
from abcfx.plan.draws import Draw, Law
from abcfx.plan.init import ColumnFactor, Init
from abcfx.plan.options import PlanOptions
from abcfx.plan.own_init import OwnInit, weight_beside
from abcfx.plan.spec import ParameterPlan, SegmentPlan
from abcfx.rules import Layer
from abcfx.rules.extents import DimPart, ParameterDim, whole_dims
from abcfx.rules.values import shape_of
from abcfx.theory.optimizer_groups import GroupNumbers


def make_plan(
    fixed: FixedExponents,
    solved: SolvedDag,
    parameters: Mapping[str, torch.nn.Parameter],
    own_init: Mapping[str, OwnInit] | None,
    options: PlanOptions,
    depth: DepthScaling,
    numbers: Mapping[str, GroupNumbers],
) -> dict[str, ParameterPlan]:
    """Compute multiplier, init, learning rate, eps and weight decay of every parameter from its exponents of width.

    Args:
        fixed: the role of each parameter, and its exponents a (multiplier m^-a; m, the width ratio) and b (init m^-b).
        solved: what the linear program found: exponents c (learning rate m^-c), r (change m^-r) and of gradients.
        parameters: the model's parameters by name.
        own_init: how the model's own init scales; None without a base, and then exponents are powers of each layer's
            own width n, and weights are drawn anew with standard deviation n^-b.
        options: the user's constants, and how the plan will be applied.
        depth: factors on residual branches, for a model with more blocks than its base.
        numbers: what an optimizer instance says of a parameter, where there is one.

    Returns:
        The exponents and numbers of each parameter, by name.

    Raises:
        InvalidInputError: a pattern of `no_decay` matches no parameter.
    """
    as_solved = solved_exponents(fixed, solved, options.overrides.decay_mode)
    absorbed = absorbed_exponents(fixed, solved, options.overrides.decay_mode)
    applied = absorbed if options.absorbs else as_solved
    undecayed = options.overrides.without_decay({name: each.decided.role for name, each in applied.items()})
    planner = _Planner(fixed, solved, options, depth, numbers, parameters)
    return {
        name: planner.plan(
            name,
            parameter,
            applied[name],
            absorbed[name],
            None if own_init is None else own_init[name],
            decays=name not in undecayed,
        )
        for name, parameter in parameters.items()
    }


def init_note(plan: Mapping[str, ParameterPlan]) -> tuple[str, ...]:
    """Return a note for the report that says how many weights get other values, and how trained ones are kept.

    Args:
        plan: the plan of every parameter by name.
    """
    drawn = sum(row.init.redraw for row in plan.values())
    scaled = sum(not row.init.redraw and row.init.factor != 1.0 and bool(row.init.std) for row in plan.values())
    done = [f"drawn anew in {drawn}"] * bool(drawn) + [f"multiplied in {scaled}"] * bool(scaled)
    if not done:
        return ()
    return (f"what is random is {' and '.join(done)} of {len(plan)} parameters; init='keep' keeps weights as trained",)


class _Planner:
    """A calculator of multiplier, init, lr, eps and decay of one parameter at a time.

    They are powers of n, a width ratio or a width.

    Args:
        fixed: the role of each parameter, and its exponents a (multiplier m^-a; m, the width ratio) and b (init m^-b).
        solved: exponents c (learning rate), r (change) and of gradients.
        options: the user's constants, and how the plan will be applied.
        depth: factors on residual branches, for a model with more blocks than its base.
        numbers: what an optimizer instance says of a parameter, where there is one.
        parameters: the model's parameters by name.
    """

    def __init__(
        self,
        fixed: FixedExponents,
        solved: SolvedDag,
        options: PlanOptions,
        depth: DepthScaling,
        numbers: Mapping[str, GroupNumbers],
        parameters: Mapping[str, torch.Tensor],
    ) -> None:
        """Keep the exponents, options and numbers from which the plan of each parameter follows.

        Args:
            fixed: roles and the exponents a (multiplier m^-a; m, the width ratio) and b (init m^-b).
            solved: exponents c (learning rate), r (change) and of gradients.
            options: the user's constants, and how the plan will be applied.
            depth: factors on residual branches.
            numbers: what an optimizer instance says of a parameter.
            parameters: the model's parameters by name.
        """
        self.numbers, self.parameters = numbers, parameters
        self.fixed, self.solved, self.options, self.depth = fixed, solved, options, depth
        self.widths = fixed.widths

    def plan(
        self,
        name: str,
        parameter: torch.nn.Parameter,
        applied: AppliedExponents,
        absorbed: AppliedExponents,
        own: OwnInit | None,
        decays: bool,
    ) -> ParameterPlan:
        """Compute multiplier, init, lr, eps and weight decay of one parameter.

        Args:
            name: its name.
            parameter: the tensor.
            applied: its exponents (multiplier, init, rate, ...) as the model and its optimizer will have them.
            absorbed: its exponents with the multiplier moved into init and rate, as plain weights would need them.
            own: how the model's own init of it scales, where that is known.
            decays: whether it gets weight decay.
        """
        decided, family = applied.decided, self.fixed.families[name]
        n = self.widths.width_ratio if self.widths.has_base else self._own_width(name, parameter)
        ratio = self.depth.ratios.get(name, 1.0)
        deep_absorbed = self.depth.absorbed.get(name, DepthExponents())
        deep = deep_absorbed if self.options.absorbs else self.depth.inserted.get(name, DepthExponents())
        faster, more_decay = self.options.schedule.factors(family)
        numbers = self.numbers.get(name, GroupNumbers())
        eps, shape = self.options.eps_of(numbers), self._shape_correction(name, parameter, n)
        rate = shape * _power(n, -applied.c) * _power(ratio, -deep.c)
        growth = self.widths.parameter(name, tuple(parameter.shape))
        init = self._init(name, decided, own, n)
        if not decided.frozen:
            init = init.times(_power(ratio, -deep.b))
        segments = self._segments(name, applied, absorbed, n)
        if not self._keeps_init(decided):
            init = replace(init, columns=_column_factors(applied.decided, segments, n))
        is_deep = name in self.depth.inserted and not decided.frozen
        if is_deep and own is not None and self.widths.width_ratio == 1.0:
            init = init.times(own.depth_factor)
        return ParameterPlan(
            role=decided.role,
            why=decided.why,
            growth=growth,
            width=n if not self.widths.has_base or any(growth) else 1.0,
            a=decided.a,
            b=decided.b,
            c=applied.c,
            g=applied.g,
            multiplier={node: _power(n, -a) for node, a in decided.a.items()},
            std=init.std,
            lr=self.options.lr_of(decided.role, numbers) * faster * rate,
            eps=eps * _power(n, -applied.g) * _power(ratio, -deep.g) if family.has_eps else None,
            weight_decay=self._weight_decay(numbers, n, ratio, applied, deep, shape) * more_decay if decays else 0.0,
            optimizer=family.name,
            r=next((self.solved.r[node] for node in decided.a if node in self.solved.r), None),
            binding=self.solved.binding[name],
            void=decided.void,
            init=init,
            own_init=own,
            trainable=parameter.requires_grad,
            fold=_power(n, decided.b - absorbed.decided.b) * _power(ratio, deep.b - deep_absorbed.b),
            left=() if segments else tuple(node for node, a in absorbed.decided.a.items() if a and n != 1.0),
            shape_correction=shape,
            options=numbers.options,
            segments=tuple(replace(each, std=init.std_of(each.part.start)) for each in segments),
        )

    def _keeps_init(self, decided: ParameterExponents) -> bool:
        """Whether a parameter keeps the init that the model's own code gives it."""
        is_kept = decided.role == "plain" or decided.frozen or decided.normalised or decided.keeps_init
        return is_kept or self.options.init == "keep"

    def _segments(
        self, name: str, applied: AppliedExponents, absorbed: AppliedExponents, n: float
    ) -> tuple[SegmentPlan, ...]:
        """Compute the numbers of a weight's columns for each of several concatenated inputs, still without their std.

        Args:
            name: name of the weight.
            applied: its exponents (multiplier, init, rate, ...) as the model and its optimizer will have them.
            absorbed: its exponents with the multiplier of the first columns moved into init and rate.
            n: the width ratio.
        """
        found: dict[DimPart, SegmentPlan] = {}
        for node, own in applied.decided.segments.items():
            kind, a = self.fixed.dag.kind(node), applied.decided.a[node]
            if isinstance(kind, Layer) and kind.part is not None:
                rest = _power(n, -absorbed.decided.a[node])
                found[kind.part] = SegmentPlan(kind.part, own.role, a, own.b, _power(n, -a), None, rest)
        return tuple(sorted(found.values(), key=lambda each: each.part.start))

    def _weight_decay(
        self,
        numbers: GroupNumbers,
        n: float,
        ratio: float,
        applied: AppliedExponents,
        deep: DepthExponents,
        shape: float,
    ) -> float:
        """Compute the weight decay of one parameter.

        Args:
            numbers: what an optimizer instance says of it, where there is one.
            n: the width or width ratio that exponents are powers of.
            ratio: number of blocks over that of the base.
            applied: its exponents of width.
            deep: its exponents of the ratio of depths.
            shape: factor in its learning rate that follows the shape of the matrix.
        """
        given, mode = self.options.decay_of(numbers), self.options.overrides.decay_mode
        if mode == "fixed":
            return given
        # "independent" keeps lr x weight decay, so it makes up for the part of lr that follows the matrix's shape
        own = 1.0 / shape if mode == "independent" else 1.0
        return given * own * _power(n, applied.decay) * _power(ratio, deep.decay)

    def _shape_correction(self, name: str, parameter: torch.nn.Parameter, n: float) -> float:
        """Return the factor on lr with which a spectral update (Muon) is as large as planned at the real shapes.

        Muon itself multiplies updates by a factor such as sqrt(max(1, rows / columns)), which the exponent c counts as
        a power of the width ratio m. In a real model and its base the maximum may be the other one; what then differs
        is put right here.

        Args:
            name: name of the parameter.
            parameter: the tensor.
            n: the width ratio m.
        """
        family = self.fixed.families[name]
        if family.update != "spectral" or not self.widths.has_base or parameter.ndim != 2:
            return 1.0
        kinds = [self.fixed.dag.kind(node) for node in self.fixed.parameters[name].a]
        layers = [kind for kind in kinds if isinstance(kind, Layer)]
        if not layers:
            return 1.0
        counted = _power(n, family.shape_growth(*layers[0].stored_growth(self.fixed)))
        base = self.widths.base_parameters[name]
        return counted * family.shape_factor(*base.shape) / family.shape_factor(*parameter.shape)

    def _own_width(self, name: str, parameter: torch.nn.Parameter) -> float:
        """Return the width n of which a parameter's numbers are powers, where there is no base.

        It is the fan_in of a weight, the fan_out of a first layer, the length of a vector, else 1.
        """
        decided = self.fixed.parameters[name]
        for node in decided.a:
            kind = self.fixed.dag.kind(node)
            if isinstance(kind, Layer):
                dims = whole_dims(kind.fan_out[:1] if decided.role == "embedding" else kind.fan_in)
                sizes = [
                    parameter.shape[d.index]
                    if isinstance(d, ParameterDim)
                    else (shape_of(d.node) or parameter.shape)[d.index]
                    for d in dims
                ]
                return float(torch.Size(size for size in sizes if size > 0).numel())
        return float(parameter.shape[-1]) if parameter.ndim and decided.role == "vector" else 1.0

    def _init(self, name: str, applied: ParameterExponents, own: OwnInit | None, n: float) -> Init:
        """Decide how a tensor is initialised: kept, its random part multiplied by one factor, or drawn anew.

        Its mean and structure, such as zero rows, are multiplied by nothing but the multipliers absorbed into the
        tensor.

        Args:
            name: name of the parameter.
            applied: its role and the exponent b of its init (std ~ m^-b) as the model will have them.
            own: how the model's own init of it scales, where that is known.
            n: the width or width ratio that exponents are powers of.
        """
        decided, parameter = self.fixed.parameters[name], self.parameters[name]
        drawn = own.draw if own is not None else None
        if drawn is None and not parameter.is_meta:
            drawn = Draw.of(parameter, weight_beside(self.parameters, name))
        if decided.frozen:
            return Init.of_frozen(parameter, drawn)
        if self._keeps_init(decided):
            return Init.scaled(drawn)
        is_matrix = any(isinstance(self.fixed.dag.kind(node), Layer) for node in decided.a)
        constant = self.options.std_of(decided.role) if is_matrix else 1.0
        whole, size = _power(n, decided.b - applied.b), constant * _power(n, -applied.b)
        if self.widths.has_base:
            if own is None:
                return Init()  # on the meta device, with nothing to read the model's own init off
            if self.options.init == "redraw" and is_matrix and own.draw.law is Law.RANDOM:
                return Init.drawn_anew(drawn, own.base_spread * size, whole)
            return Init.scaled(drawn, constant * _power(n, own.exponent - applied.b), whole)
        return self._absolute_init(drawn, is_matrix, decided.is_bias, size, whole)

    def _absolute_init(self, drawn: Draw | None, is_matrix: bool, is_bias: bool, size: float, whole: float) -> Init:
        """Decide how a tensor is initialised without a base, where numbers are powers of each layer's own width n.

        What is random in weights is N(0, n^-2b), what is random in biases zero; everything else is kept.

        Args:
            drawn: how the model drew the tensor; None on the meta device.
            is_matrix: whether it is the weight of a layer.
            is_bias: whether it is the bias of one.
            size: the standard deviation of a weight.
            whole: number that multiplies its mean and structure (what is not random, such as zero rows).
        """
        if is_matrix and (drawn is None or drawn.law is Law.RANDOM):
            return Init.drawn_anew(drawn, size, whole)
        if is_bias and drawn is None:
            return Init(factor=0.0, std=0.0, fill=0.0)
        factor = whole
        if drawn is not None and is_matrix and drawn.law is Law.ORTHOGONAL:
            factor = size / drawn.spread
        elif drawn is not None and is_bias and drawn.law is Law.RANDOM and not drawn.mean:
            factor = 0.0  # torch draws biases ~ fan_in^-1/2; the plan starts them at zero at every width
        return Init.scaled(drawn, factor, whole)


def _column_factors(decided: ParameterExponents, segments: Sequence[SegmentPlan], n: float) -> tuple[ColumnFactor, ...]:
    """Return the factor on the init of some columns or rows of a parameter, beside that on the whole parameter.

    Args:
        decided: the exponents of the parameter, as the model will have them.
        segments: exponents and numbers of the columns that meet each of several concatenated inputs.
        n: the width ratio.
    """
    a = next(iter(decided.a.values()), 0.0)
    found = []
    for each in segments:
        factor, whole = _power(n, decided.b - each.b), _power(n, each.a - a)
        if factor != 1.0 or whole != 1.0:
            found.append(ColumnFactor(each.part.index, each.part.start, each.part.size, factor, whole))
    rows = ((part, _power(n, -x)) for part, x in decided.rows.items() if n != 1.0)
    return (*found, *(ColumnFactor(part.index, part.start, part.size, factor, 1.0) for part, factor in rows))


def _power(n: float, exponent: float) -> float:
    """Return n ** exponent, and exactly 1 where that is the result."""
    return 1.0 if exponent == 0 or n == 1 else float(n**exponent)
