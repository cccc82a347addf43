"""Does each row of a batch have to read blocks of its own? What it costs to choose blocks for all rows at once.

    python -m benchmarks.quality.shared_blocks --data-directory DIR [--steps 300] [--output FILE]

A batch reads every block that one of its rows keeps. Here a row chooses its blocks by (1 - share) times its own scores
plus ``share`` times the mean scores of its group; its gates stay its own. With a share of 1 a group keeps the same
blocks and reads no others. The models are small LSTMs as in ``elastic.py`` that keep half of the blocks, on batches of
16 streams. Each is trained with the share and the group that its line names; in one more model the blocks depend on
nothing (bias). Then each runs with 4 and with 16 rows; where rows choose together, all of these are one group.

Perplexities are of the first 10,000 tokens of the validation split. ``blocks_read`` is the share of the blocks that
some row keeps in a step, over 100 steps and all gated matrices.
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
"""How many tokens of the validation split are evaluated."""
CHOICES = ((0.0, 1), (1.0, 16), (0.7, 16))
"""Share and group that models are trained with."""
own_choice = linear.select_blocks


def choose(share, group):
    """Makes every gate choose by the scores of its group from now on; in a group of 1 a row chooses by its own."""

    def select_blocks(scores, **options):
        if group > 1:
            grouped = scores.reshape(-1, group, *scores.shape[1:])
            mean = grouped.mean(1, keepdims=True)
            scores = ((1 - share) * grouped + share * mean).reshape(scores.shape)
        return own_choice(scores, **options)

    linear.select_blocks = select_blocks
    # Compiled programs of the same model would still choose the old way.
    jax.clear_caches()


def trained(config, corpus, steps):
    """Parameters after ``steps`` training steps."""
    lm, optimizer = language_model(config.model), make_optimizer(config.optim, config.train.steps)
    state = init_state(lm, optimizer, jax.random.key(0), batch_size=ROWS)
    for step in range(steps):
        batch = train_batch(corpus.train, step, batch_size=ROWS, sequence_length=WINDOW)
        state, _ = train_step(lm, optimizer, state, batch.inputs, batch.targets, np.bool_(batch.new_epoch), None)
    return state.params


def blocks_read(config, params, ids, rows, steps=100):
    """Share of the blocks that at least one row keeps, on average over steps of the text."""
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
    # The loops of "xla" are made for large blocks and are slow with blocks this small and rows this few.
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
            # The model trained to choose row by row also chooses for all rows at once, without further training.
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
