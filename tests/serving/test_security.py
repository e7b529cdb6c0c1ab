"""Who is answered, and what hostile requests get: never a crash, a hang, or another site's access."""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import httpx
import pytest
from serving_setup import running, until
from tiny_models import make_folder

import quatrain.serving.routes as routing
from quatrain.core.errors import InputError
from quatrain.serving.server import Server
from quatrain.serving.settings import ServerSettings

KEY = "a-key-of-some-length"
ASKED: list[Any] = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Server]:
    with running([str(folder)], key=KEY) as server:
        yield server


def is_error(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The error of a response in OpenAI's form."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert code is None or error["code"] == code
    assert response.headers["x-request-id"]
    return error


def test_an_address_of_the_network_needs_a_key() -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org"):
        with pytest.raises(InputError, match="a key is needed"):
            ServerSettings(host=host)
        ServerSettings(host=host, key=KEY)
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        ServerSettings(host=host)
    with pytest.raises(InputError) as caught:
        ServerSettings(host="0.0.0.0", port=70_000, max_n=0, ping_seconds=0)
    assert len(caught.value.problems) == 4
    with pytest.raises(InputError, match="at least 8"):
        ServerSettings(key="short")


def test_the_key_guards_every_route_but_health(guarded: Server) -> None:
    modules = [
        importlib.import_module(f"quatrain.serving.routes.{each.name}") for each in iter_modules(routing.__path__)
    ]
    routes = [route for module in modules for route in module.router.routes]
    paths = {(route.path, method) for route in routes for method in route.methods}
    assert {("/v1/models", "GET"), ("/metrics", "GET"), (CHAT, "POST"), ("/tokenize", "POST")} <= paths
    with httpx.Client(base_url=guarded.address) as client:
        for path, method in sorted(paths | {("/", "GET"), ("/nothing", "GET"), ("/page.css", "GET")}):
            response = client.request(method, path.replace("{name:path}", "tiny"))
            if path == "/health":
                assert response.status_code == 200
            else:
                assert response.status_code == 401, path
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200
        assert client.get("/v1/models", auth=("anybody", KEY)).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/health/../v1/models", "//v1/models", "/health/", "/health;/v1/models", "/v1/models?/health", "/HEALTH",
     "/health%2f..%2fv1/models", "/%68ealth/../metrics", "/health%00"],
)  # fmt: skip
def test_no_spelling_of_a_path_goes_around_the_key(guarded: Server, path: str) -> None:
    status, _ = raw_request(guarded, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert status in (400, 401)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "127.0.0.1"}, {"X-Forwarded-Host": "localhost"}, {"X-Original-URL": "/health"},
        {"X-Rewrite-URL": "/health"}, {"X-HTTP-Method-Override": "OPTIONS"}, {"Authorization": KEY},
        {"Authorization": "Bearer"}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": "Basic %%%"}, {"Authorization": "Bearer \u00e9"}, {"x-api-key": ""},
        {"Authorization": "Basic " + base64.b64encode(b"nokey").decode()},
    ],
)  # fmt: skip
def test_no_header_goes_around_the_key(guarded: Server, headers: dict[str, str]) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    is_error(httpx.get(f"{guarded.address}/v1/models", headers=raw), 401, "invalid_api_key")


def test_one_right_and_one_wrong_key_are_refused(guarded: Server) -> None:
    headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")]
    is_error(httpx.get(f"{guarded.address}/v1/models", headers=headers), 401)


def test_the_time_of_a_wrong_key_does_not_tell_how_much_of_it_is_right(guarded: Server) -> None:
    from quatrain.serving.errors import ApiError
    from quatrain.serving.security import _Headers

    def seconds(key: str) -> float:
        headers = _Headers([(b"authorization", f"Bearer {key}".encode())])
        times = []
        for _ in range(400):
            start = time.perf_counter()
            with contextlib.suppress(ApiError):
                guarded.gate._check_key(headers)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    near, far = seconds(KEY[:-1] + "X"), seconds("X" + KEY[1:])
    assert near < 2 * far and far < 2 * near


def test_the_key_is_never_logged(guarded: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        httpx.get(f"{guarded.address}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        httpx.get(f"{guarded.address}/v1/models", headers={"Authorization": "Bearer wrong-key-1"})
        httpx.post(f"{guarded.address}{CHAT}", headers={"x-api-key": KEY}, content=b"{")
    own = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpcore", "httpx"))]
    assert not any(KEY in line or "wrong-key-1" in line for line in own)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1", "a b"]
)
def test_another_host_is_refused_as_after_rebinding(server: Server, host: str) -> None:
    request = f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    status, body = raw_request(server, request)
    assert status in (400, 421) and b"tiny" not in body


def test_two_hosts_are_refused(server: Server) -> None:
    request = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw_request(server, request)[0] == 400
    assert raw_request(server, "GET /v1/models HTTP/1.0\r\n\r\n")[0] == 400


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1@evil.example", "file://"],
)
def test_other_sites_get_no_access(raw: httpx.Client, origin: str) -> None:
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 1}
    response = raw.post(CHAT, json=body, headers={"Origin": origin})
    is_error(response, 403, "origin_not_allowed")
    assert "access-control-allow-origin" not in response.headers
    asking = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in raw.options(CHAT, headers=asking).headers


def test_pages_of_this_machine_get_access(raw: httpx.Client, guarded: Server) -> None:
    origin = "http://localhost:3000"
    response = raw.get("/v1/models", headers={"Origin": origin})
    assert response.headers["access-control-allow-origin"] == origin and response.headers["vary"] == "Origin"
    asking = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    response = httpx.options(f"{guarded.address}{CHAT}", headers=asking)  # without a key, as browsers ask
    assert response.status_code == 204 and response.headers["access-control-allow-headers"] == "x-api-key"
    assert "access-control-allow-credentials" not in response.headers


def huge(**changes: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": ASKED, "max_tokens": 2} | changes


@pytest.mark.parametrize(
    "body, param",
    [
        (huge(n=10**9), "n"),
        (huge(n=17), "n"),
        (huge(num_beams=10**6), "num_beams"),
        (huge(penalty_alpha=0.5, top_k=5000), "top_k"),
        (huge(n=0), "n"),
        (huge(n=-1), "n"),
        (huge(max_tokens=-5), "max_tokens"),
        (huge(max_tokens=10**30), "max_tokens"),
        (huge(max_tokens=0), "max_tokens"),
        (huge(top_logprobs=-1), "top_logprobs"),
        (huge(temperature=-1), "temperature"),
        (huge(top_p=5), "top_p"),
        (huge(top_k=-7), "top_k"),
        (huge(min_p=2), "min_p"),
        (huge(frequency_penalty=9), "frequency_penalty"),
        (huge(logit_bias={"99999999": 1}), "logit_bias"),
        (huge(logit_bias={"-1": 1}), "logit_bias"),
        (huge(stop=["x"] * 50), "stop"),
        (huge(stop=["x" * 5000]), "stop"),
        (huge(stop=[""]), "stop"),
        (huge(seed="x"), "seed"),
        (huge(messages=[]), "messages"),
        (huge(messages="x"), "messages"),
        (huge(messages=[{"role": "wizard", "content": "x"}]), "messages.0.role"),
        (huge(tools=[{"type": "x"}]), None),
        (huge(messages=[{"role": "user", "content": "x"}] * 3000), "messages"),
        (huge(response_format={"type": "x"}), "response_format"),
        (huge(stream_options={"include_usage": True}), "stream_options"),
        (huge(tool_choice="required"), "tool_choice"),
        (
            huge(
                messages=[
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
                ]
            ),
            None,
        ),
        (huge(messages=[{"role": "user", "content": "\ud800"}]), "messages.0.content"),
        (huge(model="\ud800"), "model"),
        (huge(guided_regex="(" * 60_000), "regex"),
        (huge(guided_regex="a" * 100_000), "regex"),
        (huge(guided_grammar="start: " + "(" * 60_000), "grammar"),
        (huge(stop_token_ids=[10**12]), "stop_token_ids"),
        (huge(max_tokens=1015), "messages"),
        (huge(max_tokens=4097), "max_tokens"),
        (huge(messages=[{"role": "user", "content": "y" * 5000}]), "messages"),
    ],
)
def test_values_out_of_range_are_named(raw: httpx.Client, body: dict[str, Any], param: str | None) -> None:
    error = is_error(raw.post(CHAT, content=json.dumps(body)), 404 if param == "model" else 400)
    assert param is None or error["param"] == param
    assert len(error["message"]) < 3000


def test_a_text_past_the_context_gets_both_counts(raw: httpx.Client) -> None:
    error = is_error(raw.post(CHAT, json=huge(max_tokens=1020)), 400, "context_length_exceeded")
    count = raw.post("/tokenize", json={"messages": ASKED}).json()["count"]
    assert f"{count:,} in the messages" in error["message"] and "1,020 for the completion" in error["message"]
    assert "1,024 tokens" in error["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"x"',
        b"\xff\xfe",
        b"\x00",
        b"{}" * 9,
        b'{"messages": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"messages": NaN}',
        b'{"temperature": Infinity, "messages": [{"role":"user","content":"x"}]}',
    ],
)
def test_bodies_that_are_no_request(raw: httpx.Client, content: bytes) -> None:
    is_error(raw.post(CHAT, content=content), 400)


def test_a_body_that_is_too_large(folder: Path) -> None:
    with running([str(folder)], max_body=10_000) as server:
        is_error(httpx.post(f"{server.address}{CHAT}", content=b" " * 20_000), 413)

        def parts() -> Iterator[bytes]:
            yield from (b" " * 1000 for _ in range(30))

        is_error(httpx.post(f"{server.address}{CHAT}", content=parts()), 413)
        assert httpx.get(f"{server.address}/health").status_code == 200


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_a_schema_that_is_nested_too_deeply(raw: httpx.Client) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(50)}}
    is_error(raw.post(CHAT, json=huge(response_format=format)), 400)
    text = json.dumps("[" * 60_000)
    is_error(raw.post(CHAT, json=huge(guided_json=text)), 400)
    is_error(raw.post(CHAT, json=huge(guided_json={"$ref": "file:///etc/passwd"})), 400)
    is_error(raw.post(CHAT, json=huge(guided_json={"type": "array", "items": {"$ref": "#/x/y"}})), 400)


@pytest.mark.parametrize(
    "name",
    ["tokenize", "messages", "tools", "add_generation_prompt", "chat_template", "template", "mask", "documents",
     "bos_token", "eos_token", "self", "__class__", "a.b", "continue_final_message"],
)  # fmt: skip
def test_variables_of_a_template_override_no_internal_argument(raw: httpx.Client, name: str) -> None:
    error = is_error(raw.post(CHAT, json=huge(chat_template_kwargs={name: True})), 400)
    assert error["param"] == "chat_template_kwargs"
    assert raw.post(CHAT, json=huge(chat_template_kwargs={"enable_thinking": False})).status_code == 200


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages[0]['content'] * 1000000000 }}",
    ],
)
def test_a_template_that_loops_or_reaches_for_attributes(template: str, tmp_path: Path) -> None:
    place = make_folder(tmp_path / "hostile", chat_template=template)
    with running([str(place)]) as server:
        start = time.monotonic()
        response = httpx.post(f"{server.address}{CHAT}", json=huge(model="hostile"), timeout=60)
        assert time.monotonic() - start < 30
        if response.status_code == 200:  # Undefined attributes are nothing.
            assert "class" not in response.text and "uid=" not in response.text
        else:
            is_error(response, 400)
        text = httpx.post(f"{server.address}/v1/completions", json={"prompt": "x", "max_tokens": 2})
        assert text.status_code == 200


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..", "tiny/../tiny", "tiny\0", "C:\\x", "~", "tiny/", "."]
)
def test_names_of_models_never_touch_the_file_system(
    raw: httpx.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins
    import os

    touched: list[str] = []
    real_open, real_stat = builtins.open, os.stat
    monkeypatch.setattr(
        builtins, "open", lambda path, *more, **options: touched.append(str(path)) or real_open(path, *more, **options)
    )
    monkeypatch.setattr(
        os, "stat", lambda path, *more, **options: touched.append(str(path)) or real_stat(path, *more, **options)
    )
    is_error(raw.post(CHAT, content=json.dumps(huge(model=name))), 404, "model_not_found")
    raw.get(f"/v1/models/{name.encode().hex()}")
    assert not [path for path in touched if name in path and "site-packages" not in path and len(name) > 2]


@pytest.mark.parametrize(
    "path", ["/../conftest.py", "/%2e%2e/%2e%2e/app.py", "/..%2fapp.py", "/static/../../app.py", "/page/../app.py"]
)
def test_no_path_reaches_a_file_of_the_package(server: Server, path: str) -> None:
    status, body = raw_request(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert status in (400, 404) and b"import" not in body


def test_script_in_names_and_output_stays_json(raw: httpx.Client) -> None:
    response = raw.post(CHAT, json=huge(model="<script>alert(1)</script>"))
    is_error(response, 404)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    forced = raw.post(CHAT, json=huge(max_tokens=40, guided_choice=["<script>alert(1)</script>"]))
    assert forced.json()["choices"][0]["message"]["content"] == "<script>alert(1)</script>"
    assert forced.headers["content-type"] == "application/json"


def test_request_ids_are_returned_unless_they_are_odd(raw: httpx.Client) -> None:
    assert raw.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    odd = raw.get("/health", headers={"x-request-id": "a" * 500}).headers["x-request-id"]
    assert len(odd) == 32


def test_errors_of_routes_have_the_form(raw: httpx.Client) -> None:
    is_error(raw.post("/v1/nothing"), 404)
    is_error(raw.get(CHAT), 405)
    is_error(raw.delete("/v1/models"), 405)
    is_error(raw.get("/v1/models/unknown"), 404, "model_not_found")


def test_connections_beyond_the_limit_and_silent_ones_are_closed(folder: Path) -> None:
    with running([str(folder)], max_connections=3, header_seconds=0.5) as server:
        silent = [socket.create_connection(server._socket.getsockname()) for _ in range(3)]
        until(lambda: len(server.server_state.connections) >= 3)
        status, _ = raw_request(server, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status == 503
        for each in silent:
            each.settimeout(5)
            assert each.recv(10) == b""  # The server closes it.
        until(lambda: not server.server_state.connections)
        assert httpx.get(f"{server.address}/health").status_code == 200


def test_garbage_instead_of_http(server: Server) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01" * 50,
        b"GET\r\n\r\n",
        b"A" * 100_000,
        b"GET / HTTP/1.1\r\nA:" + b"b" * 70_000,
    ):
        with socket.create_connection(server._socket.getsockname()) as connection:
            connection.settimeout(5)
            try:
                connection.sendall(garbage)
                answer = connection.recv(1000)
            except (ConnectionError, TimeoutError) as error:
                assert not isinstance(error, TimeoutError)
                continue
            assert answer[:12] in (b"HTTP/1.1 400", b"")
    assert httpx.get(f"{server.address}/health").status_code == 200


def test_a_slow_body_ends(folder: Path) -> None:
    with running([str(folder)], body_seconds=0.5) as server:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{{"
        status, body = raw_request(server, head)
        assert status == 408 and b"did not arrive" in body


def raw_request(server: Server, request: str) -> tuple[int, bytes]:
    """The status and the body of whatever a server answers to some bytes."""
    with socket.create_connection(server._socket.getsockname()) as connection:
        connection.settimeout(10)
        connection.sendall(request.encode())
        answer = b""
        while part := connection.recv(65_536):
            answer += part
            head, mark, body = answer.partition(b"\r\n\r\n")
            if mark and b"content-length: %d\r\n" % len(body) in head.lower() + b"\r\n":
                break
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body
