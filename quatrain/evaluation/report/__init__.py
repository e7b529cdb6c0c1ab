"""The report of a run: one HTML file that needs nothing else.

`write_report` reads what a run left in its folder (`recipe.toml`, `metrics.jsonl`, `stages/*/result.json`) and
writes `report.html` beside it: the loss curves, the scores after each stage, samples before and after, size and
speed around quantization, and what the run cost. It has no script and asks nothing of the network; a content
security policy says so to the browser too, since what a model wrote is shown in it. Whatever is missing is left
out, so a run can be looked at while it is still going.
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
    """Write `report.html` into a run's folder, whole or not at all, and return its path.

    Raises InputError where the folder is no run, and QuatrainError where the file cannot be written.
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
