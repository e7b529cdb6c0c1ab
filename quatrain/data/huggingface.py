"""Hugging Face data sets: from the hub (`hf:owner/name`) or from a folder written by `save_to_disk`.

Class indices are replaced by class names. The library `datasets` (Lhoest et al. 2021, arXiv 2109.02846) does the
reading; offline it reads from its cache.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError, OfflineError
from quatrain.core.libraries import require
from quatrain.core.offline import offline
from quatrain.data.formats import FORMATS, Layout, detect_layout
from quatrain.data.records import Row
from quatrain.data.sources import PREFIX

_SAMPLE = 200


def _check_name(name: str) -> None:
    """Raise InputError for an invalid repository name, which the library would take for a file."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(
            f"{PREFIX}{name}: not the name of a data set; must look like hf:owner/name, or hf:owner/name@revision"
        ) from error


class HuggingFaceSource:
    """The rows of one split of a data set; with `streaming`, they are downloaded as they are read."""

    def __init__(self, source: str, *, subset: str | None = None, split: str | None = None, streaming: bool = False):
        """Open a data set. The default split is `train`, or the only one.

        Raises InputError if the data set, subset or split does not exist, OfflineError if the network is needed.
        """
        self.name, self.streaming = source, streaming
        if source.startswith(PREFIX):
            name, _, revision = source.removeprefix(PREFIX).partition("@")
            _check_name(name)
            data = _load(name, subset, revision or None, streaming)
        else:
            if subset is not None:
                raise InputError(f"{source}: a saved data set has no subsets; remove subset = {subset!r}")
            data = _saved(source)
            if streaming and not isinstance(data, Mapping):
                data = data.to_iterable_dataset()
        self.data = _split(source, data, split)

    @property
    def fingerprint(self) -> str | None:
        """The library's fingerprint of the content and of its transformations; None when streaming."""
        fingerprint = None if self.streaming else getattr(self.data, "_fingerprint", None)
        return hashlib.sha256(f"datasets:{fingerprint}".encode()).hexdigest() if fingerprint else None

    def layout(self, format: str | None, columns: Mapping[str, str] | None) -> Layout:
        """The layout of the rows. Raises InputError if the columns match no format."""
        sample = [row.value for row in islice(self.rows(), _SAMPLE)]
        layout = detect_layout(sample, columns=columns, format=format)
        if layout is not None:
            return layout
        if format is not None and FORMATS[format].varies:
            return Layout(format)
        names = ", ".join(map(repr, sample[0])) if sample else "(none)"
        what = f"are not those of {FORMATS[format].noun}" if format else "match no format"
        raise InputError(
            f"{self.name}: the columns {names} {what}. Name them, such as data.columns = "
            '{text = "…", label = "…"}; docs/data.md lists the roles of each format'
        )

    def layout_of(self, row: Row) -> Layout | None:
        """None: all rows have the same layout."""
        return None

    def rows(self) -> Iterator[Row]:
        """All rows, with class names in place of class indices."""
        names = _class_names(self.data)
        try:
            for number, row in enumerate(self.data, 1):
                for column, classes in names.items():
                    row[column] = _named(row[column], classes)
                yield Row(f"{self.name}:row {number}", row)
        except _network_errors() as error:
            raise _unreachable(self.name, error) from error


def _library() -> Any:
    with require("a data set of Hugging Face", "datasets", "data"):
        import datasets
    return datasets


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Run the library without progress bars, and offline if QUATRAIN_OFFLINE is set."""
    import huggingface_hub.constants

    bars = library.utils.is_progress_bar_enabled()
    before = (library.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    library.disable_progress_bars()
    if offline():
        library.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        library.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before
        if bars:
            library.enable_progress_bars()


def _load(name: str, subset: str | None, revision: str | None, streaming: bool) -> Any:
    library = _library()
    try:
        with _quiet(library):
            return library.load_dataset(name, subset, revision=revision, streaming=streaming)
    except _network_errors() as error:
        raise _unreachable(PREFIX + name, error) from error
    except library.exceptions.DatasetNotFoundError as error:
        if offline() or library.config.HF_HUB_OFFLINE:
            raise _unreachable(PREFIX + name, error) from error
        hint = "Look for its name on huggingface.co/datasets"
        raise InputError(f"{PREFIX}{name}: {_first_line(error)}. {hint}") from error
    except (ValueError, RuntimeError, FileNotFoundError, library.exceptions.DatasetsError) as error:
        if offline() and "offline" in str(error).lower():
            raise _unreachable(PREFIX + name, error) from error
        raise InputError(f"{PREFIX}{name} cannot be read: {_first_line(error)}") from error


def _saved(source: str) -> Any:
    library = _library()
    try:
        with _quiet(library):
            return library.load_from_disk(str(Path(source).expanduser()))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{source} is not a complete data set: {_first_line(error)}. Save it again") from error


def _split(source: str, data: Any, split: str | None) -> Any:
    """One split of a loaded data set."""
    if not isinstance(data, Mapping):
        if split not in (None, str(getattr(data, "split", None)), "train"):
            raise InputError(f"{source}: split = {split!r}; it has no splits, so remove this")
        return data
    if split is None:
        split = "train" if "train" in data else next(iter(data)) if len(data) == 1 else None
    if split not in data:
        wrong = f"split = {split!r}; " if split else ""
        raise InputError(f"{source}: {wrong}its splits are {', '.join(map(str, data))}; choose one with data.split")
    return data[split]


def _class_names(data: Any) -> dict[str, list[str]]:
    """The columns of class indices, alone or in lists, with their class names."""
    columns = {}
    for column, feature in (getattr(data, "features", None) or {}).items():
        inner = getattr(feature, "feature", feature)
        names = getattr(inner, "names", None)
        if names:
            columns[column] = list(names)
    return columns


def _named(value: Any, names: list[str]) -> Any:
    """Class indices as names; -1, which means no label, as None."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _network_errors() -> tuple[type[Exception], ...]:
    """The exceptions for a hub that is unreachable or forbidden."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return (ConnectionError, TimeoutError, OfflineModeIsEnabled)


def _unreachable(source: str, error: Exception) -> OfflineError:
    why = "QUATRAIN_OFFLINE forbids the network" if offline() else f"the hub cannot be reached ({_first_line(error)})"
    return OfflineError(
        f"{source} is not on this machine, and {why}. Download it on a machine with a network, then save it with "
        'datasets.load_dataset(…).save_to_disk("FOLDER") and use that folder as the source'
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
