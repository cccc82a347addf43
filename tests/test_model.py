"""The language model: logits against the oracle, state, dropout, both layouts, both dtypes, what ``info`` reports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import bwds
from bwds import ModelConfig, decode_params, language_model, num_kept_blocks

V, H, B, T = 11, 8, 2, 4
CASES = {
    "lstm": {},
    "lstm dense": {"method": "dense"},
    "qrnn": {"cell": "qrnn", "gate_rank": 3, "tied_softmax": True, "gate_activation": "softplus", "sparsity": 0.7},
    "qrnn dense": {"cell": "qrnn", "method": "dense", "tied_softmax": True},
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (B, T)), jnp.int32)


def configuration(case, **changes):
    return ModelConfig(vocab_size=V, hidden_size=H, block_size=4, **{**CASES[case], **changes})


@functools.partial(jax.jit, static_argnames="config")
def compiled(config, params, tokens, carry, dropout_key, sparsity):
    return language_model(config).apply(params, tokens, carry, dropout_key=dropout_key, sparsity=sparsity)


def run(config, params, tokens, carry=None, dropout_key=None, sparsity=None):
    carry = language_model(config).init_carry(tokens.shape[0]) if carry is None else carry
    return compiled(config, params, tokens, carry, dropout_key, sparsity)


@functools.cache
def parameters(config, seed=0):
    """Initial parameters, enlarged so that rounding does not decide which blocks are kept; softmax bias not zero."""
    params = jax.tree.map(lambda a: 3.0 * a, language_model(config).init(jax.random.key(seed)))
    bias = params["softmax"]["bias"]
    return {**params, "softmax": {**params["softmax"], "bias": bias + jnp.linspace(-0.5, 0.5, V)}}


def grids(config):
    """(R, C) of every gated matrix by name."""
    if config.method == "dense":
        return {}
    n = H // config.block_size
    per_layer = {"input": (n, 4 * n), "hidden": (n, 4 * n)} if config.cell == "lstm" else {"input": (2 * n, 3 * n)}
    return {f"layer_{i}/{name}": grid for i in range(config.num_layers) for name, grid in per_layer.items()}


def oracle_logits(config, params, tokens):
    """Logits [B, T, V], the usage of every matrix by name, and the margin of the choices, from a zero state."""
    params, usage, margins = oracle.f64(params), {}, []
    layer = oracle.lstm if config.cell == "lstm" else oracle.qrnn
    values = params["embedding"][np.asarray(tokens)]
    for i in range(config.num_layers):
        rules = {"input": None, "hidden": None}
        for name, (r, c) in grids(config).items():
            kept = num_kept_blocks(r * c, config.sparsity)
            rules[name.split("/")[1]] = oracle.Rule(r, c, kept, config.gate_activation)
        zero = np.zeros((len(tokens), H))
        trace = layer(params[f"layer_{i}"], values, (zero, zero), rules)
        usage.update({f"layer_{i}/{name}": (g != 0).mean((0, 1)) for name, g in trace.gates.items()})
        values = trace.outputs
        margins.append(trace.margin)
    kernel = params["embedding"].T if config.tied_softmax else params["softmax"]["kernel"]
    return values @ kernel + params["softmax"]["bias"], usage, min(margins)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_info(case):
    config = configuration(case)
    params = parameters(config)
    logits, carry, info = run(config, params, TOKENS)
    wanted, usage, margin = oracle_logits(config, params, TOKENS)
    assert margin > 1e-4, "the choice of blocks must not hang on rounding"
    assert (logits.shape, logits.dtype) == ((B, T, V), jnp.float32)
    np.testing.assert_allclose(logits, wanted, atol=1e-3)
    assert jax.tree.structure(carry) == jax.tree.structure(language_model(config).init_carry(B))
    oracle.assert_close(info.usage, usage, tolerance=1e-6)
    assert (info.density.shape, info.density.dtype) == ((), jnp.float32)
    shares = [num_kept_blocks(r * c, config.sparsity) / (r * c) for r, c in grids(config).values()]
    np.testing.assert_allclose(info.density, np.mean(shares) if shares else 1.0, rtol=1e-6)
    for name, (r, c) in grids(config).items():
        assert (info.usage[name].shape, info.usage[name].dtype) == ((r, c), jnp.float32)
        np.testing.assert_allclose(info.usage[name].sum(), num_kept_blocks(r * c, config.sparsity), rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_carry_at_the_start(case):
    config = configuration(case)
    lm = language_model(config)
    params, again, other = (lm.init(jax.random.key(k)) for k in (0, 0, 1))
    leaves = jax.tree.leaves(params)
    assert all(a.dtype == jnp.float32 for a in leaves)
    assert all(np.array_equal(a, b) for a, b in zip(leaves, jax.tree.leaves(again), strict=True))
    assert not np.array_equal(params["embedding"], other["embedding"])
    assert params["embedding"].shape == (V, H)
    assert ("kernel" in params["softmax"]) != config.tied_softmax
    kernels = [params[f"layer_{i}"]["input"]["kernel"] for i in range(config.num_layers)]
    assert not np.array_equal(*kernels), "each layer draws its own weights"
    assert all(a.shape == (3, H) and not a.any() for a in jax.tree.leaves(lm.init_carry(3)))


@pytest.mark.parametrize("case", CASES)
def test_a_bound_holds_for_all_initial_values_but_those_of_gates(case):
    params = language_model(configuration(case, init_bound=0.03)).init(jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if "'gate'" not in jax.tree_util.keystr(path):
            largest = float(jnp.abs(leaf).max())
            assert 0.02 < largest <= 0.03, jax.tree_util.keystr(path)


@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
def test_the_state_can_be_donated(cell):
    carry = language_model(ModelConfig(hidden_size=16, block_size=8, cell=cell)).init_carry(2)
    after = jax.jit(lambda carry: jax.tree.map(lambda a: a + 1, carry), donate_argnums=0)(carry)
    assert all((a == 1).all() for a in jax.tree.leaves(after))


@pytest.mark.parametrize("case", ["lstm", "qrnn"])
def test_state_carries_over_from_window_to_window(case):
    config = configuration(case)
    params = parameters(config)
    whole, end, info = run(config, params, TOKENS)
    first, carry, info_1 = run(config, params, TOKENS[:, :2])
    second, carry, info_2 = run(config, params, TOKENS[:, 2:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), whole, atol=1e-4)
    for one, other in zip(jax.tree.leaves(carry), jax.tree.leaves(end), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    for name in info.usage:
        np.testing.assert_allclose((info_1.usage[name] + info_2.usage[name]) / 2, info.usage[name], atol=1e-6)
    forgotten = run(config, params, TOKENS[:, 2:])[0]
    assert np.abs(forgotten - second).max() > 1e-3


@pytest.mark.parametrize("case", ["lstm", "qrnn"])
def test_a_stream_does_not_depend_on_its_neighbours_nor_on_its_future(case):
    config = configuration(case)
    params = parameters(config)
    both = run(config, params, TOKENS)[0]
    alone = run(config, params, TOKENS[1:])[0]
    np.testing.assert_allclose(alone, both[1:], atol=1e-4)
    changed = run(config, params, TOKENS.at[:, 3].add(1) % V)[0]
    np.testing.assert_array_equal(changed[:, :3], both[:, :3])
    assert np.abs(changed[:, 3] - both[:, 3]).max() > 1e-3


# Dropout and gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locked", [False, True])
def test_dropout_needs_a_key_and_is_a_function_of_it(locked):
    config = configuration("qrnn dense", dropout=0.5, locked_dropout=locked, num_layers=1)
    params = parameters(config)
    wanted = run(configuration("qrnn dense", num_layers=1), params, TOKENS)[0]
    np.testing.assert_allclose(run(config, params, TOKENS)[0], wanted, atol=1e-6)
    one, same, other = (run(config, params, TOKENS, None, jax.random.key(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    assert np.abs(one - wanted).max() > 1e-3


def test_a_key_without_a_rate_changes_nothing():
    config = configuration("qrnn dense")
    params = parameters(config)
    np.testing.assert_array_equal(
        run(config, params, TOKENS, None, jax.random.key(0))[0], run(config, params, TOKENS)[0]
    )


def cross_entropy(logits, targets):
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    return (log_sum - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]).mean()


@functools.partial(jax.jit, static_argnames="config")
def gradients_of(config, params, tokens, dropout_key=None):
    return jax.grad(lambda p: cross_entropy(run(config, p, tokens, None, dropout_key)[0], tokens))(params)


def assert_finite_and_not_zero(gradients):
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(g).all(), path
        assert np.any(g), path


def test_gradients_with_dropout_are_finite_and_reach_every_parameter():
    config = configuration("lstm", dropout=0.2)
    assert_finite_and_not_zero(gradients_of(config, parameters(config), TOKENS, jax.random.key(0)))


@pytest.mark.parametrize("case", ["lstm dense", "qrnn"])
def test_gradients_of_embedding_and_softmax(case):
    """The tied matrix gets the gradient of both its uses."""
    config = configuration(case, num_layers=1)
    params = parameters(config)
    tokens = np.asarray(TOKENS)

    def loss(some):
        logits, _, margin = oracle_logits(config, {**params, **some}, TOKENS)
        assert margin > 1e-4
        largest = logits.max(-1, keepdims=True)
        log_sum = np.log(np.exp(logits - largest).sum(-1)) + largest[..., 0]
        return float((log_sum - np.take_along_axis(logits, tokens[..., None], -1)[..., 0]).mean())

    wanted = oracle.slopes(loss, {name: params[name] for name in ("embedding", "softmax")})
    actual = gradients_of(config, params, TOKENS)
    assert_finite_and_not_zero(actual)
    oracle.assert_slopes({name: actual[name] for name in wanted}, wanted, tolerance=2e-3)


# Regularisation -------------------------------------------------------------------------------------------------------


def negative_log_likelihood(logits, tokens):
    """Mean over the tokens, in float64."""
    largest = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - largest).sum(-1)) + largest[..., 0]
    return float((log_sum - np.take_along_axis(logits, tokens[..., None], -1)[..., 0]).mean())


@pytest.mark.parametrize("case", CASES)
def test_weight_dropout_against_the_oracle(case):
    """The zeros in the gradient show which weights were dropped; the oracle then has the same matrix."""
    config = configuration(case, num_layers=1, weight_dropout=0.4, implementation="reference")
    params, tokens = parameters(config), np.asarray(TOKENS)
    name = "hidden" if config.cell == "lstm" else "input"
    layer, key = params["layer_0"], jax.random.key(2)
    gradients = gradients_of(config, params, TOKENS, key)["layer_0"]
    kept = np.asarray(gradients[name]["kernel"]) != 0
    other = set(layer) - {name, "bias"}
    if config.method == "dense":
        assert abs(kept.mean() - 0.6) < 4.5 * (0.24 / kept.size) ** 0.5
        assert all(np.all(gradients[product]["kernel"]) for product in other)

    def with_kernel(kernel):
        dropped = np.where(kept, kernel, 0.0) / 0.6
        return oracle_logits(config, {**params, "layer_0": {**layer, name: {**layer[name], "kernel": dropped}}}, TOKENS)

    logits, _, info = run(config, params, TOKENS, None, key)
    wanted, usage, margin = with_kernel(oracle.f64(layer[name]["kernel"]))
    assert margin > 1e-4
    np.testing.assert_allclose(logits, wanted, atol=1e-3)
    oracle.assert_close(info.usage, usage, tolerance=1e-6)

    loss = lambda a: negative_log_likelihood(with_kernel(a["kernel"])[0], tokens)  # noqa: E731
    wanted = oracle.slopes(loss, {"kernel": layer[name]["kernel"]})
    oracle.assert_slopes({"kernel": gradients[name]["kernel"]}, wanted, tolerance=2e-3)


@pytest.mark.parametrize("case", ["lstm", "qrnn"])
def test_weights_are_dropped_once_for_a_window(case):
    """The mask depends on the key alone: a window of four steps is four windows of one with the same key."""
    config = configuration(case, weight_dropout=0.5)
    params, key = parameters(config), jax.random.key(1)
    whole, _, info = run(config, params, TOKENS, None, key)
    carry, steps = None, []
    for t in range(T):
        logits, carry, _ = run(config, params, TOKENS[:, t : t + 1], carry, key)
        steps.append(logits)
    np.testing.assert_allclose(jnp.concatenate(steps, 1), whole, atol=1e-4)
    undropped, _, as_many = run(config, params, TOKENS)
    assert np.abs(whole - undropped).max() > 1e-2
    # As many blocks are read as without dropout: a dropped weight is a zero in its block.
    for name, used in info.usage.items():
        np.testing.assert_allclose(used.sum(), as_many.usage[name].sum(), rtol=1e-5)


def test_a_dropped_word_is_zero_and_the_others_are_scaled():
    config = configuration("lstm dense", num_layers=1, embedding_dropout=0.5)
    params, key = parameters(config), jax.random.key(3)
    gradients = np.asarray(gradients_of(config, params, TOKENS, key)["embedding"])
    kept = np.any(gradients != 0, -1, keepdims=True)
    assert 0 < kept.sum() < len(np.unique(TOKENS))
    dropped = np.where(kept, oracle.f64(params["embedding"]), 0.0) / 0.5
    wanted, _, _ = oracle_logits(config, {**params, "embedding": dropped}, TOKENS)
    np.testing.assert_allclose(run(config, params, TOKENS, None, key)[0], wanted, atol=1e-3)


def test_each_rate_acts_in_its_place():
    def cells(**rates):
        config = configuration("lstm dense", **rates)
        logits, carry, _ = run(config, parameters(configuration("lstm dense")), TOKENS, None, jax.random.key(0))
        return [np.asarray(layer.c) for layer in carry] + [np.asarray(logits)]

    plain = cells()
    at_input, between, at_output = (
        cells(dropout_input=0.5),
        cells(dropout_hidden=0.5),
        cells(dropout=0.5, dropout_input=0.0, dropout_hidden=0.0),
    )
    same = [
        [np.array_equal(a, b) for a, b in zip(plain, other, strict=True)] for other in (at_input, between, at_output)
    ]
    assert same == [[False, False, False], [True, False, False], [True, True, False]]
    everywhere = cells(dropout=0.5)
    for one, other in zip(everywhere, cells(dropout=0.5, dropout_input=0.5, dropout_hidden=0.5), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(everywhere[0], at_input[0])


@pytest.mark.parametrize("case", CASES)
def test_what_activation_regularisation_weighs(case):
    """The softmax copies the last layer's output into the logits, where NumPy can see it."""
    config = configuration(case, tied_softmax=False, dropout=0.5, dropout_input=0.0, dropout_hidden=0.0)
    copying = {"kernel": jnp.eye(H, V), "bias": jnp.zeros(V)}
    params = {**parameters(config), "softmax": copying}
    logits, _, info = run(config, params, TOKENS, None, jax.random.key(0))
    undropped, _, without_key = run(config, params, TOKENS)
    dropped, outputs = oracle.f64(logits)[..., :H], oracle.f64(undropped)[..., :H]
    assert (dropped == 0).mean() > 0.2
    change = np.square(outputs[:, 1:] - outputs[:, :-1]).mean()
    np.testing.assert_allclose(info.output_square, np.square(dropped).mean(), rtol=1e-5)
    np.testing.assert_allclose(without_key.output_square, np.square(outputs).mean(), rtol=1e-5)
    for found in (info, without_key):
        np.testing.assert_allclose(found.output_change, change, rtol=1e-4)
        assert found.output_square.dtype == found.output_change.dtype == jnp.float32
    one_step = run(config, params, TOKENS[:, :1])[2]
    assert float(one_step.output_change) == 0.0


# A schedule of the sparsity -------------------------------------------------------------------------------------------


def test_a_traced_sparsity_replaces_the_configured_one():
    config = configuration("qrnn", sparsity=0.9)
    params = parameters(config)
    for sparsity, density in ((0.0, 1.0), (0.5, 0.5), (0.7, 8 / 24)):
        logits, _, info = run(config, params, TOKENS, None, None, jnp.float32(sparsity))
        wanted, _, _ = oracle_logits(configuration("qrnn", sparsity=sparsity), params, TOKENS)
        np.testing.assert_allclose(info.density, density, rtol=1e-6)
        np.testing.assert_allclose(logits, wanted, atol=1e-3)


# Decoding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_decode_params_give_the_same_logits(case, monkeypatch):
    config = configuration(case)
    params = parameters(config)
    # Blocks as small as these are all computed, from the kernel as it is.
    small = decode_params(params, config)
    jax.tree.map(np.testing.assert_array_equal, small, params)
    monkeypatch.setattr("bwds.linear.pays_to_skip", lambda *_: True)
    laid_out = decode_params(params, config)
    for name, (r, c) in grids(config).items():
        layer, part = name.split("/")
        kernel = laid_out[layer][part]["kernel"]
        assert kernel.shape == (c, r, 4, 4)
        blocks = oracle.block_major(oracle.f64(params[layer][part]["kernel"]), (4, 4))
        np.testing.assert_array_equal(oracle.f64(kernel), blocks)
    logits, carry, info = run(config, laid_out, TOKENS)
    wanted = run(config, params, TOKENS)
    np.testing.assert_allclose(logits, wanted[0], atol=1e-4)
    for one, other in zip(jax.tree.leaves((carry, info)), jax.tree.leaves(wanted[1:]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("case", ["lstm", "qrnn"])
@pytest.mark.parametrize("skips", [True, False])
def test_decoding_never_uses_a_block_that_is_not_kept(case, skips, monkeypatch):
    """At batch 1, token by token, with NaN in every block that no step keeps."""
    monkeypatch.setattr("bwds.linear.pays_to_skip", lambda *_: skips)
    config = configuration(case, sparsity=0.9)
    params = decode_params(parameters(config), config)
    tokens = TOKENS[:1]

    def decode(params):
        carry, rows, used = language_model(config).init_carry(1), [], {}
        for t in range(T):
            logits, carry, info = run(config, params, tokens[:, t : t + 1], carry)
            rows.append(logits[0, 0])
            used = {name: used.get(name, 0) + usage for name, usage in info.usage.items()}
        return np.stack(rows), used

    wanted, used = decode(params)
    poisoned, planted = jax.tree.map(lambda a: a, params), 0
    for name, usage in used.items():
        layer, part = name.split("/")
        never, kernel = usage == 0, poisoned[layer][part]["kernel"]
        planted += int(never.sum())
        where = never.T[:, :, None, None] if skips else np.repeat(np.repeat(never, 4, 0), 4, 1)
        poisoned[layer][part]["kernel"] = jnp.where(where, jnp.nan, kernel)
    assert planted > 0
    np.testing.assert_array_equal(decode(poisoned)[0], wanted)
    np.testing.assert_allclose(wanted, oracle_logits(config, parameters(config), tokens)[0][0], atol=1e-3)


# bfloat16 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["lstm dense", "qrnn"])
def test_bfloat16_is_close_to_float32(case):
    """Every block kept, so that rounding cannot change the choice."""
    config, low = (configuration(case, sparsity=0.0, num_layers=1, dtype=d) for d in ("float32", "bfloat16"))
    params = parameters(config)
    logits, carry, _ = run(low, params, TOKENS)
    wanted = run(config, params, TOKENS)[0]
    assert logits.dtype == jnp.float32
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(carry))
    error = np.abs(logits - wanted).max()
    assert 0 < error < 0.03 * np.abs(wanted).max()
    laid_out = decode_params(params, low)
    assert laid_out["layer_0"]["input"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(run(low, laid_out, TOKENS)[0], logits, atol=0.02 * np.abs(wanted).max())


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("tokens", "batch", "named"),
    [
        (jnp.zeros((B, T), jnp.float32), B, "float32"),
        (jnp.zeros((T,), jnp.int32), B, r"\(4,\)"),
        (jnp.zeros((B, T, 1), jnp.int32), B, r"\(2, 4, 1\)"),
        (jnp.zeros((B, T), jnp.int32), 3, "carry"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(tokens, batch, named):
    lm = language_model(configuration("qrnn dense"))
    params = parameters(configuration("qrnn dense"))
    with pytest.raises(ValueError, match=f"{named}.*\\."):
        lm.apply(params, tokens, lm.init_carry(batch))


@pytest.mark.parametrize("sparsity", [1.0, -0.5])
def test_a_sparsity_out_of_range_is_refused(sparsity):
    config = configuration("qrnn")
    lm = language_model(config)
    with pytest.raises(ValueError, match=rf"sparsity is {sparsity}.*\."):
        lm.apply(parameters(config), TOKENS, lm.init_carry(B), sparsity=sparsity)


def test_the_public_functions_are_the_tested_ones():
    import pallas_kernels

    assert bwds.block_sparse_matmul is pallas_kernels.block_sparse_matmul
    assert bwds.to_block_major is pallas_kernels.to_block_major
    assert bwds.from_block_major is pallas_kernels.from_block_major
