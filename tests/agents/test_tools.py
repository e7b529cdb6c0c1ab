"""The tools that ship, each over real files, databases and servers."""

import http.server
import json
import os
import re
import sqlite3
import threading
from contextlib import ExitStack
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from scripted_model import Scripted

from quatrain.agents.loop import Agent, AgentSettings
from quatrain.agents.tool import ToolError, tool
from quatrain.agents.toolbox import open_tools
from quatrain.agents.tools.calculator import calculator, evaluated
from quatrain.core.errors import InputError
from quatrain.retrieval.building import build_index
from quatrain.retrieval.settings import IndexSettings
from quatrain.tasks.pipelines import pipeline


@pytest.fixture
def opened():
    with ExitStack() as stack:
        yield lambda *names: {each.name: each for each in open_tools(names, stack)}


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9), st.sampled_from("+-*"))
def test_whole_numbers_are_exact(left, right, operation):
    expected = {"+": left + right, "-": left - right, "*": left * right}[operation]
    assert evaluated(f"({left}) {operation} ({right})") == str(expected)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2^10", "1024"), ("7 / 2", "3.5"), ("0.1 + 0.2", "0.3"), ("round(2.567, 2)", "2.57"), ("sqrt(2)*sqrt(2)", "2"),
     ("1e400", None), ("9**9**9", None), ("__import__('os')", None), ("'a'*9", None), ("", None), ("(1+2", None),
     ("factorial(9)", None), ("(-8)**0.5", None), ("1 if 1 else 2", None)],
)  # fmt: skip
def test_the_calculator(expression, value):
    if value is None:
        with pytest.raises(ToolError):
            evaluated(expression)
    else:
        assert evaluated(expression) == value


def test_schemas_come_from_types():
    class Place(BaseModel):
        street: str
        number: int = 1

    @tool
    def move(place: Place, how: Literal["car", "train"], stops: list[str] | None = None) -> str:
        """Move house.

        how: by what
        """
        return f"{place.street} {how}"

    schema = move.schema["function"]["parameters"]
    assert schema["required"] == ["place", "how"] and schema["properties"]["how"]["enum"] == ["car", "train"]
    assert schema["properties"]["how"]["description"] == "by what" and "$ref" not in json.dumps(schema)
    assert move.run(move.read('{"place": {"street": "Elm"}, "how": "car"}')).text == "Elm car"
    with pytest.raises(ToolError, match="how: Input should be 'car' or 'train'"):
        move.read('{"place": {"street": "Elm"}, "how": "foot"}')
    with pytest.raises(InputError, match="x: has no type"):
        tool(lambda x: x, name="f")
    with pytest.raises(InputError, match="named arguments alone"):

        @tool
        def many(*numbers: int) -> int:
            return 0


def test_a_tool_that_never_answers_times_out():
    done = threading.Event()
    waiting = tool(lambda: done.wait(30), name="waiting", seconds=0.05)
    assert "no result within 0.05 s" in waiting.run({}).text
    done.set()


def test_files_stay_within_their_folder(tmp_path, opened):
    folder, outside = tmp_path / "open", tmp_path / "secret.txt"
    folder.mkdir()
    outside.write_text("secret")
    (folder / "a.txt").write_text("hello")
    os.symlink(outside, folder / "link")
    os.symlink(tmp_path, folder / "up")
    tools = opened(f"files={folder}")
    assert tools["read_file"].run({"path": "a.txt"}).text == "hello" and tools["read_file"].untrusted
    for path in ("../secret.txt", str(outside), "link", "up/secret.txt", "a/../../secret.txt", "no", ".", "a\0b"):
        assert tools["read_file"].run({"path": path}).failed, path
    for path in ("../new.txt", "up/new.txt", "link", "."):
        assert tools["write_file"].run({"path": path, "content": "x"}).failed, path
    assert outside.read_text() == "secret" and sorted(os.listdir(tmp_path)) == ["open", "secret.txt"]
    assert not tools["write_file"].run({"path": "new/b.txt", "content": "é"}).failed
    assert (folder / "new/b.txt").read_text("utf-8") == "é"


def test_sql_reads_and_never_writes(tmp_path, opened):
    path = tmp_path / "shop.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript("CREATE TABLE fruit (name TEXT, price REAL); INSERT INTO fruit VALUES ('fig', 2.5);")
    sql = opened(f"sql={path}")["sql"]
    assert "fruit(name, price)" in sql.description
    numbers, texts = sql.run({"query": "SELECT avg(price) FROM fruit"}), sql.run({"query": "SELECT * FROM fruit"})
    assert "2.5" in numbers.text and not numbers.untrusted and "fig" in texts.text and texts.untrusted
    for query in ("DELETE FROM fruit", "SELECT 1; DROP TABLE fruit", "ATTACH 'x' AS y", "PRAGMA user_version = 3", "x"):
        assert sql.run({"query": query}).failed, query
    with pytest.raises(InputError, match="sql"):
        opened(f"sql={tmp_path / 'none.sqlite'}")


def test_search_gives_passages_with_their_places(tmp_path, opened):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/tea.md").write_text("# Tea\n\nGreen tea is steeped at 80 degrees.\n", encoding="utf-8")
    (tmp_path / "notes/coffee.txt").write_text("Espresso needs nine bars of pressure.", encoding="utf-8")
    build_index(str(tmp_path / "notes"), tmp_path / "index", IndexSettings())
    search = opened(f"search={tmp_path / 'index'}")["search"]
    found = search.run(search.read('{"query": "how hot is green tea", "count": 1}'))
    text = (tmp_path / "notes/tea.md").read_text(encoding="utf-8")
    place = re.match(r"\[1\] tea.md, (\d+)-(\d+)\n", found.text)
    start, end = map(int, place.groups())
    assert found.text[place.end() :] == text[start:end] and "80 degrees" in text[start:end]
    assert found.untrusted, "documents may hold instructions"
    assert search.run(search.read('{"query": "zeppelin"}')).text == "Nothing was found."
    assert search.run(search.read('{"query": "tea pressure", "count": 99}')).text.count("\n\n[") == 1
    with pytest.raises(InputError, match="search: "):
        open_tools([f"search={tmp_path / 'nowhere'}"], ExitStack())


def test_predict_asks_a_models_own_pipeline(tmp_path, opened):
    from pipeline_setup import LABELS, saved

    saved(tmp_path, "SequenceClassification", id2label=LABELS, label2id={name: n for n, name in LABELS.items()})
    predict = opened(f"predict={tmp_path}")["predict"]
    answer = predict.run(predict.read('{"text": "good film"}'))
    (expected,) = pipeline(model=str(tmp_path)).predict(["good film"])
    shown = json.loads(answer.text)
    assert shown["label"] in LABELS.values() and answer.untrusted
    assert shown["score"] == pytest.approx(expected.value["score"], abs=1e-4)
    with pytest.raises(ToolError, match="text"):
        predict.read('{"texts": "good"}')
    with pytest.raises(InputError, match="predict: "):
        open_tools([f"predict={tmp_path / 'nowhere'}"], ExitStack())


def test_http_reaches_allowed_hosts_alone(opened):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302 if self.path == "/away" else 200)
            self.send_header("Location", "http://example.com/")
            self.end_headers()
            self.wfile.write(b"a page")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        host = f"127.0.0.1:{server.server_address[1]}"
        fetch = opened(f"http={host}")["fetch"]
        assert fetch.run({"url": f"http://{host}/x"}).text == "a page" and fetch.effect == "act"
        for url in (f"http://{host}/away", "http://example.com/", f"http://{host}@example.com/", "file:///etc/passwd",
                    "http://127.0.0.1:1/", f"ftp://{host}/", "http://[::1"):  # fmt: skip
            assert fetch.run({"url": url}).failed, url
        server.shutdown()
        thread.join()


def test_code_in_the_sandbox_uses_tools_under_the_same_rules():
    @tool(effect="act")
    def send(text: str) -> str:
        """Send a message."""
        raise AssertionError("must not run")

    code = "x = calculator(expression='6*7')\nprint(x)\ntry:\n    send(text=x)\nexcept RuntimeError as e:\n    print(e)"
    model = Scripted(f"```python\n{code}\n```", "```python\nfinal_answer(x + '!')\n```")
    outcome = Agent(model, [calculator, send], AgentSettings(style="code")).run("6*7?")
    assert (outcome.answer, outcome.stop) == ("42!", "answer")
    calls = [event for event in outcome.events if event["event"] == "call"]
    calls = [(event["name"], event["decision"], event.get("inside")) for event in calls]
    assert calls == [("calculator", "free", "python"), ("send", "refused", "python"), ("python", "free", None),
                     ("python", "free", None)]  # fmt: skip
    assert "Not run: send acts" in model.prompts[1][-1]["content"]


def test_unknown_tools_are_refused_with_all_problems():
    with ExitStack() as stack, pytest.raises(InputError) as error:
        open_tools(["calculater", "files", "calculator=3", "http=a/b"], stack)
    text = str(error.value)
    assert all(part in text for part in ("did you mean calculator", "needs a folder", "takes no value", "give hosts"))
