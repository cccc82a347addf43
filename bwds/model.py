"""The language model: embedding, recurrent layers, softmax, as three pure functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from bwds.arguments import Tree, batch_size, fitting, fitting_state, fitting_tokens, require_config, require_key
from bwds.array_types import Array, Bool, Float, Integer
from bwds.budgets import layer_sparsities
from bwds.collectives import MODEL, look_up, pmean
from bwds.config import ModelConfig
from bwds.dropout import dropout, embedding_dropout, weight_dropout
from bwds.linear import Params, cast_matrices, decoding_layout, with_norms, without_norms
from bwds.lstm import init_lstm, init_lstm_carry, lstm
from bwds.qrnn import init_qrnn, init_qrnn_carry, qrnn
from bwds.serialization import serializable
from bwds.sparsity import block_diagonal_mask, diagonal_groups, where_kept
from pallas_kernels.dense import matmul
from pallas_kernels.explicit_axes import spec_of, takes_explicit_axes
from pallas_kernels.sizes import one_at_least


@serializable
class Info(NamedTuple):
    """Which blocks a call of the model used, and the terms of regularisation.

    Example:
        ```python
        model = bwds.ModelConfig(vocab_size=1000, hidden_size=128, block_size=32, gate_activation="softplus")
        lm = bwds.language_model(model)
        tokens = jnp.zeros((4, 10), jnp.int32)
        logits, carry, info = lm.apply(lm.init(jax.random.key(0)), tokens, lm.init_carry(4))
        print(info.density, {name: used.shape for name, used in info.usage.items()})
        ```

    Attributes:
        density: float32 scalar, mean share of blocks used over the gated matrices; for pruned and static-block models
            the share of the recurrent layers' weights that are not zero; 1 for a dense model.
        usage: for each gated matrix, by name, the share of inputs that used each block, float32 [R, C].
        output_square: float32 scalar, mean square of the last layer's output after dropout, the term of activation
            regularisation (AR of AWD-LSTM, arXiv 1708.02182).
        output_change: float32 scalar, mean square of the change of that output from one step of the window to the
            next, before dropout, the term of temporal activation regularisation (TAR); 0 for one step.
    """

    density: Float[Array, ""]
    usage: dict[str, Float[Array, "R C"]]
    output_square: Float[Array, ""]
    output_change: Float[Array, ""]


class LanguageModel(NamedTuple):
    """Pure functions of one model.

    Example:
        ```python
        lm = bwds.language_model(config)
        apply = jax.jit(lm.apply)
        logits, carry, info = apply(params, tokens, lm.init_carry(len(tokens)))
        logits, carry, info = apply(params, tokens, carry)                      # the state runs on
        ```

    Attributes:
        init: ``init(key) -> params``, a nested dict of float32 arrays.
        apply: ``apply(params, tokens, carry, *, dropout_key=None, sparsity=None) -> (logits, carry, info)`` with
            tokens int32 [B, T] and logits float32 [B, T, V]. Without ``dropout_key`` it is deterministic.
            ``sparsity`` replaces the configuration's and may be traced, so that a schedule needs no recompilation;
            only the method dynamic uses it. A number is the sparsity of the model, and each matrix gets its share by
            ``ModelConfig.sparsities``; a mapping has one number for each matrix, by the names of ``config.matrices``.
            ``params`` may also come from ``decode_params``, and be any mappings, such as a FrozenDict or nnx.State.
            A ``ValueError`` names the argument that does not fit the configuration. Token ids outside of the
            vocabulary are refused in arrays of NumPy, and clipped to it in arrays of JAX.
        init_carry: ``init_carry(batch) -> carry``: float32 zeros, an ``LSTMCarry`` or ``QRNNCarry`` for each layer.
    """

    init: Callable[[Array], Params]
    apply: Callable[..., tuple[Array, tuple[Any, ...], Info]]
    init_carry: Callable[[int], tuple[Any, ...]]


# The last entry is the product to which weight dropout applies: the recurrent one of an LSTM. A QRNN has a single
# product, and AWD-QRNN (Merity et al. 2018, arXiv 1803.08240) applies it to that.
CELLS = {
    "lstm": (init_lstm, lstm, init_lstm_carry, "hidden"),
    "qrnn": (init_qrnn, qrnn, init_qrnn_carry, "input"),
}


def language_model(config: ModelConfig) -> LanguageModel:
    """The model of a configuration: LSTM or QRNN layers, dense or block-wise dynamically sparse (arXiv 2001.04686).

    Pruned and static-block models compute as dense ones, with zeros among the weights. A static-block model has its
    zeros from the start; ``bwds.training.pruning`` keeps weights at zero in training. Equal configurations give one and
    the same model, so that its compiled programs are used again.

    Example:
        ```python
        model = bwds.ModelConfig(vocab_size=1000, hidden_size=128, block_size=32, gate_activation="softplus")
        lm = bwds.language_model(model)
        params = lm.init(jax.random.key(0))
        tokens = jax.random.randint(jax.random.key(1), (4, 10), 0, 1000)
        logits, carry, info = lm.apply(params, tokens, lm.init_carry(4))        # logits [4, 10, 1000]
        ```

    Raises:
        ValueError: ``config`` is no ``ModelConfig``.
    """
    require_config(config)
    return _language_model(config)


@functools.cache
def _language_model(config: ModelConfig) -> LanguageModel:
    init_layer, apply_layer, init_layer_carry, weight_dropped = CELLS[config.cell]
    dtype = jnp.dtype(config.dtype)
    first_rate, hidden_rate = (
        config.dropout if rate is None else rate for rate in (config.dropout_input, config.dropout_hidden)
    )

    def init(key: Array) -> Params:
        require_key("key", key)
        embedding_key, softmax_key, *layer_keys = jax.random.split(key, 2 + config.num_layers)

        def uniform(key, shape):
            bound = 0.1 if config.init_bound is None else config.init_bound
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        params: Params = {"embedding": uniform(embedding_key, (config.vocab_size, config.hidden_size))}
        for i, layer_key in enumerate(layer_keys):
            params[f"layer_{i}"] = init_layer(layer_key, config)
        shape = (config.vocab_size,)
        zeros = config.init_bound is None
        bias = jnp.zeros(shape, jnp.float32) if zeros else uniform(jax.random.fold_in(softmax_key, 0), shape)
        params["softmax"] = {"bias": bias}
        if not config.tied_softmax:
            params["softmax"]["kernel"] = uniform(softmax_key, (config.hidden_size, config.vocab_size))
        if config.method == "static-block":
            params = map_kernels(lambda _, kernel: _block_diagonal(kernel, config), params)
        return params

    @takes_explicit_axes(
        lambda params, tokens, carry, **_: (
            PartitionSpec(*spec_of(tokens), None),
            jax.tree.map(spec_of, carry),
            PartitionSpec(),
        )
    )
    def apply(
        params: Tree,
        tokens: Integer[Any, "B T"],
        carry: tuple[Any, ...],
        *,
        dropout_key: Array | None = None,
        sparsity: Any = None,
    ) -> tuple[Float[Array, "B T V"], tuple[Any, ...], Info]:
        params = fitting(params, parameter_shapes(config), config)
        tokens = fitting_tokens("tokens", tokens, config.vocab_size)
        carry = _fitting_carry(carry, tokens, init_layer_carry, config)
        count = config.num_layers
        if dropout_key is not None:
            require_key("dropout_key", dropout_key)
        keys = [None] * (2 * count + 2) if dropout_key is None else list(jax.random.split(dropout_key, 2 * count + 2))
        *layer_keys, output_key = keys[: count + 1]
        embedding_key, *weight_keys = keys[count + 1 :]
        x = look_up(params["embedding"], tokens).astype(dtype)
        x = embedding_dropout(embedding_key, x, tokens, config.embedding_dropout, vocab_size=config.vocab_size)
        carry_out, used = [], {}
        for i in range(count):
            x = dropout(layer_keys[i], x, hidden_rate if i else first_rate, locked=config.locked_dropout)
            layer = _drop_weights(weight_keys[i], params[f"layer_{i}"], weight_dropped, config.weight_dropout)
            x, layer_carry, stats = apply_layer(
                layer, x, carry[i], config, sparsity=layer_sparsities(config, i, sparsity)
            )
            carry_out.append(layer_carry)
            used |= {f"layer_{i}/{name}": value for name, value in stats.items()}
        output_change = jnp.square(jnp.diff(x.astype(jnp.float32), axis=1)).sum() / one_at_least(x[:, 1:].size)
        x = dropout(output_key, x, config.dropout, locked=config.locked_dropout)
        output_square = jnp.square(x.astype(jnp.float32)).mean()
        logits = output_logits(params, x, config)
        density = jnp.stack([u.mean() for u in used.values()]).mean() if used else jnp.float32(1.0)
        if config.method in ("static-block", "magnitude"):
            kernels = recurrent_kernels(params).values()
            density = pmean(jnp.stack([jnp.count_nonzero(k) / k.size for k in kernels]).mean(), MODEL)
        return logits, tuple(carry_out), Info(density, used, output_square, output_change)

    def init_carry(batch: Any) -> tuple[Any, ...]:
        batch = batch_size(batch, minimum=0)
        return tuple(init_layer_carry(batch, config) for _ in range(config.num_layers))

    return LanguageModel(init, apply, init_carry)


def output_logits(params: Params, x: Float[Array, "B T H"], config: ModelConfig) -> Float[Array, "B T V"]:
    """Logits of the last layer's outputs, float32."""
    # XLA's product with a transposed matrix is fast in every dtype, so this one needs no ``matmul``.
    logits = (
        jnp.matmul(x, params["embedding"].astype(x.dtype).T, preferred_element_type=jnp.float32)
        if config.tied_softmax
        else matmul(x, params["softmax"]["kernel"].astype(x.dtype))
    )
    return logits + params["softmax"]["bias"][None, None, :]


def _drop_weights(key: Array | None, layer: Params, name: str, rate: float) -> Params:
    """The layer with dropped weights in one of its products. Dropped weights are zero; their blocks are still read."""
    product = layer[name] if key is None or rate == 0.0 else without_norms(layer[name])
    return {**layer, name: {**product, "kernel": weight_dropout(key, product["kernel"], rate)}}


def _kernel_name(path: tuple[Any, ...]) -> str | None:
    keys = [key.key for key in path]
    is_kernel = len(keys) == 3 and keys[0].startswith("layer_") and keys[2] == "kernel"
    return f"{keys[0]}/{keys[1]}" if is_kernel else None


def recurrent_kernels(params: Params) -> dict[str, Float[Array, "K N"]]:
    """The recurrent layers' matrices by name, as in ``Info.usage``: those that sparsity applies to."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {name: leaf for path, leaf in leaves if (name := _kernel_name(path)) is not None}


def map_kernels(change: Callable[[str, Array], Array], params: Params) -> Params:
    """The parameters with ``change(name, kernel)`` in place of each of the recurrent layers' matrices."""

    def visit(path: tuple[Any, ...], leaf: Array) -> Array:
        name = _kernel_name(path)
        return leaf if name is None else change(name, leaf)

    return jax.tree_util.tree_map_with_path(visit, params)


def static_mask(config: ModelConfig, shape: tuple[int, ...]) -> Bool[np.ndarray, "R C"]:
    """Blocks that a static-block model keeps of a recurrent layer's matrix of this shape."""
    num_blocks = config.hidden_size // config.block_size
    grid = (shape[0] // config.block_size, shape[1] // config.block_size)
    return block_diagonal_mask(grid, num_blocks, diagonal_groups(num_blocks, config.sparsity))


def _block_diagonal(kernel: Float[Array, "K N"], config: ModelConfig) -> Float[Array, "K N"]:
    """The kernel inside the mask, in the range ±1/sqrt(H / G) of the G narrow models it stands for, or ±init_bound."""
    mask = static_mask(config, kernel.shape)
    return where_kept(mask, kernel if config.init_bound else kernel * mask.mean() ** -0.5)


@functools.lru_cache(maxsize=64)
def parameter_shapes(config: ModelConfig) -> Params:
    """The shapes of the parameters that ``init`` makes for a configuration."""
    return jax.eval_shape(lambda seed: language_model(config).init(jax.random.key(seed)), 0)


def decode_params(params: Tree, config: ModelConfig) -> Params:
    """The same parameters laid out for decoding: gated kernels block-major, all matrices in the compute dtype.

    A kept block is then one contiguous read. On a CPU, kernels of small blocks of which many are kept stay as they are,
    because a product over all blocks is faster there. ``apply`` takes either layout; this one is for inference. The
    embedding stays float32 unless it is the softmax too: only a few of its rows are read, and on a CPU XLA would
    convert a whole embedding of bfloat16. Parameters that are already laid out stay as they are.

    Example:
        ```python
        model = bwds.ModelConfig(vocab_size=1000, hidden_size=128, block_size=32, gate_activation="softplus")
        lm = bwds.language_model(model)
        fast = bwds.decode_params(lm.init(jax.random.key(0)), model)
        logits, carry, info = lm.apply(fast, jnp.zeros((1, 1), jnp.int32), lm.init_carry(1))
        ```

    Args:
        params: as ``LanguageModel.init`` makes them, or laid out already.
        config: the model's.

    Raises:
        ValueError: ``params`` are not those of a model of this configuration.
    """
    require_config(config)
    params = fitting(params, parameter_shapes(config), config)
    if config.gate_source == "norm":
        params = with_norms(params, config.block_shape)
    cast = cast_matrices(params, jnp.dtype(config.dtype))
    params = cast if config.tied_softmax else {**cast, "embedding": params["embedding"]}
    return decoding_layout(params, config.block_shape, config.sparsity)


def _fitting_carry(
    carry: Any, tokens: Array, init_layer_carry: Callable[..., Any], config: ModelConfig
) -> tuple[Any, ...]:
    if tokens.ndim != 2:
        raise ValueError(f"tokens have shape {tokens.shape}; they must be integers [B, T].")
    if tokens.shape[1] < 1:
        raise ValueError(f"tokens have shape {tokens.shape}; there must be at least one time step.")
    if not isinstance(carry, tuple | list) or hasattr(carry, "_fields"):
        raise ValueError(f"carry is a {type(carry).__name__}; it must be a tuple of the states of all layers.")
    if len(carry) != config.num_layers:
        raise ValueError(f"carry holds {len(carry)} layers and the model has {config.num_layers}.")
    wanted = jax.eval_shape(lambda: init_layer_carry(tokens.shape[0], config))
    return tuple(fitting_state(f"carry[{i}]", state, wanted) for i, state in enumerate(carry))
