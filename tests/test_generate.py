"""Sampling against NumPy, generation against the model itself, and how decoding speed is measured."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bwds import timing as module
from bwds.config import ModelConfig
from bwds.decode_speed import compare_decode_speed
from bwds.generate import generate, greedy_rollout, sample, stream
from bwds.model import decode_params, language_model
from bwds.sampling import choice, choose

# XLA takes a subnormal number for zero.
FLOATS = st.floats(-4, 4, width=32, allow_subnormal=False)

CONFIG = ModelConfig(vocab_size=17, hidden_size=32, num_layers=1, block_size=16, sparsity=0.5)
PROMPT = np.array([3, 5, 1], np.int32)


@pytest.fixture(scope="module")
def lm():
    return language_model(CONFIG)


@pytest.fixture(scope="module")
def params(lm):
    # Larger than at the start of training, so that some tokens are far more probable than others.
    return jax.tree.map(lambda p: 6 * p, lm.init(jax.random.key(0)))


@jax.jit
def draws(logits, temperature, top_p):
    """1000 tokens for 1000 keys."""
    keys = jax.random.split(jax.random.key(1), 1000)
    return jax.vmap(lambda key: sample(key, logits, temperature=temperature, top_p=top_p))(keys)


def nucleus(logits, temperature, top_p):
    """Probabilities in float64, zero outside the nucleus, and how close the cut is to a token's edge."""
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    # By logit: two that differ by less than float64 resolves have equal probabilities.
    order = np.argsort(-logits, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    kept = np.zeros_like(p)
    kept[order[before < top_p]] = p[order[before < top_p]]
    return kept / kept.sum(), np.abs(before - top_p).min()


@given(
    hnp.arrays(np.float32, 8, elements=FLOATS, unique=True),
    st.floats(0.3, 2.0),
    st.floats(0.05, 1.0),
)
def test_top_p_draws_from_its_set_with_its_probabilities(logits, temperature, top_p):
    expected, distance = nucleus(logits, temperature, top_p)
    assume(distance > 1e-4)
    found = np.bincount(draws(logits, temperature, top_p), minlength=8) / 1000
    assert not found[expected == 0].any()
    # Five standard deviations of a share of 1000 draws.
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / 1000) + 1e-9)


def test_equal_words_are_cut_in_order():
    assert set(np.asarray(draws(jnp.zeros(8), 1.0, 0.24))) == {0, 1}


@given(hnp.arrays(np.float32, 8, elements=FLOATS, unique=True), st.floats(0.3, 2.0))
def test_without_a_cut_all_words_have_their_probabilities(logits, temperature):
    expected, _ = nucleus(logits, temperature, 1.0)
    found = np.bincount(draws(logits, temperature, None), minlength=8) / 1000
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / 1000) + 1e-9)


@pytest.mark.parametrize(("temperature", "top_p"), [(None, None), (1.2e-38, None), (1.2e-38, 0.9)])
def test_without_or_with_next_to_no_temperature_it_is_the_most_probable_word(temperature, top_p):
    logits = jnp.array([0.0, 2.0, 4.0, 3.999, 4.0, -jnp.inf])
    expected = {2} if temperature is None else {2, 4}
    assert set(np.asarray(draws(logits, temperature, top_p))) == expected


def test_greedy_text_is_the_argmax_of_the_model_on_that_text(lm, params):
    ids = generate(lm, params, PROMPT, key=jax.random.key(0), length=12, temperature=0.0)
    text = np.concatenate([PROMPT, ids])
    logits, _, _ = jax.jit(lm.apply)(params, text[None, :-1], lm.init_carry(1))
    np.testing.assert_array_equal(ids, np.asarray(logits)[0, len(PROMPT) - 1 :].argmax(-1))
    assert len(set(ids.tolist())) > 1


def test_the_same_key_gives_the_same_text(lm, params):
    first, again, other = (
        generate(lm, params, PROMPT, key=jax.random.key(seed), length=30).tolist() for seed in (4, 4, 5)
    )
    assert first == again
    assert first != other
    assert all(0 <= word < CONFIG.vocab_size for word in first)


def test_parameters_laid_out_for_decoding_give_the_same_text(lm, params):
    plain, laid_out = (
        generate(lm, p, PROMPT, key=jax.random.key(0), length=12, temperature=0.0).tolist()
        for p in (params, decode_params(params, CONFIG))
    )
    assert plain == laid_out


def test_a_small_nucleus_is_greedy(lm, params):
    greedy = generate(lm, params, PROMPT, key=jax.random.key(0), length=12, temperature=0.0)
    nearly = generate(lm, params, PROMPT, key=jax.random.key(0), length=12, top_p=1e-6)
    np.testing.assert_array_equal(greedy, nearly)


@pytest.mark.parametrize(
    "settings", [((1.0, 1.0), (0.4, 1.0)), ((1.0, 0.3), (2.0, 0.9)), ((0.0, 1.0), (0.0, 0.5), (1e-50, 1.0))]
)
def test_other_keys_temperatures_and_sets_need_no_compilation(lm, params, settings):
    traces = []

    def counted(*args, **kwargs):
        traces.append(1)
        return lm.apply(*args, **kwargs)

    model = lm._replace(apply=counted)
    for seed, (temperature, top_p) in enumerate(settings):
        generate(model, params, PROMPT, key=jax.random.key(seed), length=5, temperature=temperature, top_p=top_p)
        if seed == 0:
            first = len(traces)
    assert len(traces) == first


@pytest.mark.parametrize(("temperature", "top_p", "sorts"), [(0.0, 0.9, 0), (1.0, 1.0, 0), (1.0, 0.9, 1)])
def test_only_a_nucleus_sorts_the_vocabulary(lm, params, temperature, top_p, sorts):
    def run(params):
        return generate(lm, params, PROMPT, key=jax.random.key(0), length=3, temperature=temperature, top_p=top_p)

    assert str(jax.make_jaxpr(run)(params)).count(" sort[") == sorts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "number of tokens is 0"),
        ({"temperature": -0.1}, r"temperature is -0\.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"sparsity": 1.0}, r"sparsity is 1\.0"),
        ({"ban": [17]}, "ban go from 0 to 17"),
        ({"ban": range(17)}, "ban holds all 17 tokens"),
        ({"prompt_ids": []}, r"shape \(0,\); they must be \[P\] with at least one token"),
        ({"prompt_ids": [[1], []]}, r"shape \(0,\)"),
        ({"prompt_ids": 3}, r"shape \(\)"),
        ({"prompt_ids": np.zeros((0, 3), int)}, "hold no prompt"),
        ({"prompt_ids": [[1, 17]]}, "prompt_ids go from 0 to 17"),
    ],
)
def test_arguments_out_of_range_are_named(lm, params, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(lm, params, **({"prompt_ids": PROMPT, "key": jax.random.key(0), "length": 3} | arguments))


def test_an_empty_prompt_is_named(lm, params):
    with pytest.raises(ValueError, match="at least one token"):
        generate(lm, params, np.zeros(0, np.int32), key=jax.random.key(0), length=3)


PROMPTS = [[3, 5, 1, 9], [7], [4, 4, 16, 2]]


@pytest.mark.parametrize(("cell", "temperature"), [("lstm", 0.7), ("qrnn", 0.0)])
def test_prompts_of_any_lengths_give_what_each_gives_alone(cell, temperature):
    config = dataclasses.replace(CONFIG, cell=cell)
    model = language_model(config)
    params = decode_params(jax.tree.map(lambda p: 6 * p, model.init(jax.random.key(0))), config)
    key, options = jax.random.key(2), {"length": 9, "temperature": temperature}
    together = generate(model, params, PROMPTS, key=key, **options)
    for number, (row, prompt) in enumerate(zip(together, PROMPTS, strict=True)):
        alone = generate(model, params, prompt, key=jax.random.fold_in(key, number), **options)
        np.testing.assert_array_equal(row, alone)
    assert len({tuple(row) for row in together.tolist()}) == 3


def test_prompts_of_one_length_are_an_array_too(lm, params):
    prompts = np.array([[3, 5], [1, 2]])
    found = generate(lm, params, jnp.asarray(prompts), key=jax.random.key(0), length=5)
    np.testing.assert_array_equal(found, generate(lm, params, prompts.tolist(), key=jax.random.key(0), length=5))
    assert found.shape == (2, 5)


@pytest.mark.parametrize("prompt", [PROMPT, PROMPTS])
def test_a_stream_gives_the_same_tokens(lm, params, prompt):
    options = {"key": jax.random.key(3), "temperature": 0.8, "top_p": 0.9, "ban": [2]}
    wanted = np.asarray(generate(lm, params, prompt, length=6, **options))
    found = list(stream(lm, params, prompt, length=6, **options))
    np.testing.assert_array_equal(np.stack(found, -1), wanted)
    endless = itertools.islice(stream(lm, params, prompt, **options), 6)
    np.testing.assert_array_equal(np.stack(list(endless), -1), wanted)
    assert all(isinstance(token, int) for token in found) == (prompt is PROMPT)


def test_a_stream_refuses_bad_arguments_before_it_is_read(lm, params):
    with pytest.raises(ValueError, match="number of tokens is 0"):
        stream(lm, params, PROMPT, key=jax.random.key(0), length=0)


def test_banned_tokens_are_never_taken_and_the_best_of_the_others_is(lm, params):
    options = {"key": jax.random.key(0), "length": 12, "temperature": 0.0}
    ban = [int(generate(lm, params, PROMPT, **options)[0]), 0]
    ids = generate(lm, params, PROMPT, ban=ban, **options)
    text = np.concatenate([PROMPT, ids])
    logits, _, _ = jax.jit(lm.apply)(params, text[None, :-1], lm.init_carry(1))
    allowed = np.delete(np.arange(17), ban)
    best = allowed[np.asarray(logits)[0, len(PROMPT) - 1 :][:, allowed].argmax(-1)]
    np.testing.assert_array_equal(ids, best)


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_banned_tokens_are_never_drawn(top_p):
    keys, logits = jax.random.split(jax.random.key(0), 300), jnp.zeros((300, 5)).at[:, 1].set(3.0)
    found = np.asarray(choose(choice(2.0, top_p, [1, 4], 5), keys, logits))
    assert set(found) == {0, 2, 3}


def test_at_another_sparsity_it_is_the_model_of_that_sparsity(lm, params):
    other = language_model(dataclasses.replace(CONFIG, sparsity=0.8))
    options = {"key": jax.random.key(0), "length": 12, "temperature": 0.0}
    found = generate(lm, params, PROMPT, sparsity=0.8, **options)
    np.testing.assert_array_equal(found, generate(other, params, PROMPT, **options))
    assert found.tolist() != generate(lm, params, PROMPT, **options).tolist()
    np.testing.assert_array_equal(list(stream(lm, params, PROMPT, sparsity=0.8, **options)), found)


@pytest.fixture
def clock(monkeypatch):
    """Measurements take the seconds that a test appends; without any, a hundredth."""
    durations, now, running = [], [0.0], []

    def perf_counter():
        if running:
            running.clear()
            now[0] += durations.pop(0) if durations else 0.01
        else:
            running.append(1)
        return now[0]

    monkeypatch.setattr(module.time, "perf_counter", perf_counter)
    return durations


def test_dynamic_and_dense_are_measured_in_turns(params, clock):
    clock += [99.0, 99.0, 0.1, 0.4, 0.2, 0.6, 0.3, 0.8]  # the first of each says how long a turn takes
    found = compare_decode_speed(CONFIG, params, steps=6, turns=3)
    assert found["decode_tokens_per_second"] == pytest.approx(6 / 0.2)
    assert found["dense_decode_tokens_per_second"] == pytest.approx(6 / 0.6)
    assert found["decode_speedup"] == pytest.approx(3.0)


def test_a_dense_model_is_compared_with_nothing(clock):
    config = ModelConfig(vocab_size=17, hidden_size=32, num_layers=1, method="dense")
    found = compare_decode_speed(config, language_model(config).init(jax.random.key(0)), steps=6, turns=3)
    assert found == {
        "decode_tokens_per_second": pytest.approx(6 / 0.01),
        "dense_decode_tokens_per_second": None,
        "decode_speedup": None,
    }


def test_the_rollout_that_is_timed_is_greedy_decoding(lm, params):
    first = jnp.array([0, 5, 11])
    tokens, carry = greedy_rollout(lm, params, first, lm.init_carry(3), steps=8)
    read = jnp.concatenate([first[:, None], tokens[:, :-1]], axis=1)
    logits, expected, _ = jax.jit(lm.apply)(params, read, lm.init_carry(3))
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    assert len({tuple(stream) for stream in tokens.tolist()}) == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), carry, expected)


def test_a_rollout_goes_on_where_it_ended(lm, params):
    first = jnp.array([2, 3])
    whole, _ = greedy_rollout(lm, params, first, lm.init_carry(2), steps=8)
    begun, carry = greedy_rollout(lm, params, first, lm.init_carry(2), steps=3)
    rest, _ = greedy_rollout(lm, params, begun[:, -1], carry, steps=5)
    np.testing.assert_array_equal(whole, jnp.concatenate([begun, rest], axis=1))
