"""Our steps as steps of a datatrove pipeline, for jobs that outgrow one machine (Slurm, Ray)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from quatrain.data.curation.document import SourceDocument
from quatrain.data.curation.engines import make_step
from quatrain.data.curation.step import Step


class CurationStep(PipelineStep):
    """A step by its name with its settings, between a reader and a writer of datatrove.

    The text and the metadata of a document change as the step changes them. The reasons of removals are counted in
    datatrove's statistics.
    """

    type = "🔻 - FILTER"
    name = "Quatrain"

    def __init__(self, kind: str, *, folder: str | Path = ".", **settings: Any):
        super().__init__()
        self.name = f"Quatrain {kind}"
        self.kind, self.folder, self.settings = kind, str(folder), settings
        self._step: Step | None = make_step(kind, folder, settings)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_step": None}

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """The documents that the step keeps."""
        if self._step is None:
            self._step = make_step(self.kind, self.folder, self.settings)
        for item in data:
            self.stat_update("total")
            document = SourceDocument(item.id, item.text, fields=dict(item.metadata))
            with self.track_time():
                removal = self._step.apply(document)
            if removal is not None:
                self.stat_update("dropped", f"dropped_{removal.reason}")
                continue
            item.text, item.metadata = document.text, document.fields
            self.stat_update("forwarded")
            self.update_doc_stats(item)
            yield item
