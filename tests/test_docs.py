"""The guide: its Python runs, its links lead somewhere, and the commands it shows exist.

Pages whose code needs something special are run by the tests of their subject; `RUN_ELSEWHERE` names those tests.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from quatrain.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
LABS = sorted((DOCS / "labs").glob("*.md"))
"""The Python of labs is run by tests/test_labs.py."""
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN_ELSEWHERE = {
    **dict.fromkeys(
        ("models", "generation", "adaptation", "alignment", "compression"), "tests/generation/test_pages.py"
    ),
    "text": "tests/data/test_guide.py",
    "serving": "tests/serving/test_guide.py",
}


def blocks(page: Path, kind: str) -> list[str]:
    return [body for language, body in BLOCK.findall(page.read_text(encoding="utf-8")) if language == kind]


def commands() -> list[tuple[str, list[str]]]:
    """Every `quatrain …` in the shell blocks of the guide, with its page."""
    shown = []
    for page in [*PAGES, *LABS]:
        # A command may go on behind a backslash.
        for line in "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines():
            match = re.search(r"(?:^|\| )(quatrain .*)", line)
            if match:
                shown.append((page.name, shlex.split(match.group(1).split("|")[0], comments=True)))
    return shown


@pytest.mark.parametrize(
    "page",
    [p for p in [*PAGES, DOCS / "labs" / "index.md"] if blocks(p, "python") and p.stem not in RUN_ELSEWHERE],
    ids=lambda p: p.stem,
)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """All blocks of a page in order, sharing their names, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__page__"}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    assert len(names) > 1


@pytest.mark.parametrize("page", sorted(RUN_ELSEWHERE))
def test_pages_that_others_run_are_run(page):
    test = (ROOT / RUN_ELSEWHERE[page]).read_text(encoding="utf-8")
    assert f'"{page}"' in test or f"{page}.md" in test
    assert blocks(DOCS / f"{page}.md", "python")


@pytest.mark.parametrize("page", [*PAGES, *LABS, *DECISIONS, ROOT / "CHANGELOG.md"], ids=lambda p: p.stem)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page.name} links to {target}"


def test_decisions_are_numbered_and_complete():
    numbers = [page.name[:4] for page in DECISIONS]
    assert len(set(numbers)) == len(numbers) and all(
        re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", page.name) for page in DECISIONS
    )
    for page in DECISIONS:
        parts = re.findall(r"^(?:## |\*\*)(\w+)(?:\.\*\*)?", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequence"], page.name


FILE = re.compile(r"`((?:quatrain|tests|benchmarks|tools|[a-z0-9]+)/[\w/]*\w\.(?:py|toml|md))`")


@pytest.mark.parametrize("page", [*PAGES, *LABS, *DECISIONS], ids=lambda p: p.stem)
def test_files_that_are_named_exist(page):
    for name in FILE.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "NAME" not in name:
            assert (ROOT / name).exists() or (ROOT / "quatrain" / name).exists(), f"{page.name} names {name}"


def test_the_walks_through_the_code_are_true():
    """Every file and function in the tables of docs/architecture.md exists."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| [^|]+ \| `([\w/]+\.py)` \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(steps) > 30
    for file, name in steps:
        source = (ROOT / "quatrain" / file).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", source, re.MULTILINE), f"{file} has no {name}"


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in PAGES} - {"index.md"} == linked


@cache
def help_of(*verb: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        return main([*verb, "--help"]), out.getvalue()


def test_commands_that_are_shown_exist(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = commands()
    assert len(shown) > 5
    for page, words in shown:
        verb = [word for word in words[1:3] if re.fullmatch(r"[a-z]+", word)]
        verb = verb if verb[:1] in (["data"], ["prompt"], ["agent"]) else verb[:1]
        code, text = help_of(*verb)
        assert code == 0 and text, f"{page}: {shlex.join(words)}"
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            assert flag in text, f"{page}: {shlex.join(words)}: {flag} is no flag of {' '.join(verb)}"


def test_settings_that_are_shown_are_known():
    """Overrides in the guide are right: the recipes take them."""
    from quatrain.runs.recipe import load

    checked = 0
    for _, words in commands():
        if words[1] in ("run", "check") and not words[2].endswith(".toml"):
            load(words[2], [word for word in words[3:] if not word.startswith("--")])
            checked += 1
    assert checked > 3


def test_every_shipped_recipe_and_verb_is_in_the_docs():
    from quatrain.cli.app import build_app
    from quatrain.runs.recipe import recipe_names

    recipes = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert [name for name in recipe_names() if f"`{name}`" not in recipes] == []
    page = (ROOT / "docs/command-line.md").read_text(encoding="utf-8")
    verbs = [name for name in build_app() if not name.startswith("-")]
    assert [verb for verb in verbs if f"`{verb}" not in page] == []
