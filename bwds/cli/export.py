"""Writes a trained model as programs that a client with jax alone can serve: one reads prompts, the others make a step.

    bwds export RUN DIR [--platform cpu cuda tpu] [--sparsity S]

RUN is the folder of a run, of which the parameters with the lowest validation loss are taken, or a model in one file,
as bwds eval --export writes it. DIR is a new folder: StableHLO programs, parameters apart from them in safetensors, the
vocabulary, and programs.json, which says what the programs take. examples/serve_exported.py is a client.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from bwds.cli import parsed
from bwds.filesystem import place
from bwds.output import say, tell


@dataclass(frozen=True)
class Options:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run, the --workdir of its training, or the file of a model."""
    directory: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A new folder for the programs."""
    platform: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu",)
    """Platforms that the programs are to run on; each program runs on all of them."""
    sparsity: float | None = None
    """Share of the blocks that a dynamic model leaves out, in [0, 1); None: as in training."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``bwds export``. Raises what ``bwds.cli.run`` answers."""
    options = parsed(lambda: tyro.cli(Options, args=arguments, prog="bwds export", description=__doc__))
    run, directory = place(options.run, "RUN"), place(options.directory, "DIR")

    # Imported late, so that --help and mistakes are answered at once.
    from bwds.export import export_programs
    from bwds.files import load

    loaded = load(run)
    loaded = dataclasses.replace(loaded, config=loaded.config.at_sparsity(options.sparsity))
    tell("Exporting the programs: each is traced and lowered once.")
    export_programs(loaded, directory, platforms=options.platform)
    files = sorted(path for path in directory.iterdir() if path.is_file())
    say("\n".join(f"{path.stat().st_size:>14,} bytes  {path}" for path in files))
