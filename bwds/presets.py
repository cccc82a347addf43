"""Configurations with names: the paper's sizes, and sizes for CPU cores."""

from typing import Any

from bwds.config import Cell, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def _paper(cell: Cell, dataset: str, vocab_size: int, steps_per_epoch: int) -> Config:
    """The paper's setting: 2 x 1536, blocks of 128, SGD at 20, halved on plateaus, 40 epochs."""
    return Config(
        model=ModelConfig(vocab_size=vocab_size, hidden_size=1536, cell=cell, dropout=0.65),
        data=DataConfig(dataset=dataset, batch_size=128, sequence_length=35),
        optim=OptimConfig(name="sgd", learning_rate=20.0, clip_norm=0.25),
        train=TrainConfig(steps=40 * steps_per_epoch, eval_every=steps_per_epoch, checkpoint_every=steps_per_epoch),
    )


def _quick() -> Config:
    """A first run: minutes on two CPU cores, without a download."""
    return Config(
        model=ModelConfig(hidden_size=256, block_size=32, gate_rank=32, gate_activation="softplus", dropout=0.1),
        data=DataConfig(dataset="pydoc", batch_size=64, sequence_length=35),
        optim=OptimConfig(name="adamw", learning_rate=3e-3),
        train=TrainConfig(steps=300, eval_every=100, checkpoint_every=100),
    )


_EPOCH = 2_323
"""Steps of a pass over Penn Treebank in batches of 20 x 20."""


def _zaremba_recipe(*, epochs: int, **model: Any) -> Config:
    """The recipe of Zaremba et al. 2014 (arXiv 1409.2329) without dropout: batches of 20 x 20, SGD.

    Their rate of 1.0 and gradient norm of 5 are for the loss summed over the 20 steps of a window. For the mean loss,
    which is used here, these are 20 and 0.25. The rate is halved every epoch after the fourth.
    """
    return Config(
        model=ModelConfig(init_bound=0.1, **model),
        data=DataConfig(dataset="ptb", batch_size=20, sequence_length=20, eval_batch_size=20),
        optim=OptimConfig(
            name="sgd",
            learning_rate=20.0,
            clip_norm=0.25,
            plateau_factor=1.0,
            transition_steps=_EPOCH,
            transition_begin=3 * _EPOCH,
        ),
        train=TrainConfig(steps=epochs * _EPOCH, eval_every=_EPOCH, checkpoint_every=500, log_every=100),
    )


def _zaremba() -> Config:
    """The small dense LSTM of Zaremba et al. 2014 (arXiv 1409.2329): 2 x 200, 13 epochs.

    The paper reports a test perplexity of 114.5, TensorFlow's tutorial of the same model 116.7. The model is dense, as
    published; ``--model.method dynamic`` takes blocks of 40.
    """
    return _zaremba_recipe(epochs=13, hidden_size=200, method="dense", block_size=40, gate_activation="softplus")


def _small(cell: Cell, **model: Any) -> Config:
    """Trainable on one CPU core: 2 x 256, blocks of 32, 8 epochs by the same recipe."""
    return _zaremba_recipe(epochs=8, hidden_size=256, cell=cell, block_size=32, gate_activation="softplus", **model)


def _awd(dataset: str) -> Config:
    """The regularisation of AWD-LSTM (Merity et al., arXiv 1708.02182) on three block-wise dynamic layers.

    Rates, penalties, clipping, learning rate, weight decay, batch and epochs are those of the authors' command for
    Penn Treebank. What differs: layers and embedding all have width 1152 (theirs: layers of 1150, embedding and last
    output of 400), so that the tied embedding alone is three times as large; every window has 70 tokens (theirs vary
    around that, with the learning rate in proportion); evaluation uses a moving average over some 5,000 steps from the
    start (theirs: the mean since validation stopped improving, NT-ASGD); weight decay spares biases; no fine-tuning.
    The method, dynamic at half the blocks, is not part of the original: ``--model.method dense`` is without it.
    Its gate is softplus: in a trial of 150 steps with layers of 128, at this learning rate, the linear one had gradient
    norms of 1e5 to 1e18 and did not learn.
    """
    return Config(
        model=ModelConfig(
            hidden_size=1152,
            num_layers=3,
            gate_activation="softplus",
            dropout=0.4,
            dropout_hidden=0.25,
            embedding_dropout=0.1,
            weight_dropout=0.5,
            locked_dropout=True,
            tied_softmax=True,
        ),
        data=DataConfig(dataset=dataset, batch_size=20, sequence_length=70),
        optim=OptimConfig(
            name="sgd",
            learning_rate=30.0,
            clip_norm=0.25,
            weight_decay=1.2e-6,
            plateau_factor=1.0,
            activation_penalty=2.0,
            temporal_activation_penalty=1.0,
            ema_decay=0.9998,
        ),
        train=TrainConfig(steps=500 * 663, eval_every=663, checkpoint_every=663),
    )


PRESETS: dict[str, Config] = {
    "quick": _quick(),
    "ptb-lstm-small": _small("lstm"),
    # A full gate on its 512 inputs would cost half of the matrix, as much as omitting half of the blocks saves.
    "ptb-qrnn-small": _small("qrnn", gate_rank=32),
    "ptb-lstm": _paper("lstm", "ptb", 10_000, 207),
    "ptb-qrnn": _paper("qrnn", "ptb", 10_000, 207),
    "ptb-lstm-zaremba": _zaremba(),
    "ptb-awd-lstm": _awd("ptb"),
    "wikitext2-lstm": _paper("lstm", "wikitext2", 33_278, 466),
    "wikitext103-qrnn": Config(
        model=ModelConfig(
            vocab_size=267_735,
            hidden_size=2048,
            num_layers=4,
            cell="qrnn",
            gate_rank=64,
            gate_activation="softplus",
            dropout=0.1,
            tied_softmax=True,
            dtype="bfloat16",
        ),
        data=DataConfig(dataset="wikitext103", batch_size=64, sequence_length=70),
        optim=OptimConfig(name="adamw", learning_rate=1e-3, warmup_steps=2000),
        train=TrainConfig(steps=14 * 23_041, eval_every=5_000, checkpoint_every=5_000),
    ),
}
"""By name, what ``train.py`` takes.

Example:
    ```python
    config = bwds.PRESETS["ptb-lstm-small"]
    model = dataclasses.replace(config.model, sparsity=0.75)
    ```
"""
