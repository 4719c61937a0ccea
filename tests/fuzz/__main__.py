"""Test random models: `python -m tests.fuzz --seeds 0:1000`, and `--oracle` to measure every node at five widths."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections import Counter

import torch

from .oracle import node_flags
from .properties import flags
from .recipes import recipe


def main() -> int:
    """Print what is flagged for each seed, then counts; return 1 if anything is wrong, 0 if at most refused."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seeds", default="0:100", help="first:last, the last one left out")
    parser.add_argument("--oracle", action="store_true", help="also measure each node's size and change with width")
    arguments = parser.parse_args()
    first, _, last = arguments.seeds.partition(":")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    seeds, counts = range(int(first), int(last or int(first) + 1)), Counter[str]()
    for seed in seeds:
        drawn = recipe(seed)
        found = flags(drawn)
        if arguments.oracle and not any(flag.is_refusal or flag.name == "crash" for flag in found):
            found += node_flags(drawn)
        counts.update({flag.name for flag in found})
        if found:
            print(drawn)
        for name, detail in found:
            print(f"    {name}: {' | '.join(detail.splitlines()[:3])[:300]}", flush=True)
    print(f"{len(seeds)} models: {dict(counts) or 'nothing flagged'}")
    return int(any(not name.startswith("refused") for name in counts))


if __name__ == "__main__":
    sys.exit(main())
