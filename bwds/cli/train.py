"""Trains a language model with block-wise dynamic sparseness.

    bwds train [PRESET] [--workdir DIR] [--data.directory DIR] [--model.sparsity S] [--train.steps N] ...
    bwds train [PRESET] --start-from DIR --model.method dynamic --model.gate-source norm ...

The default preset is quick: a small model on text that ships with Python, a few minutes on two CPU cores. A preset
comes before all options, and sets the defaults that --help shows.

--start-from trains the parameters of another run further. A model without gates is first made dynamic if blocks are
chosen by norms; with --train.steps 0 the result is only evaluated.

The same command resumes the run in --workdir from its last checkpoint, also after a crash, Ctrl-C, SIGTERM, SIGHUP (the
terminal was closed), SIGUSR1 or SIGUSR2 (a batch system announces the end), or SIGXCPU (a limit on processor time). It
ends with the same parameters as a run that was not stopped. A command with any other option is another run, even with a
larger --train.steps only. It is refused in the same --workdir, and nothing is overwritten. --extend-to STEPS gives a
finished run more steps. Only what depends on the machine may change: --data.directory, if the text there is the same,
--data.eval-batch-size, --model.implementation, --train.log-every, --train.checkpoint-every, --train.profile and the
options of --mesh and --distributed.

Your own text: --data.dataset text --data.directory FILE, or a folder; --data.tokens says what a token is.

Exit codes: 0 done, or stopped by one of these signals other than Ctrl-C, with the state saved; 1 the system refused (a
full disk, no permission, not enough memory), or the loss is not finite; 2 a mistake on the command line or in the data,
or the folder is another run's, in use, or damaged; 130 Ctrl-C with the state saved; 134 (SIGABRT), for one of several
processes: another one died, and JAX ended this one. The same commands resume.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from bwds.checks import require
from bwds.cli import parsed, shell_command
from bwds.cli.flags import as_flags
from bwds.config import Config, DataConfig, Method, ModelConfig, OptimConfig, TrainConfig
from bwds.filesystem import place
from bwds.output import drop, say, tell
from bwds.presets import PRESETS
from bwds.training.devices import DistributedConfig, MeshConfig


@dataclass(frozen=True)
class Model(ModelConfig):
    """The model."""

    vocab_size: tyro.conf.Suppress[int] = ModelConfig.vocab_size


@dataclass(frozen=True)
class Train(TrainConfig):
    """How long to train, what to write down and when."""

    start_sha256: tyro.conf.Suppress[str | None] = None
    profile: int = 0
    """Steps that process 0 traces for xprof or TensorBoard, after its first three."""


@dataclass(frozen=True)
class Options:
    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[PRESET]")] = "quick"
    """Starting point of all other options."""
    workdir: str | None = None
    """Folder of this run; None: runs/PRESET."""
    start_from: Annotated[str | None, tyro.conf.arg(aliases=["--init-from"])] = None
    """Folder of another run, of the same shape and text, whose best parameters training starts from."""
    extend_to: Annotated[int | None, tyro.conf.arg(aliases=["--train.extend-to"])] = None
    """Steps that a finished run is to have in all; it goes on from its last one.
    With sgd the learning rate goes on as planned. With adamw it is that of the longer cosine, and rises again from 0.
    """
    model: Model = field(default_factory=Model)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: Train = field(default_factory=Train)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


def main(arguments: Sequence[str], *, script: Path | None = None) -> None:
    """The command, called as ``bwds train`` or as a ``script``. Raises what ``bwds.cli.run`` answers."""
    asked = parse(arguments, program=script.name if script else "bwds train")
    config, workdir = asked.config, asked.workdir

    # Imported late, so that --help and mistakes are answered at once.
    from bwds.training import NonFiniteError, train
    from bwds.training.allocator import keep_freed_memory
    from bwds.training.processes import connect, failing_at_once, is_first
    from bwds.training.signals import InterruptedRunError

    command = shell_command("train", arguments, script=script)
    keep_freed_memory()
    connect(asked.distributed)
    if is_first():
        say(f"Training in {workdir}.")
    try:
        with failing_at_once():
            summary = train(
                config,
                workdir,
                start_from=asked.start_from,
                mesh=asked.mesh,
                profile=asked.profile,
                command=command,
                extended=asked.extended,
            )
    except InterruptedRunError as stopped:
        say(f"{stopped}\nResume with: {command}")
        sys.exit(stopped.exit_code)
    except NonFiniteError as failure:
        tell(f"error: {as_flags(str(failure))}")
        sys.exit(1)
    if is_first() and not show(summary, workdir, config.model.method, script=script):
        # Stdout cannot be written, as on a full disk. That is no error, because the folder of the run has all results.
        drop(sys.stdout)


class Asked(NamedTuple):
    """The run that the options of the command describe.

    Attributes:
        config: the run.
        workdir: its folder.
        mesh: how to spread it over devices.
        distributed: how to spread it over processes.
        start_from: the folder of a run whose parameters it starts from.
        profile: number of steps that are traced.
        extended: whether a finished run in the folder with fewer steps is to go on.
    """

    config: Config
    workdir: Path
    mesh: MeshConfig
    distributed: DistributedConfig
    start_from: Path | None
    profile: int
    extended: bool


def parse(arguments: Sequence[str], *, program: str = "bwds train") -> Asked:
    """The run that the arguments describe. Raises ``ValueError`` for a mistake in them."""
    require(
        not any(argument.replace("_", "-").startswith("--train.start-sha256") for argument in arguments),
        "--train.start-sha256 is no option: it is the digest of what --start-from names.",
    )
    require(
        not any(argument.replace("_", "-").startswith("--model.vocab-size") for argument in arguments),
        "--model.vocab-size is no option: the text gives the vocabulary; --data.vocab-limit cuts it.",
    )
    first = arguments[0] if arguments else "-"
    preset = PRESETS.get(first, PRESETS["quick"])
    start = Options(
        model=Model(**dataclasses.asdict(preset.model)),
        data=preset.data,
        optim=preset.optim,
        train=Train(**dataclasses.asdict(preset.train)),
    )
    about = f"{__doc__}\n{list_presets()}"
    options = parsed(lambda: tyro.cli(Options, args=arguments, default=start, prog=program, description=about))
    preset_name = options.preset
    require(preset_name in PRESETS, f"Unknown preset {preset_name!r}; the presets are {', '.join(PRESETS)}.")
    require(
        preset_name in (first, "quick"),
        f"The preset {preset_name!r} must be the first argument: {program} {preset_name} ...",
    )
    model = ModelConfig(**dataclasses.asdict(options.model))
    # No part of the configuration: a run is the same with or without a trace.
    training: dict[str, Any] = dataclasses.asdict(options.train)
    profile = training.pop("profile")
    require(profile >= 0, f"--train.profile is {profile}; it must be at least 0.")
    extended = options.extend_to is not None
    if extended:
        training["steps"] = options.extend_to
    config = Config(model=model, data=options.data, optim=options.optim, train=TrainConfig(**training))
    require(
        config.train.steps > 0 or options.start_from is not None,
        "--train.steps is 0; it must be at least 1: without --start-from there would be nothing to evaluate.",
    )
    workdir = place(f"runs/{preset_name}" if options.workdir is None else options.workdir, "--workdir")
    start_from = None if options.start_from is None else place(options.start_from, "--start-from")
    if config.data.directory is not None:
        place(config.data.directory, "--data.directory")
    return Asked(config, workdir, options.mesh, options.distributed, start_from, profile, extended)


def list_presets() -> str:
    lines = ["Presets:"]
    for name, config in PRESETS.items():
        m, t = config.model, config.train
        sizes = f"{m.cell} {m.num_layers} x {m.hidden_size}, blocks of {m.block_size}"
        lines.append(f"  {name:<17} {config.data.dataset}, {sizes}, {config.optim.name}, {t.steps:,} steps")
    return "\n".join(lines)


def show(summary: dict[str, Any], workdir: Path, method: Method, *, script: Path | None = None) -> bool:
    """Prints the summary of a finished run and the command that evaluates it; returns whether it could be shown."""
    s = summary
    speed = "not measured" if s["tokens_per_second"] is None else f"{s['tokens_per_second']:,.0f} tokens/s"
    decoding = f"{s['decode_tokens_per_second']:,.0f} tokens/s"
    if s["decode_speedup"] is not None:
        dense = f"{s['dense_decode_tokens_per_second']:,.0f}"
        decoding += f", dense of the same size {dense}: {s['decode_speedup']:.2f}x"
        decoding += ", gate included" if method == "dynamic" else ""
        if s["decode_speedup"] < 1.0 and method == "dynamic":
            decoding += f"\n    from which width on skipping pays here: {shell_command('bench', [])}"
    counted = "gate and softmax included" if method == "dynamic" else "softmax included"
    if method in ("magnitude", "static-block"):
        counted += ", on paper: products with masked weights are dense"
    evaluation = shell_command("eval", ["--workdir", str(workdir)], script=script and script.with_name("eval.py"))
    return say(f"""
The run is finished: {s["steps"]:,} steps, {s["parameters"]:,} parameters.
  validation perplexity   {s["validation_perplexity"]:.2f}, at step {s["best_step"]:,}
  realised density        {s["realised_density"]:.4f}
  cost against dense      {s["relative_cost"]:.3f} of the multiply-adds, {counted}
  training speed          {speed}
  decoding at batch 1     {decoding}
  saved in                {workdir}
Evaluate with: {evaluation}""")
