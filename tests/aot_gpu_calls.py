"""Compiles the loop of benchmarks/measure/calls.py for an H200 without a GPU, and prints what a call launches.

    JAX_PLATFORMS=cpu python -m tests.aot_gpu_calls

One JSON object a line: what is called, with how many weights; kernels of one turn of the loop, launches of whatever
kind; the bytes of the largest result of an instruction in that turn. Ends with status 3 where a compiler is missing, as
``aot_gpu``.
"""

import json
import os
from types import SimpleNamespace

from tests.aot_gpu import h200, need_compiler
from tests.aot_gpu_decode import LAUNCHED

HIDDEN, BLOCK, TURNS = 1536, 128, 32


def compile_all() -> None:
    import jax
    import jax.numpy as jnp

    from benchmarks.measure import kernels
    from benchmarks.measure.calls import chained
    from benchmarks.pod.hlo import executions, parse
    from bwds.linear import GateOptions

    mesh, sharding = h200()
    grid = (HIDDEN // BLOCK, 4 * HIDDEN // BLOCK)
    options = GateOptions(grid)
    product, layers = kernels.products(SimpleNamespace(implementation=None, sparsity=[0.75]), options)

    def described(tree):
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)

    def arrays(rows):
        return described(jax.eval_shape(lambda: kernels.arrays(rows, HIDDEN, BLOCK, "bfloat16", 128)))

    x, w, _, gate = arrays(1)
    many_x, _, many_dy, _ = arrays(64)
    gates = described(jax.ShapeDtypeStruct((1, *grid), jnp.float32))
    blocks = {"kernel": described(jax.ShapeDtypeStruct((*grid[::-1], BLOCK, BLOCK), jnp.bfloat16)), "gate": gate}
    cases = {
        "dense": (kernels.dense, (x,), w),
        "product": (jax.jit(product), (x, gates), blocks),
        "layer": (jax.jit(layers[0.75]), (x,), blocks),
        "gradients": (kernels.all_of_dense, (many_x, many_dy), w),
    }
    for name, (function, inputs, weight) in cases.items():
        for number in (1, 5):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                lowered = chained.lower(function, inputs, [weight] * number, turns=TURNS)
            program = parse(lowered.compile().as_text())
            launched = [
                (instruction, times // TURNS)
                for computation, times in executions(program).items()
                for instruction in program.computations[computation].values()
                if instruction.opcode in LAUNCHED and times >= TURNS
            ]
            found = {"call": name, "weights": number, "kernels": sum(times for _, times in launched)}
            print(json.dumps(found | {"largest": max(i.bytes for i, _ in launched)}), flush=True)


if __name__ == "__main__":
    need_compiler()
    os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"
    compile_all()
