"""Configurations: frozen dataclasses, checked when they are made."""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

from bwds.checks import (
    check_sparsity,
    fitting_sparsities,
    require,
    require_at_least,
    require_choice,
    require_gate_options,
    require_rates,
    require_types,
    shown,
)
from bwds.run_config import DataConfig, OptimConfig, TrainConfig
from bwds.sparsity import diagonal_groups

Section = TypeVar("Section")

Cell = Literal["lstm", "qrnn"]
Method = Literal["dynamic", "dense", "static-block", "magnitude"]
MagnitudeUnit = Literal["weight", "block"]
GateSource = Literal["learned", "norm", "frozen", "bias", "random"]
Activation = Literal["linear", "softplus", "softmax", "relu"]
Normalization = Literal["mean", "bounded", "none"]
Scope = Literal["matrix", "column"]
Dtype = Literal["float32", "bfloat16"]
Implementation = Literal["reference", "xla", "mosaic_tpu", "triton"]


@dataclass(frozen=True)
class ModelConfig:
    """A recurrent language model whose large products are dense, statically or block-wise dynamically sparse.

    The dynamic method is that of Hadifar et al. (arXiv 2001.04686).

    Example:
        ```python
        config = bwds.ModelConfig(hidden_size=256, block_size=32, sparsity=0.75, gate_activation="softplus")
        model = bwds.language_model(config)
        print(f"{bwds.cost(config).relative:.0%} of the multiply-adds of the dense model")
        ```

    Raises:
        ValueError: an option has a wrong type, is unknown or out of range, or options have no meaning together.
    """

    vocab_size: int = 10_000
    """Tokens in the vocabulary, V. Training takes it from the data."""
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
    sparsities: tuple[tuple[str, float], ...] | None = None
    """One for each gated matrix, by names as layer_0/input, scaled to the mean --model.sparsity; None: all equal."""
    magnitude_unit: MagnitudeUnit = "weight"
    """What magnitude pruning removes: single weights, or whole blocks by their norm."""
    block_size: int = 128
    """Rows and columns of a block; divides the hidden size."""
    gate_rank: int | None = None
    """Rank of the gate's projection, if it has one; None: a full matrix."""
    gate_activation: Activation = "linear"
    """linear: the paper's gate, whose divisor can pass zero, so that training may spike; of softplus, softmax and relu
    it cannot. Softplus and softmax are positive; relu can give a kept block of a low score a gate of zero."""
    gate_normalization: Normalization = "mean"
    """mean: gates have mean one (the paper's; relu: at most 1.5); bounded: as mean, but a linear gate is divided by at
    least a tenth of the sum of magnitudes; none: left as they are (not softmax)."""
    gate_scope: Scope = "matrix"
    """Blocks compete over the whole matrix, or within their block column."""
    gate_source: GateSource = "learned"
    """learned; norm: the largest ||x_r|| ||w_rc||, gates one; controls: frozen; bias alone; random: a hash of x."""
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
    init_bound: float | None = None
    """Initial weights and biases, not gates, are uniform in +-this; None: 0.1 for embedding and softmax, 1/sqrt(H) in
    the layers, 0 for the bias of the softmax."""
    tied_softmax: bool = False
    """Share the embedding matrix with the softmax."""
    dtype: Dtype = "float32"
    """Compute type of the products. Parameters, gates and softmax are always float32."""
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
        if self.init_bound is not None:
            positive = 0.0 < self.init_bound < math.inf
            require(positive, f"init_bound is {self.init_bound}; it must be positive and finite.")
        if self.method in ("dynamic", "static-block") or (self.method, self.magnitude_unit) == ("magnitude", "block"):
            require(
                self.hidden_size % self.block_size == 0,
                f"hidden_size {self.hidden_size} is not a multiple of block_size {self.block_size}; "
                "choose a block size that divides it.",
            )
        if self.method == "dynamic" and self.gate_rank is not None:
            require_at_least(1, gate_rank=self.gate_rank)
        if self.method == "dynamic":
            require_gate_options(self.gate_source, self.gate_rank, self.gate_normalization, self.gate_activation)
        if self.method == "dynamic" and self.sparsities is not None:
            # Tuples in one order, because configurations are compared and are keys of caches.
            object.__setattr__(self, "sparsities", fitting_sparsities(self.sparsities, self.matrices))
        if self.method == "static-block":
            diagonal_groups(self.hidden_size // self.block_size, self.sparsity)

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of the recurrent layers' matrices, as in ``Info.usage``. All have the ``matrix_shape``."""
        products = ("input", "hidden") if self.cell == "lstm" else ("input",)
        return tuple(f"layer_{i}/{product}" for i in range(self.num_layers) for product in products)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(K, N) of each of ``matrices``: h in, i f g o out for an LSTM; two inputs in, z f o out for a QRNN."""
        h = self.hidden_size
        return (h, 4 * h) if self.cell == "lstm" else (2 * h, 3 * h)

    @property
    def block_shape(self) -> tuple[int, int]:
        """Rows and columns of one block."""
        return self.block_size, self.block_size

    def at_sparsity(self, sparsity: float | None) -> "ModelConfig":
        """The configuration at another sparsity, for the same parameters; None: this one.

        Raises:
            ValueError: it is out of range, or the method is not dynamic: then the parameters decide the sparsity.
        """
        if sparsity is None:
            return self
        require(
            self.method == "dynamic",
            f"sparsity is {shown(sparsity)} and the method is {self.method}; only a dynamic model can leave out "
            "another share than it was trained with.",
        )
        return dataclasses.replace(self, sparsity=sparsity)


@dataclass(frozen=True)
class Config:
    """Everything that one training run needs.

    Example:
        ```python
        model = bwds.ModelConfig(hidden_size=256, block_size=32)
        config = bwds.Config(model=model, data=bwds.DataConfig(dataset="ptb"))
        assert bwds.Config.from_json(config.to_json()) == config
        ```

    Attributes:
        model: the model.
        data: the text, its tokens and the batches.
        optim: the optimiser and its learning rate.
        train: how long to train, what to write down and when.

    Raises:
        ValueError: the schedule or the range of the sparsity does not fit the method or the number of steps.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        method, initial = self.model.method, self.train.sparsity_initial
        require(
            method != "magnitude" or self.rising_sparsity,
            "train.sparsity_schedule is 'constant'; magnitude pruning needs the cubic one: nothing is known before "
            "training.",
        )
        require(
            method != "static-block" or not self.rising_sparsity,
            "train.sparsity_schedule is 'cubic'; static-block keeps the same blocks from start to end: take "
            "'constant'.",
        )
        if (limits := self.train.sparsity_range) is not None:
            require(
                method == "dynamic",
                f"train.sparsity_range is {limits[0]} to {limits[1]} and the method {method!r}; only a dynamic model "
                "can keep more blocks in one step than in another: leave it out, or take model.method='dynamic'.",
            )
            require(
                not self.rising_sparsity,
                f"train.sparsity_range is {limits[0]} to {limits[1]} and sparsity_schedule 'cubic'; a step has one "
                "sparsity, drawn or scheduled: leave out one of them.",
            )
        if self.rising_sparsity:
            require(
                initial <= self.model.sparsity,
                f"train.sparsity_initial is {initial}, above model.sparsity {self.model.sparsity}; take at most that.",
            )
            _ = self.train.sparsity_steps

    @property
    def rising_sparsity(self) -> bool:
        """Whether the sparsity follows the cubic schedule."""
        schedule = self.train.sparsity_schedule or ("cubic" if self.model.method == "magnitude" else "constant")
        return schedule == "cubic" and self.model.method != "dense"

    def to_json(self) -> str:
        """JSON text with one object per section, from which ``from_json`` makes an equal configuration."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Config":
        """The configuration written by ``to_json``.

        Raises:
            ValueError: not JSON, an unknown or missing section, an unknown option, or a value of a wrong type or out of
                range. A missing option gets its default: the text may be older than the option.
        """
        sections = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig, "train": TrainConfig}
        raw = parse_json(text)
        require(
            isinstance(raw, dict) and raw.keys() == sections.keys(),
            f"The configuration must hold exactly the sections {', '.join(sections)}.",
        )
        made: dict[str, Any] = {name: section_of(name, section, raw[name]) for name, section in sections.items()}
        return Config(**made)


_RENAMED = {"slowness_penalty": "temporal_activation_penalty"}
"""Options by the names that the configurations of older runs have."""


def parse_json(text: str) -> Any:
    """The value that the JSON text of a configuration holds; ``ValueError`` if it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The configuration is not valid JSON: {error}.") from error


def section_of(name: str, section: Callable[..., Section], raw: Any) -> Section:
    """A section of a configuration from the object of JSON that ``dataclasses.asdict`` made of it.

    Raises:
        ValueError: no object, an unknown option, or a value of a wrong type or out of range. A missing option gets its
            default: the text may be older than the option.
    """
    require(isinstance(raw, dict), f"Section {name!r} of the configuration is not an object.")
    raw = {_RENAMED.get(option, option): value for option, value in raw.items()}
    unknown = sorted(raw.keys() - {f.name for f in dataclasses.fields(cast(Any, section))})
    names = ", ".join(ascii(key)[1:-1] for key in unknown)
    require(not unknown, f"Section {name!r} of the configuration has unknown options: {names}.")
    try:
        # JSON has lists where a configuration has tuples.
        return section(**{option: _tuples(value) for option, value in raw.items()})
    except ValueError as error:
        raise ValueError(f"Section {name!r} of the configuration: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
