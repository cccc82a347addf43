"""Compiles greedy decoding for an H200 on a machine that has no GPU, and prints how many kernels a word takes.

    JAX_PLATFORMS=cpu python tests/aot_gpu_decode.py

One JSON object a line: the model, streams and kernels of one step of the loop, launches of whatever kind. Ends with
status 3 where a compiler is missing, as ``aot_gpu``.
"""

import json
import os
import sys
from collections import Counter

from aot_gpu import HERE, h200, need_compiler

SETTINGS = {"vocab_size": 10_000, "hidden_size": 4096, "block_size": 128, "dtype": "bfloat16", "sparsity": 0.75}
CASES = (("dense", None, "linear", 1), ("dynamic", 128, "linear", 1), ("dynamic", 128, "softplus", 8))
LAUNCHED = ("fusion", "custom-call", "copy", "reduce", "sort", "dot")


def compile_all(steps: int = 32) -> None:
    import jax
    import jax.numpy as jnp

    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "benchmarks")]
    from hlo import executions, parse

    from bwds.config import ModelConfig
    from bwds.generate import greedy_rollout
    from bwds.model import decode_params, language_model

    mesh, sharding = h200()
    for method, rank, activation, streams in CASES:
        config = ModelConfig(**SETTINGS, method=method, gate_rank=rank, gate_activation=activation, num_layers=2)
        lm = language_model(config)
        shapes = jax.eval_shape(
            lambda lm=lm, config=config, streams=streams: (
                decode_params(lm.init(jax.random.key(0)), config),
                jnp.zeros(streams, jnp.int32),
                lm.init_carry(streams),
            )
        )
        arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            program = parse(greedy_rollout.lower(lm, *arrays, steps=steps).compile().as_text())
        kernels: Counter[str] = Counter()
        for name, times in executions(program).items():
            for instruction in program.computations[name].values():
                if instruction.opcode in LAUNCHED and times >= steps:
                    kernels[instruction.opcode] += times // steps
        print(json.dumps({"method": method, "streams": streams, "kernels": kernels.total()}), flush=True)


if __name__ == "__main__":
    need_compiler()
    os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"
    compile_all()
