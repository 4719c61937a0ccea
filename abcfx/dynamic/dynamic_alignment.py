"""`DynamicAlignment`: measures the alignment of every layer while a model trains, and lets learning rates follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, get_args

import torch
import torch.distributed as distributed
from torch.optim.lr_scheduler import LRScheduler

from abcfx.dynamic.first_weights import FirstWeights, FirstWeightsMode
from abcfx.dynamic.history import HistoryRow, plot_history
from abcfx.dynamic.measured import Measured, Moments
from abcfx.dynamic.optimizers_in_use import inner_optimizers, names_of_groups
from abcfx.dynamic.probe import Probe, ProbeState
from abcfx.dynamic.probe_inputs import TOKENS
from abcfx.dynamic.rate_factors import RateFactors
from abcfx.dynamic.schedules import MultipliedRates, default_warmup
from abcfx.errors import AbcfxError, InvalidInputError
from abcfx.support import arguments
from abcfx.support.choices import choose
from abcfx.support.numbers import check_number, check_whole
from abcfx.theory.parametrizations import Alignments
from abcfx.transformed import Transformed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cap: TypeAlias = Literal["full"]
_LOWEST, _HIGHEST = 0.5, 1.0  # alignments of independent and of aligned factors


class DynamicState(TypedDict):
    """The state of a `DynamicAlignment`, to be saved with `torch.save`.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Attributes:
        steps: number of optimizer steps counted so far.
        factors: number that multiplies the scheduled learning rate of each matrix, by parameter name.
        alignment: smoothed alignment exponents (alpha, omega, u) of each layer.
        probe: the fixed inputs on which the model is measured, and the first inputs and weights of its layers.
        rows: the history: a row for each layer and measurement.
    """

    steps: int
    factors: dict[str, float]
    alignment: dict[str, tuple[float, float, float]]
    probe: ProbeState
    rows: list[HistoryRow]


def _check_scheduler(scheduler: object) -> None:
    """Raise an error unless an object is a scheduler: an LRScheduler of torch, or an object with a method `step`.

    Raises:
        InvalidInputError: it is something else.
    """
    is_instance = not isinstance(scheduler, type) and callable(getattr(scheduler, "step", None))
    if scheduler is not None and not is_instance:
        raise arguments.wrong(
            "DynamicAlignment: scheduler", scheduler, "a learning-rate scheduler (an instance), or None"
        )


class DynamicAlignment:
    """Measures, during training, how far each layer's weights and inputs line up, and lets learning rates follow.

    The alignment of dW and x is an exponent: 1/2 if they are independent, 1 if dW x is as large as their RMS entries
    allow. `transform` assumes a preset; here it is measured, and the exponent c of each learning rate n^-c (n: the
    layer's fan_in) is solved again. The rate of a parameter is then the scheduled one times n^-(c - planned c). This
    factor is applied around each optimizer step, so schedulers never see it, and `step` may come before or after the
    scheduler's. With `apply=False` rates stay as they are.

    Args:
        result: what `transform` returned.
        optimizer: made from `result.groups(per_parameter=True)`; or several optimizers, each with a part of them.
        warmup: number of steps before the first measurement; no rate is changed during them. None: a tenth of the run
            where its length is known, else 100.
        every: number of steps between measurements.
        apply: False only measures and records.
        scheduler: the scheduler of the run. While its attribute `decaying` is true, as in the decay of `wsd`, the
            factors stay as they are. The length of the run is read off it (`total_steps` of OneCycleLR and `wsd`,
            `T_max` of CosineAnnealingLR).
        total_steps: length of the run, for `warmup`.

    Other arguments:
        cap: "full" takes the smaller of the measured alignment and that of the "full" preset, and lets no c exceed its
            value at full alignment; None does neither.
        center: divide the factors by their geometric mean over matrices, so that the tuned lr keeps its meaning.
        smoothing: weight of the past in the moving average of alignments, which starts at the preset.
        trust: largest factor; its inverse is the smallest.
        max_tokens: number of tokens to measure on, where the batch holds sequences.
        first_weights: how the first weights are remembered: "sample" keeps 16 to 64 rows of each; "keep" all rows,
            which takes as much memory as the weights; "redraw" none: they are drawn again from `seed` at each
            measurement, which takes time.
        seed: for "redraw", the seed of `torch.manual_seed(seed); result.init_weights()`.

    Attributes:
        steps: number of optimizer steps counted so far.
        factors: present factor on the rate of each matrix, by parameter.

    Raises:
        InvalidInputError: a group holds several parameters or one of another model; an option is out of range.

    Example:
        >>> from abcfx.pipeline import transform
        >>> x = torch.randn(32, 8)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
        >>> result = transform(model, x, optimizer="adam")
        >>> optimizer = torch.optim.Adam(result.groups(per_parameter=True))
        >>> dynamic = DynamicAlignment(result, optimizer, warmup=1, every=1)
        >>> dynamic.capture_initial(x)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     result.module(x).square().mean().backward()
        ...     optimizer.step()
        ...     dynamic.step()
        >>> [(row["step"], row["node"]) for row in dynamic.history]
        [(2, '0'), (2, '2')]
    """

    def __init__(
        self,
        result: Transformed,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        warmup: int | None = None,
        every: int = 10,
        apply: bool = True,
        scheduler: LRScheduler | None = None,
        total_steps: int | None = None,
        cap: Cap | None = "full",
        center: bool = True,
        smoothing: float = 0.8,
        trust: float = 16.0,
        max_tokens: int = TOKENS,
        first_weights: FirstWeightsMode = "sample",
        seed: int | None = None,
    ) -> None:
        _check_scheduler(scheduler)
        arguments.optional(arguments.whole())("DynamicAlignment: total_steps", total_steps)
        arguments.optional(arguments.seed)("DynamicAlignment: seed", seed)
        arguments.flag("DynamicAlignment: apply", apply)
        arguments.flag("DynamicAlignment: center", center)
        self.warmup = default_warmup(scheduler, total_steps) if warmup is None else warmup
        check_whole("DynamicAlignment: warmup", self.warmup, at_least=0)
        check_whole("DynamicAlignment: every", every)
        check_whole("DynamicAlignment: max_tokens", max_tokens)
        check_number("DynamicAlignment: smoothing", smoothing, at_least=0, below=1)
        check_number("DynamicAlignment: trust", trust, above=1)
        if cap is not None:
            cap = choose("cap", cap, get_args(Cap))
        self.result, self.every, self.apply, self.smoothing = result, every, apply, smoothing
        self.scheduler, self.max_tokens = scheduler, max_tokens
        self.steps = 0
        self.factors: dict[str, float] = {}
        optimizers = inner_optimizers(result, optimizer)
        self._rates = [MultipliedRates(each, names_of_groups(each, result)) for each in optimizers]
        self._place = {name: (rates, i) for rates in self._rates for i, name in enumerate(rates.names)}
        self._rate_factors = RateFactors(result.outcome, cap=cap, trust=trust, center=center)
        self._smoothed = dict(result.outcome.alignments)
        self._first_weights = FirstWeights(first_weights, seed, result.inits)
        self._probe: Probe | None = None
        self._history: list[HistoryRow] = []
        self._reduction: distributed.Work | None = None  # of the last measurement: see _mean_over_ranks

    def capture_initial(self, args: object = None, kwargs: Mapping[str, object] | None = None) -> None:
        """Store the inputs and weights of every layer as they are now; call this before the first step of training.

        A part of the given inputs is kept: the model is run on it at each measurement.

        Args:
            args: positional inputs of the model for a batch, as for `transform`; a bare tensor counts as one argument.
            kwargs: keyword inputs.

        Raises:
            InvalidInputError: there are no inputs, or the model cannot be called with them.
        """
        probe = self._new_probe()
        with arguments.run_on("capture_initial: args", self.result.outcome.captured.model):
            probe.take(args, kwargs, self.max_tokens)
        self._probe = probe

    @property
    def history(self) -> list[HistoryRow]:
        """One dict for each layer and measurement, in the order in which they were made (a copy).

        Keys: step, parameter, node (name of the layer), c (solved learning-rate exponent), lr (absolute), and the
        measured alignment exponents alpha (dW x0), omega (W0 dx) and u (dW dx); None for a product with a zero factor.

        Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.
        """
        return [row.copy() for row in self._history]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the layers that are not measured, since their input cannot be seen (recurrent cells, say).

        Those on concatenated inputs of which some grow and others do not are not measured either.

        They keep the alignment that `transform` assumed. Empty before `capture_initial`.
        """
        return tuple(self._probe.left_out) if self._probe is not None else ()

    def step(self) -> None:
        """Count one optimizer step, and if it is time measure the alignments and set the learning-rate factors.

        Call this after each `optimizer.step()`.

        Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

        Raises:
            InvalidInputError: `capture_initial` has not been called.
        """
        if self._probe is None:
            raise InvalidInputError(
                "DynamicAlignment.step() before capture_initial(): there is nothing to compare with.\n"
                "  To fix: dynamic.capture_initial(batch) before the first step of training."
            )
        self.steps += 1
        frozen = bool(getattr(self.scheduler, "decaying", False))
        if self.steps > self.warmup and (self.steps - self.warmup - 1) % self.every == 0 and not frozen:
            self._update(self._probe)

    def detach(self) -> None:
        """Remove the hooks from the optimizers, so that they step with the scheduler's rates from now on."""
        for rates in self._rates:
            rates.detach()

    def state_dict(self) -> DynamicState:
        """Return the state for `load_state_dict`, to be saved beside those of model, optimizer and scheduler.

        Raises:
            InvalidInputError: `capture_initial` has not been called.
        """
        if self._probe is None:
            raise InvalidInputError(
                "DynamicAlignment.state_dict() before capture_initial(): there is no state yet.\n"
                "  To fix: dynamic.capture_initial(batch) before the first step of training."
            )
        return {
            "steps": self.steps,
            "factors": dict(self.factors),
            "alignment": {node: (a.alpha, a.omega, a.u) for node, a in self._smoothed.items()},
            "probe": self._probe.state_dict(),
            "rows": self.history,
        }

    def load_state_dict(self, state: DynamicState) -> None:
        """Restore a state saved by `state_dict`, so that a run goes on bit for bit, without `capture_initial`.

        Raises:
            InvalidInputError: the state is of another model, or of another `first_weights`.
        """
        try:
            steps = check_whole("steps", state["steps"], at_least=0)
            smoothed = {node: Alignments(*map(float, terms)) for node, terms in state["alignment"].items()}
            history = [row.copy() for row in state["rows"]]
            factors = {name: check_number("factors", value, above=0) for name, value in state["factors"].items()}
            probe = self._new_probe()
            probe.load_state_dict(state["probe"])
        except (TypeError, LookupError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, AbcfxError):
                raise
            raise InvalidInputError(
                f"load_state_dict: this is no state of a DynamicAlignment ({type(error).__name__}: {error}).\n"
                f"  expected: what state_dict() returned, unchanged."
            ) from error
        if set(factors) - set(self._place) or set(smoothed) != set(self._smoothed):
            raise InvalidInputError("load_state_dict: the state has other layers or parameters than this model.")
        self._probe, self.steps, self._smoothed, self._history = probe, steps, smoothed, history
        self._set_factors(factors)

    def plot(self, path: str | None = None) -> Figure:
        """Draw the alignments and learning rates of every layer over training steps; needs matplotlib.

        Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

        Args:
            path: where to write the figure; the file name's ending chooses the format (.png, .svg, .pdf).
        """
        return plot_history(self._history, path)

    def _new_probe(self) -> Probe:
        """Make the object that runs the model on fixed inputs and measures its layers; it has no inputs yet."""
        segmented = [name for name, plan in self.result.plan.items() if plan.segments]
        return Probe(self.result.outcome.captured, self.result.module, self._first_weights, segmented)

    def _update(self, probe: Probe) -> None:
        """Measure every layer, solve for learning-rate exponents, set the factors on the rates and record it all.

        Args:
            probe: runs the model on its fixed inputs and measures its layers.
        """
        measured = self._measured(probe)
        for layer, terms in zip(probe.measured, measured, strict=True):
            self._smooth(layer.node, terms)
        c = self._rate_factors.solve(self._smoothed)
        if self.apply:
            self._set_factors(self._rate_factors.factors(probe.layers, c))
        self._record(probe, measured, c)

    def _measured(self, probe: Probe) -> list[Measured]:
        """Measure every layer and return its alignment exponents; in distributed training, averaged over ranks.

        Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

        Args:
            probe: runs the model on its fixed inputs.

        Returns:
            Exponents for each layer in `probe.measured`, in order.
        """
        found = probe.measure()
        if distributed.is_available() and distributed.is_initialized():
            found, self._reduction = _mean_over_ranks(found, next(self.result.module.parameters()).device)
        return [
            Measured(*(term.alignment(layer.fan_in) for term in terms))
            for layer, terms in zip(probe.measured, found, strict=True)
        ]

    def _smooth(self, node: str, measured: Measured) -> None:
        """Update the moving average of a layer's alignment exponents with newly measured ones, clipped to [1/2, 1].

        An alignment exponent is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up
        fully.

        Args:
            node: name of the layer.
            measured: the new exponents; where one is None, the value that `transform` assumed is taken.
        """
        keep, preset = self.smoothing, self.result.outcome.alignments[node]
        self._smoothed[node] = Alignments(
            *(
                keep * past + (1 - keep) * (default if now is None else min(max(now, _LOWEST), _HIGHEST))
                for now, past, default in zip(measured, self._smoothed[node], preset, strict=True)
            )
        )

    def _set_factors(self, factors: dict[str, float]) -> None:
        """Set the factors, by parameter name, that multiply learning rates from the next optimizer step on."""
        self.factors = factors
        for rates in self._rates:
            rates.factors = factors

    def _record(self, probe: Probe, measured: Sequence[Measured], c: Mapping[str, float]) -> None:
        """Add a row to the history for each measured layer whose weight is in one of the optimizers.

        Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

        Args:
            probe: knows the measured layers.
            measured: alignment exponents of each of them.
            c: solved learning-rate exponent of each parameter.
        """
        for layer, (alpha, omega, u) in zip(probe.measured, measured, strict=True):
            name = layer.parameter
            if name in self._place:
                rates, index = self._place[name]
                lr = float(rates.optimizer.param_groups[index]["lr"]) * self.factors.get(name, 1.0)
                self._history.append(
                    HistoryRow(
                        step=self.steps, parameter=name, node=layer.node, alpha=alpha, omega=omega, u=u,
                        c=c.get(name), lr=lr,
                    )
                )  # fmt: skip


def _mean_over_ranks(
    found: Sequence[tuple[Moments, Moments, Moments]], device: torch.device
) -> tuple[list[tuple[Moments, Moments, Moments]], distributed.Work | None]:
    """Average measurements over all ranks of a distributed run, in one all-reduce.

    Alignment is 1/2 if updates and inputs (the factors of dW x) are independent, and 1 if they line up fully.

    Args:
        found: for each layer, the mean squares behind its three alignment exponents alpha, omega and u.
        device: where the reduction takes place.

    Returns:
        The averages, and the finished reduction. The caller keeps it: if gloo's own thread is the last to hold it, that
        thread needs Python's lock to free it, and a process that ends at that moment waits for the thread for ever.
    """
    joined = torch.tensor(found, dtype=torch.float64, device=device)
    reduction = distributed.all_reduce(joined, async_op=True)
    if reduction is not None:
        reduction.wait()
    joined /= distributed.get_world_size()
    return [(Moments(*alpha), Moments(*omega), Moments(*u)) for alpha, omega, u in joined.tolist()], reduction
