"""Emits a rewritten flat graph as a module in the shape of the user's model: its own submodules, called by graphs.

The root is a graph, and so is each submodule in whose forward the rewrite put a node; all others are the user's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import fx, nn

from abcfx.capture import CapturedGraph, EmittedModule
from abcfx.capture.capture_notes import hook_notes
from abcfx.capture.copying import copied
from abcfx.capture.emitted import ROOT_LEAF
from abcfx.capture.graphs import same_graph
from abcfx.capture.state import contents_preserved, preserved
from abcfx.capture.structure import take_apart
from abcfx.capture.uncalled import refuse_hooks
from abcfx.capture.verify import compare, has_no_values, written_tensors
from abcfx.errors import CaptureError, UncapturableError
from abcfx.passes import scale_nodes
from abcfx.plan.spec import ParameterPlan
from abcfx.rewrite.frames import Frames, GraphBefore
from abcfx.rewrite.nested_graphs import CannotCall, NestedGraphs
from abcfx.rewrite.sequences import EmittedSequential
from abcfx.support.running import both_modes_restored, preserved_rng, set_mode

# A model in which so many submodules cannot be called is emitted as one graph.
_MOST_INLINED = 64
_SEED = 20_241
# What belongs to every module, and not to the user's class.
_OF_ANY_MODULE = frozenset(vars(nn.Module()))


class Nested(NamedTuple):
    """A rewritten model with the submodules of the user's model, some of them replaced by graphs.

    Attributes:
        module: the module.
        inlined: for submodules that no graph calls, by path, why not; their operations stand in the graph of the
            caller.
    """

    module: EmittedModule
    inlined: Mapping[str, str]


def emit(
    captured: CapturedGraph, before: Mapping[fx.Graph, GraphBefore], plan: Mapping[str, ParameterPlan]
) -> tuple[EmittedModule, tuple[str, ...]]:
    """Make the module for the user of rewritten flat graphs: one with the submodules of his model, some of them graphs.

    A flat graph has the operations of all submodules one by one. The module's state dict is marked where graphs
    multiply weights.

    Args:
        captured: the model with its rewritten flat graphs.
        before: what each flat graph was before the rewrite.
        plan: the multiplier of every parameter, for the mark.

    Returns:
        The module, and notes for the report.
    """
    module, inlined = nest(captured, before)
    _mark_state(captured.module, module, plan)
    if module is captured.module:
        return module, hook_notes(captured.model, captured.opened)
    graphed = [path for path, each in module.named_modules() if isinstance(each, EmittedModule)]
    hooked = [path for path in captured.opened if path in inlined or path in graphed]
    return module, hook_notes(captured.model, hooked) + _inlined_note(inlined)


def _inlined_note(inlined: Mapping[str, str]) -> tuple[str, ...]:
    """Return a sentence for the report on the submodules that no graph calls; () if there are none.

    Args:
        inlined: why a submodule is not called, by its path.
    """
    if not inlined:
        return ()
    first, *others = inlined
    more = f" and {len(others)} more" if others else ""
    return (
        f"{first}{more} cannot be called as a module: {inlined[first]}; the graph of the caller computes what it "
        f"computes, and hooks on it are refused",
    )


def nest(captured: CapturedGraph, before: Mapping[fx.Graph, GraphBefore]) -> Nested:
    """Return the rewritten model with the submodules of the user's model, those that the rewrite changed as graphs.

    Where such a module cannot be made, it is the flat module itself, whose graphs have all operations one by one. Both
    share parameters and buffers, since analyses go on to read the flat module.

    Args:
        captured: the model with its rewritten flat graphs.
        before: what each flat graph was before the rewrite.
    """
    flat = captured.module
    if ROOT_LEAF in flat.__dict__:
        return Nested(flat, {})
    frames = [Frames(flat, graph, before[graph]) for graph in flat.graphs]
    # A forward of the user's may go another way than it went while it was captured, and hand its submodules other
    # arguments. Then the modules above a graph are graphs as well.
    inlined: dict[str, str] = {}
    # Where the two cannot be compared, they are from the start.
    for with_callers in (False, True) if _is_comparable(captured) else (True,):
        module, inlined = _nested(captured, frames, with_callers=with_callers)
        if module is not None and not _difference(captured, module):
            skipped = dict.fromkeys(_skipped(module, frames, inlined), "it computes nothing")
            refuse_hooks(module, inlined | skipped)
            return Nested(module, inlined)
    refuse_hooks(flat, dict.fromkeys(filter(None, captured.opened), "the whole model is one graph"))
    return Nested(flat, inlined)


def _nested(
    captured: CapturedGraph, frames: Sequence[Frames], *, with_callers: bool
) -> tuple[EmittedModule | None, dict[str, str]]:
    """Return the rewritten model with the submodules of the user's model, not compared with what it was made of.

    Args:
        captured: the model with its rewritten flat graphs, which have all operations one by one.
        frames: for the graph of each mode, the calls of submodules that each node runs in.
        with_callers: whether the modules that call a module with a graph get one too.

    Returns:
        The module, or None where it cannot be made; and, by path, why a submodule is not called.
    """
    flat, tree = captured.module, copied(captured.model, shares_tensors=True)
    inlined: dict[str, str] = {}
    while len(inlined) <= _MOST_INLINED:
        graphed = _graphed(frames, inlined, with_callers=with_callers)
        each = [NestedGraphs(tree, of_mode, graphed, inlined) for of_mode in frames]
        try:
            roots = [of_mode.root() for of_mode in each]
            graphs = {path: [of_mode.of_module(path) for of_mode in each] for path in graphed}
            return _assembled(flat, tree, roots, graphs), inlined
        except CannotCall as refused:
            if "" in refused.reasons or refused.reasons.keys() <= inlined.keys():
                break
            inlined |= refused.reasons
    return None, inlined


def _skipped(module: EmittedModule, frames: Sequence[Frames], inlined: Collection[str]) -> list[str]:
    """Return the paths of submodules that the user's forward calls and no graph does, since they compute nothing.

    Such is an `nn.Identity` that torch.export captured.

    Args:
        module: the emitted module.
        frames: for the graph of each mode, the calls of submodules that each node runs in.
        inlined: paths of the modules whose nodes stand in the graph of their caller.
    """
    running = {of_mode.path(key) for of_mode in frames for key in of_mode.nodes}
    running |= {str(node.target) for of_mode in frames for node in of_mode.graph.find_nodes(op="call_module")}
    found = []
    for path in {call.path for of_mode in frames for call in of_mode.calls.values()} - running:
        owner = path.rpartition(".")[0]
        while owner and isinstance(module.get_submodule(owner), nn.ModuleList | nn.ModuleDict):
            owner = owner.rpartition(".")[0]
        if owner in inlined or isinstance(module.get_submodule(owner), EmittedModule):
            found.append(path)
    return sorted(found)


def _graphed(frames: Sequence[Frames], inlined: Collection[str], *, with_callers: bool) -> set[str]:
    """Return the paths of the modules, the root aside, in whose own forward the rewrite changed something.

    Args:
        frames: for the graph of each mode, the calls of submodules that each node runs in.
        inlined: paths of the modules whose nodes stand in the graph of their caller.
        with_callers: whether the modules that call these are returned too.
    """
    found = set[str]()
    for of_mode in frames:
        for frame in of_mode.touched:
            paths = [of_mode.path(key) for key in frame]
            own = [path for path in paths if path not in inlined]
            found.update(own if with_callers else own[-1:])
    return found


def _assembled(
    flat: EmittedModule,
    tree: nn.Module,
    roots: Sequence[fx.Graph],
    graphs: Mapping[str, Sequence[fx.Graph | None]],
) -> EmittedModule:
    """Put graphs in the place of modules of a copy of the model, and return the root.

    Args:
        flat: the module with the graphs that have all operations of the model one by one.
        tree: the copy, which is changed.
        roots: the graph of the root in each mode.
        graphs: the graph of each module that gets one, in each mode, by its path.

    Raises:
        CannotCall: a module's names do not allow it to be a graph.
    """
    replaced: dict[nn.Module, EmittedModule] = {}
    for path in sorted(graphs, key=len, reverse=True):
        own = tree.get_submodule(path)
        try:
            replaced[own] = _emitted(flat, own, [graph for graph in graphs[path] if graph is not None], is_inner=True)
        except (CaptureError, UncapturableError) as error:
            raise CannotCall({path: str(error).partition("\n")[0]}) from error
    for owner in (*tree.modules(), *replaced.values()):
        for name, child in owner._modules.items():
            if child in replaced:
                owner._modules[name] = replaced[child]
    root = _emitted(flat, tree, roots, is_inner=False)
    root.own_modes = flat.own_modes
    return root


def _emitted(flat: EmittedModule, own: nn.Module, graphs: Sequence[fx.Graph], *, is_inner: bool) -> EmittedModule:
    """Return a module with graphs in place of the user's forward, and with all else that his module has.

    Args:
        flat: the module with the graphs that have all operations of the model one by one; it holds their constants.
        own: the user's module.
        graphs: the graph of train mode, or of both modes, and perhaps that of eval mode.
        is_inner: whether the module is a part of a model, whose other modules may read its plain attributes.
    """
    constants: dict[str, torch.Tensor] = {}
    bodies: dict[str, nn.Module] = {}
    for graph in graphs:
        for node in graph.find_nodes(op="get_attr"):
            name = str(node.target)
            if "." not in name and name not in own.__dict__ and not _holds(own, name):
                held = getattr(flat, name)
                (bodies if isinstance(held, nn.Module) else constants)[name] = held
    both = len(graphs) > 1 and not same_graph(graphs[0], graphs[1])
    kind = EmittedSequential if isinstance(own, nn.Sequential) else EmittedModule
    module = kind(own, graphs[0], graphs[1] if both else None, constants=constants)
    for name, body in bodies.items():
        module.add_module(name, body)
    for name, value in own.__dict__.items() if is_inner else ():
        if name not in _OF_ANY_MODULE and name not in module.__dict__ and not hasattr(type(module), name):
            module.__dict__[name] = value
    return module


def _holds(module: nn.Module, name: str) -> bool:
    """Whether a module has a parameter, buffer or submodule of a name."""
    return name in module._parameters or name in module._buffers or name in module._modules


def _is_comparable(captured: CapturedGraph) -> bool:
    """Whether a captured model can be run: it has example inputs and is not on the meta device."""
    return captured.args is not None and captured.kwargs is not None and not has_no_values(captured.module)


def _difference(captured: CapturedGraph, module: EmittedModule) -> str:
    """Say how outputs or buffers of `module` differ from those of the captured graphs on example inputs; "" if not."""
    flat, args, kwargs = captured.module, captured.args, captured.kwargs
    if not _is_comparable(captured):
        return ""
    assert args is not None and kwargs is not None
    names = dict(flat.named_buffers()).keys() & dict(module.named_buffers()).keys()
    written = written_tensors(captured.model, flat)
    with preserved_rng(), both_modes_restored(flat), both_modes_restored(module), torch.no_grad():
        for training in (True, False):
            outputs = []
            for each in (flat, module):
                set_mode(each, training)
                with ExitStack() as stack:
                    stack.enter_context(contents_preserved(written))
                    stack.enter_context(preserved(each))
                    torch.manual_seed(_SEED)
                    try:
                        found = take_apart(each(*args, **kwargs))[0]
                    except Exception as error:  # the user's own modules run here, and may raise anything
                        return f"{type(error).__name__}: {error}"
                    outputs.append([*found, *(each.get_buffer(name).clone() for name in sorted(names))])
            if len(outputs[0]) != len(outputs[1]):
                return "another number of outputs"
            for pair in zip(*outputs, strict=True):
                if text := compare(*pair):
                    return text
    return ""


def _mark_state(flat: EmittedModule, module: EmittedModule, plan: Mapping[str, ParameterPlan]) -> None:
    """Mark the state dict of a module whose graphs multiply weights by constants, so that no plain class loads them.

    `flat` is the module with one graph of all operations, off which the multiplications are read.

    The mark is the same however the model was captured: names of nodes without a parameter do not count.
    """
    owners = {node: name for name, row in plan.items() for node in row.a}
    found = {
        f"{owners.get(note.label, '')}: {note.factor:.9g}"
        for graph in flat.graphs
        for note in scale_nodes(graph).values()
        if note.factor != 1.0
    }
    if found:
        module.mark_state("\n".join(sorted(found)))
