"""Data-parallel training through the ring: handwritten digits, a small network, plain numpy.

Run it once on every machine of the ring, each beside its daemon, in any order:

    python examples/train_digits.py

Each rank keeps every n-th image and computes the gradient over its own part of each batch; one
all-reduce per step sums them. So all ranks hold the same weights, bit for bit, and with the
same seed they are those of one process that has all the images (``--alone`` is that process,
``--check`` compares with it).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable

import numpy as np
from sklearn.datasets import load_digits

import ringd

CLASSES = 10
BATCH = 96
TOLERANCE = 1e-9
"""Between a run on n ranks and one process: the sums are the same but for their order."""
GOOD = 0.95

Weights = list[np.ndarray]
Sum = Callable[[np.ndarray], np.ndarray]
Report = Callable[[int, float, float], None]


class Digits:
    """The 1797 images of 8 x 8 pixels that scikit-learn ships, shuffled and split by *seed*."""

    def __init__(self, seed: int) -> None:
        images, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(images))
        images, labels = images[order] / 16.0, labels[order]
        self.test_images, self.test_labels = images[:360], labels[:360]
        self.images, self.labels = images[360:], labels[360:]


def initial(seed: int, hidden: int) -> Weights:
    """Return two layers' weights and biases."""
    rng = np.random.default_rng(seed + 1)
    first, second = rng.normal(0, 0.1, (64, hidden)), rng.normal(0, 0.1, (hidden, CLASSES))
    return [first, np.zeros(hidden), second, np.zeros(CLASSES)]


def forward(weights: Weights, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hidden layer and the class probabilities."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(images @ w1 + b1, 0)
    scores = hidden @ w2 + b2
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, scores / scores.sum(axis=1, keepdims=True)


def gradient(weights: Weights, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the gradient summed over the images, and behind it the summed loss, in one vector."""
    hidden, probabilities = forward(weights, images)
    rows = np.arange(len(labels))
    loss = -np.log(probabilities[rows, labels] + 1e-12).sum()
    error = probabilities.copy()
    error[rows, labels] -= 1
    back = (error @ weights[2].T) * (hidden > 0)
    parts = [images.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0), [loss]]
    return np.concatenate([np.ravel(part) for part in parts])


def accuracy(weights: Weights, digits: Digits) -> float:
    """Return the share of test images that are recognised."""
    _, probabilities = forward(weights, digits.test_images)
    return float((probabilities.argmax(axis=1) == digits.test_labels).mean())


def train(args: argparse.Namespace, rank: int, size: int, all_sum: Sum, report: Report) -> Weights:
    """Train as rank *rank* of *size*; *all_sum* sums a vector over all ranks."""
    digits = Digits(args.seed)
    weights = initial(args.seed, args.hidden)
    rng = np.random.default_rng(args.seed + 2)
    for epoch in range(args.epochs):
        losses = 0.0
        order = rng.permutation(len(digits.images))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            mine = batch[batch % size == rank]
            total = all_sum(gradient(weights, digits.images[mine], digits.labels[mine]))
            losses += total[-1]
            step = args.rate / len(batch) * total[:-1]
            place = 0
            for layer in weights:
                np.subtract(layer, step[place : place + layer.size].reshape(layer.shape), layer)
                place += layer.size
            time.sleep(args.pace)
        report(epoch, losses / len(order), accuracy(weights, digits))
    return weights


def through_the_ring(args: argparse.Namespace) -> Weights:
    """Train with the other ranks."""
    with ringd.connect(args.socket, group=args.group, timeout=args.patience) as ring:
        print(f"rank {ring.rank} of {ring.size} on {ring.node!r}", flush=True)
        slowest = 0.0

        def all_sum(vector: np.ndarray) -> np.ndarray:
            nonlocal slowest
            started = time.perf_counter()
            total = ring.all_reduce(vector, name="gradient")
            slowest = max(slowest, time.perf_counter() - started)
            return total

        def report(epoch: int, loss: float, right: float) -> None:
            nonlocal slowest
            print(
                f"epoch {epoch + 1:3d}  loss {loss:.4f}  accuracy {right:.3f}  "
                f"generation {ring.generation}  slowest step {slowest * 1e3:.0f} ms",
                flush=True,
            )
            slowest = 0.0

        return train(args, ring.rank, ring.size, all_sum, report)


def by_one_process(args: argparse.Namespace) -> Weights:
    """Train on all images here, without a ring."""
    alone = argparse.Namespace(**{**vars(args), "pace": 0.0})
    return train(alone, 0, 1, lambda vector: vector, lambda *_: None)


def main() -> int:
    """Train, and judge the result; 0 if it is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", help="the daemon's socket; default: the usual places")
    parser.add_argument("--group", default="train-digits", help="the group's name")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--hidden", type=int, default=64, help="units of the hidden layer")
    parser.add_argument("--rate", type=float, default=0.3, help="the learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", type=float, default=0.0, help="seconds of rest after each step")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait for a daemon")
    parser.add_argument("--alone", action="store_true", help="train in this process, with no ring")
    parser.add_argument("--check", action="store_true", help="compare with a one-process run")
    args = parser.parse_args()

    try:
        weights = by_one_process(args) if args.alone else through_the_ring(args)
    except (ringd.DaemonUnavailable, ringd.Refused) as error:
        sys.exit(str(error))
    right = accuracy(weights, Digits(args.seed))
    digest = hashlib.sha256(b"".join(layer.tobytes() for layer in weights)).hexdigest()
    print(f"accuracy {right:.3f}  weights {digest[:16]}", flush=True)
    good = right >= GOOD
    if args.check:
        reference = by_one_process(args)
        apart = max(float(np.abs(a - b).max()) for a, b in zip(weights, reference, strict=True))
        print(f"apart from one process by at most {apart:.1e}", flush=True)
        good = good and apart <= TOLERANCE
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
