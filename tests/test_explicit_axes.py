"""Arrays on the mesh that ``jax.make_mesh`` makes: its axes are of type Explicit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bwds.config import ModelConfig
from bwds.generate import generate
from bwds.losses import cross_entropy
from bwds.model import decode_params, language_model
from bwds.selection import topk_gates
from pallas_kernels import block_sparse_matmul, from_block_major, to_block_major

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices"),
]
P = PartitionSpec
CONFIG = ModelConfig(vocab_size=20, hidden_size=16, num_layers=1, block_size=8)
LM = language_model(CONFIG)
KEY = jax.random.key(0)
X, W, SCORES = (jax.random.normal(KEY, shape) for shape in ((8, 16), (16, 32), (8, 2, 4)))
MODEL = LM.init(KEY), jax.random.randint(KEY, (4, 3), 0, 20), LM.init_carry(4)


def gated(x, w, scores):
    return block_sparse_matmul(x, w, topk_gates(scores, sparsity=0.5))


def laid_out(x, w, scores):
    return gated(x, to_block_major(w, (8, 8)), scores), from_block_major(to_block_major(w, (8, 8)))


def gradients(*operands):
    return jax.grad(lambda *a: jnp.tanh(gated(*a)).sum(), (0, 1, 2))(*operands)


def loss_gradient(params, tokens, carry):
    return jax.grad(lambda params: cross_entropy(LM.apply(params, tokens, carry)[0], tokens).mean())(params)


def words(params, tokens):
    return generate(LM, decode_params(params, CONFIG), tokens[0], key=KEY, length=3, temperature=0.0)


CASES = {
    "rows": (gated, (X, W, SCORES), (P("data"), P(), P("data"))),
    "columns": (laid_out, (X, W, SCORES), (P(), P(None, "data"), P())),
    "gradients": (gradients, (X, W, SCORES), (P("data"), P(), P("data"))),
    "model": (LM.apply, MODEL, (P(), P("data"), P("data"))),
    "gradient of a model": (loss_gradient, MODEL, (P(), P("data"), P("data"))),
    "words": (words, MODEL[:2], (P(), P())),
}


@pytest.mark.parametrize(
    ("spread", "context"),
    [(True, True), (True, False), (False, True)],
    ids=["spread, set_mesh", "spread, no mesh set", "replicated, set_mesh"],
)
@pytest.mark.parametrize("case", CASES)
def test_the_same_as_on_one_device(case, spread, context):
    function, operands, specs = CASES[case]
    mesh = jax.make_mesh((2,), ("data",))
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    wanted = jax.jit(function)(*operands)
    placed = [
        jax.device_put(operand, NamedSharding(mesh, spec if spread else P()))
        for operand, spec in zip(operands, specs, strict=True)
    ]
    if context:
        with jax.set_mesh(mesh):
            actual = jax.jit(function)(*placed)
    else:
        actual = jax.jit(function)(*placed)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, wanted)


def test_outside_of_jit_and_spread_as_the_rows():
    mesh = jax.make_mesh((2,), ("data",))
    x, scores = (jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (X, SCORES))
    y = gated(x, jax.device_put(W, NamedSharding(mesh, P())), scores)
    assert y.sharding.spec == P("data", None)
    np.testing.assert_allclose(y, gated(X, W, SCORES), rtol=1e-4, atol=1e-5)
