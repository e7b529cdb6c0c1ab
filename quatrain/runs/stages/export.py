"""The export stage: the model in another program's format, proved beside the model itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quatrain.runs.settings import StageSettings
from quatrain.runs.stage import StageContext, StageResult, StageSpec


class ExportStage(StageSettings):
    """Writes the model that the earlier stages have left, or `model.folder`, to another format, as `quatrain export`.

    Results: `export_bytes`, and `proved_share`: how many of the comparisons with the model hold. A file that does not
    compute what the model computes fails the stage. `format` is by default the target's first.
    """

    kind: Literal["export"] = "export"
    to: str = Field(default="gguf", min_length=1, description="the target, as of quatrain export")
    format: str | None = Field(default=None, min_length=1, description="the target's number format, such as Q8_0")


def run(settings: ExportStage, context: StageContext) -> StageResult:
    """Exports into `files/` of the stage's folder; writes no model."""
    import shutil

    from quatrain.core.wording import format_bytes
    from quatrain.export.exporter import ExportSettings, export
    from quatrain.runs.material import model_folder_of

    out = context.stage_folder / "files"
    shutil.rmtree(out, ignore_errors=True)  # of an attempt that was interrupted
    done = export(model_folder_of(context) or "", settings.to, out, ExportSettings(format=settings.format))
    result = StageResult()
    result.extra = {
        "export_bytes": done.nbytes,
        "proved_share": sum(check.ok for check in done.checks) / max(1, len(done.checks)),
    }
    result.notes = [
        f"exported to {done.target}, {done.format}, {format_bytes(done.nbytes)}: "
        + ", ".join(path.name for path in done.files),
        *done.notes,
    ]
    rows = [[check.runtime, check.name, check.result, "ok" if check.ok else "failed"] for check in done.checks]
    context.reporter.table(f"Export to {done.target}", ["runtime", "compared", "result", ""], rows)
    return result


SPEC = StageSpec(ExportStage, run=run, needs=lambda settings, recipe: {"model"}, measured=False)
