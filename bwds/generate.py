"""Tokens that follow a prompt: loops under one jit, or one token after the other."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bwds.arguments import Tree, fitting_tokens, plain
from bwds.array_types import Array, Float, Int, Int32, Key, Real, Whole
from bwds.checks import check_sparsity, known_number, require
from bwds.linear import Params
from bwds.model import LanguageModel
from bwds.sampling import Choice, choice, choose
from bwds.sampling import sample as sample


class Prompts(NamedTuple):
    """Prompts side by side.

    Attributes:
        tokens: int32 [B, P]; what stands behind the end of a row is not read.
        lengths: tokens of each row, int32 [B]; None where all have P.
    """

    tokens: Int32[Array, "B P"]
    lengths: Int32[Array, " B"] | None


def _read(
    lm: LanguageModel, params: Params, prompts: Prompts, shortest: int, sparsity: float | None
) -> tuple[Float[Array, "B V"], Any]:
    """Logits after the last token of every prompt, and the carry there.

    One window reads all prompts up to the length of the shortest. The rest is read token by token, and a prompt that
    has ended keeps its carry.
    """
    tokens, lengths = prompts
    logits, carry, _ = lm.apply(params, tokens[:, :shortest], lm.init_carry(tokens.shape[0]), sparsity=sparsity)
    state = logits[:, -1], carry
    if lengths is None:
        return state

    def step(state: Any, column: Any) -> tuple[Any, None]:
        token, place = column
        logits, carry, _ = lm.apply(params, token[:, None], state[1], sparsity=sparsity)
        reads = (place < lengths)[:, None]
        return jax.tree.map(lambda new, old: jnp.where(reads, new, old), (logits[:, 0], carry), state), None

    rest = tokens[:, shortest:].swapaxes(0, 1)
    return lax.scan(step, state, (rest, jnp.arange(shortest, tokens.shape[1])))[0]


def _at(keys: Key[Array, " B"], step: Any) -> Key[Array, " B"]:
    """The keys of one step."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, step)


@partial(jax.jit, static_argnames=("lm", "shortest", "length", "sparsity"))
def _decode(lm, params, prompts: Prompts, keys, how: Choice, *, shortest: int, length: int, sparsity: float | None):
    def step(state: Any, number: Array) -> tuple[Any, Array]:
        logits, carry = state
        tokens = choose(how, _at(keys, number), logits)
        logits, carry, _ = lm.apply(params, tokens[:, None], carry, sparsity=sparsity)
        return (logits[:, -1], carry), tokens

    _, tokens = lax.scan(step, _read(lm, params, prompts, shortest, sparsity), jnp.arange(length))
    return tokens.swapaxes(0, 1)


@partial(jax.jit, static_argnames=("lm", "shortest", "sparsity"))
def _first(lm, params, prompts: Prompts, keys, how: Choice, *, shortest: int, sparsity: float | None):
    logits, carry = _read(lm, params, prompts, shortest, sparsity)
    return choose(how, _at(keys, 0), logits), carry


@partial(jax.jit, static_argnames=("lm", "sparsity"))
def _next(lm, params, tokens, carry, keys, number, how: Choice, *, sparsity: float | None):
    logits, carry, _ = lm.apply(params, tokens[:, None], carry, sparsity=sparsity)
    return choose(how, _at(keys, number), logits[:, -1]), carry


def generate(
    lm: LanguageModel,
    params: Tree,
    prompt_ids: Any,
    *,
    key: Key[Array, ""],
    length: Whole,
    temperature: Real = 1.0,
    top_p: Real = 1.0,
    ban: Any = (),
    sparsity: Real | None = None,
) -> Int32[Array, "*b length"]:
    """Draws the tokens that follow a prompt, or each of several prompts, one after the other.

    Example:
        ```python
        from bwds.generate import generate

        lm, key = bwds.language_model(config), jax.random.key(0)
        params = bwds.decode_params(params, config)
        generate(lm, params, [5, 6], key=key, length=20)                      # [20]
        generate(lm, params, [[5, 6], [1, 2, 3]], key=key, length=20)         # [2, 20], prompts of any lengths
        ```

    It compiles once for each model, length, number of prompts, length of the shortest and of the longest prompt, and
    way to choose tokens: the most probable one, any, or one of the most probable; with banned ones or without. Nothing
    is read back from the device before the last token. Row b of several prompts draws with
    ``jax.random.fold_in(key, b)``, so it is what it would be alone with that key, up to rounding.

    Args:
        lm: the model.
        params: its parameters; those that ``decode_params`` lays out are the fastest.
        prompt_ids: ids of at least one token, [P], of Python, NumPy or JAX; ``<eos>`` alone starts a new line. Or
            several such prompts, [B, P] or a list.
        key: one key of ``jax.random.key``; the same key gives the same tokens.
        length: number of tokens, at least 1.
        temperature: divides the logits; 0, or less than 1.2e-38, always takes the most probable token.
        top_p: in (0, 1]; draws from the most probable tokens that together have this probability (arXiv 1904.09751).
            Below 1 it sorts the vocabulary for every token.
        ban: ids of tokens that are never drawn, such as that of ``<unk>``.
        sparsity: fraction of blocks omitted instead of the configuration's, in [0, 1); for the method dynamic only.

    Returns:
        The new tokens, int32 [length], or [B, length] for several prompts.

    Raises:
        ValueError: an argument is out of range.
    """
    length = _number_of_tokens(length)
    arguments, options, several = _prepared(params, prompt_ids, key, temperature, top_p, ban, sparsity)
    tokens = _decode(lm, *arguments, length=length, **options)
    return tokens if several else tokens[0]


def stream(
    lm: LanguageModel,
    params: Tree,
    prompt_ids: Any,
    *,
    key: Key[Array, ""],
    length: Whole | None = None,
    temperature: Real = 1.0,
    top_p: Real = 1.0,
    ban: Any = (),
    sparsity: Real | None = None,
) -> Iterator[Any]:
    """The tokens of ``generate``, each as soon as it is known.

    Example:
        ```python
        from bwds.generate import stream

        lm = bwds.language_model(config)
        for token in stream(lm, params, [5, 6], key=jax.random.key(0), length=20):
            print(vocabulary.words[token], end=" ", flush=True)
        ```

    The device works on the next token while the caller has the one before.

    Args:
        lm: as in ``generate``.
        params: as in ``generate``.
        prompt_ids: as in ``generate``.
        key: as in ``generate``.
        length: number of tokens, at least 1; None: there is no end.
        temperature: as in ``generate``.
        top_p: as in ``generate``.
        ban: as in ``generate``.
        sparsity: as in ``generate``.

    Returns:
        An iterator of ints, or of int32 arrays [B] for several prompts.

    Raises:
        ValueError: an argument is out of range. It is raised by the call itself, not with the first token.
    """
    numbers = itertools.count(1) if length is None else range(1, _number_of_tokens(length))
    (params, prompts, keys, how), options, several = _prepared(
        params, prompt_ids, key, temperature, top_p, ban, sparsity
    )

    def tokens() -> Iterator[Any]:
        chosen, carry = _first(lm, params, prompts, keys, how, **options)
        for number in numbers:
            known = chosen
            chosen, carry = _next(lm, params, chosen, carry, keys, number, how, sparsity=options["sparsity"])
            yield np.asarray(known) if several else int(known[0])
        yield np.asarray(chosen) if several else int(chosen[0])

    return tokens()


def _number_of_tokens(length: Any) -> int:
    number = known_number("length", length, whole=True)
    require(1 <= number < 2**31, f"The number of tokens is {number}; it must be at least 1 and less than 2**31.")
    return int(number)


def _prepared(params: Any, prompt_ids: Any, key: Any, temperature: Any, top_p: Any, ban: Any, sparsity: Any) -> Any:
    """The arrays of the loops, their static arguments, and whether there are several prompts."""
    params = plain("params", params)
    # If there is no embedding, the model raises the error.
    shape = np.shape(params.get("embedding", {}))
    vocab_size = shape[0] if shape else 2**31 - 1
    rows, several = _rows(prompt_ids)
    lengths = [row.shape[0] for row in rows]
    ids = [fitting_tokens("prompt_ids", row, vocab_size) for row in rows]
    even = min(lengths) == max(lengths)
    tokens = jnp.stack([jnp.pad(row, (0, max(lengths) - row.shape[0])) for row in ids])
    prompts = Prompts(tokens, None if even else jnp.asarray(lengths, jnp.int32))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(rows))) if several else key[None]
    how = choice(temperature, top_p, ban if shape else (), vocab_size)
    if sparsity is not None:
        check_sparsity(sparsity)
        sparsity = float(known_number("sparsity", sparsity))
    return (params, prompts, keys, how), {"shortest": min(lengths), "sparsity": sparsity}, several


def _rows(prompt_ids: Any) -> tuple[list[Any], bool]:
    """The prompts, [P] each, and whether they were given as several."""
    listed = isinstance(prompt_ids, list | tuple)
    several = any(np.ndim(row) > 0 for row in prompt_ids[:1]) if listed else np.ndim(prompt_ids) > 1
    rows = list(prompt_ids) if several else [prompt_ids]
    rows = [row if isinstance(row, jax.core.Tracer) else np.asarray(row) for row in rows]
    require(len(rows) > 0, "prompt_ids hold no prompt; give one at least.")
    for row in rows:
        require(
            row.ndim == 1 and row.size > 0,
            f"prompt_ids have shape {row.shape}; they must be [P] with at least one token, or several such prompts.",
        )
    return rows, several


@partial(jax.jit, static_argnames=("lm", "steps"))
def greedy_rollout(
    lm: LanguageModel, params: Params, first: Int[Array, " B"], carry: Any, *, steps: int
) -> tuple[Int32[Array, "B steps"], Any]:
    """Greedy decoding of B streams side by side; nothing is read back between two tokens.

    Args:
        lm: the model.
        params: its parameters; those that ``decode_params`` lays out are the fastest.
        first: the token that each stream starts with, [B].
        carry: state before these tokens, as ``lm.init_carry(B)`` makes it.
        steps: number of tokens, at least 1.

    Returns:
        The tokens that follow, int32 [B, steps], and the carry to go on with.
    """

    def step(state: Any, _: Any) -> tuple[Any, Array]:
        tokens, carry = state
        logits, carry, _ = lm.apply(params, tokens[:, None], carry)
        tokens = logits[:, -1].argmax(-1).astype(jnp.int32)
        return (tokens, carry), tokens

    (_, carry), tokens = lax.scan(step, (first.astype(jnp.int32), carry), length=steps)
    return tokens.swapaxes(0, 1), carry
