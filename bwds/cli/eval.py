"""Evaluates a trained model on a split, lets it write, or writes it into one file.

    bwds eval --workdir DIR [--split test] [--checkpoint best]
    bwds eval --workdir DIR --sparsity 0.3 0.5 0.7 0.9
    bwds eval --workdir DIR --generate "some words" [--words 50]
    bwds eval --workdir DIR --export model.safetensors

An evaluation prints the perplexity and writes eval_<split>.json into the folder. The name is eval_<split>_last.json for
the last checkpoint, eval_<split>_<digest>.json for another text than the run's, and eval_<split>_sparsity_<S>.json with
--sparsity. With several sparsities it prints a table and writes eval_<split>_sparsities.json. It reads only the file of
the split, in the tokens of the run. No token is dropped: each counts once, and state runs on through the split.

With --generate it prints text and evaluates nothing. With --export it writes the model into one file, which
bwds.load_model reads without the packages that training needs, and evaluates nothing.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from bwds.checks import require, require_at_least, require_seed
from bwds.cli import parsed
from bwds.config import Implementation
from bwds.errors import of_the_system
from bwds.filesystem import place
from bwds.output import say, tell


@dataclass(frozen=True)
class Data:
    """The text."""

    directory: str | None = None
    """Folder where the text files are now, or the file; None: as in training."""


@dataclass(frozen=True)
class Model:
    """The model."""

    implementation: Implementation | None = None
    """Kernel of the block-sparse product, where that of the training does not run; None: as in training."""


@dataclass(frozen=True)
class Options:
    workdir: str
    """Folder of the run, as given to bwds train."""
    split: Literal["test", "valid", "validation", "train"] = "test"
    """Which part of the text."""
    checkpoint: Literal["best", "last"] = "best"
    """best: the lowest validation loss; last: the latest state."""
    data: Data = Data()
    model: Model = Model()
    batch_size: int | None = None
    """Text streams read side by side, each but the first from one window earlier on, without what comes before that;
    None: as in training."""
    sparsity: tuple[float, ...] = ()
    """Share of the blocks that a dynamic model leaves out, in [0, 1); none: as in training; several: a table."""
    export: str | None = None
    """Writes the model into this file instead of evaluating."""
    generate: str | None = None
    """Writes text that begins with this prompt instead of evaluating."""
    words: int = 50
    """With --generate: how many tokens to write, which are words unless --data.tokens of the run says otherwise."""
    temperature: float = 0.8
    """With --generate: lower is more predictable; 0 always takes the most probable token."""
    top_p: float = 0.95
    """With --generate: draws from the most probable tokens that together have this probability."""
    seed: int = 0
    """With --generate: the same seed gives the same text."""
    ban: tuple[str, ...] = ()
    """With --generate: tokens that are never written, such as "<unk>"."""


def main(arguments: Sequence[str], *, script: Path | None = None) -> None:
    """The command, called as ``bwds eval`` or as a ``script``. Raises what ``bwds.cli.run`` answers."""
    program = script.name if script else "bwds eval"
    options = parsed(lambda: tyro.cli(Options, args=arguments, prog=program, description=__doc__))
    workdir = place(options.workdir, "--workdir")
    require_seed(options.seed)
    if options.batch_size is not None:
        require_at_least(1, **{"--batch-size": options.batch_size})
    both = options.generate is not None and options.export is not None
    require(not both, "Both --generate and --export are given; each is instead of an evaluation: give one.")
    several = len(options.sparsity) > 1
    require(
        not several or (options.generate is None and options.export is None),
        f"--sparsity is {' '.join(map(str, options.sparsity))}; a text, or a file, is of one: give one.",
    )
    file = None if options.export is None else place(options.export, "--export", "file")

    # Imported late, so that --help and mistakes are answered at once.
    from bwds.data import Vocabulary
    from bwds.model import language_model
    from bwds.training.identity import settled
    from bwds.training.trained import load_checkpoint
    from bwds.training.workdir import read_config

    config = read_config(workdir)
    vocabulary = Vocabulary.load(workdir / "vocabulary.txt", config.data.tokens)
    data, model = config.data, config.model
    if options.data.directory is not None:
        data = dataclasses.replace(data, directory=options.data.directory)
    if options.batch_size is not None:
        data = dataclasses.replace(data, eval_batch_size=options.batch_size)
    if options.model.implementation is not None:
        model = dataclasses.replace(model, implementation=options.model.implementation)
    config = settled(dataclasses.replace(config, data=data, model=model))
    for sparsity in options.sparsity:
        model.at_sparsity(sparsity)  # Refuses a sparsity that the model cannot take.
    sparsity = options.sparsity[0] if len(options.sparsity) == 1 else None
    model = model.at_sparsity(sparsity)
    lm = language_model(model)
    params, info = load_checkpoint(config, workdir, options.checkpoint)

    if options.generate is not None:
        if not say(write(options, config, lm, params, vocabulary)):
            sys.exit(1)
        return

    if file is not None:
        export(file, options, config, model, params, info, vocabulary, sparsity)
        return

    split = "valid" if options.split == "validation" else options.split
    if several:
        measure_each(options, split, config, lm, params, vocabulary, info, workdir)
        return
    result = measure(split, config, lm, params, vocabulary) | {"checkpoint": options.checkpoint, "step": info["step"]}
    if sparsity is not None:
        result["sparsity"] = sparsity
    name_text(split, config)
    is_runs_own = compare_text(result, info, moved=options.data.directory is not None)
    shown = say(
        f"{options.checkpoint} checkpoint, step {info['step']:,}: loss {result['loss']:.4f} nats a token over "
        f"{result['tokens']:,} tokens, realised density {result['density']:.4f}\n"
        f"{'validation' if split == 'valid' else split} perplexity: {result['perplexity']:.2f}"
    )
    keep(result, workdir, is_runs_own=is_runs_own, needed=not shown)


def measure_each(
    options: Options, split: str, config: Any, lm: Any, params: Any, vocabulary: Any, info: Any, workdir: Path
) -> None:
    """Evaluates at each of ``options.sparsity``, prints a table and writes one file."""
    from bwds.cost import cost

    rows, result = [], {}
    shown = say(f"{'sparsity':>8}  {'perplexity':>10}  {'realised density':>16}  {'cost against dense':>18}")
    for sparsity in options.sparsity:
        # A NumPy scalar is traced, so one program serves all sparsities.
        result = measure(split, config, lm, params, vocabulary, np.float32(sparsity))
        figures = {name: result.pop(name) for name in ("perplexity", "loss", "density")}
        relative = cost(dataclasses.replace(config.model, sparsity=sparsity)).relative
        rows.append({"sparsity": sparsity, **figures, "relative_cost": relative})
        line = f"{sparsity:8g}  {figures['perplexity']:10.2f}  {figures['density']:16.4f}  {relative:18.3f}"
        shown = say(line) and shown
    name_text(split, config)
    is_runs_own = compare_text(result, info, moved=options.data.directory is not None)
    result |= {"checkpoint": options.checkpoint, "step": info["step"], "sparsities": rows}
    keep(result, workdir, is_runs_own=is_runs_own, needed=not shown)


def name_text(split: str, config: Any) -> None:
    """Says on stderr which text the figures are of."""
    where = "" if config.data.directory is None else f" in {config.data.directory}"
    tell(f"This was the {split} split of {config.data.dataset}{where}.")


def measure(
    split: str, config: Any, lm: Any, params: Any, vocabulary: Any, sparsity: np.float32 | None = None
) -> dict[str, Any]:
    """Loss, perplexity and density of a split, in the run's vocabulary, and which text it was.

    Args:
        split: its name.
        config: the run's.
        lm: the model.
        params: its parameters.
        vocabulary: the run's.
        sparsity: replaces the model's own; None: the model's own.
    """
    from bwds.data import load_split
    from bwds.training.evaluation import evaluate
    from bwds.training.identity import ids_sha256
    from bwds.training.metrics import perplexity

    ids, unknown = load_split(config.data, split, vocabulary)
    loss, density, tokens, _ = evaluate(lm, params, ids, config.data, vocabulary.eos_id, sparsity=sparsity)
    return {
        "split": split,
        "perplexity": perplexity(loss),
        "loss": loss,
        "density": density,
        "tokens": tokens,
        "unknown_words": unknown,
        "dataset": config.data.dataset,
        "directory": config.data.directory,
        "text_sha256": ids_sha256(ids),
    }


def compare_text(result: dict[str, Any], info: dict[str, Any], *, moved: bool) -> bool:
    """Whether the text is the run's own; if not, stderr says so.

    Args:
        result: of the evaluation: the split, the digest of its text, and how many tokens it has, known and unknown.
        info: what the checkpoint keeps beside its arrays. Checkpoints of earlier versions have no digest of the text.
        moved: whether the folder of the text is another one than in training; without a digest, only this counts.
    """
    split, text = result["split"], result["text_sha256"]
    known = info.get("splits_sha256", {}).get(split)
    same = not moved if known is None else known == text
    unknown, tokens = result["unknown_words"], result["tokens"]
    lacking = f"{unknown:,} of its {tokens:,} tokens ({unknown / tokens:.1%}) are unknown and count as <unk>"
    if known is not None and not same:
        tell(f"warning: this {split} text is not the run's (SHA-256 {text[:12]}, the run's {known[:12]}); {lacking}.")
    elif not same and unknown:
        tell(f"warning: it is not known whether this {split} text is the run's; {lacking}.")
    return same


def keep(result: dict[str, Any], workdir: Path, *, is_runs_own: bool, needed: bool) -> None:
    """Writes the result into the run's folder. If that fails, raises ``OSError`` if ``needed``, and warns otherwise."""
    from bwds.filesystem import write_text

    parts = [result["split"], *(["last"] if result["checkpoint"] == "last" else [])]
    parts += ["sparsity", str(result["sparsity"])] if "sparsity" in result else []
    parts += ["sparsities"] if "sparsities" in result else []
    name = "_".join(["eval", *parts, *([] if is_runs_own else [result["text_sha256"][:12]])])
    try:
        write_text(workdir / f"{name}.json", json.dumps(result, indent=2) + "\n")
    except OSError as error:
        if needed:
            raise
        tell(f"warning: {of_the_system(error)}")


def export(
    file: Path,
    options: Options,
    config: Any,
    model: Any,
    params: Any,
    info: dict[str, Any],
    vocabulary: Any,
    sparsity: float | None,
) -> None:
    """Writes the model into one file, and prints its card."""
    from bwds.card import model_card
    from bwds.files import save_model
    from bwds.training.trained import facts

    known = facts(config, info, place(options.workdir, "--workdir"), options.checkpoint, sparsity)
    card = model_card(model, params, known)
    save_model(file, params, model, vocabulary=vocabulary, card=card)
    say(f"{card}\nWritten into {file}, {file.stat().st_size / 1e6:,.1f} MB. Use it: bwds.load_model({str(file)!r})")


def write(options: Options, config: Any, lm: Any, params: Any, vocabulary: Any) -> str:
    """The prompt and the text that follows it; a line ends where the model ends one."""
    import jax

    from bwds.generate import generate
    from bwds.model import decode_params
    from bwds.trained_model import banned_ids, continued

    text = options.generate or ""
    prompt = vocabulary.prompt(text)
    if note := vocabulary.note_of_unknown(text):
        tell(note)
    ids = generate(
        lm,
        decode_params(params, config.model),
        prompt,
        key=jax.random.key(options.seed),
        length=options.words,
        temperature=options.temperature,
        top_p=options.top_p,
        ban=banned_ids(vocabulary, options.ban),
    )
    return vocabulary.text(continued(vocabulary, prompt, np.asarray(ids)))
