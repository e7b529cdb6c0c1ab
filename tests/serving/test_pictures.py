"""Pictures in requests and in the page: data URIs are seen, everything else is refused with a reason."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from browsers import ARGUMENTS, CHROMIUM, SECONDS
from serving_setup import running
from tiny_llava import make_llava
from tiny_models import make_folder

from quatrain.data.images import to_png
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.serving.server import Server

pil = pytest.importorskip("PIL.Image", reason="needs Pillow (extra vision)")

DRAW = np.random.default_rng(0)
PIXELS = DRAW.integers(0, 255, (20, 30, 3), dtype=np.uint8)


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def encoded(image: Any, form: str, **more: Any) -> str:
    file = io.BytesIO()
    image.save(file, form, **more)
    return uri(file.getvalue(), form.lower())


PICTURE = uri(to_png(PIXELS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llava(tmp_path_factory.mktemp("models") / "seeing")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    blind = make_folder(folder.parent / "blind")
    with running([str(folder), str(blind)], max_pixels=5_000, max_pictures=3) as server:
        yield server


@pytest.fixture(scope="module")
def raw(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=30) as client:
        yield client


def chat(url: Any, text: str = "what?", count: int = 1) -> list[Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for _ in range(count)]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_answers_are_those_of_the_engine_whole_and_streamed(server: Server, raw: httpx.Client, folder: Path) -> None:
    engine = Engine.load(folder)
    greedy = SamplingParams(max_new_tokens=8)
    parts = [{"type": "image", "image": PIXELS}, {"type": "text", "text": "what?"}]
    (expected,) = engine.chat([[{"role": "user", "content": parts}]], greedy)
    (other,) = engine.chat(
        [[{"role": "user", "content": [{"type": "image", "image": 255 - PIXELS}, parts[1]]}]], greedy
    )
    assert expected.logprobs != other.logprobs
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "seeing", "messages": chat(PICTURE), "max_tokens": 8, "temperature": 0}
    found = client.chat.completions.create(**asked)
    assert found.choices[0].message.content == expected.text
    assert found.usage is not None and found.usage.prompt_tokens == len(engine.render(chat(PICTURE)))
    pieces = [piece.choices[0].delta.content or "" for piece in client.chat.completions.create(**asked, stream=True)]
    assert "".join(pieces) == expected.text
    parts = [{"type": "input_image", "image_url": PICTURE}, {"type": "input_text", "text": "what?"}]
    body = {"model": "seeing", "input": [{"role": "user", "content": parts}], "max_output_tokens": 8, "temperature": 0}
    told = raw.post("/v1/responses", json=body).json()
    assert told["output"][-1]["content"][0]["text"] == expected.text
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE.partition(",")[2]}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "what?"}]
    body = {"model": "seeing", "messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
    assert raw.post("/v1/messages", json=body).json()["content"][0]["text"] == expected.text
    task = "/models/seeing/pipeline/image-text-to-text"
    sent = {"inputs": {"image": PICTURE, "question": "what?"}, "parameters": {"max_new_tokens": 8, "do_sample": False}}
    assert raw.post(task, json=sent).json()[0]["generated_text"] == expected.text.strip()


FRAMES = [pil.fromarray(PIXELS), pil.fromarray(255 - PIXELS)]
DEEP = pil.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)


@pytest.mark.parametrize(
    "url",
    [
        encoded(pil.fromarray(PIXELS), "JPEG"),
        encoded(pil.fromarray(PIXELS).convert("P"), "PNG"),
        encoded(DEEP, "PNG"),
        encoded(pil.fromarray(PIXELS).convert("LA"), "PNG"),
    ],
    ids=["jpeg", "palette", "16 bits", "transparent grey"],
)
def test_pictures_of_other_forms_are_seen(raw: httpx.Client, url: str) -> None:
    answer = raw.post("/v1/chat/completions", json={"model": "seeing", "messages": chat(url), "max_tokens": 2})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.com/cat.png", "this server fetches no pictures"),
        ("/etc/hostname", "this server fetches no pictures"),
        ("file:///etc/hostname", "this server fetches no pictures"),
        (None, "a picture without its URL"),
        ("data:image/png;base64,!!!", "is not base64"),
        ("data:text/plain,hello", "must be a URI of the form"),
        (uri(b"no picture at all"), "is no picture that Pillow knows"),
        (uri(to_png(PIXELS)[:400]), "is broken or truncated"),
        (uri(b""), "is empty"),
        (encoded(pil.new("RGB", (101, 50)), "PNG"), "has 101x50 pixels; a picture may have 5,000"),
        (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "is an animation of 2 frames"),
    ],
    ids=["web", "path", "file", "none", "base64", "text", "bytes", "truncated", "empty", "huge", "animated"],
)
def test_what_cannot_be_seen_is_refused(raw: httpx.Client, url: Any, message: str) -> None:
    answer = raw.post("/v1/chat/completions", json={"model": "seeing", "messages": chat(url), "max_tokens": 2})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"] and error["message"].startswith("messages.0.content.0")


def test_models_of_texts_and_roles_without_pictures_say_so(raw: httpx.Client) -> None:
    asked = {"model": "blind", "messages": chat(PICTURE), "max_tokens": 2}
    answer = raw.post("/v1/chat/completions", json=asked)
    assert (
        answer.status_code == 400 and "reads text alone, and cannot see a picture" in answer.json()["error"]["message"]
    )
    many = raw.post("/v1/chat/completions", json=asked | {"model": "seeing", "messages": chat(PICTURE, count=4)})
    assert many.status_code == 400 and "4 pictures; a request may have 3" in many.json()["error"]["message"]
    said = [{"role": "assistant", "content": chat(PICTURE)[0]["content"]}, *chat(PICTURE)]
    assert raw.post("/v1/chat/completions", json=asked | {"model": "seeing", "messages": said}).status_code == 400
    assert (
        raw.post("/v1/chat/completions", json={"model": "seeing", "messages": chat(PICTURE, "<image>")}).status_code
        == 400
    )


def test_no_route_reads_a_file_of_the_server(raw: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(to_png(PIXELS))
    said = [{"role": "user", "content": [{"type": "image", "image": str(path)}, {"type": "text", "text": "what?"}]}]
    for route, body in (
        ("/v1/chat/completions", {"messages": said}),
        ("/api/prompt", {"messages": said}),
        ("/api/explain", {"messages": said, "content": "a"}),
        ("/tokenize", {"messages": said}),
        ("/models/seeing", {"inputs": {"messages": said}}),
        ("/models/seeing", {"inputs": {"image": str(path), "question": "what?"}}),
        ("/models/seeing", {"inputs": [{"image": str(path), "question": "what?"}]}),
    ):
        answer = raw.post(route, json={"model": "seeing", **body})
        assert answer.status_code == 400, (route, answer.text)


# The page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: install it, or name it in CHROMIUM")
    playwright.expect.set_options(timeout=SECONDS)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


SEND = """([name, type, data, kind]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], name, { type }));
  const target = document.querySelector(kind === "paste" ? "#question" : "main");
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: files, bubbles: true, cancelable: true })
    : new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
  target.dispatchEvent(event);
}"""


@pytest.mark.slow
def test_the_page_takes_pictures_by_button_paste_and_drop(browser: Any, server: Server) -> None:
    from playwright.sync_api import expect

    errors: list[str] = []
    page = browser.new_context(viewport={"width": 390, "height": 800}).new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.goto(server.address)
    expect(page.locator("body[data-ready]")).to_have_count(1)
    data = PICTURE.partition(",")[2]
    added = page.locator("#pictures img")
    with page.expect_file_chooser() as chooser:
        page.focus("#picture")
        page.keyboard.press("Enter")
    chooser.value.set_files([{"name": "a.png", "mimeType": "image/png", "buffer": base64.b64decode(data)}])
    expect(added).to_have_count(1)
    page.evaluate(SEND, ["b.png", "image/png", data, "paste"])
    expect(added).to_have_count(2)
    page.evaluate(SEND, ["c.png", "image/png", data, "drop"])
    expect(added).to_have_count(3)
    page.evaluate(SEND, ["d.png", "image/png", base64.b64encode(b"broken").decode(), "drop"])
    expect(page.locator("#notice")).to_contain_text("d.png cannot be read as a picture")
    page.get_by_role("button", name="Dismiss").click()
    page.get_by_role("button", name="Remove picture 2").focus()
    page.keyboard.press("Enter")
    expect(added).to_have_count(2)
    page.fill("#question", "what?")
    page.press("#question", "Enter")
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("[aria-busy=true]")).to_have_count(0)
    expect(added).to_have_count(0)
    shown = page.locator(".message.user img")
    expect(shown).to_have_count(2)
    assert shown.first.evaluate("image => image.naturalWidth") == 30
    expect(page.locator(".message.assistant .failed")).to_have_count(0)
    for width in (390, 900, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.reload()
    expect(shown).to_have_count(2)
    page.select_option("#model", "blind")
    expect(page.locator("#picture")).to_be_hidden()
    page.evaluate(SEND, ["e.png", "image/png", data, "paste"])
    expect(page.locator("#notice")).to_contain_text("blind reads text alone, and cannot see a picture")
    assert errors == []
    page.context.close()
