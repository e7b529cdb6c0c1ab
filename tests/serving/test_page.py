"""The page in a real browser: send, stop, edit, branch, compare, export, import, by mouse and by keyboard alone.

Chromium is taken from CHROMIUM or from where Debian has it; without it these tests are skipped.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsers import ARGUMENTS, CHROMIUM, SECONDS
from serving_setup import running
from tiny_models import make_folder

from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.scheduler import Scheduler
from quatrain.serving.server import Server

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: install it, or name it in CHROMIUM"),
]
WIDTHS = {"wide": 1280, "tablet": 900, "phone": 390}
expect = playwright.expect
expect.set_options(timeout=SECONDS)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("models")
    folders = [make_folder(place / name, 4096, seed) for seed, name in enumerate(("one", "two"))]
    with running([str(folder) for folder in folders]) as server:
        yield server


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A context in which an answer takes so long that it can be stopped: the server's thread leaves the test's time."""
    step = Scheduler.step

    @contextmanager
    def slowed() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(Scheduler, "step", lambda *given: (time.sleep(0.005), step(*given))[1])
            yield

    return slowed


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Page:
    """A page of a server in a browser window of its own, and what people do with it."""

    def __init__(self, browser: Any, address: str, width: int = 1280, scheme: str = "light", **more: Any):
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **more)
        self.page, self.errors = self.context.new_page(), list[str]()
        self.page.set_default_timeout(SECONDS)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.goto(address)
        self.is_ready()

    def is_ready(self) -> None:
        expect(self.page.locator("body[data-ready]")).to_have_count(1)

    def set(self, **settings: Any) -> None:
        """Sets controls of the side that is shown, as a user does: all groups are opened first."""
        if self.page.locator("#show-settings").is_visible():
            self.page.click("#show-settings")
        for group in self.page.locator("#controls details").all():
            if group.get_attribute("open") is None:
                group.locator("summary").click()
        for name, value in settings.items():
            field = self.page.locator(f"#control-{name}")
            if isinstance(value, bool):
                field.set_checked(value)
            else:
                field.fill(str(value))
                field.blur()
        self.page.keyboard.press("Escape")

    def ask(self, question: str, *, wait: bool = True) -> None:
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")
        if wait:
            self.finished()

    def finished(self) -> None:
        expect(self.page.locator("#send")).to_be_visible()
        expect(self.page.locator("[aria-busy=true]")).to_have_count(0)

    @property
    def answers(self) -> Any:
        return self.page.locator(".message.assistant")

    def text(self, answer: int = 0) -> str:
        return str(self.answers.nth(answer).locator(".text").inner_text())

    def do(self, what: str, message: int) -> None:
        """Presses a button of a message, the first being 0."""
        self.page.locator(".message").nth(message).get_by_role("button", name=what).click()

    def has_kept(self, text: str) -> None:
        """Waits until this window finds a text in what the browser keeps: windows save some moments after a change."""
        found = "text => Object.values(localStorage).some(value => value.includes(text))"
        self.page.wait_for_function(found, arg=text, polling=50)

    @property
    def saved(self) -> list[dict[str, Any]]:
        """The conversations as another page would export them."""
        with self.page.expect_download() as download:
            self.page.locator("#export-all").evaluate("button => button.click()")
        return list(json.loads(Path(download.value.path()).read_text())["conversations"])


@pytest.fixture
def page(browser: Any, served: Server) -> Iterator[Page]:
    page = Page(browser, served.address)
    yield page
    page.context.close()
    assert page.errors == []


def test_an_answer_streams_with_its_timings(page: Page) -> None:
    page.set(max_new_tokens=20, temperature=1, seed=4, ignore_eos=True)
    page.ask("Who are you?")
    expect(page.page.locator(".message.user .text")).to_have_text("Who are you?")
    assert page.text()
    expect(page.page.locator(".message.assistant .facts")).to_contain_text("20 tokens")
    expect(page.page.locator(".message.assistant .facts")).to_contain_text("tokens/s")
    expect(page.page.locator(".message.assistant .facts")).to_contain_text("cut at the limit")
    (node,) = [node for node in page.saved[0]["nodes"] if node["role"] == "assistant"]
    assert node["model"] == "one" and node["settings"]["temperature"] == 1
    assert node["timings"]["tokens"] == 20 and node["timings"]["seconds"] > 0


def test_a_stopped_answer_stays_as_far_as_it_got(page: Page, slowly: Callable[[], Any]) -> None:
    page.set(max_new_tokens=4000, temperature=1, ignore_eos=True)
    with slowly():
        page.ask("Count", wait=False)
        expect(page.answers.locator(".text")).not_to_be_empty()
        page.page.click("#stop")
        page.finished()
    expect(page.page.locator(".message.assistant .facts")).to_contain_text("stopped")
    assert page.text()
    page.set(max_new_tokens=5)
    page.do("Let the model write on", 1)
    page.finished()
    expect(page.page.locator(".message.assistant .facts")).to_contain_text("continued")


def test_edits_and_new_answers_are_branches_of_a_tree(page: Page) -> None:
    page.set(max_new_tokens=8, temperature=1)
    page.ask("First")
    page.do("Another answer", 1)
    page.finished()
    expect(page.page.locator(".turn")).to_contain_text("2/2")
    page.do("Edit your message", 0)
    page.page.locator(".edit textarea").fill("Second")
    page.page.get_by_role("button", name="Save and answer").click()
    page.finished()
    expect(page.page.locator(".message.user .text")).to_have_text("Second")
    items = page.page.get_by_role("treeitem")
    expect(items).to_have_count(5)  # Two questions, of which the first has two answers.
    page.page.locator(".message.user").get_by_role("button", name="Branch before").click()
    expect(page.page.locator(".message.user .text")).to_have_text("First")
    items.last.locator(".label").click()
    expect(page.page.locator(".message.user .text")).to_have_text("Second")
    page.do("Delete your message", 0)
    expect(items).to_have_count(3)


def test_a_token_is_explained_and_another_one_taken(page: Page) -> None:
    page.set(max_new_tokens=12, temperature=0.8, top_k=10, top_p=0.95, seed=1, ignore_eos=True)
    page.ask("Who?")
    before = page.text()
    page.page.click("#tokens")
    tokens = page.page.locator(".tokens .token")
    expect(tokens.first).to_be_visible()
    assert "".join(tokens.all_inner_texts()).startswith(before[:5])
    tokens.nth(3).hover()
    card = page.page.locator("#card")
    expect(card.locator(".other")).to_have_count(5)
    tokens.nth(3).click()
    card.get_by_role("button", name="Distribution").click()
    head = page.page.locator("#inside thead")
    for stage in ("model", "temperature", "top k", "top p"):
        expect(head).to_contain_text(stage)
    page.page.click("#inside-close")
    tokens.nth(3).click()
    card.get_by_role("button", name="Attention").click()
    attended = page.page.locator("#inside .attention span[title]")
    expect(attended.last).to_have_class("asked")
    page.page.locator("#inside").get_by_label("layer").select_option("1")
    expect(page.page.locator("#inside")).to_contain_text("Most attention")
    page.page.click("#inside-close")
    taken = next(other for other in (tokens.nth(3), tokens.nth(4)) if other.is_visible())
    taken.click()
    other = card.locator(".other:not(.chosen)").first
    label = str(other.locator("code").inner_text())
    other.click()
    page.finished()
    expect(page.page.locator(".message.assistant .facts")).to_contain_text("branch at")
    expect(tokens.nth(3)).to_have_attribute("aria-label", label + ", " + str(percent(tokens.nth(3))))
    assert [text for text in tokens.all_inner_texts()][:3] == list(before[:3])
    expect(page.page.locator(".turn")).to_contain_text("2/2")


def percent(token: Any) -> str:
    return str(token.get_attribute("aria-label")).rpartition(", ")[2]


def test_two_models_answer_side_by_side(page: Page) -> None:
    page.set(max_new_tokens=8, seed=3)
    page.page.click("#compare")
    page.page.select_option("#model-of-b", "two")
    page.set(max_new_tokens=4, seed=3)
    page.ask("Who?")
    expect(page.page.locator(".pair .message")).to_have_count(2)
    first, second = page.page.locator(".pair .message").all()
    expect(first.locator(".who b")).to_have_text("A · one")
    expect(second.locator(".who b")).to_have_text("B · two")
    expect(first.locator(".facts")).to_contain_text("8 tokens")
    expect(second.locator(".facts")).to_contain_text("4 tokens")
    second.get_by_role("button", name="Continue with this answer, B").click()
    expect(page.page.locator(".pair .message.chosen .who b")).to_have_text("B · two")
    page.page.select_option("#model-of-b", "one")
    second.get_by_role("button", name="Continue: ").click()
    page.finished()
    expect(page.answers).to_have_count(1)
    expect(page.page.locator(".message.assistant .who b")).to_have_text("two")  # Its tokens are those of this model.


def test_conversations_survive_a_reload_an_export_and_an_import(page: Page, tmp_path: Path) -> None:
    page.page.fill("#system", "Be brief.")
    page.set(max_new_tokens=6, temperature=1)
    page.ask("First")
    page.do("Another answer", 1)
    page.finished()
    before = page.saved[0]
    page.page.reload()
    page.is_ready()
    expect(page.page.locator(".turn")).to_contain_text("2/2")
    assert page.saved[0] == before
    path = tmp_path / "saved.json"
    path.write_text(json.dumps({"format": "quatrain-conversations", "version": 1, "conversations": [before]}))
    page.page.set_input_files("#import-file", path)
    expect(page.page.locator("#list li")).to_have_count(2)
    copy = next(each for each in page.saved if each["id"] != before["id"])
    kept = ("role", "content", "model", "settings", "timings", "finish")
    described = [[{name: node.get(name) for name in kept} for node in each["nodes"]] for each in (copy, before)]
    assert described[0] == described[1] and copy["system"] == "Be brief."
    path.write_text('{"format": "quatrain-conversations", "conversations": [{"nodes": [{"id": "a"}]}]}')
    page.page.set_input_files("#import-file", path)
    expect(page.page.locator("#notice")).to_contain_text("no role or no text")


def test_two_windows_keep_each_other_s_conversations(page: Page) -> None:
    page.set(max_new_tokens=3)
    page.has_kept('"max_new_tokens":3')  # or the other window would read the settings before, and answer for long
    other = page.context.new_page()
    other.goto(page.page.url)
    expect(other.locator("body[data-ready]")).to_have_count(1)
    for window, text in ((page.page, "First"), (other, "Second")):
        window.fill("#question", text)
        window.press("#question", "Enter")
        expect(window.locator(".message.assistant[aria-busy=false]")).to_have_count(1)
        page.has_kept(f'"{text}"')  # Playwright closes a window without the event in which the page would save.
    other.close()
    page.page.reload()
    page.is_ready()
    expect(page.page.locator("#list .open")).to_have_text(["Second", "First"])
    page.page.on("dialog", lambda dialog: dialog.accept())
    page.page.get_by_role("button", name="Delete Second").click()
    page.page.reload()
    expect(page.page.locator("#list .open")).to_have_text(["First"])


HOSTILE = """<script>document.title = "owned"</script><img src=x onerror="document.title='owned'">

[link](javascript:document.title='owned') ![picture](https://example.org/p.png) <a href="x" onclick="x">y</a>

**bold** [good](https://example.org)

|a|b|
|-|-:|
|1|2|

```html
<b onclick="x">code</b>
```"""


def test_script_in_output_is_inert(page: Page) -> None:
    """The model itself writes it: its output is constrained to this text."""
    page.set(choice="<script>document.title='owned'</script><img src=x onerror=alert>", max_new_tokens=200)
    page.ask("Attack")
    expect(page.answers.locator(".text")).to_contain_text("<script>document.title='owned'</script>")
    page.do("Edit this answer", 1)
    page.page.locator(".edit textarea").fill(HOSTILE)
    page.page.get_by_role("button", name="Save as a branch").click()
    text = page.answers.locator(".text")
    expect(text.locator("strong")).to_have_text("bold")
    expect(text.locator("table td.align-right")).to_have_text("2")
    expect(text.locator("pre code")).to_contain_text('<b onclick="x">code</b>')
    assert text.locator("script, img, b, [onclick], [onerror]").count() == 0
    assert text.locator("a").evaluate_all("links => links.map(link => link.href)") == ["https://example.org/"]
    assert page.page.title() == "Quatrain"
    problem = page.page.evaluate(
        "() => { try { document.body.innerHTML = '<p>'; return ''; } catch (error) { return error.name; } }"
    )
    assert problem == "TypeError"  # Trusted types: nothing on the page can assign HTML.
    page.errors = [error for error in page.errors if "TrustedHTML" not in error]


def test_the_page_works_by_keyboard_alone(page: Page) -> None:
    page.set(max_new_tokens=8, temperature=1, seed=2, ignore_eos=True)
    press = page.page.keyboard.press
    page.page.reload()
    page.is_ready()
    press("Tab")
    expect(page.page.locator(":focus")).to_have_text("Skip to the message field")
    press("Enter")
    expect(page.page.locator("#question")).to_be_focused()
    page.page.keyboard.type("One")
    press("Shift+Enter")
    page.page.keyboard.type("two")
    press("Enter")
    page.finished()
    expect(page.page.locator(".message.user .text")).to_have_text("One\ntwo")
    expect(page.page.locator("#status")).to_contain_text("Answer of one")
    page.page.locator("#tokens").focus()
    press("Enter")
    token = page.page.locator(".tokens .token")
    token.first.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        press(key)
    expect(token.nth(1)).to_be_focused()
    press("Enter")
    expect(page.page.locator("#card .other").first).to_be_focused()
    press("Escape")
    expect(token.nth(1)).to_be_focused()
    press("Enter")
    press("Tab")
    press("Enter")
    page.finished()
    expect(page.page.locator(".facts", has_text="branch at")).to_have_count(1)
    tree = page.page.get_by_role("treeitem")
    page.page.locator("[role=treeitem][tabindex='0']").focus()
    press("Home")
    expect(tree.first).to_be_focused()
    press("ArrowRight")
    press("Enter")
    expect(page.page.locator(".turn")).to_contain_text("1/2")


class Keys:
    """A person at a page without a mouse."""

    def __init__(self, page: Page):
        self.page, self.press = page.page, page.page.keyboard.press

    def reach(self, place: Any, panel: str = "") -> None:
        """Tabs to an element; opens the panel that it is in, where the screen has no room for it."""
        opener = self.page.locator(f"#show-{panel}") if panel else None
        if opener is not None and opener.is_visible() and opener.get_attribute("aria-expanded") == "false":
            self.reach(opener)
            self.press("Enter")
        expect(place).to_be_visible()
        for _ in range(200):
            if place.evaluate("element => element === document.activeElement"):
                return
            self.press("Tab")
        raise AssertionError(f"{place} cannot be reached with the Tab key")

    def use(self, place: Any, panel: str = "") -> None:
        """Tabs to a button and presses it."""
        self.reach(place, panel)
        self.press("Enter")

    def write(self, place: Any, text: str, panel: str = "") -> None:
        """Tabs to a field and replaces its text."""
        self.reach(place, panel)
        self.press("ControlOrMeta+a")
        self.page.keyboard.type(text)


@pytest.mark.parametrize("name, scheme", [("wide", "light"), ("tablet", "dark"), ("phone", "light")])
def test_every_act_is_possible_by_keyboard_alone(
    browser: Any, served: Server, tmp_path: Path, name: str, scheme: str, slowly: Callable[[], Any]
) -> None:
    page = Page(browser, served.address, WIDTHS[name], scheme)
    keys, shown = Keys(page), page.page.locator
    limit = shown("#control-max_new_tokens")

    def button(title: str, message: int) -> Any:
        return shown(".message").nth(message).get_by_role("button", name=title)

    def set_limit(tokens: int) -> None:
        group = shown("#controls details").filter(has=limit)
        if group.get_attribute("open") is None:
            keys.use(group.locator("summary"), "settings")
        keys.write(limit, str(tokens), "settings")
        keys.press("Tab")
        if shown("#show-settings").is_visible():
            keys.press("Escape")

    set_limit(3000)
    keys.write(shown("#question"), "First")
    with slowly():
        keys.press("Enter")
        expect(page.answers.locator(".text")).not_to_be_empty()
        keys.press("Escape")
        page.finished()
    expect(shown(".message.assistant .facts")).to_contain_text("stopped")
    set_limit(6)
    keys.use(button("Another answer", 1))
    page.finished()
    expect(shown(".turn")).to_contain_text("2/2")
    keys.use(button("Edit your message", 0))
    keys.write(shown(".edit textarea"), "Second")
    keys.use(page.page.get_by_role("button", name="Save and answer"))
    page.finished()
    expect(shown(".message.user .text")).to_have_text("Second")
    keys.use(shown(".message.user").get_by_role("button", name="Branch before"))
    expect(shown(".message.user .text")).to_have_text("First")
    keys.use(shown("#compare"))
    set_limit(6)  # Of B, which has settings of its own.
    keys.write(shown("#question"), "Third")
    keys.press("Enter")
    page.finished()
    expect(shown(".pair .message")).to_have_count(2)
    keys.use(shown(".pair").get_by_role("button", name="Continue with this answer, B"))
    expect(shown(".pair .message.chosen .who b")).to_contain_text("B")
    path = tmp_path / "saved.json"
    with page.page.expect_download() as download:
        keys.use(shown("#export"), "conversations")
    download.value.save_as(path)
    with page.page.expect_file_chooser() as chooser:
        keys.use(shown("#import"), "conversations")
    chooser.value.set_files(path)
    expect(shown("#list li")).to_have_count(2)
    assert page.errors == []
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", list(WIDTHS))
def test_the_page_fits_and_reads_at_each_width(browser: Any, served: Server, name: str, scheme: str) -> None:
    page = Page(browser, served.address, WIDTHS[name], scheme)
    try:
        page.set(max_new_tokens=30, temperature=1, seed=3)
        page.ask("A question that is long enough to be broken into several lines on a narrow screen, is it not?")
        size = page.page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
        assert size[0] <= size[1]
        assert page.page.locator("#send").bounding_box()["y"] < 800
        ground, text = page.page.evaluate(
            "() => { const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]; }"
        )
        assert contrast(ground, text) > 7
        assert (luminance(ground) < 0.1) == (scheme == "dark")
        for panel in ("conversations", "settings"):
            opener = page.page.locator(f"#show-{panel}")
            if opener.is_visible():
                opener.click()
                expect(page.page.locator(f"#{panel}")).to_be_visible()
                page.page.keyboard.press("Escape")
                expect(opener).to_be_focused()
        names = page.page.locator("button, input, select, textarea").evaluate_all(
            "all => all.filter(each => each.checkVisibility()).map(each => each.ariaLabel || each.textContent.trim()"
            " || [...each.labels ?? []].map(label => label.textContent.trim()).join(''))"
        )
        assert all(names)
        assert page.errors == []
    finally:
        page.context.close()


def luminance(color: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, by WCAG 2."""
    parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_the_browser_asks_for_the_key_of_a_server(browser: Any, tmp_path: Path) -> None:
    with running([str(make_folder(tmp_path / "one"))], key="a-secret-key") as server:
        page = Page(browser, server.address, http_credentials={"username": "any", "password": "a-secret-key"})
        page.set(max_new_tokens=4)
        page.ask("Who?")
        assert page.text() and page.errors == []
        page.context.close()
        assert httpx.get(server.address).status_code == 401


def test_a_model_without_a_chat_template_continues_the_text(browser: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "base", chat_template=None)
    with running([str(folder)]) as server:
        page = Page(browser, server.address)
        expect(page.page.locator(".empty")).to_contain_text("it continues your text")
        page.set(max_new_tokens=6)
        page.ask("Once upon a time")
        (expected,) = Engine.load(folder).generate(["Once upon a time"], SamplingParams(max_new_tokens=6))
        assert [node["content"] for node in page.saved[0]["nodes"]] == ["Once upon a time", expected.text]
        page.page.click("#tokens")
        expect(page.page.locator(".tokens .token")).to_have_count(6)
        assert page.errors == []
        page.context.close()


def test_a_question_to_a_database_shows_sql_and_rows(
    browser: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path / "farm.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript("CREATE TABLE goats (name TEXT, age INTEGER); INSERT INTO goats VALUES ('Ada', 4);")
    folder = make_folder(tmp_path / "one", 1024)
    with running([str(folder)], database=path) as server:
        page = Page(browser, server.address)
        expect(page.page.locator(".empty")).to_contain_text("goats")
        page.set(choice="SELECT name, age FROM goats", max_new_tokens=100)
        page.ask("Which goats?")
        expect(page.page.locator(".message.assistant pre")).to_have_text("SELECT name, age FROM goats")
        page.do("Edit this answer", 1)
        page.page.locator(".edit textarea").fill("SELECT name AS goat FROM goats")
        page.page.get_by_role("button", name="Save as a branch").click()
        expect(page.page.locator(".message.assistant th")).to_have_text(["goat"])
        page.page.locator(".message.assistant").get_by_role("button", name="Branch before").click()
        expect(page.page.locator(".message.assistant th")).to_have_text(["name", "age"])
        expect(page.page.locator(".message.assistant td")).to_have_text(["Ada", "4"])
        assert page.errors == []
        page.context.close()
