"""Builds the site: the guide, the results and the API reference as pages that open without a network.

    python tools/build_site.py [FOLDER]      (default: site)

zensical, in the extra `docs`, makes the pages; this script gives it what it needs. The pages keep their places in the
repository, so their links hold, and README.md is the first page. docs/index.md is the order of the pages. The API
reference is written from the docstrings of everything that tests/public_api.txt lists.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import tomli_w
from api_pages import api_pages
from formulas import drawn

ROOT = Path(__file__).resolve().parents[1]
CONFIGURATION = ROOT / "zensical.toml"
PROJECT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages that are not in the index of the guide, but in the menu."""

WORKER = ROOT / "tools" / "site_worker.js"
"""What lets pages that are opened from a folder search."""

STYLE = ROOT / "tools" / "site.css"

FOREIGN_WORKER = re.compile(r'<script src="https://unpkg\.com/iframe-worker/shim"[^>]*></script>')
"""zensical's way to the same, which loads a script from another host."""

LINK = re.compile(r"(\]\()([^)\s#:]*)(#[^)\s]*)?(\))")
CODE_OF_ROW = re.compile(r"(?<=[| ])`[^`\n]*\\\|[^`\n]*`")
"""Code in a table with a `\\|`, which GitHub reads as `|` and zensical as it stands."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| \[([^\]]+)\]\(([^)]+)\) \|", re.MULTILINE)


class SiteError(Exception):
    """The site cannot be built; the message says why."""


def build(out: Path) -> None:
    """Write the site into a folder, in the place of the one that was there. Raises SiteError with what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        assemble(work)
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "-f", "zensical.toml"],
            cwd=work,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SiteError(COLOUR.sub("", done.stdout + done.stderr))
        if out.exists() and not (out / "index.html").is_file():
            raise SiteError(f"{out} is no site; name another folder")
        own_scripts(work / "site")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(work / "site", out)


def assemble(work: Path) -> None:
    """Write zensical's configuration and all pages into a folder."""
    pages = work / "pages"
    sources = [ROOT / name for name in ("README.md", *PROJECT_PAGES)]
    sources += [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / "benchmarks").glob("R*.md")]
    for source in sources:
        target = pages / place(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        text, linked = relinked(source)
        target.write_text(text, encoding="utf-8")
        for file in linked:
            copy = pages / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    shutil.copy(STYLE, pages / STYLE.name)
    (pages / "docs" / "decisions" / "index.md").write_text(list_of_decisions(), encoding="utf-8")
    api = api_pages()
    for name, text in api.items():
        target = pages / "api" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    configuration = tomllib.loads(CONFIGURATION.read_text(encoding="utf-8"))
    configuration["project"]["nav"] = menu(api)
    (work / "zensical.toml").write_text(tomli_w.dumps(configuration), encoding="utf-8")


def own_scripts(site: Path) -> None:
    """Replace the one script that pages would load from another host."""
    target = site / "assets" / "javascripts" / WORKER.name
    shutil.copy(WORKER, target)
    for page in site.rglob("*.html"):
        depth = len(page.relative_to(site).parts) - 1
        source = f"{'../' * depth}{target.relative_to(site).as_posix()}"
        text = page.read_text(encoding="utf-8")
        page.write_text(FOREIGN_WORKER.sub(f'<script src="{source}"></script>', text), encoding="utf-8")


def place(source: Path) -> Path:
    """The place of a page among the pages: its own in the repository; README.md begins the site."""
    return Path("index.md") if source == ROOT / "README.md" else source.relative_to(ROOT)


def relinked(source: Path) -> tuple[str, list[Path]]:
    """The text of a page, with links as the site has them, and the files that it links to which are no pages."""
    files: list[Path] = []

    def changed(match: re.Match[str]) -> str:
        if not match[2]:
            return match[0]
        target = (source.parent / match[2]).resolve()
        link = match[2].rstrip("/")
        if target.is_dir():
            link += "/index.md"
        elif target == ROOT / "README.md":
            link = link.replace("README.md", "index.md")
        elif target.suffix != ".md" and target.is_file():
            files.append(target)
        return f"{match[1]}{link}{match[3] or ''}{match[4]}"

    def shown(part: str) -> str:
        part = CODE_OF_ROW.sub(lambda code: code[0].replace("\\|", "|"), part)
        return LINK.sub(changed, part)

    parts = FENCE.split(source.read_text(encoding="utf-8"))
    text = "".join(part if part.startswith("```") else shown(part) for part in parts)
    return drawn(text) if source.parent.name == "labs" else text, files


def list_of_decisions() -> str:
    """The page of all decisions."""
    rows = []
    for page in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        title = page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        rows.append(f"- [{title}]({page.name})\n")
    return "# Decisions\n\nWhy things are as they are, one short page each.\n\n" + "".join(rows)


def menu(api: dict[str, str]) -> list[dict[str, object]]:
    """The menu: the sections of docs/index.md, the API reference, the project."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    sections: list[dict[str, object]] = [{"Home": ["index.md", {"All pages": "docs/index.md"}]}]
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", index, re.MULTILINE | re.DOTALL):
        sections.append({title: [{name: in_menu(link)} for name, link in rows_of(body)]})
    sections.append({"API": [{title_of(text): f"api/{name}"} for name, text in api.items()]})
    sections.append(
        {"Project": [{title_of((ROOT / name).read_text(encoding="utf-8")): name} for name in PROJECT_PAGES]}
    )
    return sections


def rows_of(body: str) -> Iterator[tuple[str, str]]:
    """The titles and links of the tables of a section."""
    yield from ROW.findall(body)


def in_menu(link: str) -> str:
    """The page of a link of docs/index.md."""
    target = (ROOT / "docs" / link.partition("#")[0]).resolve()
    return (target / "index.md" if target.is_dir() else target).relative_to(ROOT).as_posix()


def title_of(text: str) -> str:
    """The title of a page."""
    return text.partition("\n")[0].lstrip("# ").replace("`", "")


def main() -> int:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site").resolve()
    try:
        build(out)
    except SiteError as problem:
        print(problem, file=sys.stderr)
        return 1
    print(out / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
