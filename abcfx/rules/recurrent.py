"""Rules of recurrent modules and cells: every gate is a sum of a layer on the input and one on the previous state.

The previous state is a bounded function of such gates itself; it is taken to change as what the input alone makes of
it, which is what one step through time shows. All gates of a weight share its exponents.
"""

from __future__ import annotations

from typing import Any

import torch.nn as nn

from abcfx.rules.op import Op
from abcfx.rules.registry import register_rule
from abcfx.rules.values import Value

GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "RNN": 1, "RNNCell": 1}


def _step(
    op: Op, x: Value, state: Value | None, weights: tuple[Value, Value], biases: tuple[Value | None, ...], gates: int
) -> Value:
    """The next state: bounded gates of x and of the previous state."""
    to_gates = op.layer(x, weights[0], [-1], [-2], biases[0], inner=True, pieces=gates)
    previous = op.pointwise(to_gates) if state is None or state.is_constant else state
    return op.pointwise(op.merge([to_gates, op.layer(previous, weights[1], [-1], [-2], biases[1], True, gates)]))


def _held(op: Op, module: nn.Module, suffix: str) -> tuple[tuple[Value, Value], tuple[Value | None, ...]]:
    weights = (op.parameter(module, f"weight_ih{suffix}"), op.parameter(module, f"weight_hh{suffix}"))
    assert weights[0] is not None and weights[1] is not None
    biases = (op.parameter(module, f"bias_ih{suffix}"), op.parameter(module, f"bias_hh{suffix}"))
    return (weights[0], weights[1]), biases


@register_rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(op: Op, module: nn.RNNBase, x: Value, state: Any = None) -> tuple[Value, Any]:
    gates = GATES[module.mode.partition("_")[0]]
    given = [v for v in (state if isinstance(state, tuple) else (state,)) if isinstance(v, Value)]
    outputs = [x]
    for layer in range(module.num_layers):
        following = []
        for direction in ("", "_reverse") if module.bidirectional else ("",):
            weights, biases = _held(op, module, f"_l{layer}{direction}")
            out = _step(op, outputs[-1], op.merge(given) if given else None, weights, biases, gates)
            if module.proj_size:
                projection = op.parameter(module, f"weight_hr_l{layer}{direction}")
                assert projection is not None
                out = op.layer(out, projection, [-1], [-2], inner=True)
            following.append(out)
        outputs.append(op.merge(following))
    last = outputs[-1]
    return last, (last, last) if isinstance(module, nn.LSTM) else last


@register_rule(nn.LSTMCell, nn.GRUCell, nn.RNNCell)
def cell(op: Op, module: nn.RNNCellBase, x: Value, state: Any = None) -> Any:
    weights, biases = _held(op, module, "")
    state = state[0] if isinstance(state, tuple | list) else state
    out = _step(op, x, state, weights, biases, GATES[type(module).__name__.removeprefix("Parametrized")])
    return (out, out) if isinstance(module, nn.LSTMCell) else out


@register_rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell_function(
    op: Op, x: Value, state: Any, w_ih: Value, w_hh: Value, b_ih: Value | None = None, b_hh: Value | None = None
) -> Any:
    name = str(getattr(op.at.target, "__name__", op.at.target))
    is_lstm = name.startswith("lstm")
    hidden = state[0] if is_lstm else state
    out = _step(op, x, hidden, (w_ih, w_hh), (b_ih, b_hh), 4 if is_lstm else 3 if name.startswith("gru") else 1)
    return (out, out) if is_lstm else out


@register_rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent_function(op: Op, x: Value, state: Any, params: Any, has_biases: bool, num_layers: int, *rest: Any) -> Any:
    """aten.lstm(x, [h, c], weights, has_biases, num_layers, dropout, train, bidirectional, batch_first)."""
    name = str(getattr(op.at.target, "__name__", op.at.target))
    is_lstm, directions = name.startswith("lstm"), 2 if len(rest) > 2 and rest[2] else 1
    gates = 4 if is_lstm else 3 if name.startswith("gru") else 1
    given = list(state) if isinstance(state, tuple | list) else [state]
    per_step = len(params) // (num_layers * directions)
    out = x
    for layer in range(num_layers):
        following = []
        for direction in range(directions):
            held = params[(layer * directions + direction) * per_step :][:per_step]
            biases = (held[2], held[3]) if has_biases else (None, None)
            step = _step(op, out, op.merge(given), (held[0], held[1]), biases, gates)
            projected = len(held) == 3 + 2 * has_biases
            following.append(op.layer(step, held[-1], [-1], [-2], inner=True) if projected else step)
        out = op.merge(following)
    return (out, out, out) if is_lstm else (out, out)
