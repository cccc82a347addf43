"""One model for a range of sparsities, against a model trained for each sparsity alone: what the first one loses.

    python -m benchmarks.quality.elastic --data-directory DIR [--sparsities 0.3 0.6 0.9] [--steps 300] [--output FILE]

The models are small LSTMs, 2 x 128 with blocks of 16, on the 3,000 most frequent words, with SGD as in the preset
ptb-lstm-small. One is trained at each sparsity. Another draws the sparsity of every step from the range between the
least and the largest of them (--train.sparsity-range). Each is evaluated at all sparsities, on the validation split,
after its last step.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results
from bwds import PRESETS, cost, language_model
from bwds.data import load_corpus
from bwds.training import train
from bwds.training.evaluation import evaluate
from bwds.training.metrics import perplexity
from bwds.training.trained import load_params
from bwds.training.workdir import read_config

PRESET = "ptb-lstm-small"


def configuration(args, sparsity, limits):
    """The run at one sparsity, or with draws from the range ``limits``."""
    preset = PRESETS[PRESET]
    return dataclasses.replace(
        preset,
        model=dataclasses.replace(
            preset.model, hidden_size=128, block_size=16, sparsity=sparsity, gate_activation=args.activation
        ),
        data=dataclasses.replace(preset.data, dataset="text", directory=args.data_directory, vocab_limit=3000),
        train=dataclasses.replace(
            preset.train,
            steps=args.steps,
            eval_every=args.steps,
            checkpoint_every=args.steps,
            sparsity_range=limits,
            seed=args.seed,
        ),
    )


def measure(results, args, config):
    """A line for every sparsity that one model is evaluated at."""
    with tempfile.TemporaryDirectory() as folder:
        train(config, Path(folder), progress=False)
        config = read_config(Path(folder))
        params, _ = load_params(config, Path(folder), "last")
    corpus = load_corpus(config.data)
    for sparsity in args.sparsities:
        found = evaluate(
            language_model(config.model),
            params,
            corpus.valid,
            config.data,
            corpus.vocabulary.eos_id,
            sparsity=np.float32(sparsity),
        )
        results.write(
            "elastic",
            trained_at=config.train.sparsity_range or config.model.sparsity,
            activation=args.activation,
            steps=args.steps,
            seed=args.seed,
            sparsity=sparsity,
            validation_perplexity=perplexity(found.loss),
            density=found.density,
            relative_cost=cost(dataclasses.replace(config.model, sparsity=sparsity)).relative,
        )


def main():
    options = parser(__doc__)
    options.add_argument("--data-directory", required=True, help="folder with train.txt, valid.txt and test.txt")
    options.add_argument("--sparsities", type=float, nargs="+", default=[0.3, 0.6, 0.9])
    options.add_argument("--activation", choices=["linear", "softplus", "softmax", "relu"], default="softplus")
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    require_positive(args, "steps")
    limits = min(args.sparsities), max(args.sparsities)
    configs = [configuration(args, args.sparsities[0], limits)]
    configs += [configuration(args, sparsity, None) for sparsity in args.sparsities]
    results = Results(args.output)
    for config in configs:
        measure(results, args, config)


if __name__ == "__main__":
    script(main)
