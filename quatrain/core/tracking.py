"""Experiment trackers: sends the metrics of `metrics.jsonl` to TensorBoard, trackio or Weights & Biases as well.

Each writes to the run folder or its own default place, without network access: W&B runs offline unless it is logged in
and QUATRAIN_OFFLINE is not set. A tracker that fails is reported once and disabled; training continues.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from quatrain.core.offline import offline

LIBRARIES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""The library that each tracker needs."""


class Tracker(Protocol):
    """Receives the metrics of a stage."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the values of one step of a stage."""
        ...

    def close(self) -> None:
        """Finish the stage."""
        ...


def missing(names: Sequence[str]) -> list[str]:
    """One message for each tracker whose library is not installed."""
    return [
        f'tracking: "{name}" needs the library {LIBRARIES[name]}; install it with: pip install {LIBRARIES[name]}'
        for name in names
        if importlib.util.find_spec(LIBRARIES[name]) is None
    ]


class TensorBoard:
    """Event files below RUN/tensorboard/STAGE; entries of an interrupted attempt after the resumed step are purged."""

    def __init__(self, folder: Path, run: str, stage: str, config: Mapping[str, Any], resume_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard" / stage), purge_step=resume_step + 1)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Write a scalar for each value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self.writer.close()


class Trackio:
    """A run of the project quatrain in trackio's local database."""

    def __init__(self, folder: Path, run: str, stage: str, config: Mapping[str, Any], resume_step: int):
        import trackio

        self.library: Any = trackio
        with contextlib.redirect_stdout(io.StringIO()):  # it prints to stdout, which belongs to the reporter
            trackio.init(project="quatrain", name=f"{run}-{stage}", config=dict(config), resume="allow")

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the values of one step."""
        self.library.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.library.finish()


class WandB:
    """A run of the project quatrain at Weights & Biases; offline, below RUN/wandb."""

    def __init__(self, folder: Path, run: str, stage: str, config: Mapping[str, Any], resume_step: int):
        import wandb

        known = bool(os.environ.get("WANDB_API_KEY")) or (Path.home() / ".netrc").is_file()
        mode: Any = "online" if known and not offline() else "offline"
        settings = wandb.Settings(console="off", silent=True)
        self.run: Any = wandb.init(project="quatrain", name=f"{run}-{stage}", dir=str(folder), mode=mode,
                                   config=dict(config), resume="allow", settings=settings)  # fmt: skip

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the values of one step."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


TRACKERS: dict[str, Callable[[Path, str, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WandB,
}


class Trackers:
    """The trackers of one stage, as a context manager that closes them."""

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        *,
        run: str,
        stage: str,
        config: Mapping[str, Any],
        resume_step: int,
        warn: Callable[[str], None],
    ):
        self.stage, self.warn = stage, warn
        self.open: dict[str, Tracker] = {}
        for name in names:
            self._try(name, partial(self._start, name, folder, run, config, resume_step))

    def _start(self, name: str, folder: Path, run: str, config: Mapping[str, Any], resume_step: int) -> None:
        self.open[name] = TRACKERS[name](folder, run, self.stage, config, resume_step)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Send the numbers of a `metrics.jsonl` entry to all trackers."""
        values = {
            name: float(value)
            for name, value in entry.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name, tracker in list(self.open.items()):
            self._try(name, partial(tracker.log, self.stage, int(entry["step"]), values))

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self.open.pop(name, None)
            reason = f"{type(error).__name__}: {error}"
            self.warn(f"tracking: {name} failed and was disabled ({reason}); metrics.jsonl is still written.")

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *exc: object) -> None:
        for name, tracker in list(self.open.items()):
            self._try(name, tracker.close)
        self.open.clear()
