"""A jax without one of its kernel compilers, and one that warns of its end: in processes of their own."""

import subprocess
import sys

import pytest

HIDDEN = """
import sys
hidden = sys.argv[1].split(",")
sys.modules |= dict.fromkeys(hidden)
import jax, jax.numpy as jnp
import bwds

x, w, scores = jnp.ones((2, 256)), jnp.ones((256, 256)), jnp.arange(8.0).reshape(2, 2, 2)

@jax.jit
def product(x, w, scores):
    return bwds.block_sparse_matmul(x, w, bwds.topk_gates(scores, sparsity=0.5))

assert product(x, w, scores).shape == (2, 256)
config = bwds.ModelConfig(vocab_size=9, hidden_size=16, num_layers=1, block_size=8)
lm = bwds.language_model(config)
assert lm.apply(lm.init(jax.random.key(0)), jnp.ones((1, 2), jnp.int32), lm.init_carry(1))[0].shape == (1, 2, 9)
for platform, name in (("tpu", "mosaic_tpu"), ("cuda", "triton")):
    if any(module.endswith(("pallas", platform.replace("cuda", "triton"))) for module in hidden):
        assert "custom_call" not in product.trace(x, w, scores).lower(lowering_platforms=(platform,)).as_text()
        try:
            bwds.block_sparse_matmul(x, w, scores, implementation=name)
        except ValueError as error:
            assert "'xla' runs everywhere" in str(error) and "pallas" in str(error), error
    elif platform == "tpu":
        assert product.trace(x, w, scores).lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == 2
"""

LOWERED_FOR_A_GPU = """
import jax, jax.numpy as jnp
import bwds

device = getattr(jax.sharding, "AbstractDevice", None)
chip = {} if device is None else {"abstract_device": device("NVIDIA H200", 132, "cuda")}
scores = jnp.ones((1, 4, 4))
with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), **chip)):
    traced = jax.jit(lambda scores: bwds.topk_gates(scores, sparsity=0.5)).trace(scores)
    assert "largest_kernel" in traced.lower(lowering_platforms=("cuda",)).as_text()
"""


def run(script, *arguments, options=()):
    command = [sys.executable, *options, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


PALLAS = "jax.experimental.pallas"


@pytest.mark.parametrize("hidden", [f"{PALLAS}.triton", f"{PALLAS},{PALLAS}.tpu,{PALLAS}.triton"])
def test_without_a_compiler_all_else_works(hidden):
    run(HIDDEN, hidden)


def test_its_end_is_no_error_of_users():
    """With gates alone, and warnings as errors from the start."""
    run(LOWERED_FOR_A_GPU, options=("-W", "error"))
