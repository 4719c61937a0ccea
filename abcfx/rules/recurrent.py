"""Rules of recurrent modules and cells: every gate is a sum of a layer on the input and one on the previous state.

The previous state is a bounded function of such gates itself. It is taken to change as gates of the input alone do,
which is what one step through time shows. All gates of a weight share its exponents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn as nn

from abcfx.rules.op import Op
from abcfx.rules.registry import plain_name, register_rule
from abcfx.rules.values import Result, Value

LSTM_GATES, GRU_GATES, RNN_GATES = 4, 3, 1
_GATES = {
    "lstm": LSTM_GATES, "lstm_cell": LSTM_GATES, "gru": GRU_GATES, "gru_cell": GRU_GATES,
    "rnn_tanh": RNN_GATES, "rnn_tanh_cell": RNN_GATES, "rnn_relu": RNN_GATES, "rnn_relu_cell": RNN_GATES,
}  # fmt: skip


def _step(
    op: Op, x: Value, state: Value | None, weights: tuple[Value, Value], biases: tuple[Value | None, ...], gates: int
) -> Value:
    """Add one step of a recurrent layer to the layer DAG (graph of layers and ops); return its next hidden state.

    Args:
        op: the op of the traced graph for which nodes are added to the layer DAG, a graph of layers and ops.
        x: the input of the step.
        state: the hidden state before it; None or a constant if there is none that training changes, and the gates of x
            stand in for it.
        weights: the matrix on x and the one on the state, each with the rows of all gates.
        biases: the bias of each matrix, None where there is none.
        gates: number of gates whose rows a matrix holds: 4 for LSTM, 3 for GRU, 1 for RNN.
    """
    to_gates = op.layer(x, weights[0], [-1], [-2], biases[0], inner=True, pieces=gates)
    previous = op.pointwise(to_gates) if state is None or state.is_constant else state
    return op.pointwise(op.merge([to_gates, op.layer(previous, weights[1], [-1], [-2], biases[1], True, gates)]))


def _held(op: Op, module: nn.Module, suffix: str) -> tuple[tuple[Value, Value], tuple[Value | None, ...]]:
    """Return the two weights of a recurrent layer, on input and on hidden state, and their biases or None.

    `suffix` ends the names of its parameters, as "_l0_reverse" in `weight_ih_l0_reverse`; "" for a cell.
    """
    weights = (op.parameter(module, f"weight_ih{suffix}"), op.parameter(module, f"weight_hh{suffix}"))
    assert weights[0] is not None and weights[1] is not None
    biases = (op.parameter(module, f"bias_ih{suffix}"), op.parameter(module, f"bias_hh{suffix}"))
    return (weights[0], weights[1]), biases


@register_rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(op: Op, module: nn.RNNBase, x: Value, state: object = None) -> tuple[Value, Result]:
    """Handle a call of nn.LSTM, nn.GRU or nn.RNN: one step through time for each of its layers and directions.

    Returns the output and the last state, which for an LSTM is a tuple of two. Entries are of order 1 at least, since
    gates are bounded functions that are not 0 at 0.
    """
    gates = _GATES[module.mode.lower()]
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
def cell(op: Op, module: nn.RNNCellBase, x: Value, state: Value | Sequence[Value] | None = None) -> Result:
    """Handle a call of nn.LSTMCell, GRUCell or RNNCell: return the state after one step (two for an LSTM).

    Its entries are of order 1.
    """
    weights, biases = _held(op, module, "")
    is_lstm = isinstance(module, nn.LSTMCell)
    gates = LSTM_GATES if is_lstm else GRU_GATES if isinstance(module, nn.GRUCell) else RNN_GATES
    out = _step(op, x, _hidden(state), weights, biases, gates)
    return (out, out) if is_lstm else out


def _hidden(state: Value | Sequence[Value] | None) -> Value | None:
    """Return the hidden state, which is the first of the two states of an LSTM."""
    return state if state is None or isinstance(state, Value) else state[0]


@register_rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell_function(
    op: Op,
    x: Value,
    state: Value | Sequence[Value],
    w_ih: Value,
    w_hh: Value,
    b_ih: Value | None = None,
    b_hh: Value | None = None,
) -> Result:
    """Handle torch.lstm_cell, gru_cell and the like, which get the weights of one step as arguments.

    Returns the state after the step (two for an LSTM), of order 1.
    """
    gates = _gates(op)
    out = _step(op, x, _hidden(state), (w_ih, w_hh), (b_ih, b_hh), gates)
    return (out, out) if gates == LSTM_GATES else out


def _gates(op: Op) -> int:
    """Return how many gates an op such as aten.lstm or aten.gru_cell has: 4 for LSTM, 3 for GRU, 1 for RNN."""
    name = plain_name(op.at.target)
    assert name is not None, "the rules below and above are registered by name"
    return _GATES[name]


@register_rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent_function(
    op: Op,
    x: Value,
    state: Value | Sequence[Value],
    params: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    *rest: object,
) -> tuple[Value, ...]:
    """Handle aten.lstm, gru and rnn: one step through time for each layer and direction, with weights from a flat list.

    States are of order 1.

    Args:
        op: the op of the traced graph for which nodes are added to the layer DAG, a graph of layers and ops.
        x: the input.
        state: the hidden state at the start; for an LSTM, hidden and cell state.
        params: for each layer and direction, the matrices on input and state, then biases, then a projection, if any.
        has_biases: whether `params` holds biases.
        num_layers: number of layers.
        rest: dropout, train, bidirectional, batch_first, as the op takes them.

    Returns:
        The output and the last states: three tensors for an LSTM, two for the others.
    """
    gates, directions = _gates(op), 2 if len(rest) > 2 and rest[2] else 1
    given = [state] if isinstance(state, Value) else list(state)
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
    return (out, out, out) if gates == LSTM_GATES else (out, out)
