"""When the checkpoints of a run are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pinnkfac.run.assembly import Assembly
from pinnkfac.run.progress import Best, Progress
from pinnkfac.store.run_folder import RunFolder, Unwritable


@dataclass
class Checkpoints:
    """Writes the last and the best state, ``every`` seconds, after a step.

    Writing takes at most a twentieth of the time. A disk that refuses does not end the run:
    ``warn`` is told once, and the next time it is tried again. ``identity`` (configuration, name
    and hash of the problem) goes into each: config.yaml may be newer than a checkpoint.
    """

    share = 20.0

    folder: RunFolder
    parts: Assembly
    identity: Mapping[str, Any]
    every: float
    warn: Callable[[str], None]

    def __post_init__(self) -> None:
        self._next = time.monotonic() + self.every
        self._best_step = -1
        self._refused = False

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() < self._next:
            return
        begin = time.monotonic()
        try:
            self.write(progress)
            self._refused = False
        except Unwritable as error:
            if not self._refused:
                self.warn(f"{error}; the run goes on, and this is tried again")
            self._refused = True
        taken = time.monotonic() - begin
        self._next = time.monotonic() + max(self.every, self.share * taken)

    def write(self, progress: Progress) -> None:
        """Write both now; raises Unwritable."""
        if progress.best.parameters and progress.best.step != self._best_step:
            self.write_best(progress)
        self.folder.write_checkpoint({**self.parts.state_dict(progress), **self.identity})

    def finish(self, progress: Progress, loss: float) -> None:
        """Take the final state, of that loss, for the best one where it is; raises Unwritable."""
        if loss < progress.best.loss:
            now = self.parts.system.get_parameters()
            progress.best = Best(loss, progress.step, progress.step, now)
            self.write_best(progress)

    def write_best(self, progress: Progress) -> None:
        """Write the best state now; raises Unwritable."""
        self.folder.write_checkpoint({**self.parts.best_state(progress), **self.identity}, "best")
        self._best_step = progress.best.step
