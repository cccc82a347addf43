"""Do rows that run together have to read other blocks each? What it costs to choose blocks for all of them at once.

    python -m benchmarks.quality.shared_blocks --data-directory DIR [--steps 300] [--output FILE]

A batch reads every block that one of its rows keeps. Here the choice is made of (1 - share) times the row's own scores
and ``share`` times the mean of those of its group; gates stay those of the row. With a share of 1 a group keeps the
same blocks and reads no others. Small LSTMs as in ``elastic.py``, half of the blocks kept, batches of 16 streams: each
is trained with the share and the group that its line names, and so is a model whose blocks depend on nothing (bias).
Then it runs with 4 and with 16 rows, choosing in groups of all of these.

Perplexities are of the first 10,000 tokens of the validation split. ``blocks_read`` is the share of the blocks that some row keeps in a step, over 100 steps and all gated matrices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results
from bwds import PRESETS, language_model, linear
from bwds.data import load_corpus
from bwds.data.batches import train_batch
from bwds.training.evaluation import evaluate
from bwds.training.metrics import perplexity
from bwds.training.optim import make_optimizer
from bwds.training.step import init_state, train_step

ROWS, WINDOW = 16, 20
TOKENS = 10_000
"""Of the validation split."""
CHOICES = ((0.0, 1), (1.0, 16), (0.7, 16))
"""Share and group that models are trained with."""
own_choice = linear.select_blocks


def choose(share, group):
    """Every gate from now on chooses with the scores of its group; group 1: with its own."""

    def select_blocks(scores, **options):
        if group > 1:
            grouped = scores.reshape(-1, group, *scores.shape[1:])
            mean = grouped.mean(1, keepdims=True)
            scores = ((1 - share) * grouped + share * mean).reshape(scores.shape)
        return own_choice(scores, **options)

    linear.select_blocks = select_blocks
    # The same model is another program now.
    jax.clear_caches()


def trained(config, corpus, steps):
    """Parameters after so many steps."""
    lm, optimizer = language_model(config.model), make_optimizer(config.optim, config.train.steps)
    state = init_state(lm, optimizer, jax.random.key(0), batch_size=ROWS)
    for step in range(steps):
        batch = train_batch(corpus.train, step, batch_size=ROWS, sequence_length=WINDOW)
        state, _ = train_step(lm, optimizer, state, batch.inputs, batch.targets, np.bool_(batch.new_epoch), None)
    return state.params


def blocks_read(config, params, ids, rows, steps=100):
    """Share of the blocks that some of the rows keeps, step by step through the text."""
    lm = language_model(config.model)
    tokens = ids[: len(ids) // rows * rows].reshape(rows, -1)[:, :steps].T

    def step(carry, tokens):
        _, carry, info = lm.apply(params, tokens[:, None], carry)
        return carry, jnp.stack([(usage > 0).mean() for usage in info.usage.values()]).mean()

    return float(jax.jit(lambda: jax.lax.scan(step, lm.init_carry(rows), jnp.asarray(tokens))[1].mean())())


def run(results, args):
    """All models, and what each does with 4 and 16 rows."""
    preset = PRESETS["ptb-lstm-small"]
    data = dataclasses.replace(
        preset.data, dataset="text", directory=args.data_directory, vocab_limit=3000, batch_size=ROWS
    )
    corpus = load_corpus(data)
    # So few rows of so small blocks are slow in the loops of "xla", which are made for large ones.
    model = dataclasses.replace(
        preset.model,
        hidden_size=128,
        block_size=16,
        vocab_size=len(corpus.vocabulary),
        implementation="reference",
    )
    ids = corpus.valid[:TOKENS]
    for source, (share, group) in (*(("learned", choice) for choice in CHOICES), ("bias", (0.0, 1))):
        config = dataclasses.replace(preset, model=dataclasses.replace(model, gate_source=source))
        choose(share, group)
        params = trained(config, corpus, args.steps)
        for rows in (4, 16):
            # The model that was trained to choose row by row also chooses for all rows at once, as it is.
            for applied in (0.0, 1.0) if (source, group) == ("learned", 1) else (share,):
                choose(applied, rows if applied else 1)
                found = evaluate(
                    language_model(config.model),
                    params,
                    ids,
                    dataclasses.replace(data, eval_batch_size=rows),
                    corpus.vocabulary.eos_id,
                )
                results.write(
                    "shared_blocks",
                    source=source,
                    trained_share=share,
                    trained_group=group,
                    steps=args.steps,
                    share=applied,
                    rows=rows,
                    blocks_read=blocks_read(config, params, ids, rows),
                    validation_perplexity=perplexity(found.loss),
                )


def main():
    options = parser(__doc__)
    options.add_argument("--data-directory", required=True, help="folder with train.txt, valid.txt and test.txt")
    options.add_argument("--steps", type=int, default=300)
    args = options.parse_args()
    require_positive(args, "steps")
    run(Results(args.output), args)


if __name__ == "__main__":
    script(main)
