"""Sentences for the examples, short and long, and one to look for among them."""

from __future__ import annotations

import numpy as np

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


def show_neighbours(texts: list[str], embeddings: np.ndarray) -> None:
    """Print which sentences mean most nearly, and least, what the first one means."""
    alike = embeddings[1:] @ embeddings[0]  # the cosine, as all have length 1
    order = np.argsort(-alike)
    print(f"To {texts[0]!r}")
    for words, i in (("the nearest is", order[0]), ("the farthest is", order[-1])):
        print(f"    {words:<15} {texts[1 + i]!r} ({alike[i]:.2f})")
