"""The folder of a run: the names of its files, and the rule that it holds one run."""

import dataclasses
from pathlib import Path

from bwds.config import Config
from bwds.data import Vocabulary
from bwds.filesystem import write_text
from bwds.output import tell
from bwds.training.identity import FREE
from bwds.training.metrics import METRICS_FILE

CONFIG_FILE = "config.json"
VOCABULARY_FILE = "vocabulary.txt"
SUMMARY_FILE = "summary.json"
CHECKPOINTS = "checkpoints"


def config_differences(there: Config, now: Config, *, free: bool = False) -> list[str]:
    """One line for every option that differs and may not when a run goes on; with ``free``, for those that may."""
    sections = [(name, dataclasses.asdict(there)[name], values) for name, values in dataclasses.asdict(now).items()]
    return [
        f"{section}.{name}: {old[name]!r} there, {value!r} now"
        for section, old, new in sections
        for name, value in new.items()
        if old[name] != value and (name in FREE.get(section, ())) == free
    ]


def claim_workdir(workdir: Path, config: Config, vocabulary: Vocabulary) -> None:
    """Makes the folder that of this run, or checks that it is; nothing in it is overwritten.

    A run is its configuration, apart from the options in ``FREE``, and its text. With more steps it is another run.

    Raises:
        ValueError: the folder holds another run (the differences are named), or something that is no run.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    if not (workdir / CONFIG_FILE).exists():
        for name in (METRICS_FILE, CHECKPOINTS, VOCABULARY_FILE, SUMMARY_FILE):
            if (workdir / name).exists():
                raise ValueError(
                    f"The folder {str(workdir)!r} has {name} but no {CONFIG_FILE}, so it is not known which run it "
                    "belongs to; give another workdir."
                )
        write_text(workdir / CONFIG_FILE, config.to_json())
    differences = config_differences(read_config(workdir), config)
    if differences:
        raise ValueError(
            f"The folder {str(workdir)!r} holds a run with another configuration ({'; '.join(differences)}). "
            "Give the same options to resume it, or another workdir for a new run."
        )
    if not (workdir / VOCABULARY_FILE).exists():
        vocabulary.save(workdir / VOCABULARY_FILE)
    elif Vocabulary.load(workdir / VOCABULARY_FILE, vocabulary.tokens) != vocabulary:
        raise ValueError(
            f"The text has changed since the run in {str(workdir)!r} began: its vocabulary is another one. "
            "Put back the old text to resume it, or give another workdir for a new run."
        )


def keep_config(workdir: Path, config: Config, *, finished: bool = False) -> None:
    """Prints which free options differ from those in a run's folder, and writes them there if the run goes on.

    Call it only once the text is known to be the run's.
    """
    changed = config_differences(read_config(workdir), config, free=True)
    for difference in changed:
        tell(f"The run {'was made' if finished else 'goes on'} with another {difference}.")
    if changed and not finished:
        write_text(workdir / CONFIG_FILE, config.to_json())


def read_config(workdir: Path) -> Config:
    """The configuration of the run in a folder.

    Raises:
        ValueError: there is none, or it is not readable.
    """
    path = workdir / CONFIG_FILE
    if workdir.is_file():
        raise ValueError(f"{str(workdir)!r} is a file; give the folder of a run, the workdir that it was trained in.")
    if not path.is_file():
        raise ValueError(f"There is no run in {str(workdir)!r}: it has no {CONFIG_FILE}. Train one with bwds train.")
    try:
        return Config.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
