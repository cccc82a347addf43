"""The functions, called with anything: a result that agrees with the oracle, or a sentence."""

import dataclasses
import math
import numbers
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import bwds
from bwds import ModelConfig
from bwds.generate import sample
from tests import oracle
from tests.strategies import FLOATS, INTEGERS, JSON, NUMBERS, SCALARS, attempt


@pytest.fixture(scope="module", autouse=True)
def no_annotation_checks() -> Iterator[None]:
    """Off, so that the library itself meets a wrong type."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def is_fraction(value: Any) -> bool:
    """Whether it is one number in [0, 1), of Python, NumPy or JAX."""
    if isinstance(value, bool):
        return False
    return np.shape(value) == () and isinstance(value, numbers.Real | np.ndarray | jax.Array) and 0.0 <= value < 1.0


@given(num_blocks=NUMBERS, sparsity=NUMBERS)
@example(num_blocks=4.5, sparsity=0.5)
@example(num_blocks=10**400, sparsity=0.5)
@example(num_blocks=2**63, sparsity=0.0)
def test_kept_blocks_are_the_share_that_is_not_omitted(num_blocks, sparsity):
    kept, _ = attempt(lambda: bwds.num_kept_blocks(num_blocks, sparsity))
    right = isinstance(num_blocks, numbers.Integral) and 1 <= num_blocks <= 2**53 and is_fraction(sparsity)
    assert (kept is not None) == right
    if kept is not None:
        assert type(kept) is int
        assert 1 <= kept <= num_blocks
        exact = (1 - Fraction(float(sparsity))) * int(num_blocks)
        # Float32 cannot tell sparsities apart that are closer than half of this.
        forgiven = Fraction(int(num_blocks), 2**23) if num_blocks <= 2**20 else exact / 10**8
        assert kept == 1 or -forgiven <= kept - exact < 1


# --- gates

_EXTREME = [0.0, -0.0, 1.0, -1.0, 1e-38, 1e-45, 3e38, -3e38]
_FINITE = st.floats(-8.0, 8.0, width=32) | st.sampled_from(_EXTREME)
_ANY = _FINITE | st.sampled_from([math.nan, math.inf, -math.inf])


def arrays(shapes: list[tuple[int, ...]], values: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    """float32 arrays of few shapes, so that few programs are compiled; at most eight of their values are drawn."""
    few = st.lists(values, min_size=1, max_size=8)
    return st.tuples(st.sampled_from(shapes), few).map(lambda pair: np.resize(np.float32(pair[1]), pair[0]))


_SHARES = st.sampled_from([0.0, 0.5, 0.75]) | NUMBERS
_SHARES = _SHARES | _SHARES.map(np.asarray) | st.sampled_from([np.array([0.5, 0.5]), "0.5"])


@given(
    scores=arrays([(2, 3), (1, 1), (4, 2, 3), (0, 2, 3), (3, 0), (3,)], _ANY),
    dtype=st.sampled_from(["float32", "float32", "bfloat16", "float16", "int32", "bool"]),
    how=st.fixed_dictionaries(
        {}, optional={"sparsity": _SHARES, "num_kept": st.sampled_from([1, 2, np.int64(2)]) | NUMBERS}
    ),
    activation=st.sampled_from(["linear", "softplus", "softmax", "relu", "gelu"]),
    scope=st.sampled_from(["matrix", "matrix", "column", "row"]),
)
@example(np.ones((2, 3)), "float32", {"sparsity": np.float32(1.5)}, "linear", "matrix")
@example(np.ones((2, 3)), "float32", {"sparsity": np.float32("nan")}, "linear", "matrix")
@example(np.ones((2, 3)), "float32", {"sparsity": np.array([0.5, 0.5])}, "linear", "matrix")
@example(np.ones((2, 3)), "float32", {"sparsity": np.array(10**400)}, "linear", "matrix")
@example(np.ones((2, 3)), "float32", {"sparsity": Fraction(1, 2)}, "linear", "matrix")
@example(np.ones((2, 3)), "float32", {"num_kept": np.int64(99)}, "linear", "matrix")
@example(np.ones((2, 3)), "float32", {"num_kept": np.array(2.0)}, "linear", "matrix")
@example(np.ones((2, 3)), "float32", {"num_kept": 2.5}, "linear", "matrix")
@example(np.float32([[1.0, -1.0] + 30 * [0.0]]), "float16", {"sparsity": 0.0}, "linear", "matrix")
def test_gates_agree_with_the_oracle_or_are_refused(scores, dtype, how, activation, scope):
    scores = jnp.asarray(scores, jnp.float32).astype(dtype)
    gates, _ = attempt(lambda: bwds.topk_gates(scores, **how, activation=activation, scope=scope))
    if gates is None:
        return
    assert (gates.shape, gates.dtype) == (scores.shape, scores.dtype)
    rows, columns = scores.shape[-2:]
    size = rows * columns if scope == "matrix" else rows
    if "num_kept" in how:
        num_kept = how["num_kept"]
        assert 1 <= num_kept <= size
    else:
        assert is_fraction(how["sparsity"])
        num_kept = bwds.num_kept_blocks(size, float(how["sparsity"]))
    values, found = np.float64(scores), np.float64(gates)
    for row, gate in zip(values.reshape(-1, rows, columns), found.reshape(-1, rows, columns), strict=True):
        if not np.isfinite(row).all():
            continue
        assert np.isfinite(gate).all()
        # Many processors take numbers this small for zeros.
        if ((row != 0) & (np.abs(row) < np.finfo(np.float32).tiny)).any():
            continue
        kept = oracle.kept_mask(row, int(num_kept), scope)
        assert (gate[~kept] == 0).all()
        # All but linear gates are sums of positive terms.
        terms = row[kept] if activation == "linear" else np.ones(1)
        # Where terms nearly cancel, rounding decides the sign. Scores below 1e-37 count as zeros.
        if np.abs(terms).max() > 1e-36 and np.abs(terms.sum()) > 1e-3 * np.abs(terms).sum():
            wanted = oracle.gates(row, int(num_kept), activation, scope)
            rounding = 2.0**-21 * np.abs(terms).sum() / np.abs(terms.sum()) + 2.0**-8 * (dtype == "bfloat16")
            np.testing.assert_allclose(gate, wanted, rtol=0, atol=rounding * np.abs(wanted).max())


# --- products

_X = [(4,), (2, 4), (2, 2, 4), (20, 4), (0, 4), (2, 3), ()]
_W = [(4, 6), (4, 6), (3, 2, 2, 2), (4, 4), (5, 6), (4, 0), (3, 2, 2, 0), (6,)]
_GATES = [(2, 3), (2, 2, 3), (2, 2, 2, 3), (20, 2, 3), (0, 2, 3), (2, 0, 3), (2, 4, 3)]


@given(
    x=arrays(_X, st.floats(-2.0, 2.0, width=32)),
    w=arrays(_W, st.floats(-2.0, 2.0, width=32)),
    gates=arrays(_GATES, st.sampled_from([0.0, 0.0, -0.0, 1.0, -0.5, 2.0])),
    dtypes=st.sampled_from(
        [("float32", "float32")] * 4 + [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("int32", "int32")]
    ),
    implementation=st.sampled_from([None, None, "xla", "reference", "triton", "mosaic_tpu", "cuda", 3]),
)
@example(np.ones((2, 4)), np.ones((4, 6)), np.zeros((2, 2, 3)), ("float32", "float32"), "xla")
@example(np.ones((2, 4)), np.ones((3, 2, 2, 2)), np.eye(2, 3)[None].repeat(2, 0), ("float32", "float32"), None)
def test_a_product_agrees_with_the_oracle_or_is_refused(x, w, gates, dtypes, implementation):
    x, w, gates = (
        jnp.asarray(a, jnp.float32).astype(d) for a, d in ((x, dtypes[0]), (w, dtypes[1]), (gates, "float32"))
    )
    y, _ = attempt(lambda: bwds.block_sparse_matmul(x, w, gates, implementation=implementation))
    if y is None:
        return
    plain = np.float64(bwds.from_block_major(w) if w.ndim == 4 else w)
    assert (y.shape, y.dtype) == ((*x.shape[:-1], plain.shape[1]), x.dtype)
    wanted = oracle.matmul(x, plain, gates)
    atol = (2.0**-8 if x.dtype == jnp.bfloat16 else 1e-5) * max(1.0, np.abs(wanted).max(initial=0.0))
    np.testing.assert_allclose(np.float64(y), wanted, rtol=0, atol=atol)
    # A block that no row keeps is not read.
    rows, columns = gates.shape[-2:]
    unread = ~(np.asarray(gates) != 0).reshape(-1, rows, columns).any(0)
    if y.size and math.prod(x.shape[:-1]) <= 16 and implementation != "reference" and w.ndim == 2:
        blocks = np.kron(unread, np.ones((w.shape[0] // rows, w.shape[1] // columns)))
        poisoned = jnp.where(blocks.astype(bool), jnp.nan, w)
        np.testing.assert_array_equal(bwds.block_sparse_matmul(x, poisoned, gates), y)


@given(
    shape=st.sampled_from([(4, 6), (4, 0), (4,)]),
    block=st.tuples(INTEGERS, INTEGERS) | st.sampled_from([(2, 3), (1, 1)]),
)
@example((4, 0), (1, 2**63))
def test_a_layout_comes_back_or_is_refused(shape, block):
    w = jnp.arange(math.prod(shape)).reshape(shape)
    laid_out, _ = attempt(lambda: bwds.to_block_major(w, block))
    if laid_out is not None:
        np.testing.assert_array_equal(bwds.from_block_major(laid_out), w)


# --- models

_OPTIONS = {
    "vocab_size": st.sampled_from([1, 7]),
    "hidden_size": st.sampled_from([4, 8]),
    "block_size": st.sampled_from([1, 2, 4]),
    "num_layers": st.sampled_from([1, 2]),
    "cell": st.sampled_from(["lstm", "qrnn"]),
    "method": st.sampled_from(["dynamic", "dense", "static-block", "magnitude"]),
    "sparsity": st.sampled_from([0.0, 0.5, 0.9]),
    "gate_rank": st.sampled_from([None, 1]),
    "gate_activation": st.sampled_from(["linear", "softplus", "softmax", "relu"]),
    "gate_scope": st.sampled_from(["matrix", "column"]),
    "gate_source": st.sampled_from(["learned", "norm", "frozen", "bias", "random"]),
    "dtype": st.sampled_from(["float32", "bfloat16"]),
}
_TINY = st.fixed_dictionaries(_OPTIONS)
_NAMES = st.sampled_from([field.name for field in dataclasses.fields(ModelConfig)])


@given(tiny=_TINY, bad=st.dictionaries(_NAMES, NUMBERS | SCALARS | JSON, max_size=2))
@example(tiny={}, bad={"hidden_size": 16.0, "block_size": 2})
@example(tiny={}, bad={"hidden_size": 10**400})
@example(tiny={}, bad={"hidden_size": np.int64(128)})
@example(tiny={}, bad={"num_layers": True})
@example(tiny={}, bad={"num_layers": 2**31 - 1})
@example(tiny={}, bad={"dropout": "0.5"})
def test_a_configuration_has_a_cost_and_an_equal_dense_one_or_is_refused(tiny, bad):
    config, _ = attempt(lambda: ModelConfig(**tiny | bad))
    if config is None:
        return
    found = bwds.cost(config)
    assert all(type(n) is int and n >= 0 for n in dataclasses.astuple(found))
    dense, _ = attempt(lambda: bwds.equal_cost_dense(config))
    assert dense is None or abs(bwds.cost(dense).total / found.total - 1.0) <= 0.01


@given(
    options=_TINY,
    tokens=st.sampled_from([(2, 3), (1, 1), (2, 0), (0, 2), (2,), (2, 3, 1)]),
    batch=st.sampled_from([2, 2, 1, 0]),
    dtype=st.sampled_from(["int32", "int32", "float32", "uint8"]),
)
@example({"cell": "qrnn", "hidden_size": 4, "block_size": 2, "num_layers": 1}, (2, 0), 2, "int32")
def test_a_model_takes_tokens_of_the_right_shape_alone(options, tokens, batch, dtype):
    config, _ = attempt(lambda: ModelConfig(**options))
    if config is None:
        return
    lm = bwds.language_model(config)

    def shapes():
        params = jax.eval_shape(lm.init, jax.random.key(0))
        return jax.eval_shape(lm.apply, params, jax.ShapeDtypeStruct(tokens, dtype), lm.init_carry(batch))

    result, _ = attempt(shapes)
    right = len(tokens) == 2 and tokens[0] == batch >= 1 and tokens[1] >= 1 and dtype != "float32"
    assert (result is not None) == right
    if result is not None:
        assert (result[0].shape, result[0].dtype) == ((*tokens, config.vocab_size), jnp.float32)


@given(
    logits=arrays([(5,)], st.floats(-50.0, 50.0, width=32)),
    temperature=st.sampled_from([0.0, 1e-45, 1e-40, 1e-30, 1.0, 1e30]) | FLOATS.filter(lambda t: 0.0 <= t < 3e38),
    top_p=st.floats(0.0, 1.0, exclude_min=True, width=32) | st.just(1.0),
)
def test_a_word_is_drawn_at_any_temperature(logits, temperature, top_p):
    word = sample(
        jax.random.key(0), jnp.asarray(logits), temperature=jnp.float32(temperature), top_p=jnp.float32(top_p)
    )
    assert 0 <= int(word) < 5
    best = np.flatnonzero(logits == logits.max())
    gap = logits.max() - max((v for v in logits if v < logits.max()), default=-math.inf)
    # exp(-100) is less than what can be drawn; and smaller differences may be zero on this machine.
    if gap > 1e-30 and temperature < gap / 100.0:
        assert int(word) in best


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bwds.to_block_major([[1.0]], (1, 1)), "w is a list .* must be an array"),
        (lambda: bwds.to_block_major(jnp.ones((4, 4)), 2), "block_shape is 2; they must be an array .*, two numbers"),
        (lambda: bwds.from_block_major([[[[1.0]]]]), "w is a list; it must be an array"),
        (lambda: bwds.language_model(bwds.ModelConfig(vocab_size=5)).init(0), "key is .*0.*; it must be one key"),
    ],
    ids=["to_block_major list", "to_block_major number", "from_block_major", "init"],
)
def test_what_is_no_array_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
