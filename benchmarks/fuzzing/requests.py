"""Inputs that are requests to the server: every route, asked through ASGI in this process, without a socket.

The server has one model of every head, an adapter, a database, an index and a labelling session. A fault is a status of
500, an exception, an answer that is neither valid JSON nor valid server-sent events, and no answer.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import importlib
import json
import pkgutil
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fuzzing.case import DONE, Bench, Case
from fuzzing.materials import Materials
from fuzzing.values import BYTES, STRINGS, VALUES, dump, mutated_tree, shown

SERVED = ("llama", "seeing", "classifier", "tagger", "spans", "choices", "sentences", "t5", "bert")
CLIENT_CLOSED = 499
TALK = [{"role": "user", "content": "the cat"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FUNCTION = {"name": "look", "description": "looks", "parameters": SCHEMA}
CHATS: list[dict[str, Any]] = [
    {"messages": TALK, "max_tokens": 2},
    {"messages": TALK, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}},
    {"messages": [{"role": "system", "content": "sat"}, *TALK], "temperature": 0.5, "seed": 1, "max_tokens": 3, "n": 2},
    {"messages": TALK, "max_tokens": 3, "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": 2.0}},
    {"messages": TALK, "max_tokens": 8, "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "auto"},
    {"messages": TALK, "max_tokens": 6, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    {"messages": [*TALK, {"role": "assistant", "content": "sat"}], "continue_final_message": True, "max_tokens": 2},
    {"messages": [*TALK, {"role": "assistant", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "a mat"}], "max_tokens": 2},
    {"messages": TALK, "max_tokens": 2, "num_beams": 2, "length_penalty": 1.0, "stop": ["a"], "top_k": 3},
    {"messages": TALK, "max_tokens": 2, "model": "lora", "guided_regex": "[ab]+", "chat_template_kwargs": {"x": 1}},
]  # fmt: skip
INFERENCE: list[dict[str, Any]] = [
    {"inputs": "the cat", "parameters": {"max_new_tokens": 2, "details": True}},
    {"inputs": "the cat", "stream": True, "parameters": {"max_new_tokens": 2}},
    {"inputs": ["the cat", "no dog"], "parameters": {"top_k": 2}},
    {"inputs": "the [MASK] sat"},
    {"inputs": {"question": "saw the cat", "context": "the cat sat on a mat"}},
    {"inputs": {"source_sentence": "the cat", "sentences": ["no dog", "a mat"]}},
    {"inputs": "the cat", "parameters": {"candidate_labels": ["yes", "no"], "multi_label": True}},
    {"inputs": {"query": "the cat", "table": {"a": ["1", "2"]}}},
    {"inputs": "the cat", "parameters": {"grammar": {"type": "regex", "value": "[ab]+"}, "max_new_tokens": 2}},
]
TEXT: dict[str, Any] = {"messages": TALK, "content": "sat on a mat"}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": CHATS,
    "/models/{name:path}/v1/chat/completions": CHATS,
    "/v1/completions": [
        {"prompt": "the cat", "max_tokens": 2, "logprobs": 1, "echo": True},
        {"prompt": ["the cat", "no dog"], "max_tokens": 2, "stream": True, "n": 2},
        {"prompt": [[5, 6], [7]], "max_tokens": 2, "stop": "a", "suffix": None, "best_of": 1},
        {"prompt": [5, 6], "max_tokens": 0, "echo": True, "logprobs": 0},
    ],
    "/v1/responses": [
        {"input": "the cat", "max_output_tokens": 2},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "the cat"}]},
                   {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
                   {"type": "function_call_output", "call_id": "1", "output": "a mat"}],
         "instructions": "sat", "stream": True, "max_output_tokens": 2},
        {"input": "the cat", "max_output_tokens": 6, "tools": [{"type": "function"} | FUNCTION],
         "text": {"format": {"type": "json_object"}}, "reasoning": {"effort": "low"}},
    ],
    "/v1/embeddings": [
        {"input": "the cat", "model": "sentences"},
        {"input": ["the cat", "no dog"], "model": "sentences", "encoding_format": "base64", "dimensions": 4},
    ],
    "/v1/messages": [
        {"messages": TALK, "max_tokens": 2, "system": "sat", "stop_sequences": ["a"]},
        {"messages": TALK, "max_tokens": 2, "stream": True, "tools": [{"name": "look", "input_schema": SCHEMA}]},
        {"messages": [*TALK, {"role": "assistant", "content": [
            {"type": "text", "text": "sat"}, {"type": "tool_use", "id": "1", "name": "look", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "a mat"}]}],
         "max_tokens": 2, "thinking": {"type": "enabled", "budget_tokens": 5}},
    ],
    "/v1/messages/count_tokens": [{"messages": TALK, "system": [{"type": "text", "text": "sat"}]}],
    "/tokenize": [{"prompt": "the cat", "return_token_strs": True}, {"messages": TALK, "tools": []}],
    "/detokenize": [{"tokens": [5, 6, 7]}],
    "/api/prompt": [TEXT],
    "/api/text": [{"ids": [5, 6]}],
    "/api/explain": [TEXT, {**TEXT, "ids": [5, 6]}],
    "/api/distribution": [{**TEXT, "position": 1, "settings": {"temperature": 0.5, "top_k": 3}, "count": 3}],
    "/api/attention": [{**TEXT, "position": 1, "layer": 0, "head": 1}],
    "/api/database/answer": [{"question": "saw the cat", "settings": {"max_new_tokens": 2}}, {"question": ""}],
    "/api/database/rows": [{"question": "saw", "completion": "SELECT name FROM customer"},
                           {"question": "saw", "completion": "```sql\nSELECT count(*) FROM town\n```"}],
    "/api/index/ask": [{"question": "the cat"}, {"question": "saw no dog", "k": 2, "retriever": "bm25",
                        "model": "llama", "history": [{"question": "the cat", "answer": "sat"}],
                        "settings": {"max_new_tokens": 2}}],
    "/api/label/choice": [{"id": "1", "choice": "a"}],
    "/api/label/prompt": [{"text": "the cat"}],
    "/api/label/undo": [{}],
}  # fmt: skip
"""Valid bodies of each route; the routes of Hugging Face's inference form have `INFERENCE`."""
NAMES = ("model", "messages", "prompt", "input", "inputs", "parameters", "question", "ids", "stream", "n", "x")
ODD_MODELS = (*SERVED, "lora", "dummy", "", "nosuch", "../llama", "llama/", "x" * 300, "\x1b[31m", "é", "%00", "a b")


@dataclass
class Asked:
    """A request as a client sends it."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    parts: list[bytes]
    leaves_after: int | None = None
    """How many messages of the answer the client takes before it leaves."""
    is_cut: bool = False
    """Whether the client leaves before the body is complete."""

    def case(self, bench: Bench, about: str) -> Case:
        """An input that asks this."""
        body = b"".join(self.parts)
        about = f"{about}: {body[:300].decode('latin-1')}"
        words = [self.method, self.path[:200] + ("?" + self.query.decode("latin-1") if self.query else "")]
        return Case(words, about, DONE, call=functools.partial(_ask, self, bench.materials))


def _json(path: str, body: bytes) -> Asked:
    headers = [(b"host", b"127.0.0.1:8000"), (b"content-type", b"application/json")]
    return Asked("POST", path, b"", [*headers, (b"content-length", str(len(body)).encode())], [body])


@functools.cache
def _routes() -> list[tuple[str, str]]:
    """The method and the path of every route, with its parameters."""
    import quatrain.serving.routes as routes

    found = []
    for module in pkgutil.iter_modules(routes.__path__, f"{routes.__name__}."):
        router = getattr(importlib.import_module(module.name), "router", None)
        for route in getattr(router, "routes", ()):
            found += [(method, route.path) for method in sorted(route.methods)]
    return found


@functools.cache
def _fields() -> tuple[str, ...]:
    """The names of the fields of all forms."""
    from quatrain.serving.protocols.common import Form

    def below(form: type[Form]) -> set[str]:
        return set(form.model_fields).union(*map(below, form.__subclasses__()))

    return tuple(sorted(below(Form)))


def _path(bench: Bench, template: str) -> str:
    """A path of a route, with values for its parameters."""
    from quatrain.tasks.pipelines import pipelines

    draw = bench.draw
    name = draw.choice(SERVED if bench.chance(0.8) else (*ODD_MODELS, *STRINGS[:60]))
    task = draw.choice(sorted(pipelines()) if bench.chance(0.9) else STRINGS[:60])
    return template.replace("{name:path}", name).replace("{name}", name).replace("{task}", task)


def _valid(bench: Bench) -> tuple[str, str, dict[str, Any]]:
    """A route that reads a body, a path of it, and a valid body."""
    draw = bench.draw
    routes = [path for method, path in _routes() if method == "POST"]
    template = draw.choice((*routes, *(path for path in routes if path.startswith("/v1/")), "/v1/chat/completions"))
    bodies = BODIES.get(template, INFERENCE)
    return template, _path(bench, template), draw.choice(bodies)


def bodies(bench: Bench) -> Case:
    """A body with bad values at some of its places, or of a model that it does not fit."""
    draw = bench.draw
    template, path, tree = _valid(bench)
    about = []
    if bench.chance(0.25) and "{name" not in template:
        tree = {**tree, "model": draw.choice(ODD_MODELS)}
        about.append(f"model = {shown(tree['model'])}")
    for _ in range(draw.choice((0, 1, 1, 1, 1, 2, 4))):
        try:
            tree, place, value = mutated_tree(tree, draw, (*NAMES, *_fields()))
        except (KeyError, IndexError, TypeError):
            break
        about.append(f"{'.'.join(map(str, place))} = {shown(value)}")
    return _json(path, dump(tree)).case(bench, "; ".join(about) or "valid")


def texts(bench: Bench) -> Case:
    """A body that is no text of JSON, in another encoding, of the wrong kind, nested deep, or too large."""
    draw = bench.draw
    _, path, tree = _valid(bench)
    name = draw.choice(list(BYTES))
    body = BYTES[name][0](dump(tree), draw)
    if bench.chance(0.05):
        name, body = "large", dump({**tree, "x": "x" * draw.choice((70_000, 250_000, 300_000))})
    elif bench.chance(0.1):
        deep = "[" * 900 + "]" * 900
        key = draw.choice((*NAMES, *_fields()))
        name, body = "nested within a field", dump(tree)[:-1] + f', "{key}": {deep}}}'.encode()
    return _json(path, body).case(bench, name)


def _png(width: int, height: int, pixels: bytes | None = None) -> bytes:
    """A PNG of grey pixels, or of these packed bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x80" * width for _ in range(min(height, 64))) if pixels is None else pixels
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pictures(bench: Bench) -> Case:
    """Pictures in a conversation: whole, broken, huge, of another kind, and none at all."""
    draw = bench.draw
    whole = _png(12, 12)
    made: dict[str, bytes] = {
        "whole": whole,
        "empty": b"",
        "one pixel": _png(1, 1),
        "wide": _png(3000, 1),
        "claims 65,535 x 65,535": _png(65_535, 65_535),
        "claims 2 ** 31 - 1": _png(2**31 - 1, 1, b""),
        "no pixels": _png(0, 0),
        "a bomb": _png(30_000, 30_000, bytes(1_000_000)),
        "a GIF's head": b"GIF89a\xff\xff\xff\xff\0\0\0",
        "a JPEG's head": b"\xff\xd8\xff\xe0\0\x10JFIF",
        "an SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "a text": b"the cat",
    }
    name = draw.choice(list(made))
    data = made[name]
    if bench.chance(0.4):
        way = draw.choice(list(BYTES))
        name, data = f"{name} {way}", BYTES[way][0](data, draw)
    coded = base64.b64encode(data).decode()
    url: Any = f"data:image/{draw.choice(('png', 'jpeg', 'svg+xml', ''))};base64,{coded}"
    if bench.chance(0.3):
        odd = ("data:", "data:image/png;base64,%%%", "data:image/png,x", "http://x.invalid/a.png", "file:///x", "x",
               "DATA:image/png;base64,", f"data:;base64,{coded[:-3]}", coded)  # fmt: skip
        url = draw.choice((*odd, *VALUES[:30]))
        name = shown(url)
    count = draw.choice((1, 1, 1, 2, 4, 17))
    text = {"type": "text", "text": draw.choice(("the cat", "", "<image>", "<image>" * 3))}
    way = draw.randrange(3)
    shape: dict[str, Any] = {"model": draw.choice(("seeing", "seeing", "seeing", "llama", "t5")), "max_tokens": 2}
    if way == 0:
        parts: list[Any] = [{"type": "image_url", "image_url": draw.choice(({"url": url}, {"url": url}, url))}] * count
        role = draw.choice(("user", "user", "user", "system", "assistant", "tool"))
        path, body = "/v1/chat/completions", {**shape, "messages": [{"role": role, "content": [*parts, text]}]}
    elif way == 1:
        source = {"type": draw.choice(("base64", "url")), "media_type": "image/png", "data": coded, "url": url}
        parts = [{"type": "image", "source": source}] * count
        path, body = "/v1/messages", {**shape, "messages": [{"role": "user", "content": [*parts, text]}]}
    else:
        parts = [{"type": "input_image", "image_url": url}] * count
        content = [*parts, {"type": "input_text", "text": text["text"]}]
        path, body = "/v1/responses", {"model": shape["model"], "input": [{"role": "user", "content": content}]}
    if bench.chance(0.15):
        task = draw.choice(("image-classification", "image-text-to-text", "zero-shot-image-classification"))
        path, body = f"/pipeline/{task}/seeing", {"inputs": draw.choice((coded, url, {"image": coded, "text": "x"}))}
    if bench.chance(0.2):
        body, place, value = mutated_tree(body, draw)
        name += f", {'.'.join(map(str, place))} = {shown(value)}"
    return _json(path, dump(body)).case(bench, f"{count} pictures, {name}")


METHODS = ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "POST", "TRACE", "CONNECT", "X", "get")
HEADERS: tuple[tuple[bytes, tuple[bytes, ...]], ...] = (
    (b"host", (b"", b"evil.example", b"[::1]", b"[", b"localhost:99999999", b"127.0.0.1:x", b"\xff", b"a" * 5000)),
    (b"origin", (b"", b"null", b"http://evil.example", b"http://localhost", b"http://[", b"\xe9", b"http://127.0.0.1:1")),
    (b"content-length", (b"", b"-1", b"x", b"9" * 30, b"0", b"1", b"1e3", b"\xb2", b" 5 ")),
    (b"content-type", (b"", b"text/plain", b"application/json; charset=utf-16", b"multipart/form-data", b"\xff")),
    (b"authorization", (b"", b"Bearer", b"Bearer x", b"Basic", b"Basic %%%", b"Basic /w==", b"Digest x", b"\xff")),
    (b"x-api-key", (b"", b"x", b"\xff")),
    (b"x-request-id", (b"", b"a" * 65, b"a b", b"\xff", b"ok-1")),
    (b"access-control-request-method", (b"", b"POST", b"\xff")),
    (b"access-control-request-headers", (b"", b"a,b", b"a" * 5000, b"," * 500, b"\xff")),
    (b"accept", (b"", b"text/event-stream", b"x/y")),
    (b"accept-encoding", (b"gzip", b"x")),
    (b"transfer-encoding", (b"chunked", b"x")),
    (b"range", (b"bytes=0-1", b"x")),
)  # fmt: skip
PATHS = ("", "/", "//", "/v1", "/v1/", "/v1/models", "/v1/chat/completions/", "/../etc/passwd", "/%2e%2e/x", "/%00",
         "/%ff", "/index.html", "/page/app.js", "/label", "/ask", "/metrics", "/health", "/version", "/info", "*",
         "/v1/models/%e9", "/static/../app.py", "/favicon.ico", "/é", "/" + "a" * 5000, "/tokenizer_info")  # fmt: skip
QUERIES = (
    "",
    "",
    "model=llama",
    "model=nosuch",
    "model=",
    "name=t5",
    "name=%ff",
    "name=a&name=b",
    "x" * 3000,
    "%",
    "=",
)


def heads(bench: Bench) -> Case:
    """Wrong headers, methods, paths and queries."""
    draw = bench.draw
    _, path, tree = _valid(bench)
    asked = _json(path, dump(tree))
    about = []
    if bench.chance(0.5):
        asked.method, template = draw.choice(_routes())
        asked.path = _path(bench, template)
    if bench.chance(0.3):
        asked.method = draw.choice(METHODS)
    if bench.chance(0.3):
        asked.path = draw.choice(PATHS)
    asked.query = draw.choice(QUERIES).encode()
    for _ in range(draw.choice((0, 1, 1, 2, 5))):
        name, values = draw.choice(HEADERS)
        value = draw.choice(values)
        if bench.chance(0.7):
            asked.headers = [each for each in asked.headers if each[0] != name]
        if bench.chance(0.9):
            asked.headers.append((name, value))
        about.append(f"{name.decode()}: {value[:40]!r}")
    return asked.case(bench, "; ".join(about) or "valid headers")


def clients(bench: Bench) -> Case:
    """A body in pieces, or one that never ends, and clients that leave in the middle of an answer."""
    draw = bench.draw
    _, path, tree = _valid(bench)
    body = dump({**tree, "stream": draw.choice((True, False))} if bench.chance(0.5) else tree)
    asked = _json(path, body)
    size = draw.choice((1, 7, 100, len(body)))
    asked.parts = [body[start : start + size] for start in range(0, len(body), size)]
    if bench.chance(0.2):
        asked.parts = [*asked.parts, b"", b" " * 10]
    if bench.chance(0.3):
        asked.parts, asked.is_cut = asked.parts[: draw.randrange(len(asked.parts) + 1)], True
    else:
        asked.leaves_after = draw.choice((0, 0, 1, 2, 3))
    return asked.case(bench, f"{len(asked.parts)} pieces, leaves after {asked.leaves_after}, is cut: {asked.is_cut}")


class _App:
    """The server of this process, made at its first request."""

    found: _App | None = None

    def __init__(self, materials: Materials):
        from quatrain.alignment.labelling import Session, sampled_answers
        from quatrain.generation.params import SamplingParams
        from quatrain.retrieval.index import Index
        from quatrain.serving.app import create_app
        from quatrain.serving.labels import Labelling
        from quatrain.serving.models import entries_of
        from quatrain.serving.settings import ServerSettings
        from quatrain.tasks.task import ANSWER_BYTES, spec_of_database

        limits: dict[str, Any] = {"max_tokens": 8, "max_body": 200_000, "max_pixels": 100_000, "max_messages": 64}
        models = [str(materials.path("models", name)) for name in SERVED]
        entries = entries_of(models, {"lora": materials.path("models", "adapter-lora")})
        self.gate = create_app(entries, ServerSettings(**limits, max_n=4, max_prompts=8))
        service = self.gate.app.state.service
        shop = materials.path("databases", "shop", "shop.sqlite")
        open_database: Any = spec_of_database().database
        self.opened = ExitStack()
        database = open_database(shop, rows=5, size=ANSWER_BYTES, show_schema=True)
        service.database = self.opened.enter_context(database)
        service.index = self.opened.enter_context(Index.open(str(materials.path("index"))))
        choices = Path.cwd() / "choices.jsonl"
        service.labelling = Labelling(
            lambda engine: Session(choices, [TALK], sampled_answers(engine, SamplingParams(max_new_tokens=2))),
            typed=True,
        )
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(service.registry.load_first())

    @classmethod
    def of(cls, materials: Materials) -> _App:
        cls.found = cls.found or cls(materials)
        return cls.found


async def _answered(app: Any, asked: Asked) -> list[dict[str, Any]]:
    """The messages of an answer."""
    messages: list[dict[str, Any]] = []
    parts = asked.parts if asked.is_cut else asked.parts or [b""]
    read = 0
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal read
        if read < len(parts):
            read += 1
            return {"type": "http.request", "body": parts[read - 1], "more_body": read < len(parts) or asked.is_cut}
        if not asked.is_cut:
            await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)
        if asked.leaves_after is not None and len(messages) > asked.leaves_after:
            gone.set()

    raw = quote(asked.path.encode("utf-8", "surrogatepass"), safe="%/:*")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": asked.method, "scheme": "http",
        "path": unquote(raw), "raw_path": raw.encode(), "query_string": asked.query,
        "root_path": "", "headers": asked.headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    if asked.leaves_after == 0:
        gone.set()
    await app(scope, receive, send)
    return messages


def _ask(asked: Asked, materials: Materials) -> int:
    """Asks, prints the answer, and says what is wrong with it: 0 for nothing."""
    app = _App.of(materials)
    messages = app.loop.run_until_complete(_answered(app.gate, asked))
    starts = [message for message in messages if message["type"] == "http.response.start"]
    body = b"".join(message.get("body", b"") for message in messages)
    status = starts[0]["status"] if starts else None
    print(status, body[:2000].decode("utf-8", "replace"))
    has_left = asked.is_cut or asked.leaves_after is not None
    problems = [] if has_left and (status is None or status < 500) else list(_problems(asked, starts, body))
    for problem in problems:
        print(f"internal error: {problem}", file=sys.stderr)
    return int(bool(problems))


def _problems(asked: Asked, starts: Sequence[dict[str, Any]], body: bytes) -> list[str]:
    """What is wrong with an answer."""
    if len(starts) != 1:
        return [f"{len(starts)} beginnings of an answer"]
    status = starts[0]["status"]
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in starts[0]["headers"]}
    problems = []
    if status >= 500 and not (status == 503 and b"not enough memory" in body):
        problems.append(f"status {status}")
    if asked.method != "HEAD" and headers.get("content-length", str(len(body))) != str(len(body)):
        problems.append(f"content-length {headers['content-length']} of {len(body)} bytes")
    kind = headers.get("content-type", "").partition(";")[0]
    read: dict[str, Callable[[bytes], None]] = {"application/json": _strict, "text/event-stream": _events}
    if asked.method != "HEAD" and kind in read:
        try:
            read[kind](body)
        except ValueError as error:
            problems.append(f"no valid {kind}: {error}")
    elif status >= 400 and status != CLIENT_CLOSED and kind != "application/json" and asked.method != "HEAD":
        problems.append(f"an error of type {kind or 'none'}")
    return problems


def _strict(body: bytes) -> None:
    """Raises ValueError for what is no JSON, NaN and infinity included."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    json.loads(body.decode("utf-8"), parse_constant=refuse)


def _events(body: bytes) -> None:
    """Raises ValueError for what is no stream of events, and for an error of the server within one."""
    if body and not body.endswith(b"\n\n"):
        raise ValueError("the last event does not end")
    for block in body.decode("utf-8").split("\n\n")[:-1]:
        for line in block.split("\n"):
            name, _, value = line.partition(": ")
            if name not in ("", "event", "data") or (name == "" and not line.startswith(":")):
                raise ValueError(f"a line {line[:60]!r}")
            if name == "data" and value != "[DONE]":
                _strict(value.encode())
                if '"code":"internal_error"' in value:
                    raise ValueError("an internal error within a stream")


ENTRIES: dict[str, dict[str, tuple[Callable[[Bench], Case], float]]] = {
    "requests": {
        "bodies": (bodies, 12),
        "texts": (texts, 3),
        "heads": (heads, 3),
        "pictures": (pictures, 3),
        "clients": (clients, 2),
    },
}
"""What makes an input, and its share, by entry point."""
