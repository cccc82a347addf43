"""Options of a training run other than the model: text, optimiser and length. ``bwds.config`` puts them together."""

from dataclasses import dataclass
from typing import Any, Literal

from bwds.checks import (
    known_number,
    require,
    require_at_least,
    require_choice,
    require_rates,
    require_seed,
    require_types,
    shown,
)
from bwds.sparsity import schedule_steps

OptimizerName = Literal["sgd", "adamw"]
SparsitySchedule = Literal["constant", "cubic"]
Tokens = Literal["word", "character", "subword"]
FEWEST_SUBWORDS = 300
"""Size of the smallest vocabulary of subwords: ``<eos>``, the 256 bytes and some pieces that are learnt."""


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it is cut into batches.

    Example:
        ```python
        data = bwds.DataConfig(dataset="text", directory="my_texts", tokens="subword", batch_size=20)
        config = bwds.Config(data=data)
        ```

    Raises:
        ValueError: an option has a wrong type, is unknown or out of range.
    """

    dataset: str = "pydoc"
    """pydoc, ptb, wikitext2, wikitext103, text (your own, in --data.directory) or tfds:NAME."""
    directory: str | None = None
    """Folder with the text files, or one file of text; None: the text is downloaded (pydoc needs neither)."""
    tokens: Tokens = "word"
    """What a token is: a word between white space, a character, or a subword (byte-level BPE, knows every text)."""
    held_out: float = 0.05
    """For a text without files for train, valid and test: share at its end for test, and as much before for valid."""
    batch_size: int = 64
    """Text streams read side by side."""
    sequence_length: int = 35
    """Tokens of each stream in one step: the length of truncated backpropagation."""
    eval_batch_size: int = 16
    """Text streams read side by side in evaluation."""
    vocab_limit: int | None = None
    """Size of the vocabulary; rarer words or characters become <unk>. None: the text decides; 4,096 subwords."""

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(
            1,
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            eval_batch_size=self.eval_batch_size,
        )
        require_choice("tokens", self.tokens, Tokens)
        require(
            0.0 < self.held_out < 0.5,
            f"held_out is {self.held_out}; it must be above 0 and less than 0.5: as much again is held out for test.",
        )
        if self.vocab_limit is not None:
            require_at_least(3, vocab_limit=self.vocab_limit)
            require(
                self.tokens != "subword" or self.vocab_limit >= FEWEST_SUBWORDS,
                f"vocab_limit is {self.vocab_limit}; a vocabulary of subwords takes at least {FEWEST_SUBWORDS}.",
            )


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser.

    Example:
        ```python
        optim = bwds.OptimConfig(name="sgd", learning_rate=20.0, clip_norm=0.25, transition_steps=2000)
        config = bwds.Config(optim=optim)
        ```

    Raises:
        ValueError: an option has a wrong type, is unknown or out of range, or does not fit the optimiser.
    """

    name: OptimizerName = "adamw"
    """sgd: learning rate held, then cut by plateaus or in steps; adamw: warm-up and cosine decay."""
    learning_rate: float = 3e-3
    """Peak learning rate."""
    clip_norm: float = 0.25
    """Largest global norm of the gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices, times the learning rate."""
    warmup_steps: int = 100
    """Steps of linear warm-up, at most half of all (adamw only)."""
    plateau_factor: float = 0.5
    """Factor on the learning rate when validation does not improve (sgd only); 1: none."""
    transition_steps: int | None = None
    """Steps between two cuts of the learning rate by a factor of decay_rate (sgd only); None: no such cuts."""
    transition_begin: int = 0
    """The first of these cuts comes this many steps later, transition_steps + transition_begin after the start."""
    decay_rate: float = 0.5
    """Factor of these cuts, in (0, 1]. The three are those of optax.exponential_decay with staircase."""
    activation_penalty: float = 0.0
    """Activation regularisation (AR): weight of the last layer's mean squared output, after dropout."""
    temporal_activation_penalty: float = 0.0
    """Temporal AR (TAR): weight of the mean squared change of that output from step to step, before dropout."""
    ema_decay: float = 0.0
    """Decay of a moving average of the parameters, which evaluation then uses; 0: no average."""

    def __post_init__(self) -> None:
        require_types(self)
        require_choice("optimiser name", self.name, OptimizerName)
        require(
            0.0 < self.learning_rate < 3.4e38,
            f"learning_rate is {self.learning_rate}; it must be positive and less than 3.4e38, as float32 is.",
        )
        require(self.clip_norm > 0.0, f"clip_norm is {self.clip_norm}; it must be positive.")
        require_at_least(0, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps)
        require_at_least(
            0, activation_penalty=self.activation_penalty, temporal_activation_penalty=self.temporal_activation_penalty
        )
        require_rates(ema_decay=self.ema_decay)
        if self.transition_steps is not None:
            require_at_least(1, transition_steps=self.transition_steps)
            require(
                self.name == "sgd",
                f"transition_steps is {self.transition_steps} and the optimiser is {self.name}, whose learning rate "
                "follows a cosine; leave it out, or take sgd.",
            )
        require_at_least(0, transition_begin=self.transition_begin)
        require(0.0 < self.decay_rate <= 1.0, f"decay_rate is {self.decay_rate}; it must be above 0 and at most 1.")
        require(
            0.0 < self.plateau_factor <= 1.0,
            f"plateau_factor is {self.plateau_factor}; it must be above 0 and at most 1.",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, what to write down and when.

    Example:
        ```python
        train = bwds.TrainConfig(steps=2000, eval_every=500, sparsity_range=(0.25, 0.75))
        config = bwds.Config(model=bwds.ModelConfig(gate_activation="softplus"), train=train)
        ```

    Raises:
        ValueError: an option has a wrong type, is unknown or out of range.
    """

    steps: int = 800
    """Optimiser steps; 0, which only evaluates, with --start-from."""
    start_sha256: str | None = None
    """Digest of the parameters of --start-from; None: initial parameters are drawn."""
    seed: int = 0
    """Seed of the initial parameters and of dropout."""
    eval_every: int = 200
    """Steps between evaluations on the validation split."""
    checkpoint_every: int = 200
    """Steps between checkpoints; an evaluation that finds a new best also writes one."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    sparsity_schedule: SparsitySchedule | None = None
    """constant: the model's from the start; cubic: rises to it; None: cubic for magnitude, constant for the others.

    Cubic starts with all blocks, where the mean of linear scores is near zero; a dynamic model then needs softplus.
    """
    sparsity_range: tuple[float, float] | None = None
    """Least and largest: each step draws its sparsity uniformly between them, so that one model serves for all of them.

    For the method dynamic with a constant schedule. Evaluations in training, which choose the best checkpoint, are at
    --model.sparsity; bwds eval --sparsity evaluates at several.
    """
    sparsity_initial: float = 0.05
    """Sparsity with which the cubic schedule begins; before that step the sparsity is 0."""
    sparsity_begin: float = 0.05
    """Where the cubic schedule begins, as a fraction of all steps."""
    sparsity_end: float = 0.5
    """Where it has reached the model's sparsity, as a fraction of all steps."""
    sparsity_every: int = 10
    """Steps between two changes of the sparsity; the end moves to an earlier step to make the intervals equal."""

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least(0, steps=self.steps)
        require_at_least(
            1,
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
        if self.sparsity_range is not None:
            object.__setattr__(self, "sparsity_range", _checked_range(self.sparsity_range))
        if self.sparsity_schedule is not None:
            require_choice("sparsity_schedule", self.sparsity_schedule, SparsitySchedule)

    @property
    def sparsity_steps(self) -> range:
        """Steps at which the cubic schedule changes the sparsity; at the last it is the model's."""
        return schedule_steps(self.steps, begin=self.sparsity_begin, end=self.sparsity_end, every=self.sparsity_every)


def _checked_range(limits: Any) -> tuple[float, float]:
    """The two sparsities as floats; JSON gives them as a list."""
    require(
        isinstance(limits, tuple | list) and len(limits) == 2,
        f"sparsity_range is {shown(limits)}; it must be two numbers, the least and the largest sparsity.",
    )
    least, largest = (float(known_number("sparsity_range", limit)) for limit in limits)
    require(
        0.0 <= least < largest < 1.0,
        f"sparsity_range is {least} to {largest}; it must begin at 0 or more, rise, and end below 1: for a single "
        "sparsity take model.sparsity.",
    )
    return least, largest
