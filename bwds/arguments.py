"""Checks of arguments against a configuration: parameters, carries, tokens, numbers.

The checks look at types and shapes, so they also work while a function is traced. They look at values only of what is
not on a device: numbers of Python and arrays of NumPy.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bwds.array_types import Array
from bwds.checks import known_number, require, shown
from bwds.collectives import MODEL
from bwds.config import ModelConfig
from pallas_kernels.mesh_axes import axes_of

Tree = Mapping[str, Any]


def require_config(config: Any) -> None:
    require(
        isinstance(config, ModelConfig),
        f"config is a {type(config).__name__}; it must be a ModelConfig, as the model of a Config is.",
    )


def require_key(name: str, key: Any) -> None:
    """Raises ``ValueError`` unless ``key`` is one key: a typed one, or an old-style array of uint32."""
    right = isinstance(key, jax.Array | np.ndarray) and (
        key.shape == () if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key.ndim == 1 and key.dtype == np.uint32
    )
    require(right, f"{name} is {shown(key)}; it must be one key, as jax.random.key(0) makes it.")


def batch_size(batch: Any, minimum: int = 1) -> Any:
    """The number of streams as an int; in a program exported for any batch it stays a symbol.

    Raises ``ValueError`` if it is no whole number from ``minimum`` to 2**31 - 1.
    """
    if jax.export.is_symbolic_dim(batch):
        return batch
    number = known_number("batch", batch, whole=True)
    require(minimum <= number < 2**31, f"batch is {number}; it must be at least {minimum} and less than 2**31.")
    return number


def as_array(name: str, value: Any) -> Array:
    """An array of JAX, made from one of NumPy or a Flax variable if need be; ``ValueError`` for anything else."""
    if isinstance(value, jax.Array):
        return value
    array_like = isinstance(value, np.ndarray | np.generic) or hasattr(value, "__jax_array__")
    require(array_like, f"{name} is a {type(value).__name__}; it must be an array.")
    return jnp.asarray(value)


def plain(name: str, params: Any) -> dict[str, Any]:
    """Nested dicts of arrays from any mappings, such as a FrozenDict, an ``nnx.State`` or an ``nnx.Dict``."""
    require(isinstance(params, Mapping), f"{name} is a {type(params).__name__}; it must be a dict of arrays.")
    # ``nnx.tabulate`` adds a private entry, and wraps methods so that none can call another: ``items`` would fail.
    entries = {key: (f"{name}[{key!r}]", params[key]) for key in params if not str(key).startswith("_")}
    return {key: (plain if isinstance(entry[1], Mapping) else as_array)(*entry) for key, entry in entries.items()}


def fitting(params: Any, shapes: Tree, config: ModelConfig) -> dict[str, Any]:
    """The parameters as nested dicts, checked for their names and shapes.

    Args:
        params: any mappings. Kernels with a gate may be block-major, and arrays spread along ``model``.
        shapes: nested dicts of the shapes that are wanted, as ``jax.eval_shape`` gives them.
        config: the model's; it gives the block shape, and the options that the error names.

    Raises:
        ValueError: names or shapes differ; the message says where.
    """

    def refuse(held: str, path: str, needed: str) -> None:
        options = ", ".join(f"{name} {getattr(config, name)!r}" for name in _deciding(path))
        raise ValueError(f"params hold {held}; {options} {needed}: take the configuration that they were made with.")

    def fit(found: Tree, shapes: Tree, prefix: str) -> dict[str, Any]:
        for name in found.keys() - shapes.keys():
            refuse(f"{prefix}{name}", f"{prefix}{name}", "have no use for it")
        fitted: dict[str, Any] = {}
        for name, wanted in shapes.items():
            path = prefix + name
            value: Any = found.get(name)
            if value is None and wanted != {}:
                refuse(f"no {path}", path, "need it")
            elif isinstance(wanted, Mapping):
                # A gate without parameters is an empty dict, which some containers leave out.
                held = value if isinstance(value, dict) else {}
                may = _norms_shape(shapes["kernel"].shape, config) if name == "gate" and "norms" in held else {}
                fitted[name] = fit(held, {**wanted, **may}, path + "/")
            elif isinstance(value, dict):
                refuse(f"a dict as {path}", path, "need an array")
            elif not _fits(value, wanted.shape, config.block_shape if name == "kernel" and "gate" in shapes else None):
                refuse(f"{path} of shape {value.shape}", path, f"need {wanted.shape}")
            fitted.setdefault(name, value)
        return fitted

    return fit(plain("params", params), shapes, "")


def _norms_shape(shape: tuple[int, ...], config: ModelConfig) -> Tree:
    """The shape of the norms that ``decode_params`` adds to the gate of a kernel of this shape; empty: it adds none."""
    if config.gate_source != "norm":
        return {}
    (k, n), (bk, bn) = shape, config.block_shape
    return {"norms": jax.ShapeDtypeStruct((k // bk, n // bn), jnp.float32)}


def _deciding(path: str) -> tuple[str, ...]:
    """The options that decide whether a model has the parameter, and its shape."""
    if path == "embedding":
        return "vocab_size", "hidden_size"
    if path.startswith("softmax"):
        return "vocab_size", "hidden_size", "tied_softmax"
    if "gate" in path.split("/"):
        return "method", "block_size", "gate_rank", "gate_source"
    return "num_layers", "cell", "hidden_size"


def _fits(array: Array, shape: tuple[int, ...], block: tuple[int, int] | None) -> bool:
    if block is not None and array.ndim == 4:
        (k, n), (bk, bn) = shape, block
        shape = (n // bn, k // bk, bk, bn)
    if array.shape == shape:
        return True
    # Under ``shard_map`` a device has its share of the columns, or of the tokens of the vocabulary.
    parts = lax.axis_size(MODEL) if MODEL in axes_of(array) else 1
    shares = [(*shape[:i], size // parts, *shape[i + 1 :]) for i, size in enumerate(shape) if size % parts == 0]
    return array.shape in shares


def fitting_state(name: str, state: Any, wanted: Any) -> Any:
    """The state of one layer; ``ValueError`` unless it is of the type, shapes and dtypes of ``wanted``."""
    kind, make = type(wanted).__name__, f"make it with init_carry({wanted.c.shape[0]})"
    require(type(state) is type(wanted), f"{name} is a {type(state).__name__}; this layer needs a {kind}: {make}.")
    fields = {field: as_array(f"{name}.{field}", value) for field, value in state._asdict().items()}
    for field, value in fields.items():
        want = getattr(wanted, field)
        require(
            (value.shape, value.dtype) == (want.shape, want.dtype),
            f"{name}.{field} has shape {value.shape} and type {value.dtype}; it must have {want.shape} and "
            f"{want.dtype}: {make}.",
        )
    return type(wanted)(**fields)


def fitting_tokens(name: str, tokens: Any, vocab_size: int) -> Array:
    """Token ids as int32; ``ValueError`` where those of NumPy or Python lie outside of the vocabulary.

    Ids in arrays of JAX are clipped to the vocabulary instead, because checking them would wait for the device.
    """
    ids = tokens if isinstance(tokens, jax.Array) else np.asarray(tokens)
    whole = jnp.issubdtype(ids.dtype, jnp.integer)
    require(whole, f"{name} have shape {ids.shape} and dtype {ids.dtype}; they must be integers.")
    if isinstance(ids, np.ndarray):
        low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
        require(
            low >= 0 and high < vocab_size,
            f"{name} go from {low} to {high}; the ids of {vocab_size} tokens go from 0 to {vocab_size - 1}.",
        )
        return jnp.asarray(ids.astype(np.int32))
    # A narrow type cannot hold the largest id, so ids are widened before they are clipped.
    ids = ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids
    return jnp.clip(ids, 0, vocab_size - 1).astype(jnp.int32)
