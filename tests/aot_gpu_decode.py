"""Compiles greedy decoding for an H200 on a machine that has no GPU, and prints how many kernels a token takes.

    JAX_PLATFORMS=cpu python -m tests.aot_gpu_decode

It prints one JSON object a line. The first lines say what the kernel of the gates needs for the most scores that it
takes. The others have the model, streams and kernels of one step of the loop, launches of whatever kind. It ends with
status 3 where a compiler is missing, as ``aot_gpu`` does.
"""

import functools
import json
import os
import tempfile
from collections import Counter
from pathlib import Path

from tests.aot_gpu import dumping_flags, h200, need_compiler, resources

SETTINGS = {"vocab_size": 10_000, "hidden_size": 4096, "block_size": 128, "dtype": "bfloat16", "sparsity": 0.75}
CASES = (
    ("dense", None, "linear", 1),
    ("dynamic", 128, "linear", 1),
    ("dynamic", 128, "softplus", 8),
    ("norm", None, "linear", 1),
)
"""Method, or the source of scores that are not learned; rank, activation, streams."""
GRID = (64, 256)
"""The grid with the most scores, that of an LSTM of 8192."""
LAUNCHED = ("fusion", "custom-call", "copy", "reduce", "sort", "dot")


def compile_gates(dump: Path, ptxas: str) -> None:
    import jax

    from pallas_kernels.gated import triton_gates

    mesh, sharding = h200()
    n = GRID[0] * GRID[1]
    assert n == triton_gates.MAX_SCORES
    shapes = (((1, n), "float32"), ((n,), "float32"), ((), "int32"))
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]
    for activation in ("linear", "softplus", "softmax", "relu", "one"):
        options = {"activation": activation, "normalization": "mean"}
        gates = functools.partial(triton_gates.gates_and_words, grid=GRID, **options)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            jax.jit(gates).lower(*arrays).compile()
        print(json.dumps({"activation": activation, **resources(dump, ptxas)}), flush=True)


def compile_all(steps: int = 32) -> None:
    import jax
    import jax.numpy as jnp

    from benchmarks.pod.hlo import executions, parse
    from bwds.config import ModelConfig
    from bwds.generate import greedy_rollout
    from bwds.model import decode_params, language_model

    mesh, sharding = h200()
    for method, rank, activation, streams in CASES:
        options = {"gate_source": "norm"} if method == "norm" else {"method": method, "gate_rank": rank}
        config = ModelConfig(**SETTINGS, **options, gate_activation=activation, num_layers=2)
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
    ptxas = need_compiler()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XLA_FLAGS"] = dumping_flags(directory)
        compile_gates(Path(directory), ptxas)
        compile_all()
