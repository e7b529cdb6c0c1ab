"""Steps for other engines: a step as a function of rows, for Ray Data, Hugging Face datasets and the like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.settings import parse, suggest
from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.step import Step, StepContext
from quatrain.data.curation.steps import steps


def make_step(kind: str, folder: str | Path, settings: Mapping[str, Any]) -> Step:
    """A step by its name; what it prepares is in `folder`, where it is written once.

    Raises InputError for an unknown name, wrong settings, and a step that compares documents.
    """
    cls = steps().get(kind)
    if cls is None:
        near = suggest(kind, steps())
        raise InputError(f"{kind}: no such step" + (f"; did you mean {near}?" if near else ""))
    if not issubclass(cls, Step):
        raise InputError(f"{kind} compares documents, which an engine's own shuffle does; run it with curate()")
    context = StepContext(Path(folder))
    chosen = parse(cls.Settings, {"kind": kind, **settings}, what=f"the step {kind}")
    mark = context.folder / f"{kind}.prepared"
    if not mark.exists() and cls.prepare.__func__ is not Step.prepare.__func__:  # type: ignore[attr-defined]
        context.folder.mkdir(parents=True, exist_ok=True)
        cls.prepare(chosen, context)
        mark.touch()
    return cls(chosen, context)


class RowStep:
    """A step as a function of a row: a list with the row, changed or not, or an empty list where it is removed.

    It is sent to other processes as its settings; each makes the step when the first row comes. `folder` is where the
    step keeps what it prepares, on a disk that all processes see.
    """

    def __init__(self, kind: str, *, folder: str | Path = ".", column: str = "text", **settings: Any):
        self.kind, self.folder, self.column, self.settings = kind, str(folder), column, settings
        self._step: Step | None = make_step(kind, folder, settings)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_step": None}

    def __call__(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self._step is None:
            self._step = make_step(self.kind, self.folder, self.settings)
        fields = {key: value for key, value in row.items() if key != self.column}
        document = SourceDocument(str(row.get("id", "")), str(row[self.column]), fields=fields)
        if self._step.apply(document) is not None:
            return []
        return [{**document.fields, self.column: document.text}]
