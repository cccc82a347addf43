"""Dense LSTM language models of PyTorch, from a file of safetensors: no pickle, nothing in the file is run.

PyTorch's LSTM computes as that of ``bwds``, with the four parts in the same order i, f, g, o. Its matrices are
transposed, and it has two biases, which are summed.

Example:
    ```python
    params, config = bwds.pytorch.load_pytorch("lstm.safetensors")
    ```
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bwds.array_types import Array
from bwds.checks import require
from bwds.config import ModelConfig
from bwds.filesystem import place
from bwds.linear import Params
from bwds.tensors import read_metadata, read_tensors

_LSTM = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<name>weight_ih|weight_hh|bias_ih|bias_hh)_l(?P<layer>\d+)")
_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_EMBEDDING, _SOFTMAX, _BIAS = "encoder.weight", "decoder.weight", "decoder.bias"


def load_pytorch(path: str | Path) -> tuple[Params, ModelConfig]:
    """Parameters and configuration of the language model in a file of safetensors.

    Example:
        ```python
        # in PyTorch: safetensors.torch.save_model(model, "lstm.safetensors")
        params, config = bwds.pytorch.load_pytorch("lstm.safetensors")
        params, config = bwds.convert(params, config, sparsity=0.5, tokens=tokens, block_size=32)
        ```

    Args:
        path: of the file, with the tensors of ``from_pytorch``.

    Returns:
        Parameters, float32, and configuration of the dense model. Its ``block_size`` has no meaning yet; one given to
        ``bwds.convert`` must divide H.

    Raises:
        ValueError: safetensors is not installed, the file is not in its format, or the tensors are not such a model's.
        OSError: the file cannot be read.
    """
    path = place(path, "path", "file")
    try:
        tensors, metadata = read_tensors(path), read_metadata(path)
    except ValueError as error:
        raise ValueError(
            f"{error} PyTorch writes such a file of its model by safetensors.torch.save_model(model, path)."
        ) from error
    # A tensor that has two names in PyTorch is written once; the metadata say by which name the other one is found.
    tensors |= {name: tensors[written] for name, written in metadata.items() if written in tensors}
    try:
        return from_pytorch(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def from_pytorch(tensors: Mapping[str, Any]) -> tuple[Params, ModelConfig]:
    """Parameters and configuration of a dense LSTM language model from the tensors of PyTorch's.

    Example:
        ```python
        from safetensors.numpy import load_file

        tensors = load_file("lstm.safetensors")                                 # or model.state_dict()
        params, config = bwds.pytorch.from_pytorch(tensors)
        ```

    Args:
        tensors: by the names of PyTorch's word language model: encoder.weight [V, H], decoder.weight [V, H],
            decoder.bias [V], and of each layer those of ``torch.nn.LSTM``, weight_ih_l0 [4H, H], weight_hh_l0 [4H, H],
            bias_ih_l0 [4H], bias_hh_l0 [4H] and so on, all with one prefix, such as "rnn.", or none. Arrays of NumPy or
            JAX, or tensors on the CPU, floating-point. The prefix "module." of all names, which DataParallel writes, is
            dropped. Without decoder.weight, or if it equals encoder.weight, the softmax is tied to the embedding:
            safetensors writes shared tensors once.

    Returns:
        Parameters, float32, and configuration of the dense model. Its ``block_size`` has no meaning yet; one given to
        ``bwds.convert`` must divide H.

    Raises:
        ValueError: a tensor is missing or has no place in such a model, shapes or types do not fit, or a number is not
            finite.
    """
    require(isinstance(tensors, Mapping), f"tensors is a {type(tensors).__name__}; it must be a mapping of arrays.")
    arrays = {name: _array(name, value) for name, value in tensors.items()}
    for name, array in arrays.items():
        require(bool(np.isfinite(array).all()), f"{name} holds numbers that are not finite.")
    if arrays and all(name.startswith("module.") for name in arrays):
        # As PyTorch's DataParallel names them.
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    found = {name: match for name in arrays if (match := _LSTM.fullmatch(name)) is not None}
    require(bool(found), f"There is no weight_ih_l0 among the tensors {_listed(arrays)}: this is no LSTM of PyTorch.")
    prefixes = sorted({match["prefix"] for match in found.values()})
    require(
        len(prefixes) == 1,
        f"The tensors hold several LSTMs, {', '.join(map(repr, prefixes))}; a language model has one, of equal layers.",
    )
    layers = 1 + max(int(match["layer"]) for match in found.values())
    require(layers <= len(found), f"The tensors are of {layers} layers and not of all of them: {_listed(arrays)}.")
    names = {i: [f"{prefixes[0]}{name}_l{i}" for name in _NAMES] for i in range(layers)}
    wanted = {_EMBEDDING, _BIAS, *(name for layer in names.values() for name in layer)}
    missing, extra = sorted(wanted - arrays.keys()), sorted(arrays.keys() - wanted - {_SOFTMAX})
    require(
        not missing,
        f"There is no {', '.join(missing)}; a model of {layers} layers has encoder.weight, decoder.bias and the four "
        "tensors of each layer.",
    )
    require(
        not extra,
        f"There is no place for {', '.join(extra)}; this reads an embedding, an LSTM in one direction, without "
        "projections, and a softmax.",
    )
    embedding = arrays[_EMBEDDING]
    require(embedding.ndim == 2, f"encoder.weight has shape {embedding.shape}; it must be [V, H].")
    (vocab_size, width), hidden = embedding.shape, arrays[names[0][1]].shape[-1]
    require(
        width == hidden,
        f"The embedding has size {width} and the hidden state {hidden}: here one size holds for both, so this model "
        "cannot be represented. Train it with equal sizes.",
    )
    shapes: dict[str, tuple[int, ...]] = {_BIAS: (vocab_size,), _SOFTMAX: (vocab_size, hidden)}
    for layer in names.values():
        shapes |= dict(zip(layer, [(4 * hidden, hidden)] * 2 + [(4 * hidden,)] * 2, strict=True))
    for name, shape in shapes.items():
        held = arrays[name].shape if name in arrays else shape
        require(held == shape, f"{name} has shape {held}; in an LSTM of {hidden} units, {vocab_size} tokens: {shape}.")
    tied = _SOFTMAX not in arrays or np.array_equal(arrays[_SOFTMAX], embedding)
    params: Params = {"embedding": embedding, "softmax": {"bias": arrays[_BIAS]}}
    if not tied:
        params["softmax"]["kernel"] = arrays[_SOFTMAX].T
    for i, (input_weight, hidden_weight, *biases) in names.items():
        params[f"layer_{i}"] = {
            "input": {"kernel": arrays[input_weight].T},
            "hidden": {"kernel": arrays[hidden_weight].T},
            "bias": arrays[biases[0]] + arrays[biases[1]],
        }
    config = ModelConfig(
        vocab_size=vocab_size, hidden_size=hidden, num_layers=layers, method="dense", cell="lstm", tied_softmax=tied
    )
    return params, config


def _array(name: str, value: Any) -> Array:
    """The tensor in float32."""
    array = jnp.asarray(value if isinstance(value, jax.Array) else np.asarray(value))
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    require(floating, f"{name} is of type {array.dtype}; parameters are floating-point numbers.")
    return array.astype(jnp.float32)


def _listed(names: Any) -> str:
    some = sorted(names)[:8]
    return ", ".join(some) + (f" and {len(names) - len(some)} more" if len(names) > len(some) else "")
