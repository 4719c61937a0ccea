"""The module that a capture emits: the model's own hierarchy and Parameters with one fx.Graph for each mode."""

from __future__ import annotations

import copy
import inspect
import itertools
import linecache
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import fx, nn

from abcfx.capture.calls import ModuleCall
from abcfx.capture.serialize import GraphData, graph_from_data, graph_to_data
from abcfx.capture.state_mark import MarkedState
from abcfx.capture.state_spaces import Change
from abcfx.errors import CaptureError, InvalidInputError, LeftBehindError, UncapturableError
from abcfx.passes.quoted_names import quoted_names
from abcfx.support import trees
from abcfx.support.location import location

# The module that a way of capturing emitted, its notes, and what the model's forward changed in Python meanwhile.
Emitted: TypeAlias = "tuple[EmittedModule, tuple[str, ...], list[Change]]"

# Name under which graphs call a model that is itself a single torch.nn module.
ROOT_LEAF = "_root_leaf"
# Attribute that holds the constants, also while the module is on the meta device.
_CONSTANTS = "_constant_values"
# Attribute with the names of the model's own methods and plain attributes, which this module does not have.
_LEFT_BEHIND = "_left_behind"
_counter = itertools.count()
# What fx.GraphModule offers and neither torch nor this package needs: a model's own part of that name is found instead.
_SPARE_NAMES = frozenset({
    "code", "meta", "print_readable", "to_folder", "add_submodule", "delete_submodule", "delete_all_unused_submodules",
})  # fmt: skip
# Attribute with the records of how the captured model called its submodules, for each graph.
_CALLS = "_module_calls"
# Attributes that belong to a graph or to generated code, which copies and unpickled modules make anew or lose.
_NOT_COPIED = ("_graph", "eval_graph", "_code", "_compiled_call_impl", _CALLS)


class EmittedModule(MarkedState, fx.GraphModule):
    """A GraphModule with a captured graph for train mode and, where it differs, one for eval mode.

    It holds the same Parameters, buffers and submodules as the model it was captured from, under the same names,
    whether a graph uses them or not. As with `torch.fx.symbolic_trace`, submodules are shared with that model.

    Args:
        root: the model whose parameters, buffers and submodules are taken over.
        graph: the graph of train mode, or of both modes.
        eval_graph: the graph of eval mode; None when train mode computes the same.
        class_name: name of the generated class, by default that of the model.
        constants: tensors, by name, that the graphs refer to and that the model does not hold.

    Attributes:
        eval_graph: the graph of eval mode; None where train mode computes the same.
        own_modes: for train and eval mode, the modules that the model's own `train` puts in the other mode, by path.
    """

    eval_graph: fx.Graph | None = None
    own_modes: Mapping[bool, Mapping[str, bool]] = {}

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        eval_graph: fx.Graph | None = None,
        *,
        class_name: str | None = None,
        constants: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Take over the model's parameters, buffers and submodules, and generate code for the graphs.

        Args:
            root: the model.
            graph: the graph of train mode, or of both modes.
            eval_graph: the graph of eval mode, if it differs.
            class_name: name of the generated class; by default that of the model.
            constants: tensors, by name, that the graphs refer to and that the model does not hold.
        """
        super().__init__(nn.Module(), fx.Graph(), class_name or type(root).__name__)
        self._adopt(root)
        self.__dict__[_LEFT_BEHIND] = _own_names(root)
        self.__dict__[_CONSTANTS] = dict(constants or {})
        for name, constant in (constants or {}).items():
            if constant.requires_grad:
                raise CaptureError(str(unregistered(root, constant)))
            self.register_buffer(name, constant, persistent=False)
        self._take_plain_tensors(root, graph, eval_graph)
        self.training = root.training
        self.eval_graph = eval_graph
        self.graph = graph

    def _adopt(self, root: nn.Module) -> None:
        """Take over the parameters, buffers and submodules of the captured model `root`, under the same names.

        Also those that are called `code` or `meta`, which `register_parameter` and `add_module` refuse on a
        GraphModule.

        Raises:
            UncapturableError: a part of the model is called as an attribute that a GraphModule cannot do without.
        """
        for name in (*root._parameters, *root._buffers, *root._modules):
            if name not in _SPARE_NAMES and self._has_of_its_own(name):
                raise UncapturableError(_name_taken(root, name))
        self._parameters.update(root._parameters)
        self._buffers.update(root._buffers)
        self._non_persistent_buffers_set.update(root._non_persistent_buffers_set)
        self._modules.update(root._modules)

    def _take_plain_tensors(self, root: nn.Module, *graphs: fx.Graph | None) -> None:
        """Take over, as plain attributes, those tensors in plain attributes of `root` that the graphs read."""
        for graph in graphs:
            for node in graph.nodes if graph is not None else ():
                if node.op in ("get_attr", "call_module"):
                    name = str(node.target).split(".")[0]
                    if name not in root.__dict__ or self.__dict__.get(name) is root.__dict__[name]:
                        continue
                    if self._has_of_its_own(name):
                        raise CaptureError(_name_taken(root, name))
                    self.__dict__[name] = root.__dict__[name]

    def __getattr__(self, name: str) -> torch.Tensor | nn.Module:
        """Return a parameter, buffer or submodule; a method of the model's own class is refused by name.

        Raises:
            LeftBehindError: the model has such a method or attribute, and this module has only the model's graph.
            AttributeError: there is no such attribute on the model either.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name not in self.__dict__.get(_LEFT_BEHIND, ()):
                raise
        model = type(self).__name__
        raise LeftBehindError(
            f"{name!r} is an attribute of {model}, and result.module is the graph of its forward alone, without the "
            f"other methods and attributes of the class.\n"
            f"  To fix: transform(..., apply='inplace'), after which {model} itself is result.module; or, when the "
            f"model has been trained, result.fold().{name}, a copy of {model} with plain weights."
        )

    def _has_of_its_own(self, name: str) -> bool:
        """Whether an attribute name is taken by GraphModule itself, whatever model was captured."""
        return hasattr(EmittedModule, name) or name in self.__dict__

    def hold_root_leaf(self, leaf: nn.Module) -> None:
        """Hold a copy of a model that is itself one torch.nn layer; the graphs call it as the submodule `ROOT_LEAF`.

        The shallow copy shares this module's own dicts of parameters, buffers and submodules, so that it follows every
        `.to` and `load_state_dict`. It is not registered, so that no name in `state_dict` changes.
        """
        shell = copy.copy(leaf)
        for inner in ("_parameters", "_buffers", "_modules"):
            shell.__dict__[inner] = self.__dict__[inner]
        self.__dict__[ROOT_LEAF] = shell

    def note_calls(self, calls: Mapping[fx.Graph, Sequence[ModuleCall]]) -> None:
        """Keep, for `calls_in`, the records of how each graph calls submodules of the model; copies lose them."""
        self.__dict__[_CALLS] = calls

    def calls_in(self, graph: fx.Graph) -> Sequence[ModuleCall]:
        """Return the records of how the captured model called its submodules, in the order in which calls ended."""
        calls: Mapping[fx.Graph, Sequence[ModuleCall]] = self.__dict__.get(_CALLS, {})
        return calls.get(graph, ())

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The fx graphs that a pass has to edit: that of train mode, and that of eval mode where it differs."""
        return (self.graph,) if self.eval_graph is None else (self.graph, self.eval_graph)

    def train(self, mode: bool = True) -> EmittedModule:
        """Set train or eval mode, which also chooses the graph that a call runs."""
        if ROOT_LEAF in self.__dict__:
            self.__dict__[ROOT_LEAF].train(mode)
        super().train(mode)
        for path, training in self.own_modes.get(mode, {}).items():
            self.get_submodule(path).training = training
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> EmittedModule:
        """Apply a conversion such as `.half()` to all tensors, for which torch calls this method.

        Args:
            fn: the conversion of one tensor.
            recurse: whether submodules are converted as well.

        Raises:
            InvalidInputError: the conversion is to a smaller dtype, and a graph names the present one.
        """
        first = next((each for each in self.parameters() if each.is_floating_point()), None)
        if first is not None:
            wanted = fn(torch.empty(0, dtype=first.dtype, device=first.device)).dtype
            smaller = wanted.is_floating_point and torch.finfo(wanted).bits < torch.finfo(first.dtype).bits
            if smaller and (node := self._node_naming(first.dtype)) is not None:
                raise InvalidInputError(
                    f"This graph was captured with {first.dtype} weights and names that dtype: {location(node)}.\n"
                    f"  It cannot be converted to {wanted}.\n"
                    f"  To fix: convert the model before, abcfx.transform(model.to({wanted}), ...); or train it under "
                    f"torch.autocast."
                )
        constants: dict[str, torch.Tensor] = self.__dict__.get(_CONSTANTS, {})
        for name in constants:
            if not self.get_buffer(name).is_meta:
                constants[name] = self.get_buffer(name)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in constants.items():
            # `to_empty` makes tensors without values: weights are drawn or loaded afterwards, constants are not.
            moved = self.get_buffer(name)
            if not moved.is_meta and not value.is_meta:
                self._buffers[name] = value.to(moved.device, moved.dtype)
        self._restore_mark()
        return self

    def _node_naming(self, dtype: torch.dtype) -> fx.Node | None:
        """Return the first node of the graphs that has a given dtype among its arguments; None if there is none."""
        for graph in self.graphs:
            for node in list[fx.Node](graph.nodes):
                if any(leaf is dtype for leaf in trees.leaves((node.args, node.kwargs))):
                    return node
        return None

    def recompile(self) -> fx.graph.PythonCode:
        """Generate the code of both graphs anew, as is needed after any edit of a graph; return that of train mode."""
        for name in _SPARE_NAMES.intersection((*self._parameters, *self._buffers, *self._modules)):
            # Each GraphModule has a class of its own, so that no other one loses the attribute.
            setattr(type(self), name, property(partial(_part, name=name)))
        with quoted_names():
            code = super().recompile()
        if self.eval_graph is not None:
            self.eval_graph.owning_module = self
            # GraphModule makes a class for each instance, so that each may have a forward of its own.
            forward = _dispatch(type(self).forward, _compile_forward(self.eval_graph))
            type(self).forward = forward
        return code

    def __deepcopy__(self, memo: dict[int, object]) -> EmittedModule:
        """Copy graphs, parameters and all other state; code is generated anew for the copy."""
        new = _blank(self)
        memo[id(self)] = new
        state = {name: value for name, value in self.__dict__.items() if name not in _NOT_COPIED}
        new.__dict__.update(copy.deepcopy(state, memo))
        new.__dict__["_compiled_call_impl"] = None
        new.eval_graph = copy.deepcopy(self.eval_graph)
        new.graph = copy.deepcopy(self.graph)
        return new

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the graphs themselves; GraphModule would write code and trace it again, which loses `node.meta`."""
        state = {name: value for name, value in self.__dict__.items() if name not in _NOT_COPIED}
        state["_compiled_call_impl"] = None
        data = [graph and graph_to_data(graph) for graph in (self.graph, self.eval_graph)]
        return _unpickle, (type(self).__name__, _class_of(self), state, *data)

    def __copy__(self) -> EmittedModule:
        """Make a shallow copy, which has a class, and so a generated forward, of its own."""
        new = _blank(self)
        new.__dict__.update(self.__dict__)
        new.recompile()
        return new


def graphs_within(module: nn.Module) -> list[fx.Graph]:
    """Return the graphs of a module that abcfx emitted and of those among its submodules, for each mode of each."""
    return [graph for each in module.modules() if isinstance(each, EmittedModule) for graph in each.graphs]


def unregistered(root: nn.Module, constant: torch.Tensor) -> UncapturableError:
    """Return the error that forward uses a weight which is none of the model's own, so that a graph would freeze it.

    Args:
        root: the model.
        constant: the weight.
    """
    kind = (
        f"a {'Parameter' if constant.is_leaf else 'tensor computed from Parameters'} of shape {tuple(constant.shape)}"
    )
    return UncapturableError(
        f"forward of {type(root).__name__} uses {kind} that is none of the model's own: a graph would freeze it.\n"
        f"  expected: every Parameter is found by model.named_parameters(); functions and hooks reach modules through "
        f"self.\n"
        f"  To fix: register it (self.name = module, nn.ModuleList(modules), nn.Parameter), or freeze it with "
        f"requires_grad_(False) if it does not learn."
    )


def _own_names(root: nn.Module) -> tuple[str, ...]:
    """Return the names of the methods and plain attributes that a model has beside those of every module."""
    if isinstance(root, EmittedModule):
        inherited: tuple[str, ...] = root.__dict__.get(_LEFT_BEHIND, ())
        return inherited
    return tuple(sorted({*dir(type(root)), *root.__dict__} - {*dir(nn.Module), *nn.Module().__dict__}))


def _name_taken(root: nn.Module, name: str) -> str:
    """Return the message that a part of the model has a name that a GraphModule needs for an attribute of its own."""
    return (
        f"{type(root).__name__} has a part called {name!r}, as an attribute of torch.fx.GraphModule is.\n"
        f"  expected: a name that the emitted module has not yet; got self.{name}.\n"
        f"  To fix: give it another name in the model, or make the model a part of another module, "
        f"which has this one as self.model and calls it."
    )


def _part(module: nn.Module, name: str) -> object:
    """Return the parameter, buffer or submodule that a module has registered under a name."""
    return nn.Module.__getattr__(module, name)


def _class_of(module: EmittedModule) -> type[EmittedModule]:
    """Return the class of a module without the one that fx.GraphModule makes for each instance."""
    found: type[EmittedModule] = type(module).__mro__[1]
    return found


def _blank(like: EmittedModule) -> EmittedModule:
    """Make an empty EmittedModule of the class of another one, for a copy to fill in."""
    return _named(type(like).__name__, _class_of(like))


def _named(name: str, cls: type[EmittedModule]) -> EmittedModule:
    """Make an empty EmittedModule: an instance of a new subclass of `cls`, which is called `name`."""
    new = cls.__new__(cls)
    type(new).__name__ = name
    return new


def _unpickle(
    name: str, cls: type[EmittedModule], state: dict[str, object], train: GraphData, evaluate: GraphData | None
) -> EmittedModule:
    """Rebuild a pickled EmittedModule.

    Args:
        name: the name that it prints as its class.
        cls: EmittedModule, or a subclass.
        state: its attributes.
        train: plain data of the graph of train mode.
        evaluate: plain data of the graph of eval mode, if it differs.
    """
    new = _named(name, cls)
    new.__dict__.update(state)
    new.eval_graph = graph_from_data(evaluate) if evaluate is not None else None
    new.graph = graph_from_data(train)
    return new


def _dispatch(train: Callable[..., object], evaluate: Callable[..., object]) -> Callable[..., object]:
    """Return a `forward` that runs the function `train` in train mode and the function `evaluate` in eval mode."""

    def forward(self: EmittedModule, *args: object, **kwargs: object) -> object:
        """Run the code of the train graph or of the eval graph, by the module's present mode."""
        if self.training:
            return train(self, *args, **kwargs)
        return evaluate(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(train)  # type: ignore[attr-defined]
    return forward


def _compile_forward(graph: fx.Graph) -> Callable[..., object]:
    """Compile the Python code of an fx graph and return its `forward`."""
    with quoted_names():
        code = graph.python_code(root_module="self")
    # The same kind of file name as GraphModule's own, so that torch's error reporting recognises generated code.
    filename = f"<eval_with_key>.abcfx_eval_{next(_counter)}"
    linecache.cache[filename] = (len(code.src), None, code.src.splitlines(keepends=True), filename)
    namespace = dict(code.globals)
    exec(compile(code.src, filename, "exec", dont_inherit=True), namespace)
    forward: Callable[..., object] = namespace["forward"]
    return forward
