"""Evaluates a trained model on a split, or lets it write.

    python eval.py --workdir DIR [--split test] [--checkpoint best]
    python eval.py --workdir DIR --generate "some words" [--words 50]

An evaluation ends with the perplexity and writes eval_<split>.json into the folder. No token is dropped: each counts
once, and state runs on through the split. With --generate, text is printed and nothing is evaluated.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from bwds.checks import require_seed
from bwds.cli import parsed, run


@dataclass(frozen=True)
class Data:
    """The text."""

    directory: str | None = None
    """Folder where the text files are now; None: as in training."""


@dataclass(frozen=True)
class Options:
    workdir: str
    """Folder of the run, as given to train.py."""
    split: Literal["test", "valid", "validation", "train"] = "test"
    """Which part of the text."""
    checkpoint: Literal["best", "last"] = "best"
    """best: the lowest validation loss; last: the latest state."""
    data: Data = Data()
    batch_size: int | None = None
    """Text streams read side by side; None: as in training."""
    generate: str | None = None
    """Writes text that begins with these words instead of evaluating."""
    words: int = 50
    """With --generate: how many words."""
    temperature: float = 0.8
    """With --generate: lower is more predictable; 0 always takes the most probable word."""
    top_p: float = 0.95
    """With --generate: draws from the most probable words that together have this probability."""
    seed: int = 0
    """With --generate: the same seed gives the same text."""


def main(arguments: Sequence[str]) -> None:
    options = parsed(lambda: tyro.cli(Options, args=arguments, prog="eval.py", description=__doc__))
    workdir = Path(options.workdir)
    require_seed(options.seed)

    # Imported late, so that --help and mistakes are answered at once.
    from bwds.checkpoint import read_config
    from bwds.data import Vocabulary
    from bwds.files import write_text
    from bwds.model import language_model
    from bwds.trained import load_params

    config = read_config(workdir)
    vocabulary = Vocabulary.load(workdir / "vocabulary.txt")
    data = config.data
    if options.data.directory is not None:
        data = dataclasses.replace(data, directory=options.data.directory)
    if options.batch_size is not None:
        data = dataclasses.replace(data, eval_batch_size=options.batch_size)
    config = dataclasses.replace(config, data=data)
    lm = language_model(config.model)
    params, step = load_params(config, workdir, options.checkpoint)

    if options.generate is not None:
        print(write(options, config, lm, params, vocabulary))
        return

    result = measure(options, config, lm, params, vocabulary) | {"checkpoint": options.checkpoint, "step": step}
    split = result["split"]
    write_text(workdir / f"eval_{split}.json", json.dumps(result, indent=2) + "\n")
    print(
        f"{options.checkpoint} checkpoint, step {step:,}: loss {result['loss']:.4f} nats a token over "
        f"{result['tokens']:,} tokens, realised density {result['density']:.4f}"
    )
    print(f"{'validation' if split == 'valid' else split} perplexity: {result['perplexity']:.2f}")


def measure(options: Options, config: Any, lm: Any, params: Any, vocabulary: Any) -> dict[str, Any]:
    """Loss, perplexity and density of a split of the run's text, in the run's vocabulary."""
    from bwds.data import load_corpus
    from bwds.evaluation import evaluate
    from bwds.metrics import perplexity

    split = "valid" if options.split == "validation" else options.split
    corpus = load_corpus(config.data)
    ids = getattr(corpus, split)
    if corpus.vocabulary != vocabulary:
        ids = vocabulary.encode(corpus.vocabulary.words)[ids]
    loss, density, tokens = evaluate(lm, params, ids, config.data, vocabulary.eos_id)
    return {"split": split, "perplexity": perplexity(loss), "loss": loss, "density": density, "tokens": tokens}


def write(options: Options, config: Any, lm: Any, params: Any, vocabulary: Any) -> str:
    """The prompt and the words that follow it; a line ends where the model ends one."""
    import jax

    from bwds.generate import generate
    from bwds.model import decode_params

    words = (options.generate or "").split()
    prompt = vocabulary.encode(["<eos>", *words])
    unknown = [repr(word) for word in dict.fromkeys(words) if word not in vocabulary.words]
    if unknown:
        print(f"The vocabulary has no {', '.join(unknown)}; <unk> is read instead.", file=sys.stderr)
    ids = generate(
        lm,
        decode_params(params, config.model),
        prompt,
        key=jax.random.key(options.seed),
        length=options.words,
        temperature=options.temperature,
        top_p=options.top_p,
    )
    text = " ".join(vocabulary.decode([*prompt[1:].tolist(), *ids.tolist()]))
    return "\n".join(line.strip() for line in text.split("<eos>"))


if __name__ == "__main__":
    sys.exit(run(main, "eval.py", sys.argv[1:]))
