"""A trained model as compiled programs: what serves it needs jax, and neither bwds nor this repository."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bwds.checks import require
from bwds.digest import digest
from bwds.filesystem import place, write_bytes, write_text
from bwds.model import LanguageModel
from bwds.tensors import flat, nested, tensor_bytes
from bwds.tokens import EOS, UNK, unspelled
from bwds.trained_model import TrainedModel
from pallas_kernels.sizes import FEW_ROWS

PLATFORMS = ("cpu", "cuda", "tpu")
DESCRIPTION, PARAMETERS, VOCABULARY, CARD = "programs.json", "parameters.safetensors", "vocabulary.json", "card.md"
TOKENIZER = "tokenizer.json"
FORMAT, VERSION = "bwds.programs", 1


def export_programs(
    loaded: TrainedModel, directory: str | os.PathLike[str], *, platforms: Sequence[str] = ("cpu",)
) -> None:
    """Writes a folder of programs with which jax alone runs the model, in any number of streams.

    Example:
        ```python
        from bwds.export import export_programs

        export_programs(bwds.load("runs/quick"), "served", platforms=["cpu", "cuda"])
        # then, without bwds:  python examples/serve_exported.py served "the company said"
        ```

    There are three programs, for any number B of streams and T of tokens:

        prefill(parameters, tokens int32 [B, T], carry) -> logits float32 [B, T, V], carry
        step(parameters, tokens int32 [B], carry) -> logits float32 [B, V], carry
        step_few: the same for at most 16 streams; only it can leave blocks unread that no stream keeps

    ``parameters`` and ``carry`` are dicts of arrays by name; the carry of new streams is zeros. A stream is a row of
    the carry: rows of several streams are put together for one call, and taken apart after it.

    The folder holds:

        prefill.jax_export, ...  StableHLO as ``jax.export`` writes it; later versions of jax read it for as long as
                                 ``jax.export`` promises
        parameters.safetensors   the parameters
        vocabulary.json          the tokens in the order of their ids, if the model has a vocabulary
        tokenizer.json           for subwords alone; the package ``tokenizers`` reads it
        card.md                  what the model is, for people
        programs.json            written last: all names, shapes and types, what a token is, and the order in which the
                                 programs take their arrays

    On every platform the programs hold XLA's product and no Pallas kernel, because B is a symbol.

    Args:
        loaded: the model, its parameters laid out for decoding.
        directory: a new folder, or an empty one.
        platforms: any of "cpu", "cuda" and "tpu"; each file then runs on all of them.

    Raises:
        ValueError: a platform is unknown, something is in the folder, or a package is not installed:
            flatbuffers, safetensors, for subwords tokenizers.
        OSError: the folder cannot be written.
    """
    folder = place(directory, "directory")
    chosen = list(dict.fromkeys(platforms)) if not isinstance(platforms, str) else [platforms]
    unknown = [name for name in chosen if name not in PLATFORMS]
    require(
        bool(chosen) and not unknown,
        f"platforms are {', '.join(map(repr, chosen)) or 'none'}; they must be of {', '.join(PLATFORMS)}.",
    )
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    require(not taken, f"There is something at {str(folder)!r} already; give a new folder.")

    vocabulary = loaded.vocabulary
    # This may need a package that is missing, so it comes before the folder is made.
    tokenizer = None if vocabulary is None else vocabulary.tokenizer_file()
    params = flat(loaded.params)
    arrays = {name: np.ascontiguousarray(params[name]) for name in sorted(params)}
    programs = {name: _exported(name, loaded.model, params, chosen) for name in ("prefill", "step", "step_few")}
    written = {name: _serialized(program) for name, program in programs.items()}
    sha256 = digest(nested(arrays))
    tensors = tensor_bytes(arrays, {"format": FORMAT, "parameters_sha256": sha256})

    folder.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        write_bytes(folder / _file(name), content)
    write_bytes(folder / PARAMETERS, tensors)
    write_text(folder / CARD, loaded.card)
    if vocabulary is not None:
        words = list(vocabulary.words)
        if vocabulary.tokens == "character":
            words = [word if word in (EOS, UNK) else unspelled(word) for word in words]
        write_text(folder / VOCABULARY, json.dumps(words, ensure_ascii=False) + "\n")
    if tokenizer is not None:
        write_text(folder / TOKENIZER, tokenizer)
    description = {
        "format": FORMAT,
        "version": VERSION,
        "jax": jax.__version__,
        "platforms": chosen,
        "parameters": PARAMETERS,
        "parameters_sha256": sha256,
        "tokens": None if vocabulary is None else vocabulary.tokens,
        "vocabulary": None if vocabulary is None else VOCABULARY,
        "tokenizer": None if tokenizer is None else TOKENIZER,
        "programs": {name: _described(name, program) for name, program in programs.items()},
    }
    write_text(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def _file(program: str) -> str:
    return f"{program}.jax_export"


def _exported(name: str, lm: LanguageModel, params: Mapping[str, Any], platforms: Sequence[str]) -> Any:
    """One of the programs. It takes and returns plain dicts, because a reader without bwds knows none of its types."""
    few = name == "step_few"
    symbols: Any = jax.export.symbolic_shape("B, T", constraints=[f"B <= {FEW_ROWS}"] if few else [])
    b, t = symbols
    states = jax.eval_shape(lambda: lm.init_carry(b))
    carry = {f"layer_{i}/{field}": leaf for i, state in enumerate(states) for field, leaf in state._asdict().items()}

    def prefill(params, tokens, carry):
        before = tuple(
            type(state)(**{field: carry[f"layer_{i}/{field}"] for field in state._fields})
            for i, state in enumerate(states)
        )
        logits, after, _ = lm.apply(nested(params), tokens, before)
        named = {f"layer_{i}/{field}": leaf for i, state in enumerate(after) for field, leaf in state._asdict().items()}
        return logits, named

    def step(params, tokens, carry):
        logits, carry = prefill(params, tokens[:, None], carry)
        return logits[:, 0], carry

    function, shape = (prefill, (b, t)) if name == "prefill" else (step, (b,))
    shapes = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), dict(params))
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    return jax.export.export(jax.jit(function), platforms=platforms)(shapes, tokens, carry)


def _serialized(program: Any) -> bytes:
    try:
        return bytes(program.serialize())
    except ImportError as error:
        # The error that jax raises names no module, so ``missing_extra`` would not know it.
        raise ValueError(
            f'jax.export needs a package that is not installed ({error}): pip install -e ".[export]" in a clone of the '
            "repository, or pip install flatbuffers."
        ) from error


def _described(name: str, program: Any) -> dict[str, Any]:
    """The file of a program and, in the order of its flat arguments and results, their names, shapes and types."""

    def of(avals: Any) -> Any:
        if isinstance(avals, dict):
            # Sorted, as the leaves of a dict are.
            return [{"name": key, **of(avals[key])} for key in sorted(avals)]
        return {
            "shape": [size if isinstance(size, int) else str(size) for size in avals.shape],
            "dtype": str(avals.dtype),
        }

    (params, tokens, carry), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    logits, after = jax.tree.unflatten(program.out_tree, program.out_avals)
    return {
        "file": _file(name),
        "most_streams": FEW_ROWS if name == "step_few" else None,
        "arguments": {"parameters": of(params), "tokens": of(tokens), "carry": of(carry)},
        "results": {"logits": of(logits), "carry": of(after)},
    }
