"""The generated crawl: every step finds its junk, the funnel adds up, the page shows it, and the verbs work."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.data.curation.crawl import SHARES, make_pages, write_crawl

for library in ("spacy", "trafilatura", "ftfy", "lingua", "rensa"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'quatrain[data]'")


WORDS = """
house river garden window letter morning captain village winter table forest candle bridge horse road found left
watched carried remembered crossed opened lost followed painted old quiet narrow bright cold heavy small distant
green broken island harbour teacher kitchen mountain shoulder evening silver question answer story picture music
paper stone water summer friend mother brother sister doctor market church school
""".split()
SMALL_WORDS = "the of and to with that have be a in on by from at his her was were not but".split()


def passages(count: int) -> list[str]:
    """Passages of random English words in which no two are alike."""
    numbers = random.Random(0)

    def sentence() -> str:
        words = [word for _ in range(7) for word in (numbers.choice(SMALL_WORDS), numbers.choice(WORDS))]
        return " ".join(words).capitalize() + "."

    return ["\n".join(" ".join(sentence() for _ in range(4)) for _ in range(3)) for _ in range(count)]


def test_same_seed_makes_the_same_crawl() -> None:
    one, two = (make_pages(iter(passages(90)), 100, seed=3) for _ in range(2))
    assert one == two
    assert {page.kind for page in one[0]} == set(SHARES)
    assert make_pages(iter(passages(90)), 100, seed=4) != one


def test_too_few_passages_are_said(tmp_path: Path) -> None:
    source = tmp_path / "few.jsonl"
    source.write_text(json.dumps({"text": passages(1)[0]}), encoding="utf-8")
    with pytest.raises(InputError, match=r"only \d passages, too few"):
        write_crawl(tmp_path / "crawl", source=str(source), documents=100, words=60)


def test_truth_of_another_crawl_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, truth = tmp_path / "source.jsonl", tmp_path / "truth.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in passages(3)), encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'name = "x"\n[[source]]\npath = "{source}"\n[[step]]\nkind = "unicode"\n', encoding="utf-8")
    command = ["data", "curate", str(recipe), "--output", str(tmp_path / "out"), "--truth"]
    assert main([*command, str(source)]) == 2
    assert "source.jsonl, line 1: id, kind, group" in capsys.readouterr().err and not (tmp_path / "out").exists()
    row = {"id": 99, "kind": "good", "group": None, "secrets": [], "numbers": [], "passage": ""}
    truth.write_text(json.dumps(row), encoding="utf-8")
    assert main([*command, str(truth)]) == 2
    assert "give the truth of the same crawl" in capsys.readouterr().err


@pytest.mark.slow
def test_crawl_curated_by_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in passages(200)), encoding="utf-8")
    folder, out = tmp_path / "crawl", tmp_path / "out"
    assert main(["data", "crawl", str(folder), "--source", str(source), "--documents", "200", "--words", "150"]) == 0
    command = ["data", "curate", str(folder / "recipe.toml"), "--output", str(out)]
    assert main([*command, "--plan"]) == 0
    assert not out.exists()
    capsys.readouterr()
    assert main([*command, "--truth", str(folder / "truth.jsonl"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    scores = {score["step"]: score for score in answer["scores"]}
    for step in ("url", "language", "length", "decontaminate", "exact_duplicates", "unicode", "html", "personal_data"):
        assert scores[step]["recall"] == 1, scores[step]
    for step in ("gopher_quality", "fineweb_quality", "near_duplicates"):
        assert scores[step]["recall"] >= 0.9, scores[step]
    for step in ("url", "decontaminate", "exact_duplicates", "near_duplicates", "personal_data"):
        assert scores[step]["precision"] == 1, scores[step]
    left = answer["left"]
    for kind in ("spam", "list", "foreign", "fragment", "evaluation item", "boilerplate"):
        assert left[kind][0] == 0, left
    entered = answer["read"]
    for step in answer["steps"]:
        assert step["entered"] == entered
        removed = sum(step["reasons"].values())
        assert step["left"]["documents"] == entered["documents"] - removed
        entered = step["left"]
    assert answer["outputs"]["train"] == entered
    items = [json.loads(line)["item"] for line in (folder / "truth.jsonl").read_text().splitlines()]
    named = re.findall(r"evaluation.jsonl:(\d+)", (out / "removed" / "000000-0.jsonl").read_text(encoding="utf-8"))
    assert sorted(map(int, named)) == sorted(item for item in items if item is not None)
    card = (out / "README.md").read_text(encoding="utf-8")
    for part in ("## Sources", "## Funnel", "## Settings", "SHA-256", "generated; passages of the source"):
        assert part in card
    assert main(command) == 0
    assert "is whole already" in capsys.readouterr().out
    check_page(out / "funnel.html")


def check_page(path: Path) -> None:
    """The page's script runs without an error, and a slider changes what would be kept."""
    from quatrain.data.curation.card import read_funnel
    from quatrain.data.curation.page import funnel_page

    text = path.read_text(encoding="utf-8")
    assert funnel_page(read_funnel(path.parent)) == text
    assert "<script src" not in text and "http-equiv" in text
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no Chromium to look at the page with")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 800})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(path.as_uri())
        rule = page.locator('.rule[data-measure="alphabetic words"]')
        rule.evaluate("rule => { for (let at = rule; at; at = at.parentElement) at.open = true; }")
        before = rule.locator("output").inner_text()
        rule.locator("input[type=range]").evaluate(
            "input => { input.value = 200; input.dispatchEvent(new Event('input')); }"
        )
        assert rule.locator("output").inner_text() != before
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert errors == []
        browser.close()
