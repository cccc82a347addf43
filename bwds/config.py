"""Configurations: frozen dataclasses, checked when they are made."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from bwds.checks import (
    check_sparsity,
    require,
    require_at_least,
    require_choice,
    require_rates,
    require_seed,
    require_types,
)
from bwds.sparsity import diagonal_groups, schedule_steps

Cell = Literal["lstm", "qrnn"]
Method = Literal["dynamic", "dense", "static-block", "magnitude"]
MagnitudeUnit = Literal["weight", "block"]
GateSource = Literal["learned", "frozen", "bias", "random"]
Activation = Literal["linear", "softplus"]
Normalization = Literal["mean", "bounded", "none"]
Scope = Literal["matrix", "column"]
Dtype = Literal["float32", "bfloat16"]
Implementation = Literal["reference", "xla", "mosaic_tpu", "triton"]
Optimizer = Literal["sgd", "adamw"]
SparsitySchedule = Literal["constant", "cubic"]


@dataclass(frozen=True)
class ModelConfig:
    """A recurrent language model whose large products are dense, statically or block-wise dynamically sparse."""

    vocab_size: int = 10_000
    """Words in the vocabulary, V. Training takes it from the data."""
    hidden_size: int = 1536
    """Width H of every layer and of the embedding."""
    num_layers: int = 2
    """Recurrent layers."""
    cell: Cell = "lstm"
    """Recurrent cell."""
    method: Method = "dynamic"
    """dynamic: a gate chooses blocks for every input; static-block: block-diagonal; magnitude: pruned in training."""
    sparsity: float = 0.5
    """Fraction of blocks omitted, or of weights that are zero, in [0, 1). Dense: not used."""
    magnitude_unit: MagnitudeUnit = "weight"
    """What magnitude pruning removes: single weights, or whole blocks by their norm."""
    block_size: int = 128
    """Rows and columns of a block; divides the hidden size."""
    gate_rank: int | None = None
    """Rank of the gate's projection, if it has one; None: a full matrix."""
    gate_activation: Activation = "linear"
    """linear: the paper's gate, its divisor can pass zero; softplus: positive, and finite at any sparsity."""
    gate_normalization: Normalization = "mean"
    """mean: gates have mean one (the paper's); bounded: unless the scores' sum is near zero; none: left as they are."""
    gate_scope: Scope = "matrix"
    """Blocks compete over the whole matrix, or within their block column."""
    gate_source: GateSource = "learned"
    """learned; as controls, frozen: never trained; bias: the same for every input; random: a hash of signs."""
    dropout: float = 0.0
    """Dropout rate of the embedding, between layers and at the output, in [0, 1)."""
    dropout_input: float | None = None
    """Rate at the first layer's input; None: that of --model.dropout."""
    dropout_hidden: float | None = None
    """Rate between layers; None: that of --model.dropout."""
    embedding_dropout: float = 0.0
    """Share of the vocabulary whose embeddings are zero for a window."""
    weight_dropout: float = 0.0
    """Share of the recurrent weights (lstm: on h; qrnn: all) that are zero for a window."""
    locked_dropout: bool = False
    """One dropout mask for all time steps of a window (variational dropout)."""
    tied_softmax: bool = False
    """Share the embedding matrix with the softmax."""
    dtype: Dtype = "float32"
    """Compute type of the products. Parameters, gates and softmax are float32 always."""
    implementation: Implementation | None = None
    """Kernel of the block-sparse product; None: the platform's own, or else xla, which runs everywhere."""

    def __post_init__(self) -> None:
        require_types(self)
        require_choice("cell", self.cell, Cell)
        require_choice("method", self.method, Method)
        require_choice("gate_activation", self.gate_activation, Activation)
        require_choice("gate_normalization", self.gate_normalization, Normalization)
        require_choice("gate_scope", self.gate_scope, Scope)
        require_choice("magnitude_unit", self.magnitude_unit, MagnitudeUnit)
        require_choice("gate_source", self.gate_source, GateSource)
        require_choice("dtype", self.dtype, Dtype)
        if self.implementation is not None:
            require_choice("implementation", self.implementation, Implementation)
        require_at_least(
            1,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            block_size=self.block_size,
        )
        require(self.hidden_size < 2**24, f"hidden_size is {self.hidden_size}; it must be less than 2**24.")
        require(self.num_layers <= 1000, f"num_layers is {self.num_layers}; it must be at most 1,000.")
        check_sparsity(self.sparsity)
        rates = ("dropout", "dropout_input", "dropout_hidden", "embedding_dropout", "weight_dropout")
        require_rates(**{name: getattr(self, name) for name in rates})
        if self.method in ("dynamic", "static-block") or (self.method, self.magnitude_unit) == ("magnitude", "block"):
            require(
                self.hidden_size % self.block_size == 0,
                f"hidden_size {self.hidden_size} is not a multiple of block_size {self.block_size}; "
                "choose a block size that divides it.",
            )
        if self.method == "dynamic" and self.gate_rank is not None:
            require_at_least(1, gate_rank=self.gate_rank)
        if self.method == "static-block":
            diagonal_groups(self.hidden_size // self.block_size, self.sparsity)

    @property
    def block_shape(self) -> tuple[int, int]:
        """Rows and columns of one block."""
        return self.block_size, self.block_size


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it is cut into batches."""

    dataset: str = "pydoc"
    """pydoc, ptb, wikitext2, wikitext103, text (files in --data.directory) or tfds:NAME."""
    directory: str | None = None
    """Folder with the text files; otherwise the dataset is downloaded (pydoc needs neither)."""
    batch_size: int = 64
    """Text streams read side by side."""
    sequence_length: int = 35
    """Tokens of each stream in one step: the length of truncated backpropagation."""
    eval_batch_size: int = 16
    """Text streams read side by side in evaluation."""
    vocab_limit: int | None = None
    """Keep the most frequent words only, the others become <unk>; None: all words."""

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(
            1,
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            eval_batch_size=self.eval_batch_size,
        )
        if self.vocab_limit is not None:
            require_at_least(3, vocab_limit=self.vocab_limit)


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser."""

    name: Optimizer = "adamw"
    """sgd: learning rate halved when validation stops improving; adamw: warm-up and cosine decay."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    clip_norm: float = 0.25
    """Largest global norm of the gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices, times the learning rate."""
    warmup_steps: int = 100
    """Steps of linear warm-up, at most half of all (adamw only)."""
    plateau_factor: float = 0.5
    """Factor on the learning rate when validation does not improve (sgd only)."""
    activation_penalty: float = 0.0
    """Weight in the objective of the last layer's mean squared output, after dropout (AR)."""
    slowness_penalty: float = 0.0
    """Weight in the objective of its mean squared change from step to step, before dropout (TAR)."""
    ema_decay: float = 0.0
    """Decay of a moving average of the parameters, which evaluation then uses; 0: no average."""

    def __post_init__(self) -> None:
        require_types(self)
        require_choice("optimiser name", self.name, Optimizer)
        require(
            0.0 < self.learning_rate < 3.4e38,
            f"learning_rate is {self.learning_rate}; it must be positive and less than 3.4e38, as float32 is.",
        )
        require(self.clip_norm > 0.0, f"clip_norm is {self.clip_norm}; it must be positive.")
        require_at_least(0, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)
        require_at_least(0, activation_penalty=self.activation_penalty, slowness_penalty=self.slowness_penalty)
        require_rates(ema_decay=self.ema_decay)
        require(
            0.0 < self.plateau_factor <= 1.0,
            f"plateau_factor is {self.plateau_factor}; it must be above 0 and at most 1.",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, what to write down and when."""

    steps: int = 800
    """Optimiser steps."""
    seed: int = 0
    """Seed of the initial parameters and of dropout."""
    eval_every: int = 200
    """Steps between evaluations on the validation split."""
    checkpoint_every: int = 200
    """Steps between checkpoints; there is one after each evaluation that finds a new best besides."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    sparsity_schedule: SparsitySchedule | None = None
    """constant: the model's from the start; cubic: rises to it; None: cubic for magnitude, constant for the others.

    Cubic starts with all blocks, where the mean of linear gates is near zero: a dynamic model then wants softplus.
    """
    sparsity_initial: float = 0.05
    """Where the cubic schedule starts to rise; 0 before it begins."""
    sparsity_begin: float = 0.05
    """Where the cubic schedule begins, as a fraction of all steps."""
    sparsity_end: float = 0.5
    """Where it has reached the model's sparsity."""
    sparsity_every: int = 10
    """Steps between two changes of the sparsity; the end moves forward to a whole number of them."""

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(
            1,
            steps=self.steps,
            eval_every=self.eval_every,
            checkpoint_every=self.checkpoint_every,
            log_every=self.log_every,
        )
        require_seed(self.seed)
        require(
            0.0 <= self.sparsity_initial < 1.0,
            f"sparsity_initial is {self.sparsity_initial}; it must be at least 0 and less than 1.",
        )
        require_at_least(1, sparsity_every=self.sparsity_every)
        if self.sparsity_schedule is not None:
            require_choice("sparsity_schedule", self.sparsity_schedule, SparsitySchedule)

    @property
    def sparsity_steps(self) -> range:
        """Steps at which the cubic schedule changes the sparsity; at the last it is the model's."""
        return schedule_steps(self.steps, begin=self.sparsity_begin, end=self.sparsity_end, every=self.sparsity_every)


@dataclass(frozen=True)
class Config:
    """All that one training run needs."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        method, initial = self.model.method, self.train.sparsity_initial
        require(
            method != "magnitude" or self.rising_sparsity,
            "sparsity_schedule is 'constant'; magnitude pruning needs the cubic one: nothing is known before training.",
        )
        require(
            method != "static-block" or not self.rising_sparsity,
            "sparsity_schedule is 'cubic'; static-block keeps the same blocks from start to end: take 'constant'.",
        )
        if self.rising_sparsity:
            require(
                initial <= self.model.sparsity,
                f"sparsity_initial is {initial}, above the model's sparsity {self.model.sparsity}; take at most that.",
            )
            _ = self.train.sparsity_steps

    @property
    def rising_sparsity(self) -> bool:
        """Whether the sparsity follows the cubic schedule."""
        schedule = self.train.sparsity_schedule or ("cubic" if self.model.method == "magnitude" else "constant")
        return schedule == "cubic" and self.model.method != "dense"

    def to_json(self) -> str:
        """JSON text, one object a section, from which ``from_json`` makes an equal configuration."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Config":
        """The configuration written by ``to_json``.

        Raises:
            ValueError: not JSON, an unknown or missing section, an unknown option, or a value of a wrong type or out of
                range. An option that is missing has its default, as it had before there was one.
        """
        sections = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig, "train": TrainConfig}
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The configuration is not valid JSON: {error}.") from error
        require(
            isinstance(raw, dict) and raw.keys() == sections.keys(),
            f"The configuration must hold exactly the sections {', '.join(sections)}.",
        )
        made: dict[str, Any] = {}
        for name, section in sections.items():
            known = {f.name for f in dataclasses.fields(section)}
            require(isinstance(raw[name], dict), f"Section {name!r} of the configuration is not an object.")
            unknown = sorted(raw[name].keys() - known)
            names = ", ".join(ascii(key)[1:-1] for key in unknown)
            require(not unknown, f"Section {name!r} of the configuration has unknown options: {names}.")
            try:
                made[name] = section(**raw[name])
            except ValueError as error:
                raise ValueError(f"Section {name!r} of the configuration: {error}") from error
        return Config(**made)
