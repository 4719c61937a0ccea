"""Train one rank with every block and the root sharded by FSDP2, and print the losses, for test_nesting_sharded.py.

python sharded_ranks.py RANK WORLD INIT_METHOD MODEL APPLY reshard|keep float32|bfloat16
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.nn.functional as F
from models_blocks import BLOCKS, inputs_of, logits_of, make
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import abcfx
from abcfx.support.choices import choose

STEPS, BATCH, PARTS = 20, 8, 2


def main(rank: int, world: int, address: str, name: str, apply: str, reshard: str, dtype: str) -> None:
    """Train and print the losses of the whole batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    inputs, targets = inputs_of(name, BATCH)
    torch.manual_seed(0)
    result = abcfx.transform(
        make(name, 32),
        None,
        inputs,
        base=make(name, 16),
        lr=1e-2,
        apply=choose("apply", apply, ("insert", "absorb", "inplace")),
    )
    module = result.module.train()
    mesh = init_device_mesh("cpu", (world,))
    options: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": reshard == "reshard",
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16 if dtype == "bfloat16" else None),
    }
    for block in module.get_submodule(BLOCKS[name]).children():
        fully_shard(block, **options)
    fully_shard(module, **options)
    optimizer = torch.optim.Adam(abcfx.param_groups(module, result.spec))
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        # Each rank takes its part of the batch in two pieces: gradients are accumulated.
        own = list(torch.arange(BATCH).chunk(world)[rank].chunk(PARTS))
        for piece in own:
            logits = logits_of(module(**{key: value[piece] for key, value in inputs.items()}))
            loss = F.cross_entropy(logits.float().flatten(0, -2), targets[piece].flatten()) / PARTS
            loss.backward()
            total += loss.item()
        optimizer.step()
        shared = torch.tensor(total, dtype=torch.float64)
        torch.distributed.all_reduce(shared)
        losses.append(shared.item() / world)
    print(json.dumps(losses), flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
