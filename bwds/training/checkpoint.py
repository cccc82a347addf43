"""Checkpoints of a training run.

``checkpoints/last`` keeps the newest two states, from which training resumes. ``checkpoints/best`` keeps the parameters
with the lowest validation loss, and those that were the best before. A checkpoint that is not whole is not used. It is
renamed, and removed only if this program knows that it did not finish writing it.
"""

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax

from bwds.filesystem import write_text, writing
from bwds.output import tell
from bwds.training.manifest import MANIFEST_FILE, manifest, set_aside, unchanged
from bwds.training.processes import first_alone, from_first
from bwds.training.workdir import CHECKPOINTS


class Checkpoints:
    """The newest ``keep`` checkpoints in a folder, each with digests of its files, checked when it is read.

    The digests are written last, so a checkpoint without them is not whole. A file beside it, ``12.writing``, shows
    that a process ended while it wrote the checkpoint, which can then be removed. If there are several processes, each
    writes its part of the arrays into one folder that all see, and the first one writes the rest.

    Args:
        directory: of the checkpoints; made if it does not exist.
        keep: how many stay; older ones are removed.
        read_only: nothing is written, renamed or removed, so that a run that is still going on is not disturbed.

    Raises:
        ValueError: ``read_only``, and there is no such folder.
    """

    def __init__(self, directory: Path, *, keep: int, read_only: bool = False) -> None:
        import orbax.checkpoint as ocp

        # Messages of orbax about a broken checkpoint are hidden: this class raises or prints its own.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self._ocp = ocp
        self.directory = directory.absolute()
        self._read_only = read_only
        if read_only and not self.directory.is_dir():
            raise ValueError(f"There is no checkpoint in {self.directory}.")
        if not read_only:
            first_alone(self._tidy)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=not read_only,
            read_only=read_only,
            # Removes writes that were cut short: orbax names a folder by its step only when all is in it.
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def _tidy(self) -> None:
        for path in self.directory.glob("[0-9]*"):
            if path.name.isdigit() and not (path / MANIFEST_FILE).is_file():
                if self._writing(path.name).is_file() and path.is_dir():
                    shutil.rmtree(path)
                else:
                    # It may be whole, if it is a copy that was made without this file.
                    aside = set_aside(path, "incomplete")
                    tell(f"warning: {path} has no {MANIFEST_FILE}, so it counts for nothing; it is {aside.name} now.")
        for path in self.directory.glob("[0-9]*.writing"):
            path.unlink()

    def _writing(self, step: int | str) -> Path:
        return self.directory / f"{step}.writing"

    @property
    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, the newest first."""
        complete = [s for s in self._manager.all_steps() if (self.directory / str(s) / MANIFEST_FILE).is_file()]
        return from_first(sorted(complete, reverse=True))

    def save(self, step: int, tree: Any, **info: Any) -> None:
        """Writes a checkpoint and returns when it is complete.

        Args:
            step: its name.
            tree: arrays.
            info: JSON values kept beside them.

        Raises:
            OSError: it cannot be written; those before it are as they were.
            jax.errors.JaxRuntimeError: another process has ended meanwhile.
        """
        # Checked first: in the middle of a write orbax answers a full disk with pages of tracebacks.
        first_alone(partial(self._begin, step, sum(leaf.nbytes for leaf in jax.tree.leaves(tree))))
        try:
            self._write(step, tree, info)
        except Exception as error:  # The libraries below raise errors of many kinds.
            if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                # The other processes did not answer; nothing is wrong with the folder.
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OSError(f"The checkpoint of step {step} cannot be written in {self.directory}: {reason}.") from error

    def _begin(self, step: int, needed: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise OSError(
                f"The checkpoint of step {step} needs {needed / 2**20:,.1f} MiB and {self.directory} has "
                f"{free / 2**20:,.1f} MiB left."
            )
        with writing(self._writing(step)):
            self._writing(step).touch()

    def _write(self, step: int, tree: Any, info: dict[str, Any]) -> None:
        args = self._ocp.args
        items = args.Composite(state=args.StandardSave(tree), info=args.JsonSave({"step": step, **info}))
        self._manager.save(step, args=items, force=True)
        path = self.directory / str(step)

        def finish() -> None:
            write_text(path / MANIFEST_FILE, manifest(path))
            self._writing(step).unlink(missing_ok=True)

        first_alone(finish)

    def restore(
        self, template: Any, check: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> tuple[Any, dict[str, Any]]:
        """The newest checkpoint that is what was saved, and its info.

        If there is an older good one, a damaged one is skipped with a warning on stderr, and renamed unless
        ``read_only``. An error in reading is no damage: the next try may succeed, so nothing is renamed.

        Args:
            template: a tree of arrays or ``jax.ShapeDtypeStruct`` like the one that was saved. It gives the sharding of
                the arrays; a leaf without one goes to the first device.
            check: is called with the info before the arrays are read, and may refuse it: where shapes differ from the
                template's, orbax prints tracebacks of its threads.

        Raises:
            ValueError: there is no checkpoint, all are damaged, or the newest is of another version.
            OSError: the newest cannot be read.
        """
        steps = self.steps
        if not steps:
            raise ValueError(f"There is no checkpoint in {self.directory}.")
        damaged: list[int] = []
        reason = ""
        for step in steps:
            # Checked first: orbax gives up on some damaged files, and reads wrong numbers from others.
            if not from_first(first_alone(partial(self._try, step, partial(unchanged, self.directory / str(step))))):
                damaged, reason = [*damaged, step], "its files have changed"
                continue
            info = self._try(step, partial(self._read_info, step))
            if info["step"] != step:
                damaged, reason = [*damaged, step], f"it is that of step {info['step']}, renamed"
                continue
            check(info)
            tree = self._try(step, partial(self._read, step, template))
            first_alone(partial(self._give_up, damaged, step, reason))
            self._manager.reload()
            return tree, info
        raise ValueError(
            f"No checkpoint in {self.directory} can be read: that of step {steps[0]} is damaged ({reason}). "
            "Put back a copy of it, or train anew in another workdir."
        )

    def _try(self, step: int, read: Callable[[], Any]) -> Any:
        """``read()``, with errors that name the checkpoint."""
        try:
            return read()
        except Exception as error:  # Files of another version can raise nearly anything.
            if isinstance(error, MemoryError | jax.errors.JaxRuntimeError):
                raise
            # Messages of the libraries below can be pages long.
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]
            message = f"The checkpoint of step {step} in {self.directory} cannot be read ({reason})"
            if isinstance(error, OSError):
                raise OSError(f"{message}; nothing was changed, so try again.") from error
            raise ValueError(
                f"{message}: it is of another version. Go on with that version, or train anew in another workdir."
            ) from error

    def _give_up(self, damaged: list[int], good: int, reason: str) -> None:
        for unusable in damaged:
            path = self.directory / str(unusable)
            now = "" if self._read_only else f" It is {set_aside(path, 'damaged').name} now."
            tell(
                f"warning: the checkpoint of step {unusable} in {self.directory} cannot be used ({reason}); "
                f"the one of step {good} is.{now}"
            )

    def forget_after(self, step: int) -> None:
        """Renames the checkpoints of later steps, which will be written again, to ``12.later``.

        They are not removed: they are whole, and if the state that they came from is damaged, they are all that is left
        of these steps.
        """
        later = [self.directory / str(other) for other in self._manager.all_steps() if other > step]

        def rename() -> None:
            for path in later:
                set_aside(path, "later")

        first_alone(rename)
        if later:
            self._manager.reload()

    def _read_info(self, step: int) -> dict[str, Any]:
        args = self._ocp.args
        return self._manager.restore(step, args=args.Composite(info=args.JsonRestore()))["info"]

    def _read(self, step: int, template: Any) -> Any:
        args = self._ocp.args
        first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def place(leaf: Any) -> jax.ShapeDtypeStruct:
            # The sharding is always given, because the one in the checkpoint may name devices that are not here.
            return jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=first if leaf.sharding is None else leaf.sharding
            )

        template = jax.tree.map(place, template)
        return self._manager.restore(step, args=args.Composite(state=args.StandardRestore(template)))["state"]


def last_checkpoints(workdir: Path, *, read_only: bool = False) -> Checkpoints:
    """Training states: the newest and, in case it is damaged, the one before it."""
    return Checkpoints(workdir / CHECKPOINTS / "last", keep=2, read_only=read_only)


def best_checkpoints(workdir: Path, *, read_only: bool = False) -> Checkpoints:
    """Parameters with the lowest validation loss: the newest, and those that were the best before.

    A state is saved with each. While a new one is written, the two kept states name at most two older ones, so three
    are kept.
    """
    return Checkpoints(workdir / CHECKPOINTS / "best", keep=3, read_only=read_only)
