"""Compiles the GPU kernels to machine code for an H200 on a machine that has no GPU, and prints what they need.

    JAX_PLATFORMS=cpu python -m tests.aot_gpu [SIZE ...]

Blocks are of 128, or of the named sizes. It prints one JSON object a line: function, dtype, rows, layout, precision of
products, size of a block; the kernel's registers and bytes spilled as ptxas counts them; tensor-core instructions and
loads in its PTX. Nothing is run. It needs jax-cuda13-plugin and jax-cuda13-pjrt in the version of jax, and ptxas
(nvidia-cuda-nvcc), as .ci/compilers installs them; where one is missing it says so and ends with status 3. h200.txtpb
describes the chip to XLA. This is a program of its own because XLA reads its flags only once, when it starts.
"""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
MISSING = 3
INPUTS, OUTPUTS, BLOCK = 1536, 6144, 128
"""The hidden product of the largest Penn Treebank model: 1536 x 6144."""


FUNCTIONS = ("forward", "input_gradients", "weight_gradient")


class Case(NamedTuple):
    function: str
    dtype: str
    rows: int
    layout: str
    precision: str | None = None
    block: int = BLOCK


def cases(sizes: list[int]) -> Iterator[Case]:
    """The cases with blocks of 128, or with blocks of the named sizes."""
    for size, function, dtype, rows in itertools.product(sizes, FUNCTIONS, ("float32", "bfloat16"), (1, 16, 64)):
        yield Case(function, dtype, rows, "row-major", block=size)
    if sizes:
        return
    for function in FUNCTIONS:
        for dtype in ("float32", "bfloat16"):
            for rows in (1, 16, 64, 128, 2240):
                yield Case(function, dtype, rows, "row-major")
            for rows in (1, 64):
                yield Case(function, dtype, rows, "block-major")
        for rows in (16, 64):
            yield Case(function, "float32", rows, "row-major", "float32")


def find_ptxas() -> str | None:
    """ptxas of the wheel nvidia-cuda-nvcc, or else on the PATH."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    wheel = (str(path) for place in places for path in sorted(Path(place).glob("*/bin/ptxas")))
    return next(wheel, None) or shutil.which("ptxas")


def need_compiler() -> str:
    """ptxas; ends the program where it or a plugin is missing."""
    ptxas = find_ptxas()
    if ptxas is None or any(importlib.util.find_spec(name) is None for name in ("jax_cuda13_plugin", "jax_plugins")):
        print("jax-cuda13-plugin, jax-cuda13-pjrt or ptxas (nvidia-cuda-nvcc) is not installed")
        sys.exit(MISSING)
    return ptxas


def dumping_flags(directory: str) -> str:
    """XLA's flags: no tuning, because tuning runs candidates; the PTX is kept for ptxas to count registers."""
    flags = f"--xla_gpu_autotune_level=0 --xla_dump_to={directory}"
    return flags if version("jax").startswith("0.10.") else flags + " --xla_dump_emitter_re=ptx"


def resources(dump: Path, ptxas: str) -> dict[str, Any]:
    """What ptxas says of the one kernel of ours among the PTX files that XLA left in ``dump``; empties ``dump``."""
    found = [path for path in dump.glob("*.ptx") if re.search(r"\.entry \w+_kernel\(", path.read_text())]
    assert len(found) == 1, f"{len(found)} files hold a kernel"
    text = found[0].read_text()
    target = re.search(r"^\.target (\w+)", text, re.MULTILINE).group(1)
    command = [ptxas, "-v", f"-arch={target}", str(found[0]), "-o", os.devnull]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    numbers = {
        "registers": r"Used (\d+) registers",
        "spilled_bytes": r"(\d+) bytes spill stores",
    }
    matches = {name: re.search(pattern, log) for name, pattern in numbers.items()}
    for path in dump.iterdir():
        path.unlink()
    return {
        "kernel": re.search(r"\.entry (\w+)\(", text).group(1),
        "target": target,
        **{name: int(match.group(1)) for name, match in matches.items()},
        "threads": int(re.search(r"^\.(?:req|max)ntid (\d+)", text, re.MULTILINE).group(1)),
        "wgmma": len(re.findall(r"wgmma\.mma_async", text)),
        "mma": len(re.findall(r"mma\.sync", text)),
        # Loads of 2 or 4 bytes in a loop are slow; a tile moves by 16 at a time.
        "wide_loads": len(re.findall(r"ld\.global[.\w:]*\.v4|cp\.async\.cg", text)),
        "narrow_loads": len(re.findall(r"ld\.global(?![.\w:]*\.v[248])", text)),
    }


def h200() -> tuple[Any, Any]:
    """A mesh of one H200, and the sharding of what lies there."""
    import jax
    from jax.experimental import topologies

    target = (HERE / "h200.txtpb").read_text()
    topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology="1x1x1")
    mesh = topologies.make_mesh(topology, (1,), ("x",))
    return mesh, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def compile_all(dump: Path, ptxas: str, sizes: list[int]) -> None:
    import jax
    import jax.numpy as jnp

    from pallas_kernels.block_sparse import triton

    mesh, sharding = h200()
    k, n = INPUTS, OUTPUTS
    for case in cases(sizes):
        grid = k // case.block, n // case.block
        w = (k, n) if case.layout == "row-major" else (*grid[::-1], case.block, case.block)
        shapes = [
            ((case.rows, k), case.dtype),
            (w, case.dtype),
            ((case.rows, *grid), jnp.float32),
            ((case.rows, n), case.dtype),
        ]
        arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]
        arrays = arrays[:3] if case.function == "forward" else arrays
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), jax.default_matmul_precision(case.precision):
            lowered = jax.jit(getattr(triton, case.function)).lower(*arrays)
        lowered.compile()
        print(json.dumps(case._asdict() | resources(dump, ptxas)), flush=True)


if __name__ == "__main__":
    ptxas = need_compiler()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["XLA_FLAGS"] = dumping_flags(directory)
        compile_all(Path(directory), ptxas, [int(size) for size in sys.argv[1:]])
