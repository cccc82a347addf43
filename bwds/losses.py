"""Losses."""

import jax.numpy as jnp
from jax import lax

from bwds.array_types import Array, Float, Int
from bwds.collectives import MODEL, local_tokens, psum
from pallas_kernels.explicit_axes import spec_of, takes_explicit_axes
from pallas_kernels.mesh_axes import axes_of


@takes_explicit_axes(lambda logits, targets: spec_of(targets))
def cross_entropy(logits: Float[Array, "*b V"], targets: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """-log softmax(logits)[target] in nats, float32; logits may be sharded over ``model``, and are not gathered."""
    logits = logits.astype(jnp.float32)
    maximum = lax.stop_gradient(logits.max(-1))
    if MODEL in axes_of(logits):
        maximum = lax.pmax(maximum, MODEL)
    total = psum(jnp.exp(logits - maximum[..., None]).sum(-1))
    place, here = local_tokens(logits, logits.shape[-1], targets)
    chosen = jnp.take_along_axis(logits, place[..., None], axis=-1)[..., 0]
    chosen = chosen if here is None else psum(jnp.where(here, chosen, 0.0))
    return jnp.log(total) + maximum - chosen
