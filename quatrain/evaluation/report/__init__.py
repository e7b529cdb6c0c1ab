"""The report of a run: one self-contained HTML file.

`write_report` reads the files of a run (`recipe.toml`, `metrics.jsonl`, `stages/*/result.json`) and writes
`report.html` beside them: loss curves, scores after each stage, samples before and after, size and speed around
quantization, and the cost of the run. The page has no script and makes no network request; a content security policy
enforces this, since the page shows text written by a model. Missing data is omitted, so that a report can be written
while the run is still in progress.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from quatrain.core.atomic import write_text
from quatrain.evaluation.report.reading import read_run
from quatrain.evaluation.report.sections import page
from quatrain.evaluation.report.wording import shown

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["write_report"]


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into a run's folder, atomically, and return its path.

    Raises InputError if the folder is not a run, and QuatrainError if the file cannot be written.
    """
    folder = Path(run_folder)
    html = _template().render(page(read_run(folder)))
    path = folder / "report.html"
    write_text(path, shown(html))
    return path


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = files(__name__)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: "" if value is None else value,
    )
    environment.globals["style"] = Markup((here / "style.css").read_text(encoding="utf-8"))
    return environment.from_string((here / "page.html.jinja").read_text(encoding="utf-8"))
