"""Run one rank of a small data-parallel training with DynamicAlignment and print its factors, for test_dynamic.py.

python two_ranks.py RANK WORLD INIT_METHOD ddp|fsdp
"""

from __future__ import annotations

import json
import sys

import torch
import torch.nn.functional as F
from models import sequential
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import abcfx


def main(rank: int, world: int, address: str, how: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    torch.manual_seed(0)
    # In float64: Adam's first steps turn rounding of gradients near zero into whole steps.
    x, y = torch.randn(32, 64, dtype=torch.float64), torch.randint(0, 10, (32,))
    model, base = sequential(64, 64, 10).double(), sequential(32, 64, 10).double()
    result = abcfx.transform(model, x, base=base, optimizer="adam", lr=3e-3)
    module, groups = result.module, result.groups(per_parameter=True)
    if how == "ddp":
        module = nn.parallel.DistributedDataParallel(module)
    else:
        mesh = init_device_mesh("cpu", (world,))
        fully_shard(module.get_submodule("2"), mesh=mesh)
        fully_shard(module, mesh=mesh)
        groups = abcfx.param_groups(module, result.spec, per_parameter=True)
    optimizer = torch.optim.Adam(groups)
    dynamic = abcfx.DynamicAlignment(result, optimizer, warmup=0, every=1)
    part = slice(rank * 32 // world, (rank + 1) * 32 // world)
    dynamic.capture_initial(x[part])
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(module(x[part]), y[part]).backward()
        optimizer.step()
        dynamic.step()
    print(json.dumps(dynamic.factors))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
