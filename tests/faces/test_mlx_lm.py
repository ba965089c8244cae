"""mlx_lm under ``run --mlx``, as its users run it: the text that one machine generates."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import string
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.cluster import PATIENCE, Cluster, wait_until
from tests.ownports import free_ports
from tests.test_ring_streams_held import Command, end_all

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mlx_lm") is None, reason="mlx_lm is not for this Python, or system"
)

PAGE = Path(__file__).parents[2] / "docs" / "mlx.md"
PROMPT = "OnceUponATime"
LENGTH = 40
"""Tokens that are generated."""

MAKE = """
    import sys
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.models.qwen2 import Model, ModelArgs
    from mlx_lm.utils import save_config, save_model
    from transformers import Qwen2Tokenizer

    place, letters = sys.argv[1:]
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", *letters])}
    Qwen2Tokenizer(vocab=vocabulary, merges=[]).save_pretrained(place)
    config = {
        "model_type": "qwen2", "vocab_size": len(vocabulary), "hidden_size": 64,
        "num_hidden_layers": 4, "intermediate_size": 128, "num_attention_heads": 4,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }
    model = Model(ModelArgs.from_dict(config))
    mx.random.seed(3)
    model.update(tree_map(lambda weight: mx.random.normal(weight.shape), model.parameters()))
    model.lm_head.weight[0] = 0.0  # another token is always likelier than the end
    save_model(place, model)
    save_config(config, f"{place}/config.json")
"""
"""Makes a model of four layers and its tokenizer, for which each letter is a token."""


def environment() -> dict[str, str]:
    """Return the programs' own, in which nothing can be downloaded."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}


def said_by(*command: str) -> str:
    """Run a program of Python alone, with no ring; return what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the directory of a model."""
    place = str(tmp_path_factory.mktemp("model"))
    said_by("-c", textwrap.dedent(MAKE), place, string.ascii_letters)
    return place


@pytest.fixture(scope="module")
def text(model: str) -> str:
    """Give what mlx_lm generates with the whole model on one machine."""
    options = ["--model", model, "--prompt", PROMPT, "--max-tokens", str(LENGTH), "--temp", "0"]
    text = said_by("-m", "mlx_lm", "generate", *options, "--verbose", "False")
    assert len(text) == LENGTH
    assert len(set(text)) > LENGTH // 4  # else it would take little to say the same
    return text


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End what a test has started."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    end_all()


def on_the_page(model: str, *, pipeline: bool) -> str:
    """Return the page's generate.py, with this model and prompt in the place of its own."""
    programs = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (program,) = [program for program in programs if "mlx_lm" in program]
    for old, new in (
        (r'"path/to/model"', repr(model)),
        (r'"Write a haiku\."', repr(PROMPT)),
        (r"max_tokens=\d+", f"max_tokens={LENGTH}"),
        (r"tensor_group=", "pipeline_group=" if pipeline else "tensor_group="),
    ):
        program, count = re.subn(old, new, program)
        assert count == 1
    return program


@pytest.mark.parametrize("pipeline", [False, True], ids=["tensors", "pipeline"])
def test_generate(
    cluster: Cluster, model: str, text: str, tmp_path: Path, *, pipeline: bool
) -> None:
    """With each layer shared by two machines, or half of the layers on each."""
    program = tmp_path / "generate.py"
    program.write_text(on_the_page(model, pipeline=pipeline))
    command = ("run", "--mlx", "--", "nice", "-n", "5", sys.executable, str(program))
    commands = [Command(cluster[rank], *command) for rank in (1, 0)]
    for said, begun in zip(("", text), commands, strict=True):
        code, out, err = begun.end()
        assert code == 0, err
        assert out.strip() == said


def test_server(cluster: Cluster, model: str, text: str) -> None:
    """The machine of rank 0 answers by HTTP, and all of them work for it."""
    (port,) = free_ports(1)
    server = ("-m", "mlx_lm", "server", "--model", model, "--port", str(port))
    command = ("run", "--mlx", "--", "nice", "-n", "5", sys.executable, *server)
    commands = [Command(cluster[rank], *command) for rank in (0, 1)]
    question = json.dumps({"prompt": PROMPT, "max_tokens": LENGTH, "temperature": 0})

    def answer() -> str | None:
        assert all(begun.process.poll() is None for begun in commands)
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", question, headers)
        except ConnectionRefusedError:
            return None
        with connection.getresponse() as response:
            return json.load(response)["choices"][0]["text"]

    assert wait_until(answer, "the server listens") == text
