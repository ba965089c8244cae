"""Compare training steps of torch over ringd and over Gloo, and torch's way in with numpy's.

    python benchmarks/torch_steps.py [--machines 2] [--rounds 7] [--tables ddp,...]
        [--protect off] [--markdown FILE]

Every program is in a process group of both, so all is measured in one run, in turn, round by round.
A ratio is that of the medians; more than 1 means that ringd is faster. The model has 25 million
parameters in float32, and the batch is small, so that a step is mostly its communication. Processor
time is that of one rank: of its program, with all threads, and of its daemon.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from instrument import daemons, samples
from instrument.builds import Build
from instrument.counters import cpu_time
from instrument.markdown import table
from instrument.sites import loopback
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ringd.host.ports import free_ports

WIDTH, LAYERS, BATCH = 1024, 24, 8
STEPS = 5  # of each round
SIZES = {"4 KiB": 1 << 10, "64 KiB": 1 << 14, "1 MiB": 1 << 18, "64 MiB": 1 << 24}
"""Elements, of four bytes."""
_ENOUGH = 1 << 24  # elements of a batch of calls
_MOST_CALLS = 200

_DAEMON = "RINGD_BENCH_DAEMON"
"""The variable that tells a program the process of its daemon."""

Groups = dict[str, dist.ProcessGroup]
Act = Callable[[], object]


def model() -> nn.Sequential:
    """Return one of 25 million parameters."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def step_of(trained: nn.Module) -> Act:
    """Return what takes a step."""
    optimizer = torch.optim.SGD(trained.parameters(), 1e-4)
    x = torch.randn(BATCH, WIDTH)

    def step() -> None:
        optimizer.zero_grad()
        trained(x).square().mean().backward()
        optimizer.step()

    return step


def ddp(groups: Groups) -> Iterator[tuple[str, int, dict[str, Act]]]:
    """Yield a step with each group."""
    steps = {
        name: step_of(DistributedDataParallel(model(), process_group=group))
        for name, group in groups.items()
    }
    yield "DDP step, 25 M parameters", STEPS, steps


def fsdp2(groups: Groups) -> Iterator[tuple[str, int, dict[str, Act]]]:
    """As :func:`ddp`, with weights that are sharded layer by layer."""
    steps = {}
    for name, group in groups.items():
        trained = model()
        mesh = DeviceMesh.from_group(group, "cpu")
        for layer in trained:
            fully_shard(layer, mesh=mesh)
        steps[name] = step_of(fully_shard(trained, mesh=mesh))
    yield "FSDP2 step, 25 M parameters", STEPS, steps


def all_reduce(groups: Groups) -> Iterator[tuple[str, int, dict[str, Act]]]:
    """Yield all-reduces of tensors with each group, and of an array with ringd itself."""
    ring = groups["ringd"].ring
    for name, count in SIZES.items():
        tensor, array = torch.zeros(count), np.zeros(count, np.float32)
        acts: dict[str, Act] = {
            mode: lambda group=group, tensor=tensor: dist.all_reduce(tensor, group=group)
            for mode, group in groups.items()
        }
        acts["numpy"] = lambda array=array: ring.all_reduce(array, out=array)
        yield f"all_reduce, {name}", max(2, min(_MOST_CALLS, _ENOUGH // count)), acts


MODES = ("ringd", "Gloo", "numpy")
TABLES = {"ddp": ddp, "fsdp2": fsdp2, "all_reduce": all_reduce}


@dataclass(frozen=True, slots=True)
class Taken:
    """What an act takes, in seconds."""

    seconds: float
    """On the slowest rank."""
    cpu: float
    """Of the processor, on one rank."""


def taken_by(act: Act, times: int, group: dist.ProcessGroup) -> Taken:
    """Return what an *act* takes, that is done so many *times*."""
    daemon = int(os.environ[_DAEMON])
    dist.barrier(group=group)
    used = time.process_time() + cpu_time(daemon)
    began = time.perf_counter()
    for _ in range(times):
        act()
    seconds = torch.tensor((time.perf_counter() - began) / times)
    cpu = torch.tensor((time.process_time() + cpu_time(daemon) - used) / times)
    dist.all_reduce(seconds, dist.ReduceOp.MAX, group=group)
    dist.all_reduce(cpu, group=group)
    return Taken(seconds.item(), cpu.item() / group.size())


def row(what: str, taken: dict[str, list[Taken]]) -> list[str]:
    """Return the line of a table of what the modes have taken."""
    seconds = {mode: samples.median([t.seconds for t in each]) for mode, each in taken.items()}
    cpu = {mode: samples.median([t.cpu for t in each]) for mode, each in taken.items()}
    cells = [what]
    for mode in MODES:
        known = mode in seconds
        cells.append(f"{1e6 * seconds[mode]:.0f} µs ({1e6 * cpu[mode]:.0f})" if known else "")
    cells.append(f"{seconds['Gloo'] / seconds['ringd']:.2f}")
    more = 1e6 * (seconds["ringd"] - seconds["numpy"]) if "numpy" in seconds else None
    return [*cells, "" if more is None else f"{more:.0f} µs"]


def measure(chosen: argparse.Namespace) -> None:
    """Be one of the programs; rank 0 prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    groups = {"ringd": dist.new_group(backend="ringd"), "Gloo": dist.group.WORLD}
    rows = []
    for name in chosen.tables.split(","):
        for what, times, acts in TABLES[name](groups):
            taken = defaultdict(list)
            for number in range(chosen.rounds + 1):  # of which the first is for warming up
                for mode, act in acts.items():
                    each = taken_by(act, times, dist.group.WORLD)
                    if number:
                        taken[mode].append(each)
            rows.append(row(what, taken))
            if dist.get_rank() == 0:
                print(*rows[-1], sep="; ", flush=True)
    if chosen.markdown and dist.get_rank() == 0:
        heads = [f"{mode} (processor)" for mode in MODES]
        head = ["", *heads, "ringd : Gloo", "ringd over numpy"]
        chosen.markdown.write_text(table(head, rows), encoding="utf-8")
    dist.destroy_process_group()


def launch(chosen: argparse.Namespace) -> None:
    """Start daemons, and a program beside each."""
    (port,) = free_ports(1)
    with (
        tempfile.TemporaryDirectory(prefix="ringd-bench-") as directory,
        daemons.running(
            loopback(chosen.machines), Path(directory), Build(), chosen.protect
        ) as running,
    ):
        programs = [
            subprocess.Popen(
                [sys.executable, *sys.argv, "--program"],
                env={
                    **os.environ,
                    "RINGD_SOCKET": str(socket),
                    "RANK": str(rank),
                    "WORLD_SIZE": str(chosen.machines),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    _DAEMON: str(daemon),
                },
            )
            for rank, (socket, daemon) in enumerate(zip(running.sockets, running.pids, strict=True))
        ]
        codes = [program.wait() for program in programs]
    if any(codes):
        sys.exit(f"the programs ended with {codes}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--machines", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="the median counts; %(default)s")
    parser.add_argument("--tables", default=",".join(TABLES), help="default: %(default)s")
    parser.add_argument("--protect", help="ring.protect of the members; default: its own")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    parser.add_argument("--program", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    (measure if chosen.program else launch)(chosen)


if __name__ == "__main__":
    main()
