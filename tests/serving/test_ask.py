"""`quatrain serve --index`: answers with checked citations over HTTP, with and without a model, and in the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from browsers import ARGUMENTS, CHROMIUM
from serving_setup import running

from quatrain.retrieval.building import build_index
from quatrain.retrieval.index import Index
from quatrain.serving.server import Server

pytest.importorskip("bm25s")
pytest.importorskip("nltk")

NOTE = "# Cats\n\n🐱 <b>Cats</b> sleep sixteen hours a day. Cats have 230 bones.\n"
ASK = "/api/index/ask"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    folder = tmp_path_factory.mktemp("notes")
    (folder / "cats <script>.md").write_text(NOTE)
    for number in range(5):
        (folder / f"other{number}.txt").write_text(f"Planet {number} orbits a star.")
    build_index(folder, place := tmp_path_factory.mktemp("indexes") / "index")
    with Index.open(place) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(index: Index) -> Iterator[Server]:
    """A server without a model."""
    with running([], without_models=True) as server:
        server.service.index = index
        yield server


def test_an_index_answers_without_a_model(alone: Server) -> None:
    with httpx.Client(base_url=alone.address, timeout=30) as client:
        about = client.get("/api/index").json()
        assert about["available"] and about["documents"] == 6 and about["retrievers"] == ["bm25"]
        found = client.post(ASK, json={"question": "How long do cats sleep?"}).json()
        (cited, *_) = found["sentences"][0]["citations"]
        assert found["found"] and NOTE[cited["start"] : cited["end"]] == cited["quote"]
        history = [{"question": found["searched"], "answer": found["text"]}]
        after = client.post(ASK, json={"question": "And how many bones do they have?", "history": history}).json()
        assert "cats" in after["searched"] and "230" in after["text"]
        other = client.post(ASK, json={"question": "Who won their cup?", "history": history}).json()
        assert "cats" in other["searched"] and other["text"] == "Not in the documents."
        assert client.post(ASK, json={"question": "Who won the cup?"}).json()["text"] == "Not in the documents."
        assert client.post(ASK, json={"question": " "}).status_code == 400
        assert client.post(ASK, json={"question": "cats", "retriever": "dense"}).status_code == 400
        assert client.post(ASK, json={"question": "cats", "model": "none"}).status_code == 404
        assert client.get("/v1/models").json()["data"] == [] and client.get("/health").status_code == 200


def test_a_model_writes_and_what_no_passage_says_is_marked(folder: Path, index: Index) -> None:
    with running([str(folder)]) as server, httpx.Client(base_url=server.address, timeout=60) as client:
        assert client.get("/api/index").json() == {"available": False}
        assert client.post(ASK, json={"question": "cats"}).status_code == 404
        server.service.index = index
        (name,) = client.get("/api/index").json()["models"]
        form = {"question": "What does Planet 3 orbit?", "model": name, "settings": {"max_new_tokens": 8}, "k": 1}
        found = client.post(ASK, json=form).json()
        assert "orbits a star." in str(found["prompt"]) and found["completion"]
        assert not any(each["supported"] or each["citations"] for each in found["sentences"])  # random letters
        long = form | {"settings": {"max_new_tokens": 1000}}
        assert "no room for a passage" in client.post(ASK, json=long).json()["error"]["message"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_marks_the_cited_spans_as_text(alone: Server) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{alone.address}/")
        page.wait_for_url("**/ask")  # nothing to chat with
        page.locator("body[data-ready=yes]").wait_for()
        page.fill("#question", "How long do cats sleep?")
        page.press("#question", "Enter")
        page.locator(".turn").wait_for()
        assert page.locator(".passage mark").first.inner_text() == "🐱 <b>Cats</b> sleep sixteen hours a day."
        assert "cats <script>.md" in page.locator(".passage summary").first.inner_text()
        page.locator(".cite").first.click()
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        page.fill("#question", "Who won the cup?")
        page.press("#question", "Enter")
        page.locator(".turn").nth(1).wait_for()
        assert "Not in the documents." in page.locator(".turn").nth(1).inner_text()
        assert errors == []
        browser.close()
