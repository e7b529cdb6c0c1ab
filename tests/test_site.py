"""The site: every page is built, every link leads somewhere, nothing is loaded from another host, search works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import forks
import pytest
from browsers import ARGUMENTS, CHROMIUM, SECONDS

pytest.importorskip("zensical", reason="zensical, which makes the pages, is not installed")

ROOT = Path(__file__).parents[1]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
"""Elements that load what an attribute names."""


class Page(HTMLParser):
    """The links, the loaded files and the anchors of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attributes}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and values.get("rel") not in ("canonical", "prev", "next") and LOADED[tag] in values:
            self.loaded.append(values[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "site"
    done = forks.run(["tools/build_site.py", str(out)], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def targets(path: Path, links: list[str]) -> Iterator[tuple[str, Path, str]]:
    """The links of a page within the site: as written, the file, the anchor."""
    for link in links:
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc:
            yield link, (path.parent / unquote(parts.path)).resolve() if parts.path else path, unquote(parts.fragment)


def test_every_page_of_the_guide_is_there(site: Path) -> None:
    sources = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    assert [path for path in sources if not (site / path).with_suffix(".html").is_file()] == []
    for name in ("index", "CHANGELOG", "CONTRIBUTING", "SECURITY", "benchmarks/RESULTS", "docs/decisions/index"):
        assert (site / f"{name}.html").is_file(), name


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    lost = []
    for path, page in pages.items():
        for link, target, anchor in targets(path, page.links + page.loaded):
            file = target / "index.html" if target.is_dir() else target
            known = pages.get(file)
            if not file.is_file() or (anchor and known is not None and anchor not in known.anchors):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert lost == []


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    foreign = [
        f"{path.relative_to(site)}: {source}"
        for path, page in pages.items()
        for source in page.loaded
        if urlsplit(source).scheme not in ("", "data") or urlsplit(source).netloc
    ]
    assert foreign == []
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", text), style.name


def test_the_api_reference_has_every_public_name(site: Path) -> None:
    names = re.findall(
        r"^(?:class )?(quatrain[\w.]*)", (ROOT / "tests" / "public_api.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    anchors = {anchor for path in (site / "api").glob("*.html") for anchor in Page(path).anchors}
    assert len(names) > 200 and [name for name in names if name not in anchors] == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: install it, or name it in CHROMIUM")
def test_a_page_in_the_browser_finds_what_is_searched(site: Path) -> None:
    """From a folder, as who downloads the site opens it. On a phone no page is wider than the screen."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 375, "height": 800}, color_scheme="dark")
        asked, errors = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((site / "docs" / "command-line.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.set_viewport_size({"width": 1280, "height": 800})
        page.locator(".md-search__button").click(timeout=SECONDS)
        page.locator("dialog[open] input").first.fill("soft prompt", timeout=SECONDS)
        page.locator("dialog[open] a[href*='adaptation.html']").first.wait_for(timeout=SECONDS)
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == [] and errors == []
