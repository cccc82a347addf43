"""A dynamic model with other blocks than those its gate chooses: what the choice is worth. For evaluation alone.

Only the choice of blocks is replaced. Scores, and the gates of the kept blocks, are the model's own for the input at
hand: gates = a(scores of the blocks kept) * R * C / their sum, as in ``gate_values``.
"""

import math
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import lax

from bwds.arguments import fitting, fitting_tokens
from bwds.array_types import Array, Bool, Float, Integer
from bwds.budgets import layer_sparsities, matrix_sparsity
from bwds.checks import require
from bwds.collectives import look_up
from bwds.config import ModelConfig, Scope
from bwds.counts import kept_count
from bwds.gating import gate_scores
from bwds.linear import GateOptions, Params, cast_matrices, gate_options, multiply_kept, prepare
from bwds.lstm import lstm_cell
from bwds.model import output_logits, parameter_shapes
from bwds.qrnn import QRNNCarry, input_pairs, outputs
from bwds.selection import gate_values, select_blocks
from pallas_kernels import from_block_major

Choice = Literal["own", "hindsight"]
Kept = dict[str, Bool[Array, "B T R C"]]


def apply_choosing(
    params: Params, tokens: Integer[Any, "B T"], carry: tuple[Any, ...], config: ModelConfig, choice: Choice | Kept
) -> tuple[Float[Array, "B T V"], tuple[Any, ...], Kept]:
    """The model without dropout, with the blocks of ``choice``; as ``LanguageModel.apply`` with those of its gate.

    Example:
        ```python
        from bwds.counterfactual import apply_choosing

        config = bwds.ModelConfig(vocab_size=7, hidden_size=32, block_size=8, gate_activation="softplus")
        lm = bwds.language_model(config)
        params = lm.init(jax.random.key(0))
        logits, carry, kept = apply_choosing(params, tokens, lm.init_carry(len(tokens)), config, "own")
        reversed_in_time = {name: marks[:, ::-1] for name, marks in kept.items()}
        other, *_ = apply_choosing(params, tokens, lm.init_carry(len(tokens)), config, reversed_in_time)
        ```

    Args:
        params: as ``LanguageModel.init`` makes them, or laid out by ``bwds.decode_params``.
        tokens: ids [B, T], integers.
        carry: state before them, as ``LanguageModel.init_carry`` makes it.
        config: of a dynamic model.
        choice: "own": the blocks with the largest scores. "hindsight": as many with the largest norm of what they add
            to the product, ||g x_r w_rc||, where g is the gate without the factor that all kept gates share. It looks
            at one product at a time, not at the loss. Or the blocks themselves: for every gated matrix, by its name in
            ``Info.usage``, a mask [B, T, R, C].

    Returns:
        Logits [B, T, V] in float32, the state after the tokens, and by name the masks of the kept blocks, [B, T, R, C].

    Raises:
        ValueError: the model has no gates, ``choice`` is another word or names other matrices than the model's, or
            parameters or tokens are not those of ``config``.
    """
    require(config.method == "dynamic", f"method is {config.method!r}; only a dynamic model chooses blocks.")
    names = gated_matrices(config)
    known = choice in get_args(Choice) if isinstance(choice, str) else choice.keys() == set(names)
    require(known, f"choice is {choice!r}; it must be own, hindsight, or blocks for {', '.join(names)}.")
    params = fitting(params, parameter_shapes(config), config)
    tokens = fitting_tokens("tokens", tokens, config.vocab_size)
    layer = _lstm if config.cell == "lstm" else _qrnn
    x = look_up(params["embedding"], tokens).astype(config.dtype)
    after, kept = [], {}
    for i in range(config.num_layers):
        name = f"layer_{i}"
        of_layer = choice
        if not isinstance(choice, str):
            parts = {key.partition("/"): marks for key, marks in choice.items()}
            of_layer = {key: marks for (owner, _, key), marks in parts.items() if owner == name}
        x, state, marks = layer(params[name], x, carry[i], config, of_layer, layer_sparsities(config, i))
        after.append(state)
        kept |= {f"{name}/{key}": value for key, value in marks.items()}
    return output_logits(params, x, config), tuple(after), kept


def gated_matrices(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(R, C) of every matrix that has a gate, by its name in ``Info.usage``."""
    options = gate_options(config)
    return {} if options is None else dict.fromkeys(config.matrices, options.grid)


def kept_of_each(config: ModelConfig, name: str, grid: tuple[int, int]) -> int:
    """Blocks that an input keeps of the matrix of this name, with this grid."""
    count = int(kept_count(grid, matrix_sparsity(config, name), config.gate_scope))
    return count * grid[1] if config.gate_scope == "column" else count


def most_used(usage: Float[Any, "R C"], config: ModelConfig, name: str) -> Bool[Array, "R C"]:
    """The static choice of a matrix: as many blocks as an input keeps, those that most inputs used.

    If the gate's scope is "column", these are as many of every column.
    """
    count = kept_count(usage.shape, matrix_sparsity(config, name), config.gate_scope)
    return select_blocks(jnp.asarray(usage, jnp.float32), num_kept=count, scope=config.gate_scope)


def chance_overlap(grid: tuple[int, int], num_kept: int, scope: Scope = "matrix") -> float:
    """Mean Jaccard overlap |A and B| / |A or B| of two sets of blocks that are drawn independently and evenly.

    Args:
        grid: (R, C).
        num_kept: blocks of a set; with scope "column" those of one column.
        scope: "matrix", or "column": as many of every column.
    """
    n, copies = (grid[0], grid[1]) if scope == "column" else (grid[0] * grid[1], 1)

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    # Of one group of n blocks, the number in common is hypergeometric; over all columns it is a sum of such numbers.
    common = np.zeros(num_kept + 1)
    for i in range(max(0, 2 * num_kept - n), num_kept + 1):
        log = log_choose(num_kept, i) + log_choose(n - num_kept, num_kept - i) - log_choose(n, num_kept)
        common[i] = math.exp(log)
    total = np.ones(1)
    for _ in range(copies):
        total = np.convolve(total, common)
    shared = np.arange(len(total))
    return float((total * shared / (2 * copies * num_kept - shared)).sum() / total.sum())


def overlap(a: Bool[Array, "*b R C"], b: Bool[Array, "*b R C"]) -> Float[Array, "*b"]:
    """Jaccard overlap of sets of blocks, |A and B| / |A or B|, float32."""
    return (a & b).sum((-2, -1)) / jnp.maximum(1, (a | b).sum((-2, -1)))


def _product(
    params: Params,
    x: Float[Array, "*b K"],
    options: GateOptions,
    sparsity: float,
    rule: Choice,
    marks: Array | None,
) -> tuple[Float[Array, "*b N"], Bool[Array, "*b R C"]]:
    """A gated product and the blocks it kept, ``marks`` if they are given; ``params`` as ``prepare`` leaves them."""
    kernel = params["kernel"].astype(x.dtype)
    scores = gate_scores(params["gate"], x, options.grid, options.source)
    if marks is None:
        count = kept_count(options.grid, sparsity, options.scope)
        ranked = scores if rule == "own" else _added(options, x, kernel, scores)
        marks = select_blocks(ranked, num_kept=count, scope=options.scope, implementation=options.implementation)
    return multiply_kept(options, x, kernel, scores, marks)[0], marks


def _added(options: GateOptions, x: Array, kernel: Array, scores: Array) -> Float[Array, "*b R C"]:
    """||g x_r w_rc|| of all blocks but for a factor they share, float32."""
    r, c = options.grid
    kernel = from_block_major(kernel) if kernel.ndim == 4 else kernel
    rows = x.reshape(-1, r, x.shape[-1] // r).swapaxes(0, 1)

    def norms(of_row: tuple[Array, Array]) -> Array:
        y = jnp.matmul(*of_row, preferred_element_type=jnp.float32)
        return jnp.sqrt(jnp.square(y.reshape(len(y), c, -1)).sum(-1))

    # A row of blocks at a time: products of all of them would be R times the size of the output.
    added = lax.map(norms, (rows, kernel.reshape(r, -1, kernel.shape[1]))).swapaxes(0, 1).reshape(scores.shape)
    if options.source in ("norm", "random"):
        return added
    every = jnp.ones(scores.shape, bool)
    return added * jnp.abs(gate_values(scores, every, activation=options.activation, normalization="none"))


def _rule(choice: Choice | Kept) -> tuple[Choice, Kept]:
    """The rule that chooses blocks, and the blocks that replace its choice, if any."""
    return (choice, {}) if isinstance(choice, str) else ("own", choice)


def _lstm(
    params: Params, x: Array, carry: Any, config: ModelConfig, choice: Choice | Kept, sparsity: dict[str, float]
) -> tuple[Array, Any, Kept]:
    options = gate_options(config)
    assert options is not None
    rule, given = _rule(choice)
    z, kept_of_input = _product(
        prepare(params["input"], options), x, options, sparsity["input"], rule, given.get("input")
    )
    hidden = cast_matrices(prepare(params["hidden"], options), z.dtype)

    def step(carry, at):
        z, marks = at
        y, kept = _product(hidden, carry.h.astype(z.dtype), options, sparsity["hidden"], rule, marks)
        total = z.astype(jnp.float32) + y.astype(jnp.float32) + params["bias"][None, :]
        after, _, _ = lstm_cell(total, carry.c)
        return after, (after.h.astype(z.dtype), kept)

    marks = given["hidden"].swapaxes(0, 1) if given else None
    after, (hs, kept) = lax.scan(step, carry, (z.swapaxes(0, 1), marks))
    return hs.swapaxes(0, 1), after, {"input": kept_of_input, "hidden": kept.swapaxes(0, 1)}


def _qrnn(
    params: Params, x: Array, carry: Any, config: ModelConfig, choice: Choice | Kept, sparsity: dict[str, float]
) -> tuple[Array, Any, Kept]:
    options = gate_options(config)
    assert options is not None
    rule, given = _rule(choice)
    pairs = input_pairs(x, carry)
    total, kept = _product(
        prepare(params["input"], options), pairs, options, sparsity["input"], rule, given.get("input")
    )
    y, c = outputs(total.astype(jnp.float32) + params["bias"][None, None, :], carry.c)
    return y.astype(x.dtype), QRNNCarry(x[:, -1].astype(jnp.float32), c), {"input": kept}
