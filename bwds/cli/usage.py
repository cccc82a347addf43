"""Which blocks a trained dynamic model keeps, and whether that is due to the input.

    bwds usage RUN [--split validation] [--text "own sentence"] [--counterfactuals] [--max-tokens N]

RUN is the folder of a run. A table shows how the blocks of every matrix are used over the text, and, with
--counterfactuals, the perplexity with other choices of as many blocks; docs/usage.md explains both. --output gets the
figures, and a line of usage.jsonl with all numbers of the table.

RUN may also be a model in one file. It comes without its text, so only the blocks that --text keeps are drawn.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bwds import plots
from bwds.checks import require, require_seed
from bwds.cli import parsed
from bwds.errors import of_the_system
from bwds.filesystem import place, write_bytes, writing
from bwds.output import say, tell

FREQUENT, SHOWN = 24, 16
"""Tokens in the figure of frequent tokens, and at most in that of a sentence."""


@dataclass(frozen=True)
class Options:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, as given to bwds train, or the file of a model."""
    split: Literal["validation", "valid", "test", "train"] = "validation"
    """Which part of the text."""
    text: str | None = None
    """A sentence whose kept blocks are drawn; None: the first line of the split."""
    counterfactuals: bool = False
    """Also read the text with other choices of blocks, at some five times the work."""
    max_tokens: int | None = None
    """Reads the first N tokens of the split; None: 20,000, or all of it with --counterfactuals."""
    output: str | None = None
    """Folder for figures and usage.jsonl; None: the folder usage in that of the run, or beside the file."""
    format: Literal["png", "svg"] = "png"
    """Format of the figures."""
    checkpoint: Literal["best", "last"] = "best"
    """best: the lowest validation loss; last: the latest state."""
    directory: str | None = None
    """Folder where the text files are now; None: as in training."""
    seed: int = 0
    """With --counterfactuals: which token stands in for which."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``bwds usage``. Raises what ``bwds.cli.run`` answers."""
    usage(parsed(lambda: tyro.cli(Options, args=argv, prog="bwds usage", description=__doc__)))


def usage(options: Options) -> None:
    """Measures, prints and draws. Raises ``ValueError`` where there is no such run, or it has no gates."""
    workdir = place(options.run, "RUN")
    require(
        options.max_tokens is None or options.max_tokens >= 1, f"--max-tokens is {options.max_tokens}; take 1 or more."
    )
    require(options.text is None or bool(options.text.split()), "--text has no words; give some, or leave it out.")
    require_seed(options.seed)
    beside = workdir.parent if workdir.is_file() else workdir
    output = beside / "usage" if options.output is None else place(options.output, "--output")
    if workdir.is_file():
        _usage_of_file(workdir, output, options)
        return

    # Imported late, so that --help and mistakes are answered at once.
    from bwds.cli.eval import compare_text, name_text
    from bwds.data import Vocabulary, load_split
    from bwds.training.identity import ids_sha256, settled
    from bwds.training.trained import load_checkpoint
    from bwds.training.usage import measure_usage
    from bwds.training.workdir import read_config

    config = read_config(workdir)
    _require_gates(workdir, config.model)
    vocabulary = Vocabulary.load(workdir / "vocabulary.txt", config.data.tokens)
    sentence = None if options.text is None else _encoded(options.text, vocabulary)
    if options.directory is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, directory=options.directory))
    # The kernel depends on the machine, so the one of the training need not run here.
    config = settled(dataclasses.replace(config, model=dataclasses.replace(config.model, implementation=None)))
    params, info = load_checkpoint(config, workdir, options.checkpoint)
    split = "valid" if options.split == "validation" else options.split
    ids, unknown = load_split(config.data, split, vocabulary)
    sentence = _first_line(ids, vocabulary.eos_id) if sentence is None else sentence
    most = options.max_tokens or (len(ids) if options.counterfactuals else 20_000)
    part = ids[:most]
    frequent = _frequent(part, len(vocabulary))
    groups = _numbered(frequent, len(vocabulary))
    found = measure_usage(
        params,
        config.model,
        part,
        config.data,
        vocabulary.eos_id,
        counterfactuals=options.counterfactuals,
        groups=groups,
        seed=options.seed,
        follow=_progress,
    )
    say(_table(found, split, info["step"]))
    text = {"split": split, "text_sha256": ids_sha256(ids), "unknown_words": unknown, "tokens": len(ids)}
    name_text(split, config)
    compare_text(text, info, moved=options.directory is not None)
    line = _line(found, split, options, config, info) | {"text_sha256": ids_sha256(part)}
    path = output / "usage.jsonl"
    try:
        output.mkdir(parents=True, exist_ok=True)
        with writing(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        # Only a warning: the table is shown, and the folder of the run may be read-only.
        tell(f"warning: {of_the_system(error)}\nThere are no figures; --output takes another folder.")
        return
    if not plots.is_available():
        tell('No figures are drawn: matplotlib is missing (pip install -e ".[plots]" in a clone of the repository).')
        say(f"Written to {path}.")
        return
    used = {name: matrix.used for name, matrix in found.matrices.items()}
    by_token = {name: matrix.by_group for name, matrix in found.matrices.items()}
    shape, cell = config.model.block_shape, config.model.cell
    figures = {
        "used_blocks": plots.usage_maps(used, shape, cell=cell),
        "used_by_token": plots.usage_by_group(by_token, vocabulary.shown(frequent), shape),
        "kept_blocks": _kept_map(sentence, params, config.model, vocabulary),
    }
    for name, figure in figures.items():
        write_bytes(output / f"{name}.{options.format}", plots.file_of(figure, options.format))
    say(f"Written to {output}: {', '.join(f'{name}.{options.format}' for name in figures)}, {path.name}.")


def _usage_of_file(file: Path, output: Path, options: Options) -> None:
    """Draws which blocks a model in one file keeps for a sentence."""
    require(
        options.text is not None and not options.counterfactuals,
        f"{str(file)!r} is a model in one file, which comes without its text: give --text, a sentence whose kept "
        "blocks are drawn. All else needs the folder of a run.",
    )
    require(
        plots.is_available(), 'The figure needs matplotlib: pip install -e ".[plots]" in a clone of the repository.'
    )

    # Imported late, so that mistakes are answered at once.
    from bwds.files import load_model

    loaded = load_model(file)
    _require_gates(file, loaded.config)
    if loaded.vocabulary is None:
        raise ValueError(f"The model in {str(file)!r} has no vocabulary, so it reads no sentence.")
    sentence = _encoded(str(options.text), loaded.vocabulary)
    figure = _kept_map(sentence, loaded.params, loaded.config, loaded.vocabulary)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"kept_blocks.{options.format}"
    write_bytes(path, plots.file_of(figure, options.format))
    say(f"Written to {path}.")


def _require_gates(path: Path, model: Any) -> None:
    require(
        model.method == "dynamic",
        f"The model in {str(path)!r} has the method {model.method!r}, which has no gates; only a dynamic model chooses "
        "blocks.",
    )


def _frequent(ids: Any, size: int) -> list[int]:
    """The most frequent tokens, most frequent first."""
    import numpy as np

    counts = np.bincount(ids, minlength=size)
    order = np.argsort(-counts, kind="stable")[:FREQUENT]
    return [int(i) for i in order if counts[i]]


def _numbered(tokens: list[int], size: int) -> Any:
    """For every token of the vocabulary its index in ``tokens``, or -1."""
    import numpy as np

    numbers = np.full(size, -1, np.int32)
    numbers[tokens] = np.arange(len(tokens))
    return numbers


def _progress(windows: Sequence[Any], title: str) -> Iterable[Any]:
    """The windows, with a bar on stderr where that is a terminal."""
    from tqdm import tqdm

    shown = sys.stderr is not None and sys.stderr.isatty()
    return tqdm(windows, desc=title, unit="window", dynamic_ncols=True, disable=not shown)


def _encoded(text: str, vocabulary: Any) -> Any:
    """Ids of ``<eos>`` and a sentence; stderr names unknown tokens, and says if the end is not drawn."""
    encoded = vocabulary.prompt(text)
    if note := vocabulary.note_of_unknown(text):
        tell(note)
    if len(encoded) > SHOWN:
        tell(f"The sentence has {len(encoded)} tokens with <eos>; the first {SHOWN} are drawn.")
    return encoded[:SHOWN]


def _first_line(ids: Any, eos_id: int) -> Any:
    """The first line of a text with at least three tokens, as far as it is drawn, after the ``<eos>`` before it."""
    import numpy as np

    # The text has no <eos> before its first line.
    text = np.concatenate([[eos_id], ids]).astype(np.int32)
    ends = [*np.flatnonzero(text == eos_id), len(text)]
    start, end = next(((a, b) for a, b in pairwise(ends) if b - a > 3), (0, len(text)))
    return text[start : min(end, start + SHOWN)]


def _kept_map(sentence: Any, params: Any, model: Any, vocabulary: Any) -> Any:
    """The picture of the blocks that each token of a sentence keeps."""
    import jax

    from bwds.counterfactual import apply_choosing
    from bwds.model import language_model

    apply = jax.jit(apply_choosing, static_argnames=("config", "choice"))
    _, _, kept = apply(params, sentence[None], language_model(model).init_carry(1), config=model, choice="own")
    marks: dict[str, Any] = {name: jax.device_get(of[0]) for name, of in kept.items()}
    return plots.kept_map(marks, vocabulary.shown(sentence), model.block_shape, cell=model.cell)


def _table(found: Any, split: str, step: int) -> str:
    from bwds.training.metrics import perplexity

    lines = [
        f"{found.tokens:,} tokens of the {split} split, checkpoint of step {step:,}",
        "",
        f"{'matrix':16} {'blocks':>7} {'kept':>6}  {'used by':>13}  {'blocks shared with the tokens of':^35}",
        f"{'':16} {'':>7} {'':>6}  {'>95%':>6} {'<5%':>6}  {'the step before':>15} {'another':>9} {'(chance)':>9}",
    ]
    for name, m in found.matrices.items():
        lines.append(
            f"{name:16} {m.used.size:>7,} {m.num_kept:>6,}  {m.nearly_always:>6.1%} {m.nearly_never:>6.1%}  "
            f"{m.overlap_before:>15.3f} {m.overlap_other:>9.3f} {m.overlap_chance:>9.3f}"
        )
    lines.append("")
    if len(found.losses) == 1:
        lines.append(f"perplexity {perplexity(found.losses['own']):.2f}")
        return "\n".join(lines)
    lines.append(f"{'choice of blocks':16} {'perplexity':>10} {'against its own':>16}")
    own = perplexity(found.losses["own"])
    for choice, loss in found.losses.items():
        change = "" if choice == "own" else f"{perplexity(loss) / own - 1.0:+16.1%}"
        lines.append(f"{choice:16} {perplexity(loss):>10.2f} {change}")
    return "\n".join(lines)


def _line(found: Any, split: str, options: Options, config: Any, info: dict[str, Any]) -> dict[str, Any]:
    """All numbers of the table as JSON values, and the run and the text that they are of."""
    import jax

    from bwds.training.metrics import perplexity

    made = dataclasses.asdict(config)
    del made["data"]["directory"]  # A place of this machine.
    return {
        "benchmark": "usage",
        "config": made,
        "step": info["step"],
        "checkpoint": options.checkpoint,
        "split": split,
        "tokens": found.tokens,
        "seed": options.seed,
        "losses": found.losses,
        "perplexities": {choice: perplexity(loss) for choice, loss in found.losses.items()},
        "matrices": {
            name: {
                "blocks": m.used.size,
                "kept": m.num_kept,
                "nearly_always": m.nearly_always,
                "nearly_never": m.nearly_never,
                "overlap_before": m.overlap_before,
                "overlap_other": m.overlap_other,
                "overlap_chance": m.overlap_chance,
            }
            for name, m in found.matrices.items()
        },
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
