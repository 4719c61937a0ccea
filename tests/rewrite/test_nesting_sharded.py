"""Blocks of a transformed model that FSDP2 shards train as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "apply"),
    [
        ("gpt", "insert"),
        ("gpt", "absorb"),
        ("gpt", "inplace"),
        ("llama", "insert"),
        ("vit", "insert"),
        ("moe", "insert"),
    ],
)
def test_sharded_blocks_train_as_one_process_does(tmp_path: Path, name: str, apply: str) -> None:
    alone, sharded = (_losses(tmp_path, world, name, apply, "reshard", "float32") for world in (1, 2))
    # Ranks sum in another order, and the gates of a mixture of experts make more of such rounding with every step.
    steps = 10 if name == "moe" else 20
    assert alone[:steps] == pytest.approx(sharded[:steps], abs=1e-5) and alone == pytest.approx(sharded, abs=1e-3)
    assert alone[-1] < alone[0]


@pytest.mark.slow
@pytest.mark.parametrize(("reshard", "dtype"), [("keep", "float32"), ("reshard", "bfloat16")])
def test_sharded_blocks_with_other_policies(tmp_path: Path, reshard: str, dtype: str) -> None:
    alone, sharded = (_losses(tmp_path, world, "gpt", "insert", reshard, dtype) for world in (1, 4))
    assert alone == pytest.approx(sharded, abs=1e-5 if dtype == "float32" else 5e-2) and alone[-1] < alone[0]


def _losses(folder: Path, world: int, *options: str) -> list[float]:
    """Run the ranks of one training and return its losses."""
    script = Path(__file__).parent / "sharded_ranks.py"
    paths = os.pathsep.join(map(str, (script.parents[1], script.parent)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    arguments = [str(world), f"file://{folder}/{world}", *options]
    ranks = [
        subprocess.Popen([*command, str(rank), *arguments], stdout=subprocess.PIPE, text=True, env=environment)
        for rank in range(world)
    ]
    try:
        outputs = [rank.communicate(timeout=400)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert [rank.returncode for rank in ranks] == [0] * world
    losses: list[float] = json.loads(outputs[0].splitlines()[-1])
    return losses
