"""`PairedModels`: a model and its base, with all that is derived of the two, each made once when first asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property

import torch
from torch import nn

from abcfx.capture import CapturedGraph, capture
from abcfx.capture.aten import Trace
from abcfx.capture.caches import equally_fresh
from abcfx.capture.examples import OpenSizes, canonical
from abcfx.capture.options import Capture, CaptureMethod
from abcfx.dag.building import build_dag
from abcfx.dag.layer_dag import LayerDag
from abcfx.errors import CaptureError, PairingError
from abcfx.pairing.activation_sizes import activation_sizes
from abcfx.pairing.blocks import Blocks, match_blocks, pair_parameters
from abcfx.pairing.factors import Factors, factor_models
from abcfx.pairing.fixed_sizes import fixed_sizes
from abcfx.pairing.segments import find_segments
from abcfx.pairing.structure import StructuralGrowth
from abcfx.pairing.widths import PairedGrowth, SizeGrowth, WidthGrowth
from abcfx.rules.extents import DimPart
from abcfx.support import arguments

Shapes = Mapping[str, Sequence[int]]


class PairedModels:
    """A model (the target) and the instance that it is compared with (the base), with all that is derived of them.

    Each property is computed when it is first read and then kept: each model is captured once and traced once. Neither
    model is changed.

    Args:
        target: the model that is analysed.
        base: the same architecture at another width; the shapes of its parameters by name, where these are all that is
            known; or None.
        args: example positional inputs; a bare tensor counts as one argument.
        kwargs: example keyword inputs.
        options: how both are captured.
        is_called: whether the target's graphs will be called later. If not, only its train mode is captured, at the
            sizes of the example inputs, and not verified, which takes a fraction of the time.
        keeps_forward: whether the target's own forward goes on to run; see `capture`.
        blocks: which block of the base stands for each block of the target; matched by names and shapes if not given.
        splits: whether a weight counts as several layers in the DAGs of the target, where its input is a
            concatenation of tensors of which some grow and others do not.
    """

    def __init__(
        self,
        target: nn.Module,
        base: nn.Module | Shapes | None = None,
        args: object = None,
        kwargs: Mapping[str, object] | None = None,
        options: Capture = Capture(),
        *,
        is_called: bool = True,
        keeps_forward: bool = False,
        blocks: Blocks | None = None,
        splits: bool = False,
    ) -> None:
        """Keep the model to be analysed (target) and a smaller one to compare it with (base); compute nothing yet.

        Args:
            target: the model.
            base: the same architecture at another width, shapes of its parameters, or None.
            args, kwargs: example inputs.
            options: how both are captured.
            is_called: whether the target's graphs will be called later.
            keeps_forward: whether the target's own forward goes on to run.
            blocks: which block of the base stands for each block of the target; matched by names if not given.
            splits: whether a weight counts as several layers where only some of its concatenated inputs grow.
        """
        arguments.keywords("kwargs", kwargs)
        self._splits = splits
        self.target = target
        self.base = base if isinstance(base, nn.Module) else None
        self.base_shapes = base if isinstance(base, Mapping) else None
        self.options, self.is_called, self.keeps_forward = options, is_called, keeps_forward
        self._args, self._kwargs, self._blocks = args, kwargs, blocks

    @classmethod
    def of_graphs(cls, target: CapturedGraph, base: CapturedGraph | None = None) -> PairedModels:
        """Pair two models that were captured already, also on inputs of different kinds.

        Args:
            target: the model that is analysed, with its graphs.
            base: the model that it is compared with, if any.
        """
        pair = cls(target.model, None if base is None else base.model, target.args, target.kwargs)
        pair.target_graph = target
        if base is not None:
            pair._paired = base, pair._grown(target, base)
        return pair

    @cached_property
    def target_graph(self) -> CapturedGraph:
        """The captured graphs of the target (the model that is analysed), in train and eval mode."""
        kwargs = None if self._kwargs is None else dict(self._kwargs)
        method = self.options.method
        with self._equally_fresh():
            if self.is_called:
                verify, keeps = self.options.verify, self.keeps_forward
                return capture(self.target, self._args, kwargs, method=method, verify=verify, keeps_forward=keeps)
            return capture(
                self.target, self._args, kwargs, method=method, verify=False, modes=("train",), sizes="fixed"
            )

    def _equally_fresh(self) -> AbstractContextManager[None]:
        """Return a context in which the caches that only one of target and base has filled earlier are empty.

        These are the model that is analysed and the one that it is compared with.
        """
        if self.base is None:
            return nullcontext()
        ours, options = (self._args, self._kwargs), self.options
        given = options.base_args is not None or options.base_kwargs
        return equally_fresh(self.target, self.base, ours, (options.base_args, options.base_kwargs) if given else ours)

    def _base_inputs(self, target: CapturedGraph) -> tuple[tuple[object, ...] | None, dict[str, object] | None]:
        """Return the example inputs, positional and by keyword, of the base (the smaller model): its own, if given."""
        own = canonical(self.options.base_args, self.options.base_kwargs)
        return (target.args, target.kwargs) if own == (None, None) else own

    @property
    def base_graph(self) -> CapturedGraph | None:
        """The base (the model compared with) as the graph of its train mode; None without one, or given shapes only."""
        return None if self._paired is None else self._paired[0]

    @cached_property
    def target_dag(self) -> LayerDag:
        """The layer DAG (a graph of layers and other ops) of the target, the model that is analysed, in train mode."""
        if not self.segments:
            return self._plain_dag
        return build_dag(self.target_graph, options=self.options, segments=self.segments)

    @cached_property
    def _plain_dag(self) -> LayerDag:
        """The layer DAG of the target in train mode, in which each use of a weight is one layer."""
        return build_dag(self.target_graph, options=self.options)

    @cached_property
    def segments(self) -> Mapping[str, tuple[DimPart, ...]]:
        """For each weight that counts as several layers, since its input is a concatenation, the columns of each.

        Raises:
            PairingError: base and target are not instances of one architecture.
        """
        if not self._splits or not self._plain_dag.concatenated or self.base is None:
            return {}
        assert self.base_dag is not None
        return find_segments(self._plain_dag, self.base_dag, self.blocks)

    @cached_property
    def eval_dag(self) -> LayerDag | None:
        """The layer DAG (graph of layers and ops) of the target's eval mode; None if eval mode runs the train graph."""
        graph = self.target_graph.module.eval_graph
        return None if graph is None else build_dag(self.target_graph, graph, self.options, self.segments)

    @cached_property
    def base_dag(self) -> LayerDag | None:
        """The layer DAG (a graph of layers and other ops) of the base, the model compared with; None without a base."""
        return None if self.base_graph is None else build_dag(self.base_graph, options=self.options)

    @cached_property
    def blocks(self) -> Blocks:
        """Which block of the base (the model compared with) stands for each block of the target, if numbers differ."""
        if self._blocks is not None:
            return self._blocks
        return match_blocks(dict(self.target.named_parameters()), self._base_parameters or {})

    @cached_property
    def factors(self) -> Factors:
        """The dims of all tensors in runs of model and base, split into factors that grow or stay (heads x head_dim).

        The base is the smaller model that is compared with.

        Raises:
            PairingError: the runs cannot be compared, or there is no base model.
        """
        base = self.base_graph
        if base is None:
            raise PairingError("Factors of dims need a base model; only shapes, or nothing, are known of the base.")
        target = self.target_graph
        pairs = (base.model, target.model), (base.module, target.module)
        with self._equally_fresh():
            ours = target.args, target.kwargs
            return factor_models(*pairs, inputs=(self._base_inputs(target), ours), blocks=self.blocks)

    @property
    def target_trace(self) -> Trace:
        """The aten calls of a run of the target (the model analysed), which those of the base are compared with."""
        return self.factors.large

    @property
    def base_trace(self) -> Trace:
        """The aten calls of a run of the base (the smaller model that the target is compared with)."""
        return self.factors.small

    @cached_property
    def growth(self) -> WidthGrowth:
        """The growth exponent e of every dim of the model: its size grows like m^e, with m the width ratio.

        It follows from the sizes in the model and in its base (the smaller model compared with). Without a base, or
        with one of equal sizes, it is read off the structure of the graph.

        Raises:
            PairingError: base and target are not instances of one architecture.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in self.target.named_parameters()}
        measured = self.measured_growth
        if measured is not None and measured.width_ratio != 1.0:
            frozen = [name for name, parameter in self.target.named_parameters() if not parameter.requires_grad]
            fixed = fixed_sizes(self._plain_dag, measured.sizes, frozen, self._activation_sizes)
            measured = measured.with_fixed(*fixed)
        if measured is None or measured.width_ratio == 1.0:
            return StructuralGrowth(self.target_dag, shapes, measured)
        return measured.with_segments(self.segments)

    def _activation_sizes(self) -> Iterable[tuple[tuple[int, int], ...]]:
        """Return (size in the smaller base, size in the model) of the dims of each activation; none without graphs."""
        return () if self._paired is None else activation_sizes(self.target_graph, self._paired[1].nodes)

    @cached_property
    def measured_growth(self) -> SizeGrowth | None:
        """The growth exponent of every dim by its sizes in the model and its smaller base; None without a base.

        The exponents are all 0 if the sizes are equal.

        Raises:
            PairingError: base and target are not instances of one architecture.
        """
        if self._paired is not None:
            return self._paired[1]
        if self._base_parameters is None:
            return None
        ours = dict(self.target.named_parameters())
        found = SizeGrowth(ours, pair_parameters(ours, self._base_parameters, self.blocks))
        found.blocks = self.blocks
        return found

    @cached_property
    def _base_parameters(self) -> dict[str, torch.Tensor] | None:
        """The parameters of the base (the model compared with) by name; None without a base.

        They are tensors without values where only shapes are known.
        """
        if self.base is not None:
            return dict(self.base.named_parameters())
        if self.base_shapes is not None:
            return {name: torch.empty(tuple(shape), device="meta") for name, shape in self.base_shapes.items()}
        return None

    @cached_property
    def _paired(self) -> tuple[CapturedGraph, PairedGrowth] | None:
        """The graph of the base (the model compared with), and the growth of every dim; None without a base model.

        An export at fixed sizes takes half the time. It leaves out ops that open sizes need; where the graphs then do
        not pair, another export is made.
        """
        if self.base is None:
            return None
        target, wanted = self.target_graph, self.options.method
        method = target.method if wanted == "auto" else wanted
        if not self.is_called:
            return self._paired_at("fixed", method, target)
        if method == "export":
            with suppress(PairingError, CaptureError):  # raised again below, unless fixed sizes are the cause
                return self._paired_at("fixed", method, target)
        return self._paired_at("free", method, target)

    def _paired_at(
        self, sizes: OpenSizes, method: CaptureMethod, target: CapturedGraph
    ) -> tuple[CapturedGraph, PairedGrowth]:
        """Capture the base (the model compared with) at open or fixed sizes of inputs; compare it with the target.

        Args:
            sizes: "free" or "fixed": whether the graph leaves sizes of inputs open.
            method: way of capturing, such as "export".
            target: the target with its graphs.

        Returns:
            The base with its graph, and the growth of every dim.
        """
        assert self.base is not None
        with self._equally_fresh():
            graph = capture(
                self.base, *self._base_inputs(target), method=method, verify=False, modes=("train",), sizes=sizes
            )
        return graph, self._grown(target, graph)

    def _grown(self, target: CapturedGraph, base: CapturedGraph) -> PairedGrowth:
        """Return the growth exponent of every dim (~ m^e, m the width ratio), by the graphs of a model and its base."""
        return PairedGrowth(target, base, self.blocks, lambda: self.factors)
