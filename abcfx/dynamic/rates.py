"""Learning rates that follow measured alignment: measure on a probe, solve the LP again, multiply scheduled rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as distributed
from torch.utils.hooks import RemovableHandle

from abcfx.dynamic.first_weights import FirstWeights
from abcfx.dynamic.measured import Moments
from abcfx.dynamic.probe import TOKENS, Probe
from abcfx.errors import InvalidInputError
from abcfx.exponents.dag_program import DagProgram
from abcfx.theory.parametrizations import Alignments, alignment_preset
from abcfx.transformed import Analysis, Transformed

COLUMNS = ("step", "parameter", "node", "alpha", "omega", "u", "c", "lr")
WARMUP, SHARE = 100, 0.1
DECIMALS = 9  # of c: a resumed run solves its LP from another start, and has to find the same bits
_LOW, _HIGH = 0.5, 1.0


class DynamicAlignment:
    """Measured alignments of every layer while training and, unless `apply=False`, the rates that follow from them.

        dynamic = abcfx.DynamicAlignment(result, optimizer, warmup=100, every=10)
        dynamic.capture_initial(batch)
        for batch in batches:
            ...; optimizer.step(); scheduler.step(); dynamic.step()

    The rate of a parameter is the scheduled one times n^-(c - c_static), with n its own fan_in, applied around each
    optimizer step: schedulers never see it. Scheduler and `step` may be called in either order.

    Args:
        result: what `transform` returned, with `groups="parameter"`.
        optimizer: made from its groups, or several of them.
        probe: inputs to measure on, instead of a part of the batch given to `capture_initial`.
        warmup: steps before the first measure; nothing is changed during them. None: a tenth of the run where its
            length is known, else 100.
        every: steps between measures.
        scheduler: one with a true attribute `decaying` freezes the rates' factors, as `wsd` has while it decays. The
            length of the run is read off it (`total_steps` of OneCycleLR and `wsd`, `T_max` of CosineAnnealingLR).
        cap: "full" takes min(measured, "full" preset) and lets no c exceed its full-alignment value; None does neither.
        smoothing: weight of the past in the moving average of alignments, which starts at the preset.
        trust: largest factor, and one over the smallest.
        center: divide the factors by their geometric mean over matrices, so that the tuned lr keeps its meaning.
        apply: False only measures and records.
        max_tokens: of a batch of sequences, how many tokens the probe has.
        w0: how first weights are remembered: "sample" keeps 16 to 64 rows of each; "keep" all of them, as much memory
            as the weights take; "redraw" none: they are drawn again at each measure from `seed`, which takes time.
        seed: for w0="redraw", that of `torch.manual_seed(seed); result.init_weights()`.
        total_steps: length of the run, for `warmup`.

    Raises:
        InvalidInputError: groups that hold several parameters, or options out of range.
    """

    def __init__(
        self,
        result: Transformed,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        probe: Any = None,
        warmup: int | None = None,
        every: int = 10,
        scheduler: Any = None,
        cap: str | None = "full",
        smoothing: float = 0.8,
        trust: float = 16.0,
        center: bool = True,
        apply: bool = True,
        max_tokens: int = TOKENS,
        w0: str = "sample",
        seed: int | None = None,
        total_steps: int | None = None,
    ) -> None:
        if result.analysis is None:
            raise InvalidInputError("DynamicAlignment: this result was not made by transform.")
        self.warmup = _default_warmup(scheduler, total_steps) if warmup is None else warmup
        _check_options(self.warmup, every, cap, smoothing, trust)
        self.result, self.every, self.smoothing = result, every, smoothing
        self.trust, self.center, self.apply = trust, center, apply
        self.scheduler, self.max_tokens, self._given_probe = scheduler, max_tokens, probe
        self.optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        self._names = [_names_of_groups(each, result) for each in self.optimizers]
        self._group = {name: (i, k) for i, names in enumerate(self._names) for k, name in enumerate(names)}
        self.steps = 0
        self.factors: dict[str, float] = {}
        self._rates = _Rates(result.analysis, cap)
        self._smoothed = dict(result.analysis.alignment)
        self._first = FirstWeights(w0, seed, result.inits)
        self._probe: Probe | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._handles: list[RemovableHandle] = []
        for each, names in zip(self.optimizers, self._names, strict=True):
            _MultipliedRates(self, each, names).attach(self._handles)

    def capture_initial(self, batch: Any = None) -> None:
        """Remember inputs and weights of every layer as they are now, on a part of the batch (or the given probe)."""
        given = self._given_probe if self._given_probe is not None else batch
        if given is None:
            raise InvalidInputError("capture_initial: expected a batch, got None. To fix: capture_initial(inputs)")
        probe = self._new_probe()
        probe.take(given, self.max_tokens)
        self._probe = probe

    def _new_probe(self) -> Probe:
        return Probe(self._analysis.captured, self.result.module, self._first)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row for each layer and measure: step, parameter, node, alpha, omega, u (None: absent), c, lr (absolute)."""
        return [dict(zip(COLUMNS, row, strict=True)) for row in self._rows]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Weight ops whose input cannot be seen from outside (recurrent cells, say): they keep the preset."""
        return tuple(self._probe.left_out) if self._probe is not None else ()

    @property
    def _analysis(self) -> Analysis:
        assert self.result.analysis is not None
        return self.result.analysis

    def step(self) -> None:
        """Count one optimizer step; measure and move the rates when it is time."""
        if self._probe is None:
            raise InvalidInputError(
                "DynamicAlignment.step() before capture_initial(): there is nothing to compare with.\n"
                "  To fix: dynamic.capture_initial(batch) before the first step of training."
            )
        self.steps += 1
        frozen = bool(getattr(self.scheduler, "decaying", False))
        if self.steps > self.warmup and (self.steps - self.warmup - 1) % self.every == 0 and not frozen:
            self._update(self._probe)

    def _update(self, probe: Probe) -> None:
        measured = self._measured(probe)
        preset, keep = self._analysis.alignment, self.smoothing
        for layer, found in zip(probe.measured, measured, strict=True):
            terms = zip(found, self._smoothed[layer.node], preset[layer.node], strict=True)
            self._smoothed[layer.node] = Alignments(
                *[
                    keep * past + (1 - keep) * (default if now is None else min(max(now, _LOW), _HIGH))
                    for now, past, default in terms
                ]
            )
        c = self._rates.solve(self._smoothed)
        if self.apply:
            self.factors = self._factors(probe, c)
        self._record(measured, c, probe)

    def _factors(self, probe: Probe, c: Mapping[str, float]) -> dict[str, float]:
        """n^-(c - c_static) of each matrix, n its fan_in; centred and bounded."""
        decided, static = self._analysis.setting.parameters, self._rates.static
        # Where nothing is summed over a dim that grows, alignment has no say: embeddings keep their rate.
        logs = {
            layer.parameter: (static[layer.parameter] - c[layer.parameter]) * math.log(layer.fan_in)
            for layer in probe.layers
            if layer.parameter in c and decided[layer.parameter].e_in > 0
        }
        mean = sum(logs.values()) / len(logs) if self.center and logs else 0.0
        limit = math.log(self.trust)
        return {name: math.exp(min(max(value - mean, -limit), limit)) for name, value in logs.items()}

    def _measured(self, probe: Probe) -> list[tuple[float | None, ...]]:
        """(alpha, omega, u) of every layer that the probe measures, the same on every rank."""
        found = probe.measure()
        if distributed.is_available() and distributed.is_initialized():
            found = _mean_over_ranks(found, next(self.result.module.parameters()).device)
        return [
            tuple([term.alignment(layer.fan_in) for term in terms])
            for layer, terms in zip(probe.measured, found, strict=True)
        ]

    def _record(self, measured: Sequence[tuple[float | None, ...]], c: Mapping[str, float], probe: Probe) -> None:
        for layer, terms in zip(probe.measured, measured, strict=True):
            name = layer.parameter
            if name in self._group:
                i, k = self._group[name]
                lr = float(self.optimizers[i].param_groups[k]["lr"]) * self.factors.get(name, 1.0)
                self._rows.append((self.steps, name, layer.node, *terms, c.get(name), lr))

    def detach(self) -> None:
        """Leave the optimizers alone from now on."""
        while self._handles:
            self._handles.pop().remove()

    def state_dict(self) -> dict[str, Any]:
        """All that a run continues from, bit for bit: with the model's, the optimizer's and the scheduler's own."""
        if self._probe is None:
            raise InvalidInputError("DynamicAlignment.state_dict() before capture_initial(): there is no state yet.")
        return {
            "steps": self.steps,
            "factors": dict(self.factors),
            "alignment": {node: tuple(terms) for node, terms in self._smoothed.items()},
            "probe": self._probe.state_dict(),
            "rows": list(self._rows),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`; `capture_initial` is then not called."""
        probe = self._new_probe()
        probe.load_state_dict(state["probe"])
        self._probe, self.steps, self.factors = probe, int(state["steps"]), dict(state["factors"])
        self._smoothed = {node: Alignments(*terms) for node, terms in state["alignment"].items()}
        self._rows = [tuple(row) for row in state["rows"]]

    def plot(self, path: str | None = None) -> Any:
        """Alignments and rates of every layer over time, as a matplotlib figure; written to `path` if one is given."""
        from abcfx.dynamic.plots import plot_history

        return plot_history(self.history, path)


class _Rates:
    """The LP, solved again and again from its last optimum."""

    def __init__(self, analysis: Analysis, cap: str | None) -> None:
        self.cap = cap
        inner, readout = alignment_preset("full")
        parameters = analysis.setting.parameters
        self.full = {
            node: readout if parameters[layer.parameter].role == "readout" else inner
            for node, layer in analysis.setting.dag.layers()
        }
        self.static = {
            name: round(c, DECIMALS) for name, c in DagProgram(analysis.setting, analysis.alignment).solve().c.items()
        }
        caps = DagProgram(analysis.setting, self.full).solve().c if cap == "full" else None
        self.system = DagProgram(analysis.setting, analysis.alignment, caps)

    def solve(self, alignment: Mapping[str, Alignments]) -> dict[str, float]:
        """c of every weight."""
        if self.cap == "full":
            alignment = {node: Alignments(*map(min, terms, self.full[node])) for node, terms in alignment.items()}
        return {name: round(c, DECIMALS) for name, c in self.system.rates(alignment).items()}


class _MultipliedRates:
    """Multiplies the rates of an optimizer's groups for the length of its step."""

    def __init__(self, dynamic: DynamicAlignment, optimizer: torch.optim.Optimizer, names: list[str]) -> None:
        self.dynamic, self.optimizer, self.names = dynamic, optimizer, names
        self._scheduled: list[Any] = []

    def attach(self, handles: list[RemovableHandle]) -> None:
        handles.append(self.optimizer.register_step_pre_hook(self._before))
        handles.append(self.optimizer.register_step_post_hook(self._after))

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._scheduled = [group["lr"] for group in optimizer.param_groups]
        factors = self.dynamic.factors
        for name, group in zip(self.names, optimizer.param_groups, strict=True):
            if name in factors:
                group["lr"] = group["lr"] * factors[name]

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group, lr in zip(optimizer.param_groups, self._scheduled, strict=True):
            group["lr"] = lr


def wsd(
    optimizer: torch.optim.Optimizer, total: int, *, warmup: int = 0, decay: float = 0.2
) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up, stable, decay: linear up to the groups' rates in `warmup` steps, linear to 0 in the last share `decay`.

    Its attribute `decaying` tells `DynamicAlignment(scheduler=...)` to leave the factors as they are.
    """
    start = round(total * (1 - decay))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 1.0 if step < start else max(0.0, (total - step) / max(1, total - start))

    class Wsd(torch.optim.lr_scheduler.LambdaLR):
        total_steps = total

        @property
        def decaying(self) -> bool:
            return bool(self.last_epoch >= start)

    return Wsd(optimizer, factor)


def _default_warmup(scheduler: Any, total_steps: int | None) -> int:
    """A tenth of the run where its length is known."""
    length = total_steps or getattr(scheduler, "total_steps", None)
    if length is None and isinstance(scheduler, torch.optim.lr_scheduler.CosineAnnealingLR):
        length = scheduler.T_max
    return WARMUP if length is None else round(SHARE * length)


def _mean_over_ranks(
    found: Sequence[tuple[Moments, Moments, Moments]], device: torch.device
) -> list[tuple[Moments, Moments, Moments]]:
    joined = torch.tensor(found, dtype=torch.float64, device=device)
    distributed.all_reduce(joined)
    joined /= distributed.get_world_size()
    return [(Moments(*alpha), Moments(*omega), Moments(*u)) for alpha, omega, u in joined.tolist()]


def _check_options(warmup: int, every: int, cap: str | None, smoothing: float, trust: float) -> None:
    wrong = {
        "warmup": (warmup, "a number of steps, at least 0", warmup >= 0),
        "every": (every, "a number of steps, at least 1", every >= 1),
        "cap": (cap, "'full' or None", cap in ("full", None)),
        "smoothing": (smoothing, "a number in [0, 1)", 0 <= smoothing < 1),
        "trust": (trust, "a number above 1", trust > 1),
    }
    for name, (value, expected, right) in wrong.items():
        if not right:
            raise InvalidInputError(f"DynamicAlignment: {name}={value!r}; expected {expected}.")


def _names_of_groups(optimizer: torch.optim.Optimizer, result: Transformed) -> list[str]:
    """Name of the parameter of each group. Raises InvalidInputError for a group of several, or of another model."""
    names = {id(parameter): name for name, parameter in result.module.named_parameters()}
    found = []
    for index, group in enumerate(optimizer.param_groups):
        if len(group["params"]) != 1:
            raise InvalidInputError(
                f"DynamicAlignment: group {index} of the optimizer holds {len(group['params'])} parameters; each needs "
                f"a rate of its own.\n  To fix: abcfx.transform(..., groups='parameter')"
            )
        name = names.get(id(group["params"][0]), group.get("param_names", [""])[0])
        if name not in result.spec:
            raise InvalidInputError(f"DynamicAlignment: group {index} is not of the transformed model.")
        found.append(name)
    return found
