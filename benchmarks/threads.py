"""What the command line's sleeping threads cost and save: `python benchmarks/threads.py [--turns 5]`.

PyTorch's threads wait for each other in a loop, so that each is soon there. Where other processes want the same cores,
one waits so for another that is not running. `polarize` lets them sleep instead (`OMP_WAIT_POLICY=passive`). Passes of
a network forwards and backwards and many small ones of its tail, with as many threads as there are cores, in processes
of their own: asleep over awake, alone and beside as many busy processes. For a machine that has nothing else to do.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from common import Table, network

BUSY = [sys.executable, "-c", "while True: pass"]
CORES = len(os.sched_getaffinity(0))


def work() -> float:
    """Seconds that the passes take, after some that are not counted."""
    model = network().model
    tail = model.get_submodule("layer4.1")
    order = torch.Generator().manual_seed(0)
    images = torch.rand(64, 3, 32, 32, generator=order, requires_grad=True)
    before = torch.rand(64, tail.conv1.in_channels, 4, 4, generator=order, requires_grad=True)
    for passes in (1, 3):
        started = time.perf_counter()
        for _ in range(passes):
            model(images).sum().backward()
        for _ in range(20 * passes):
            tail(before).sum().backward()
    return time.perf_counter() - started


def timed(policy: str | None) -> float:
    """The same in a process whose threads sleep (`passive`) or not (None)."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"OMP_NUM_THREADS": str(CORES)} | ({"OMP_WAIT_POLICY": policy} if policy else {})
    done = subprocess.run(
        [sys.executable, __file__, "--work"], env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--work", action="store_true", help="do the work here, and print its seconds")
    parser.add_argument("--out", type=Path, default=Path("docs/results/threads.json"))
    options = parser.parse_args()
    if options.work:
        print(work())
        return 0
    torch.set_num_threads(CORES)  # what the record says of them
    table = Table()
    for beside, bar in ((0, None), (CORES, 1.0)):
        ratios = []
        for turn in range(options.turns):
            with ExitStack() as stack:
                for _ in range(beside):
                    busy = subprocess.Popen(BUSY)
                    stack.callback(busy.wait)
                    stack.callback(busy.kill)
                order = ("passive", None) if turn % 2 else (None, "passive")
                taken = {policy: timed(policy) for policy in order}
            ratios.append(taken["passive"] / taken[None])
        table.tell(f"asleep / awake, beside {beside} busy processes", ratios, bar)
    return table.write(options.out, turns=options.turns, cores=CORES)


if __name__ == "__main__":
    sys.exit(main())
