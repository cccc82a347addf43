"""Configurations with names: the paper's sizes, and sizes for two CPU cores."""

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


def _small(cell: Cell, dataset: str, *, gate_rank: int | None = None, **train: Any) -> Config:
    """Trainable on two CPU cores: hidden 256, blocks of 32, Adam."""
    return Config(
        model=ModelConfig(hidden_size=256, cell=cell, block_size=32, gate_rank=gate_rank, dropout=0.1),
        data=DataConfig(dataset=dataset, batch_size=64, sequence_length=35),
        optim=OptimConfig(name="adamw", learning_rate=3e-3),
        train=TrainConfig(**train),
    )


PRESETS: dict[str, Config] = {
    "quick": _small("lstm", "pydoc", steps=300, eval_every=100, checkpoint_every=100),
    "ptb-lstm-small": _small("lstm", "ptb"),
    # A full gate on its 512 inputs would cost half of the matrix, all that half of the blocks save.
    "ptb-qrnn-small": _small("qrnn", "ptb", gate_rank=32),
    "ptb-lstm": _paper("lstm", "ptb", 10_000, 207),
    "ptb-qrnn": _paper("qrnn", "ptb", 10_000, 207),
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
