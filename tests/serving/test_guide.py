"""The Python of docs/serving.md runs against a server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quatrain.generation.engine import Engine, SamplingParams
from quatrain.serving.server import Server

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_the_python_of_the_page_runs(
    server: Server, engine: Engine, capsys: pytest.CaptureFixture[str], hub_online: None
) -> None:
    code, inference = (
        block.replace("http://127.0.0.1:8000", server.address).replace("mine", "tiny")
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
    exec(compile(code, str(PAGE), "exec"), {})
    asked = [{"role": "user", "content": "Hello"}]
    (expected,) = engine.chat([asked], SamplingParams(max_new_tokens=20))
    assert capsys.readouterr().out == f"{expected.text}\n{expected.text}"
    exec(compile(inference, str(PAGE), "exec"), {})
    (expected,) = engine.generate(["Hello"], SamplingParams(max_new_tokens=20))
    assert capsys.readouterr().out == f"{expected.text}\n"


def test_the_page_names_every_route() -> None:
    import importlib

    text = PAGE.read_text(encoding="utf-8")
    for name in ("openai", "anthropic", "tokens", "state", "inference"):
        router = importlib.import_module(f"quatrain.serving.routes.{name}").router
        for route in router.routes:
            if route.path != "/version":
                assert route.path.replace("{name:path}", "NAME").replace("{task}", "TASK") in text, route.path
