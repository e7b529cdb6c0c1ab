"""`quatrain label --page`: what is shown is what is recorded, over HTTP, in a real browser, and from the terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsers import ARGUMENTS, CHROMIUM, SECONDS
from serving_setup import running, until

from quatrain.alignment.labelling import Session, read_choices, sampled_answers
from quatrain.generation.params import SamplingParams
from quatrain.serving.labels import Labelling
from quatrain.serving.server import Server

PROMPTS: list[Any] = [[{"role": "user", "content": f"Question {number}?"}] for number in range(4)]
LABEL = "/api/label"


@pytest.fixture
def labelling(folder: Path, tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    path = tmp_path / "choices.jsonl"
    with running([str(folder)]) as server:
        service = server.service

        def create(engine: Any) -> Session:
            answers = sampled_answers(engine, SamplingParams(max_new_tokens=12, temperature=1.0, seed=3))
            return Session(path, PROMPTS, answers, rater="anna", model="tiny")

        service.labelling = Labelling(create)
        yield server, path


def test_choices_are_recorded_undone_and_not_mixed_up(labelling: tuple[Server, Path]) -> None:
    server, path = labelling
    with httpx.Client(base_url=server.address, timeout=30) as client:
        first = client.get(LABEL).json()
        assert client.get(LABEL).json() == first and first["place"] == 1 and first["total"] == 4
        assert first["pair"]["prompt"] == [{"role": "user", "text": "Question 0?"}]
        second = client.post(f"{LABEL}/choice", json={"id": first["pair"]["id"], "choice": "b"}).json()
        (row,) = read_choices(path)
        assert row["answers"] == first["pair"]["answers"] and row["choice"] == "b" and row["rater"] == "anna"
        assert second["done"] == {"b": 1} and second["pair"]["id"] != first["pair"]["id"]
        late = client.post(f"{LABEL}/choice", json={"id": first["pair"]["id"], "choice": "a"})
        assert late.status_code == 409 and len(read_choices(path)) == 1
        assert client.post(f"{LABEL}/choice", json={"id": second["pair"]["id"], "choice": "c"}).status_code == 400
        back = client.post(f"{LABEL}/undo", json={}).json()
        assert back["pair"] == first["pair"] and read_choices(path) == []
        for choice in ("a", "tie", "both_bad", "skip"):
            state = client.post(
                f"{LABEL}/choice", json={"id": client.get(LABEL).json()["pair"]["id"], "choice": choice}
            )
        assert state.json()["pair"] is None and [row["choice"] for row in read_choices(path)][-1] == "skip"
        more = client.post(f"{LABEL}/prompt", json={"text": "One more?"}).json()
        assert more["pair"]["prompt"][0]["text"] == "One more?" and more["total"] == 5


def test_a_server_without_a_session_says_how_to_get_one(raw: httpx.Client) -> None:
    response = raw.get(LABEL)
    assert response.status_code == 404 and "quatrain label MODEL --page" in response.json()["error"]["message"]


@pytest.mark.slow
def test_people_label_in_a_browser(labelling: tuple[Server, Path]) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    expect = playwright.expect
    expect.set_options(timeout=SECONDS)
    server, path = labelling
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page, errors = browser.new_page(viewport={"width": 420, "height": 800}, color_scheme="dark"), []
        page.set_default_timeout(SECONDS)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.goto(f"{server.address}/label")
        expect(page.locator("body[data-ready]")).to_have_count(1)
        place, answers = page.locator("#place"), page.locator("#answers .text")
        expect(place).to_have_text("1 of 4")
        expect(answers).to_have_count(2)
        width = page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert width[0] <= width[1]
        page.get_by_role("button", name="A is better").click()
        expect(place).to_have_text("2 of 4")
        page.keyboard.press("t")
        expect(place).to_have_text("3 of 4")
        page.keyboard.press("u")
        expect(place).to_have_text("2 of 4")
        page.reload()
        expect(place).to_have_text("2 of 4")  # Resumes where it was.
        for number, key in enumerate("bns", 3):
            page.keyboard.press(key)
            expect(place).to_have_text(f"{number} of 4" if number < 5 else "")
        expect(page.locator("#end")).to_contain_text("Every prompt is labelled.")
        expect(page.get_by_role("button", name="A is better")).to_be_disabled()
        assert errors == []
        browser.close()
    assert [row["choice"] for row in read_choices(path)] == ["a", "b", "both_bad", "skip"]


def test_the_verb_serves_the_page_until_ctrl_c(folder: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("Hello\nWho are you?\n")
    command = [sys.executable, "-m", "quatrain", "label", str(folder), "--page", "--port", "0", "--json"]
    command += ["--prompts", str(prompts), "--out", str(out), "--max-new-tokens", "8"]
    paths = filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://[\w.:]+", process.stdout.readline())
        assert address is not None
        until(lambda: httpx.get(f"{address[0]}/health").status_code == 200, 60)
        pair = httpx.get(f"{address[0]}{LABEL}", timeout=60).json()["pair"]
        body = {"id": pair["id"], "choice": "a"}
        assert httpx.post(f"{address[0]}{LABEL}/choice", json=body, timeout=60).status_code == 200
        assert "text/html" in httpx.get(f"{address[0]}/label").headers["content-type"]
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in errors
    assert json.loads(output.splitlines()[-1])["choices"] == {"a": 1} and len(read_choices(out)) == 1
