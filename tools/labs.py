"""Builds the labs of the course: from each script `docs/labs/NN-name.py` a page and a notebook.

    python tools/labs.py build [NN …]        run the labs at full settings; write pages, pictures and notebooks
    python tools/labs.py text [NN …]         write text and code anew and keep the outputs: for changes that alter none
    python tools/labs.py run NN …            run at the settings of QUATRAIN_LAB (full or small), and print

A script is in jupytext's percent format. A code cell with the tag `solution` answers the exercise before it: it runs
like the others, and is folded on the page and in the notebook. `data` in the header names sets of the catalog, `extras`
what to install. A page holds the outputs between comments, so that a test can compare the rest with the script.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import os
import re
import sys
import tempfile
import time
import traceback
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupytext
import nbformat

ROOT = Path(__file__).parents[1]
LABS = ROOT / "docs" / "labs"
PICTURES = ROOT / "docs" / "images" / "labs"
OUTPUT = re.compile(r"<!-- output -->\n.*?<!-- end of output -->\n\n", re.DOTALL)
TIME = re.compile(r"\n<!-- time -->\n.*\n$")
COLORS = 256
"""Colours of a picture: few, so that it is small; an octree keeps those of small parts, which a median cut gives up."""
STYLE = {
    "figure.dpi": 88,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
}


@dataclass
class Cell:
    """A cell of a lab; text and pictures are the outputs of code that has run. alts: what the pictures show."""

    kind: str
    source: str
    tags: tuple[str, ...] = ()
    text: str = ""
    pictures: list[bytes] = field(default_factory=list)
    alts: list[str] = field(default_factory=list)

    @property
    def is_solution(self) -> bool:
        return "solution" in self.tags


@dataclass
class Lab:
    """A lab: its name (`03-attention`), its cells, and what it needs."""

    name: str
    cells: list[Cell]
    data: list[str]
    extras: list[str]

    @classmethod
    def read(cls, path: Path) -> Lab:
        book = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
        facts = book.metadata.get("quatrain", {})
        cells = [Cell(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ()))) for cell in book.cells]
        return cls(path.stem, cells, list(facts.get("data", ())), list(facts.get("extras", ())))

    def missing(self) -> list[str]:
        """The data sets that are neither in QUATRAIN_DATA nor in the cache, nor made of such."""
        from quatrain.data import catalog

        def is_here(name: str) -> bool:
            entry = catalog.get(name)
            return catalog.locate(entry) is not None or (bool(entry.origins) and all(map(is_here, entry.origins)))

        return [name for name in self.data if not is_here(name)]

    @property
    def install(self) -> str:
        return f'pip install "quatrain[{",".join(self.extras)}]"' if self.extras else "pip install quatrain"


def run(lab: Lab, folder: Path, echo: bool = False) -> float:
    """Runs all cells in order in `folder`, sharing their names, keeps their outputs; gives the processor's seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    module = types.ModuleType("__lab__")  # dataclasses and pickle look for the module of a class
    sys.modules[module.__name__] = module
    before, started = os.getcwd(), time.process_time()
    os.chdir(folder)
    try:
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")  # plt.show() is for notebooks
            for number, cell in enumerate(lab.cells, 1):
                if cell.kind == "code":
                    cell.text = _execute(cell.source, f"{lab.name}, cell {number}", vars(module))
                    cell.pictures, cell.alts = _figures(pyplot)
                    if echo:
                        print(cell.text, end="", flush=True)
    finally:
        pyplot.close("all")
        os.chdir(before)
        del sys.modules[module.__name__]
    return time.process_time() - started


def _execute(source: str, name: str, names: dict[str, Any]) -> str:
    """Runs one cell; gives what it prints, and the value of its last expression as a notebook shows it."""
    tree = ast.parse(source)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, name, "exec"), names)
            value = None if last is None else eval(compile(last, name, "eval"), names)
            if value is not None:
                print(repr(value))
    except Exception:
        print(f"{printed.getvalue()}{traceback.format_exc()}\nin {name}:\n{source}", file=sys.stderr)
        raise
    return printed.getvalue()


def _figures(pyplot: Any) -> tuple[list[bytes], list[str]]:
    """The open figures as PNGs of few colours, closed, with their titles."""
    from PIL import Image

    pictures, alts = [], []
    for number in pyplot.get_fignums():
        figure, drawn, small = pyplot.figure(number), io.BytesIO(), io.BytesIO()
        figure.savefig(drawn)
        few = Image.open(drawn).convert("RGB").quantize(COLORS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(small, "PNG", optimize=True)
        titles = [figure.get_suptitle(), *(axes.get_title() or axes.get_title("left") for axes in figure.axes)]
        pictures.append(small.getvalue())
        alts.append(re.sub(r"[\[\]$\\\n]+", " ", next((title for title in titles if title), "a picture")))
    pyplot.close("all")
    return pictures, alts


def page(lab: Lab, seconds: float | None = None) -> str:
    """The page of a lab in Markdown, with the outputs of the cells that have any."""
    parts = [f"<!-- Built from {lab.name}.py by tools/labs.py: edit the script. -->\n\n"]
    pictures = 0
    for place, cell in enumerate(lab.cells):
        if cell.kind == "markdown":
            text = cell.source + "\n\n"
            parts.append(_with_links(lab, text) if place == 0 else text)
            continue
        block = f"```python\n{cell.source}\n```\n\n"
        if cell.text or cell.pictures:
            block += "<!-- output -->\n"
            if cell.text:
                block += f"```text\n{cell.text.rstrip()}\n```\n\n"
            for alt in cell.alts:
                pictures += 1
                block += f"![{alt}](../images/labs/{lab.name}-{pictures}.png)\n\n"
            block += "<!-- end of output -->\n\n"
        if cell.is_solution:
            block = f'<details markdown="1">\n<summary>A solution</summary>\n\n{block}</details>\n\n'
        parts.append(block)
    if seconds is not None:
        parts.append(f"<!-- time -->\nThe outputs are of full settings: {max(1, round(seconds))} s on one core.\n\n")
    return "".join(parts).rstrip() + "\n"


def without_outputs(text: str) -> str:
    """A page without what running the lab has added, for the comparison with its script."""
    return TIME.sub("", OUTPUT.sub("", text)).rstrip() + "\n"


def _with_links(lab: Lab, text: str) -> str:
    """The first cell, with a line under its title: the notebook, the script, and what to install."""
    title, _, rest = text.partition("\n")
    data = "".join(f", `{name}`" for name in lab.data)
    line = f"[Notebook]({lab.name}.ipynb) · [Script]({lab.name}.py) · `{lab.install}`"
    return f"{title}\n\n{line}{' · data: ' + data[2:] if data else ''}\n{rest}"


def notebook(lab: Lab) -> str:
    """The notebook of a lab: without outputs, first a cell that installs, solutions folded in cells of text."""
    book = nbformat.v4.new_notebook()
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    extras = f"[{','.join(lab.extras)}]" if lab.extras else ""
    first = (
        "# On a hosted notebook service, or wherever Quatrain is not installed: remove the # of the last line and run\n"
        f'# this cell first. In docs/labs of a clone of the repository: %pip install -e "../..{extras}"\n'
        f"# %{lab.install}"
    )
    style = ", ".join(f'"{key}": {value!r}' for key, value in STYLE.items())
    cells = [
        nbformat.v4.new_code_cell(first),
        nbformat.v4.new_code_cell(f"import matplotlib\n\nmatplotlib.rcParams.update({{{style}}})  # as on the page"),
    ]
    for cell in lab.cells:
        if cell.kind == "markdown":
            cells.append(nbformat.v4.new_markdown_cell(_for_notebook(cell.source)))
        elif cell.is_solution:
            folded = f"<details>\n<summary>A solution</summary>\n\n```python\n{cell.source}\n```\n\n</details>"
            cells.append(nbformat.v4.new_markdown_cell(folded))
        else:
            cells.append(nbformat.v4.new_code_cell(cell.source))
    for number, each in enumerate(cells):
        each["id"] = f"cell-{number}"  # nbformat draws random ones
    book.cells = cells
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


def _for_notebook(text: str) -> str:
    """Text without links to other pages, which a notebook elsewhere does not reach: their words remain."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)


def labs(chosen: list[str]) -> Iterator[Path]:
    """The scripts whose number or name begins as one of the chosen; all for none."""
    found = sorted(LABS.glob("[0-9][0-9]-*.py"))
    for each in chosen:
        if not any(path.stem.startswith(each) for path in found):
            raise SystemExit(f"{each}: no lab begins so; there are {', '.join(path.stem for path in found)}")
    return (path for path in found if not chosen or any(path.stem.startswith(each) for each in chosen))


def write_page(lab: Lab, seconds: float) -> None:
    """Writes the page and its pictures, and removes pictures that it no longer has."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob(f"{lab.name}-*.png"):
        old.unlink()
    pictures = [picture for cell in lab.cells for picture in cell.pictures]
    for number, picture in enumerate(pictures, 1):
        (PICTURES / f"{lab.name}-{number}.png").write_bytes(picture)
    (LABS / f"{lab.name}.md").write_text(page(lab, seconds), encoding="utf-8", newline="\n")


def with_new_text(lab: Lab, old: str) -> str:
    """The page with text and code of the script and the outputs of an old page, in the order of the code cells.

    Raises SystemExit if the number of code cells has changed; then build the lab.
    """
    cell = re.compile(rf"(^```python\n.*?^```\n\n)({OUTPUT.pattern})?", re.MULTILINE | re.DOTALL)
    outputs = [match.group(2) or "" for match in cell.finditer(old + "\n")]
    new = page(lab) + "\n"
    if len(outputs) != len(cell.findall(new)):
        raise SystemExit(f"{lab.name}: the number of code cells has changed; build it")
    left = iter(outputs)
    text = cell.sub(lambda match: match.group(1) + next(left), new)
    return text.rstrip() + "\n" + "".join(TIME.findall("\n" + old))


def main() -> None:
    """Parses the command and runs it."""
    parser = argparse.ArgumentParser("tools/labs.py", description="Builds the labs of the course.")
    parser.add_argument("command", choices=("build", "text", "run"))
    parser.add_argument("lab", nargs="*", help="numbers or names; all if none are given")
    parser.add_argument(
        "--folder", type=Path, help="run here and keep the runs: the next time they are finished already"
    )
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    for path in labs(options.lab):
        lab = Lab.read(path)
        if options.command == "text":
            target = path.with_suffix(".md")
            target.write_text(with_new_text(lab, target.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
        else:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary) if options.folder is None else options.folder / lab.name
                folder.mkdir(parents=True, exist_ok=True)
                seconds = run(lab, folder, echo=options.command == "run")
            print(f"{lab.name}: {seconds:.1f} s")
        if options.command == "build":
            write_page(lab, seconds)
        if options.command != "run":
            path.with_suffix(".ipynb").write_text(notebook(lab), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
