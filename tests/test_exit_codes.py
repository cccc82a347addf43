"""How a command answers errors: one sentence and an exit code for those of users, a traceback for our own."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bwds
from bwds import cli

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ValueError("A sentence."), 2, "error: A sentence.\nSee python x.py --help.\n"),
        (OSError("no space"), 1, "error: no space\n"),
        (MemoryError(), 1, "error: There is not enough memory (MemoryError). Take a smaller model or batch.\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."),
            1,
            "error: There is not enough memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.). Take a smaller "
            "model or batch.\n",
        ),
        (KeyboardInterrupt(), 130, "Stopped.\n"),
    ],
)
def test_exit_codes(capsys, raised, code, message):
    def main(_):
        raise raised

    assert cli.run(main, "x.py", []) == code
    assert capsys.readouterr().err == message
    assert cli.run(lambda _: None, "x.py", []) == 0


@pytest.mark.parametrize("raised", [AssertionError(), RuntimeError("Unable to initialize backend 'rocm'")])
def test_a_platform_that_jax_does_not_have_is_named(capsys, monkeypatch, raised):
    def main(_):
        raise raised

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", lambda: main(None))
    assert cli.run(main, "x.py", []) == 1
    assert capsys.readouterr().err.startswith("error: JAX_PLATFORMS is 'cuda', and JAX cannot compute on that here.")
    # Where JAX starts, such an error is a mistake of ours.
    monkeypatch.setattr(jax, "devices", lambda: ["cpu"])
    with pytest.raises(type(raised)):
        cli.run(main, "x.py", [])


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "in between"])
def test_an_output_that_is_read_no_further_is_no_error(lines):
    code = f"import sys; from bwds import cli; sys.exit(cli.run(lambda _: print('a line\\n' * {lines}), 'x.py', []))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: (_ for _ in ()).throw(RuntimeError("a mistake of ours")),
        lambda: int("x"),
        lambda: tuple.index((), 1),
        lambda: "\u00fc".encode("ascii"),
        lambda: np.zeros(3).reshape(2),
        lambda: json.loads("{"),
        lambda: jax.make_mesh((3, 5), ("a", "b")),
    ],
)
def test_an_error_that_is_not_known_is_not_hidden(mistake):
    """Also a ``ValueError`` that no sentence was written for."""
    with pytest.raises((RuntimeError, ValueError)):
        cli.run(lambda _: mistake(), "x.py", [])


def test_a_refusal_in_the_middle_of_a_computation_is_a_sentence(unchecked, capsys):
    def main(_):
        jax.jit(lambda x: bwds.block_sparse_matmul(x, x, x, implementation="no such"))(jnp.zeros((2, 2)))

    assert cli.run(main, "x.py", []) == 2
    assert capsys.readouterr().err.startswith("error: ")
