"""Hidden units in another order: the same function, and blocks of units that are active together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bwds import ModelConfig, language_model
from bwds.permutation import group_units, permute_units

H = 16
TOKENS = np.random.default_rng(0).integers(0, 20, (2, 5)).astype(np.int32)


def model(cell, layers, tied, **options):
    return ModelConfig(
        vocab_size=20,
        hidden_size=H,
        num_layers=layers,
        cell=cell,
        tied_softmax=tied,
        method="dense",
        init_bound=0.5,
        **options,
    )


def orders(config, seed=0):
    rng = np.random.default_rng(seed)
    found = [rng.permutation(H) for _ in range(config.num_layers + 1)]
    return [found[-1], *found[1:]] if config.tied_softmax else found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
def test_logits_stay_the_same_and_states_move_along(cell, layers, tied):
    config = model(cell, layers, tied)
    lm = language_model(config)
    params, places = lm.init(jax.random.key(1)), orders(config)
    permuted = permute_units(params, config, places)
    # Two windows: what the first leaves in the state counts in the second.
    carry, moved = lm.init_carry(2), lm.init_carry(2)
    for tokens in (TOKENS[:, :3], TOKENS[:, 3:]):
        logits, carry, _ = lm.apply(params, tokens, carry)
        same, moved, _ = lm.apply(permuted, tokens, moved)
        np.testing.assert_allclose(same, logits, rtol=0, atol=1e-5)
    assert np.abs(logits - logits.mean()).max() > 0.1
    for i in range(layers):
        np.testing.assert_allclose(moved[i].c, carry[i].c[:, places[i + 1]], rtol=0, atol=1e-5)
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, permuted)
    changed["softmax"].pop("bias")
    assert all(jax.tree.leaves(changed))


def test_back_again_is_where_it_was():
    config = model("lstm", 2, False)
    params, places = language_model(config).init(jax.random.key(0)), orders(config)
    back = permute_units(permute_units(params, config, places), config, [np.argsort(order) for order in places])
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, back, params)))


@pytest.mark.parametrize(
    ("changes", "wrong", "named"),
    [
        ({}, lambda o: o[:1], "orders are 1; 1 layers have 2"),
        ({}, lambda o: [o[0], o[1][:-1]], r"orders\[1\] must be a permutation of the whole numbers from 0 to 15"),
        ({}, lambda o: [np.zeros(H, int), o[1]], r"orders\[0\] must be a permutation"),
        ({"tied_softmax": True}, lambda o: [o[0], o[0][::-1]], "the first of the orders must be the last one"),
        ({"method": "dynamic", "block_size": 4}, lambda o: o, "method is 'dynamic'"),
    ],
)
def test_what_is_no_order_is_refused(changes, wrong, named):
    config = dataclasses.replace(model("lstm", 1, False), **changes)
    with pytest.raises(ValueError, match=named):
        permute_units(language_model(config).init(jax.random.key(0)), config, wrong(orders(config)))


def test_units_that_are_active_together_are_found():
    """Four crowds of eight units, each active at tokens of its own, mixed up."""
    rng = np.random.default_rng(0)
    crowd = rng.permutation(np.repeat(np.arange(4), 8))
    active = rng.integers(0, 4, 200)
    magnitude = np.abs(rng.normal(size=(200, 32))) * np.where(active[:, None] == crowd[None, :], 1.0, 0.05)
    order = group_units(magnitude, 8)
    assert np.array_equal(np.sort(order), np.arange(32))
    assert all(len(set(block)) == 1 for block in crowd[order].reshape(4, 8))


def test_units_that_are_never_active_come_together():
    rng = np.random.default_rng(0)
    magnitude = rng.uniform(0.5, 1.0, (100, 12))
    silent = rng.permutation(12)[:4]
    magnitude[:, silent] *= 1e-3
    order = group_units(magnitude, 4)
    assert sorted(silent) in [sorted(block) for block in order.reshape(3, 4)]
    assert sorted(group_units(magnitude, 12)) == list(range(12))


def test_a_block_that_does_not_divide_the_units_is_refused():
    with pytest.raises(ValueError, match="block_size is 5; it must divide the 12 units"):
        group_units(np.ones((3, 12)), 5)


def test_params_may_be_jax_arrays_under_jit():
    config = model("qrnn", 1, True)
    params, places = language_model(config).init(jax.random.key(0)), orders(config)
    jitted = jax.jit(lambda params: permute_units(params, config, places))(params)
    assert all(
        jax.tree.leaves(jax.tree.map(jnp.array_equal, jitted, permute_units(params, config, places))),
    )


@pytest.mark.parametrize(
    ("shape", "block_size", "message"),
    [
        ((5, 12), 0, "block_size is 0; it must divide the 12 units"),
        ((5, 12), 5, "block_size is 5; it must divide the 12 units"),
        ((0, 12), 4, r"magnitude has shape \(0, 12\); it needs at least one token and one unit"),
    ],
)
def test_units_that_cannot_be_grouped_are_refused(shape, block_size, message):
    with pytest.raises(ValueError, match=message):
        group_units(np.ones(shape), block_size)
