"""From a dense model to a dynamic one without training: blocks chosen by norms, calibrated on a little text.

A dense model has no gate, so blocks compete by ||x_r|| ||w_rc|| (``bwds.norms``). Two things make that choice lose
less; both are decided on calibration text, and neither costs a multiply-add of the model:

- units that are active together are put into one block (``bwds.permutation``), so that for any one input some blocks
  matter much more than others;
- matrices that can do without more of their blocks get a smaller share of all that are kept (``bwds.budgets``).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bwds.arguments import Tree, fitting, fitting_tokens, require_config
from bwds.array_types import Array, Float, Int32, Real
from bwds.checks import check_sparsity, python_number, require
from bwds.config import ModelConfig
from bwds.counterfactual import gated_matrices
from bwds.counts import num_kept_blocks
from bwds.linear import Params
from bwds.losses import cross_entropy
from bwds.model import CELLS, LanguageModel, language_model, parameter_shapes
from bwds.permutation import group_units, permute_units
from bwds.tensors import flat

# Budgets move by this share of a matrix's blocks at a time.
_SHARES = 16
# Logits of calibration text that are held at a time, in numbers.
_MOST_LOGITS = 2**23


def convert(
    params: Tree,
    config: ModelConfig,
    *,
    sparsity: Real,
    tokens: Int32[Any, "B T"],
    block_size: int | None = None,
    group: bool = True,
    budgets: bool = True,
) -> tuple[Params, ModelConfig]:
    """A dynamic model, with ``gate_source="norm"``, from a dense one.

    The score of a block is ||x_r|| * ||w_rc||_F, and kept gates are one, so there is nothing to train.

    Example:
        ```python
        params, config = bwds.convert(params, config, sparsity=0.5, tokens=tokens)
        lm = bwds.language_model(config)
        logits, carry, info = lm.apply(params, tokens, lm.init_carry(len(tokens)))
        ```

    At sparsity 0 it computes what the dense model does, up to rounding. Do not give it a carry of the dense model: its
    units have another order.

    Args:
        params: of a model of method "dense", or of one that computes as it does, "magnitude" or "static-block".
        config: the model's.
        sparsity: fraction of all blocks omitted, in [0, 1). ``budgets`` do not change how many blocks are kept in all.
        tokens: calibration text, int32 [B, T] with T at least 2, in B streams; some thousands of tokens.
        block_size: rows and columns of a block; None: the configuration's.
        group: put units that are active together into one block.
        budgets: give each matrix a sparsity of its own, by a greedy search on the calibration loss.

    Returns:
        Parameters and configuration of the dynamic model, whose ``sparsities`` are the budgets.

    Raises:
        ValueError: the model has gates already, or an argument is out of range or does not fit.
    """
    require_config(config)
    require(
        config.method != "dynamic",
        "method is 'dynamic'; only a model without gates can be converted. For another sparsity of this one take "
        "dataclasses.replace(config, sparsity=...).",
    )
    check_sparsity(sparsity)
    dynamic = replace(
        config,
        method="dynamic",
        gate_source="norm",
        gate_rank=None,
        gate_normalization="mean",
        sparsity=float(python_number(sparsity)),
        sparsities=None,
        block_size=config.block_size if block_size is None else block_size,
    )
    for name, (rows, columns) in gated_matrices(dynamic).items():
        fewest = columns if dynamic.gate_scope == "column" else 1
        require(
            (1.0 - dynamic.sparsity) * rows * columns > fewest - 1e-6,
            f"sparsity is {dynamic.sparsity:g}, and of the {rows} x {columns} blocks of {name} at least {fewest} must "
            f"be kept: take at most {1.0 - fewest / (rows * columns):.4g}, or smaller blocks.",
        )
    params = fitting(params, parameter_shapes(config), config)
    for name, leaf in flat(params).items():
        require(not isinstance(leaf, jax.core.Tracer), "params are traced; convert outside of jit, by their values.")
        require(bool(jnp.isfinite(leaf).all()), f"params hold numbers in {name} that are not finite.")
    tokens = fitting_tokens("tokens", tokens, config.vocab_size)
    require(
        tokens.ndim == 2 and tokens.shape[0] >= 1 and tokens.shape[1] >= 2,
        f"tokens have shape {tokens.shape}; calibration text is [B, T], each of the B streams of at least two tokens.",
    )
    if group:
        params = permute_units(params, config, _orders(params, dynamic, layer_inputs(params, config, tokens)))
    params = _gated(params)
    return params, share_blocks(params, dynamic, tokens) if budgets else dynamic


def layer_inputs(params: Params, config: ModelConfig, tokens: Int32[Array, "B T"]) -> list[Float[np.ndarray, "n H"]]:
    """Embeddings of the tokens and the outputs of every layer of a dense model, one row a token: L + 1 arrays."""
    _, run, init_carry, _ = CELLS[config.cell]
    run = jax.jit(partial(run, config=replace(config, method="dense")))
    x = params["embedding"][tokens].astype(config.dtype)
    found = [x]
    for i in range(config.num_layers):
        x, _, _ = run(params[f"layer_{i}"], x, init_carry(tokens.shape[0], config))
        found.append(x)
    return [np.asarray(x.astype(jnp.float32)).reshape(-1, config.hidden_size) for x in found]


def _readers(params: Params, config: ModelConfig, place: int) -> list[Float[np.ndarray, "H N"]]:
    """The gated matrices that read the embedding (place 0) or the output of layer place - 1: one row per unit."""
    h, read = config.hidden_size, []
    if place < config.num_layers:
        kernel = np.asarray(params[f"layer_{place}"]["input"]["kernel"])
        read += [kernel[i : i + h] for i in range(0, kernel.shape[0], h)]
    if place > 0 and config.cell == "lstm":
        read.append(np.asarray(params[f"layer_{place - 1}"]["hidden"]["kernel"]))
    return read


def _orders(params: Params, config: ModelConfig, inputs: list[np.ndarray]) -> list[np.ndarray]:
    orders = []
    for place, x in enumerate(inputs):
        weights = sum(np.square(kernel).sum(1) for kernel in _readers(params, config, place))
        orders.append(group_units(np.abs(x) * np.sqrt(weights), config.block_size))
    if config.tied_softmax:
        # The last layer's units are the embedding's. A recurrent product of the LSTM reads them; in a QRNN no gated
        # product does.
        orders[-1 if config.cell == "qrnn" else 0] = orders[0 if config.cell == "qrnn" else -1]
    return orders


def _gated(params: Params) -> Params:
    """The parameters with an empty gate beside each gated kernel: gates of norms have no parameters."""

    def visit(name: str, value: Any) -> Any:
        if name in ("input", "hidden"):
            return {**value, "gate": {}}
        return {part: visit(part, of) for part, of in value.items()} if isinstance(value, dict) else value

    return {name: visit(name, value) for name, value in params.items()}


def share_blocks(params: Tree, config: ModelConfig, tokens: Int32[Any, "B T"]) -> ModelConfig:
    """The configuration with a sparsity for each matrix, found on a text; their mean is the configuration's sparsity.

    The search begins with all blocks. It takes a share of the blocks from the matrix where the loss then rises least,
    until as many are left as equal shares would leave. The rise grows as blocks become fewer, so a matrix is measured
    again only if its last measured rise is the smallest.

    Args:
        params: of the model, of method dynamic.
        config: the model's.
        tokens: calibration text [B, T].
    """
    names = config.matrices
    kernel = params["layer_0"]["input"]["kernel"]
    (k, n), (bk, bn) = kernel.shape, config.block_shape
    # With scope "column" this counts the blocks of one column.
    total = k // bk if config.gate_scope == "column" else (k // bk) * (n // bn)
    left = len(names) * (total - num_kept_blocks(total, config.sparsity))
    loss_of = _calibration_loss(language_model(replace(config, sparsities=None)), params, jnp.asarray(tokens))
    omitted = dict.fromkeys(names, 0)

    def loss_with(name: str, more: int) -> float:
        return loss_of({other: (omitted[other] + more * (other == name)) / total for other in names})

    share = max(1, total // _SHARES)
    loss = loss_of(dict.fromkeys(names, 0.0))
    rise = dict.fromkeys(names, -np.inf)
    after: dict[str, float] = {}
    while left:
        name = min((name for name in names if omitted[name] < total - 1), key=rise.__getitem__)
        more = min(share, left, total - 1 - omitted[name])
        if name not in after:
            after[name] = loss_with(name, more)
            rise[name] = (after[name] - loss) / more
            continue
        loss = after[name]
        omitted[name], left, after = omitted[name] + more, left - more, {}
    # Whole blocks miss the sparsity by a little. All matrices share that rest, so that their mean is the model's.
    rest = config.sparsity - sum(omitted.values()) / (total * len(names))
    return replace(config, sparsities=tuple((name, omitted[name] / total + rest) for name in names))


def _calibration_loss(lm: LanguageModel, params: Tree, tokens: Array) -> Callable[[dict[str, float]], float]:
    """The mean loss of all tokens but the first of each stream as a function of the matrices' sparsities."""
    batch, vocab_size = tokens.shape[0], params["softmax"]["bias"].shape[0]
    length = max(1, _MOST_LOGITS // (batch * vocab_size))

    @jax.jit
    def window(params, inputs, targets, carry, sparsities):
        logits, carry, _ = lm.apply(params, inputs, carry, sparsity=sparsities)
        return cross_entropy(logits, targets).sum(), carry

    def loss(sparsities: dict[str, float]) -> float:
        traced = {name: np.float32(value) for name, value in sparsities.items()}
        carry, sums = lm.init_carry(batch), []
        for start in range(0, tokens.shape[1] - 1, length):
            targets = tokens[:, start + 1 : start + 1 + length]
            found, carry = window(params, tokens[:, start : start + targets.shape[1]], targets, carry, traced)
            sums.append(found)
        return float(np.sum(jax.device_get(sums), dtype=np.float64)) / (batch * (tokens.shape[1] - 1))

    return loss
