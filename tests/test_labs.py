"""The labs: every script runs at small settings, and its page, notebook and pictures belong to it."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="the labs need the extra docs")
pytest.importorskip("matplotlib", reason="the labs need the extra plot")

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("labs_tool", ROOT / "tools" / "labs.py")
tool = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = tool
spec.loader.exec_module(tool)

SCRIPTS = list(tool.labs([]))
each_lab = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
LARGEST_PICTURE = 60_000


@each_lab
def test_a_lab_runs_at_small_settings(path, tmp_path, monkeypatch):
    lab = tool.Lab.read(path)
    if missing := lab.missing():
        pytest.skip(f"neither QUATRAIN_DATA nor the cache has {', '.join(missing)}")
    monkeypatch.setenv("QUATRAIN_LAB", "small")
    tool.run(lab, tmp_path)
    asked, solved = set(), set()
    for cell in lab.cells:
        for number, verdict in re.findall(r"^Exercise (\w+): (right|wrong|not answered)", cell.text, re.MULTILINE):
            assert verdict == ("right" if cell.is_solution else "not answered"), f"{number}: {cell.text}"
            (solved if cell.is_solution else asked).add(number)
    assert asked == solved and len(asked) >= 3, (asked, solved)
    assert any(cell.pictures for cell in lab.cells)


@each_lab
def test_page_and_notebook_belong_to_the_script(path):
    lab = tool.Lab.read(path)
    again = f"run `python tools/labs.py text {path.stem[:2]}`, or `build` if code has changed"
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert tool.without_outputs(page) == tool.page(lab), again
    assert path.with_suffix(".ipynb").read_text(encoding="utf-8") == tool.notebook(lab), again
    shown = set(re.findall(r"\]\(\.\./images/labs/(.+?\.png)\)", page))
    pictures = {each.name: each.stat().st_size for each in tool.PICTURES.glob(f"{path.stem}-*.png")}
    assert shown == pictures.keys() and max(pictures.values()) < LARGEST_PICTURE
    assert "<!-- time -->" in page and page.count("Exercise 1: right.") == 1


@each_lab
def test_the_notebook_runs_without_the_solutions(path):
    """The notebook has the solutions as text: no other cell may need a name that only they give."""
    given, by_solutions = set(), set()
    for cell in tool.Lab.read(path).cells:
        if cell.kind != "code":
            continue
        nodes = list(ast.walk(ast.parse(cell.source)))
        stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        stored |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        stored |= {arg.arg for node in nodes if isinstance(node, ast.arguments) for arg in node.args}
        stored |= {
            (a.asname or a.name).split(".")[0]
            for n in nodes
            if isinstance(n, ast.Import | ast.ImportFrom)
            for a in n.names
        }
        if cell.is_solution:
            by_solutions |= stored - given
            continue
        read = {node.id for node in nodes if isinstance(node, ast.Name)}
        given |= stored
        assert not read & (by_solutions - given), f"{read & (by_solutions - given)} are only in a solution"


def test_a_notebook_begins_with_what_to_install():
    book = json.loads(SCRIPTS[0].with_suffix(".ipynb").read_text(encoding="utf-8"))
    first = "".join(book["cells"][0]["source"])
    assert 'pip install "quatrain' in first and all(line.startswith("#") for line in first.splitlines())
    assert not any(cell.get("outputs") for cell in book["cells"])


def test_every_lab_is_in_the_table_of_the_course():
    index = (tool.LABS / "index.md").read_text(encoding="utf-8")
    assert [path.stem for path in SCRIPTS if f"({path.stem}.md)" not in index] == []


def test_the_table_of_the_course_is_whole_and_true():
    """Every lab of the course has its number; the recipes and the API that a topic names exist."""
    from quatrain.runs.recipe import recipe_names

    assert [int(path.stem[:2]) for path in SCRIPTS] == list(range(1, 19))
    table = [line.split("|")[1:-1] for line in (tool.LABS / "index.md").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in table if len(row) == 5][2:]
    assert len(rows) > 17 and all(cell.strip() for row in rows for cell in row)
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row[2])}
    assert named <= set(recipe_names())
    for name in (name for row in rows for name in re.findall(r"`([\w.]+)`", row[4])):
        module, _, attribute = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, attribute) or importlib.util.find_spec(name), name


def test_labs_share_a_folder_without_a_clash():
    """The runs of all labs have different names: notebooks that lie side by side run in one folder."""
    named = []
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        own = re.findall(r'^name = "([\w-]+)"$', text, re.MULTILINE)
        own += re.findall(r'(?:quatrain\.run|\bload)\("([\w-]+)"', text) + re.findall(r'answering\("([\w-]+)"', text)
        named += sorted(set(own))
    assert len(set(named)) == len(named) > 15, sorted(named)


def test_outputs_stay_when_only_the_text_changes():
    cell = tool.Cell("code", "1 + 1", text="2\n", pictures=[b""], alts=["two"])
    lab = tool.Lab("00-sum", [tool.Cell("markdown", "# Sums"), cell, tool.Cell("code", "x = 1")], [], [])
    old = tool.page(lab, seconds=3)
    lab.cells[0].source = "# Other sums\n\nMore text."
    new = tool.with_new_text(tool.Lab("00-sum", [tool.Cell(c.kind, c.source) for c in lab.cells], [], []), old)
    assert new == old.replace("# Sums\n", "# Other sums\n").replace("quatrain`\n", "quatrain`\n\nMore text.\n")
    assert tool.without_outputs(new) == tool.page(
        tool.Lab("00-sum", [tool.Cell(c.kind, c.source) for c in lab.cells], [], [])
    )
    with pytest.raises(SystemExit, match="build it"):
        tool.with_new_text(tool.Lab("00-sum", lab.cells[:2], [], []), old)


def test_the_site_draws_every_formula(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    formulas = importlib.import_module("formulas")
    for path in SCRIPTS:
        page = formulas.drawn(path.with_suffix(".md").read_text(encoding="utf-8"))
        prose = formulas.CODE.sub("", page)
        assert "$" not in prose and "<code>" not in prose, path.stem
    one = formulas.drawn("a $x^2$ and `$y$`, and\n\n$$\\frac12$$\n")
    assert one.count("<svg") == 2 and 'aria-label="x^2"' in one and "`$y$`" in one
    assert formulas.svg(r"\nonsense{x}") == "<code>\\nonsense{x}</code>"


def test_a_cell_that_fails_is_named(tmp_path, capsys):
    lab = tool.Lab("00-bad", [tool.Cell("code", "print('so far')\n1 / 0")], [], [])
    with pytest.raises(ZeroDivisionError):
        tool.run(lab, tmp_path)
    assert "in 00-bad, cell 1" in capsys.readouterr().err
