"""`quatrain agent`: runs, records, shows and replays, with a model behind an endpoint that speaks OpenAI's protocol."""

import http.server
import json
import threading

import pytest

from quatrain.agents.recorder import read_record
from quatrain.agents.run_page import run_page
from quatrain.cli import main


@pytest.fixture
def endpoint():
    """An endpoint whose model calls the calculator, and then repeats what it gave."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer({"data": [{"id": "m"}]})

        def do_POST(self):
            form = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(form)
            last = form["messages"][-1]
            function = {"name": "calculator", "arguments": '{"expression": "17*23"}'}
            message = {"role": "assistant", "content": f"<b>{last['content']}</b>"}
            if last["role"] == "user":
                message = {"content": None, "tool_calls": [{"id": "a1", "type": "function", "function": function}]}
            usage = {"prompt_tokens": 50, "completion_tokens": 10}
            self.answer({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})

        def answer(self, value):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
        server.shutdown()


def test_a_run_is_recorded_shown_and_replayed(endpoint, tmp_path, capsys):
    address, asked = endpoint
    record = tmp_path / "run.jsonl"
    assert main(["agent", "run", address, "17*23?", "--tool", "calculator", "--record", str(record)]) == 0
    out = capsys.readouterr().out
    assert 'calculator {"expression": "17*23"}' in out and "→ 391" in out and "<b>391</b>" in out
    assert asked[0]["tools"][0]["function"]["name"] == "calculator" and len(asked) == 2
    assert main(["agent", "replay", str(record)]) == 0 and "all equal" in capsys.readouterr().out
    assert main(["agent", "show", str(record)]) == 0
    page = (tmp_path / "run.html").read_text("utf-8")
    assert "&lt;b&gt;391&lt;/b&gt;" in page and "<b>391</b>" not in page and "<script" not in page
    again = main(["agent", "run", address, "17*23?", "--tool", "calculator", "--record", str(record)])
    assert again == 2 and "exists" in capsys.readouterr().err


def test_budgets_and_wrong_input_have_exit_codes(endpoint, tmp_path, capsys):
    address, _ = endpoint
    words = ["agent", "run", address, "17*23?", "--tool", "calculator", "--record", str(tmp_path / "b.jsonl")]
    assert main([*words, "--steps", "1"]) == 1 and "budget of steps" in capsys.readouterr().err
    assert main(["agent", "run", address, "x", "--tool", "calculater"]) == 2
    assert "did you mean calculator" in capsys.readouterr().err
    (tmp_path / "no.jsonl").write_text("{}\n")
    assert main(["agent", "replay", str(tmp_path / "no.jsonl")]) == 2
    assert main(["agent", "tools"]) == 0 and "sql=VALUE" in capsys.readouterr().out


def test_the_page_of_a_run_that_was_killed_says_so(endpoint, tmp_path):
    address, _ = endpoint
    record = tmp_path / "run.jsonl"
    main(["agent", "run", address, "17*23?", "--tool", "calculator", "--record", str(record), "--quiet"])
    record.write_text("".join(record.read_text().splitlines(keepends=True)[:2]))
    assert "it was killed" in run_page(read_record(record))
