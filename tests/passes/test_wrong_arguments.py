"""Wrong arguments of a pass end in a `PassError` before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from abcfx import passes
from abcfx.passes import PassError

MODEL = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU()))
INPUT, LINEAR, RELU, OUTPUT = MODEL.graph.nodes
OTHER = list(fx.symbolic_trace(nn.Sequential(nn.Linear(4, 8))).graph.nodes)[1]
ANY: Any = passes


def insert(node: object = LINEAR, operand: object = None, factor: object = 2.0, **more: object) -> object:
    return ANY.insert_scales(MODEL, [ANY.ScaleInsertion(node, operand, factor, **more)])


CASES: dict[str, Callable[[], object]] = {
    "no module": lambda: ANY.insert_scales(None, []),
    "a module without a graph": lambda: ANY.insert_scales(nn.Linear(2, 2), []),
    "scales=5": lambda: ANY.insert_scales(MODEL, 5),
    "scales of numbers": lambda: ANY.insert_scales(MODEL, [1, 2]),
    "factor=nan": lambda: insert(factor=float("nan")),
    "factor=text": lambda: insert(factor="2"),
    "node=text": lambda: insert(node="x"),
    "the input": lambda: insert(node=INPUT),
    "the output": lambda: insert(node=OUTPUT),
    "operand=text": lambda: insert(operand="x"),
    "operand of another op": lambda: insert(node=RELU, operand=INPUT),
    "operand of another graph": lambda: insert(operand=OTHER),
    "through without an operand": lambda: insert(node=RELU, through=LINEAR),
    "attention scales=3": lambda: ANY.scale_attention(MODEL, 3),
    "no attention": lambda: ANY.scale_attention(MODEL, [ANY.ScaleInsertion(LINEAR, None, 2.0)]),
    "marks of numbers": lambda: ANY.multiply_marks(MODEL, [3], 2.0),
    "no mark": lambda: ANY.multiply_marks(MODEL, [LINEAR], 2.0),
    "ratio=text": lambda: ANY.multiply_marks(MODEL, [], "x"),
    "ratio=0": lambda: ANY.multiply_marks(MODEL, [], 0.0),
    "marks of no module": lambda: ANY.multiply_marks(None, [], 2.0),
    "probe of no graph": lambda: ANY.probe_activations(MODEL, None, []),
    "probe of one node": lambda: ANY.probe_activations(MODEL, MODEL.graph, LINEAR),
    "probe of texts": lambda: ANY.probe_activations(MODEL, MODEL.graph, ["x"]),
    "probe of another graph": lambda: ANY.probe_activations(MODEL, MODEL.graph, [OTHER]),
    "notes of a module": lambda: ANY.scale_nodes(MODEL),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_arguments_are_refused(case: str) -> None:
    x = torch.ones(2, 4)
    before, expected = str(MODEL.graph), MODEL(x)
    with pytest.raises(PassError):
        CASES[case]()
    assert str(MODEL.graph) == before
    assert torch.equal(MODEL(x), expected)
