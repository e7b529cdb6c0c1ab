"""A server under load: many clients at once, good and hostile ones, each answer compared with the single result.

The model is tiny, with random weights and a byte-level tokenizer, so that its texts are full of split characters. The
clients ask for chats and completions, whole and streamed, greedy and sampled, with several samples and with
log-probabilities; others leave in the middle, read slowly, and send garbage, deep, huge and invalid bodies. In the end
nothing may run or wait, and the memory may not have grown: its size, open files and threads are noted every minute, or
twenty times where the run is shorter. The ratio is the share of answers that equal what the engine gives alone; it must
be 1.

    python benchmarks/serving.py [--seconds 300] [--clients 64]
    python benchmarks/serving.py --seconds 1800     # a soak: does anything grow in half an hour?
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from common import ROOT, child_environment, finish, parser, require

SHARES = {"ask": 70, "leave": 10, "read slowly": 4, "garbage": 6, "invalid": 6, "deep": 2, "huge": 2}
"""What a client does next, in percent."""
HUGE = 9 * 1024 * 1024
TIE = 1e-3
"""Greedy questions with a smaller margin between their two likeliest tokens are not asked: rounding decides them."""
DRAW = 1e-5
"""The same for sampled ones: the distance of a draw to the next token's share of the distribution."""
GROWTH = 1.25
"""How much the server's memory may grow after the first tenth of the time."""


def write_model(folder: Path) -> Path:
    """Random weights with a byte-level tokenizer that has a chat template."""
    import torch

    from quatrain.models.io import model_folder
    from quatrain.models.transformer.config import ModelConfig
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

    texts = ["The quick brown fox jumps over the lazy dog. Größe, naïve, 漢字, 😀 and more words."] * 50
    tokenizer = Tokenizer.train(texts, vocab_size=400, chat_template="chatml")
    torch.manual_seed(0)
    model = Model(
        ModelConfig(
            family="llama", vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
            eos_token_id=tokenizer.eos_id, bos_token_id=tokenizer.bos_id,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=2 * parameter.shape[1] ** -0.5)
    tokenizer.save(folder)
    model_folder.save(model, folder)
    return folder


def questions(folder: Path, count: int) -> list[dict[str, Any]]:
    """Requests, each with its path, its body and the texts that the engine gives alone."""
    from quatrain.generation.engine import Engine, SamplingParams

    engine, generator, result = Engine.load(folder), random.Random(0), []
    words = "the quick brown fox jumps over a lazy dog 漢字 😀 naïve".split()
    number = 0
    while len(result) < count:
        number += 1
        text = " ".join(generator.choices(words, k=generator.choice([1, 5, 20, 100])))
        new, n = generator.choice([1, 8, 24, 60]), generator.choice([1, 1, 1, 3])
        sampled = generator.random() < 0.5
        fields: dict[str, Any] = {"temperature": 0.8, "seed": number} if sampled else {"temperature": 0.0}
        params = SamplingParams(max_new_tokens=new, num_return_sequences=n if sampled else 1, **fields)
        messages = [{"role": "user", "content": text}]
        is_chat = generator.random() < 0.5
        ids = engine.render(messages) if is_chat else engine.encode(text)
        request = engine.submit(ids, params)
        alone = request.result()
        if min(margin(engine, ids, sequence) for sequence in request.sequences) < (DRAW if sampled else TIE):
            continue
        texts = [each.text for each in (alone, *alone.alternatives)]
        texts = texts if sampled else texts * n
        body = {"model": "tiny", "max_tokens": new, "n": n, **fields}
        body |= {"messages": messages} if is_chat else {"prompt": text}
        if generator.random() < 0.2:
            body["logprobs"] = True if is_chat else 2
        path = "/v1/chat/completions" if is_chat else "/v1/completions"
        result.append({"path": path, "body": body, "texts": texts})
    return result


def margin(engine: Any, prompt: list[int], sequence: Any) -> float:
    """How far the closest choice of a completion was from another token, which rounding could have chosen."""
    import torch

    with torch.inference_mode():
        output = engine.model(torch.tensor([prompt + sequence.ids]))
        logits = (output[0] if isinstance(output, tuple) else output)[0, len(prompt) - 1 : -1].double()
    if not sequence.params.temperature:
        best = logits.topk(2, dim=-1).values
        return float((best[:, 0] - best[:, 1]).min())
    shares = (logits / sequence.params.temperature).softmax(dim=-1).cumsum(dim=-1)
    noise = torch.tensor([[sequence.noise(place)] for place in range(len(sequence.ids))], dtype=torch.float64)
    return float((shares - noise).abs().min())


class Load:
    """The clients of one server, and what they have seen."""

    def __init__(self, address: str, asked: list[dict[str, Any]], seconds: float):
        self.address, self.asked, self.seconds = address, asked, seconds
        self.host, self.port = address.removeprefix("http://").split(":")
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.first = array("d")  # half an hour has millions of pieces
        self.between = array("d")

    async def run(self, clients: int) -> None:
        """Everything that the clients do."""
        import httpx

        end = time.monotonic() + self.seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
        async with httpx.AsyncClient(base_url=self.address, timeout=120, limits=limits) as client:
            await asyncio.gather(*(self._client(client, random.Random(number), end) for number in range(clients)))

    async def _client(self, client: Any, generator: random.Random, end: float) -> None:
        acts = {
            "ask": self._ask, "leave": self._leave, "read slowly": self._read_slowly, "garbage": self._garbage,
            "invalid": self._invalid, "deep": self._deep, "huge": self._huge,
        }  # fmt: skip
        while time.monotonic() < end:
            name = generator.choices(list(SHARES), weights=list(SHARES.values()))[0]
            try:
                await acts[name](client, generator)
                self.counts[name] += 1
            except Exception as error:
                self.wrong.append(f"{name}: {type(error).__name__}: {error}"[:300])
                return

    async def _ask(self, client: Any, generator: random.Random) -> None:
        question = generator.choice(self.asked)
        if generator.random() < 0.5:
            response = await client.post(question["path"], json=question["body"])
            if response.status_code in (429, 503):
                self.counts["busy"] += 1
                await asyncio.sleep(float(response.headers["retry-after"]) * generator.random())
                return
            assert response.status_code == 200, response.text[:200]
            choices = response.json()["choices"]
            texts = [choice["message"]["content"] if "message" in choice else choice["text"] for choice in choices]
        else:
            got = await self._stream(client, question)
            if got is None:
                return
            texts = got
        if texts != question["texts"]:
            self.wrong.append(f"question {self.asked.index(question)}: {texts} and not {question['texts']}"[:600])
        self.counts["answers"] += 1

    async def _stream(self, client: Any, question: dict[str, Any]) -> list[str] | None:
        texts, start, last = [""] * len(question["texts"]), time.perf_counter(), 0.0
        is_done = False
        async with client.stream("POST", question["path"], json=question["body"] | {"stream": True}) as response:
            if response.status_code in (429, 503):
                self.counts["busy"] += 1
                return None
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    is_done = True
                elif line.startswith("data: "):
                    now = time.perf_counter()
                    chunk = json.loads(line[6:])
                    assert "error" not in chunk, chunk
                    for choice in chunk["choices"]:
                        piece = choice.get("text") or choice.get("delta", {}).get("content") or ""
                        texts[choice["index"]] += piece
                        if piece:
                            (self.between if last else self.first).append(now - (last or start))
                            last = now
        assert is_done, "a stream without [DONE]"
        return texts

    async def _leave(self, client: Any, generator: random.Random) -> None:
        body = {"model": "tiny", "prompt": "the quick", "max_tokens": 900, "ignore_eos": True, "stream": True}
        body["stream"] = generator.random() < 0.5
        writer = (await self._send("/v1/completions", json.dumps(body).encode()))[1]
        await asyncio.sleep(generator.random() * 0.3)
        writer.transport.abort()

    async def _read_slowly(self, client: Any, generator: random.Random) -> None:
        body = {"model": "tiny", "prompt": "the", "max_tokens": 60, "stream": True, "logprobs": 5}
        reader, writer = await self._send("/v1/completions", json.dumps(body).encode())
        got = b""
        while b"[DONE]" not in got and b"Retry" not in got and b"retry" not in got:
            part = await reader.read(512)
            if not part:
                break
            got += part
            await asyncio.sleep(0.01)
        writer.close()

    async def _garbage(self, client: Any, generator: random.Random) -> None:
        reader, writer = await asyncio.open_connection(self.host, int(self.port))
        writer.write(generator.randbytes(generator.choice([1, 100, 5000])) + b"\r\n\r\n")
        with contextlib.suppress(TimeoutError, ConnectionError):
            await asyncio.wait_for(reader.read(100), generator.random())
        writer.transport.abort()

    async def _invalid(self, client: Any, generator: random.Random) -> None:
        body = generator.choice(
            [{"n": 10**9}, {"max_tokens": -1}, {"temperature": "hot"}, {"messages": 5}, {"model": "../../etc/passwd"}]
        )
        whole = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]} | body
        response = await client.post("/v1/chat/completions", json=whole)
        assert response.status_code in (400, 404, 429) and "error" in response.json(), response.text[:200]

    async def _deep(self, client: Any, generator: random.Random) -> None:
        content = b'{"messages": ' + b"[" * 3000 + b"]" * 3000 + b"}"
        response = await client.post("/v1/chat/completions", content=content)
        assert response.status_code == 400, response.text[:200]

    async def _huge(self, client: Any, generator: random.Random) -> None:
        reader, writer = await self._send("/v1/chat/completions", b"", length=HUGE)
        answer = await asyncio.wait_for(reader.read(20), 60)
        assert b" 413" in answer, answer
        writer.transport.abort()

    async def _send(self, path: str, body: bytes, length: int | None = None) -> Any:
        reader, writer = await asyncio.open_connection(self.host, int(self.port))
        size = len(body) if length is None else length
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
        writer.write(head.encode() + body)
        return reader, writer


@dataclass(frozen=True)
class Moment:
    """What a process held at a moment of the run."""

    seconds: float
    memory: int
    """Resident bytes."""
    files: int
    threads: int


def moment(process: int, started: float) -> Moment:
    """Looks at a process; `started` is when the run began, by the monotonic clock."""
    place = Path(f"/proc/{process}")
    status = place.joinpath("status").read_text(encoding="utf-8")
    size, threads = (
        int(found[1]) if (found := re.search(pattern, status)) else 0
        for pattern in (r"VmRSS:\s+(\d+)", r"Threads:\s+(\d+)")
    )
    return Moment(time.monotonic() - started, size * 1024, len(list(place.joinpath("fd").iterdir())), threads)


def trend(moments: Sequence[Moment]) -> dict[str, Any]:
    """Memory over time: the medians of the first and the last quarter, and the slope after the first.

    The slope is the median of those between any two moments (Theil and Sen), so that a single peak does not bend it.
    """
    quarter = max(len(moments) // 4, 1)
    later = moments[quarter:]
    slopes = [(b.memory - a.memory) / (b.seconds - a.seconds) for a, b in combinations(later, 2)]
    return {
        "memory_first_quarter": statistics.median(each.memory for each in moments[:quarter]),
        "memory_last_quarter": statistics.median(each.memory for each in moments[-quarter:]),
        "slope_mb_per_hour": statistics.median(slopes) * 3600 / 1e6 if slopes else None,
        "memory_mb": [round(each.memory / 1e6) for each in moments],
        "open_files": [moments[0].files, moments[-1].files],
        "threads_of_server": [moments[0].threads, moments[-1].threads],
    }


def gauge(address: str, name: str) -> float:
    """A metric of the server."""
    import httpx

    text = httpx.get(f"{address}/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith(f"vllm:{name}{{")).split()[-1])


def percentile(values: Sequence[float], share: float) -> float:
    """A value that so many of the values do not exceed; 0 without values."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else 0.0


async def under_load(load: Load, process: int, clients: int) -> list[Moment]:
    """Runs the load; returns what the server held every minute of it, or twenty times where it is shorter."""
    started, every = time.monotonic(), min(60.0, load.seconds / 20)
    task, moments = asyncio.create_task(load.run(clients)), []
    while not task.done():
        await asyncio.wait({task}, timeout=every)
        moments.append(moment(process, started))
        now = moments[-1]
        print(
            f"{now.seconds:5.0f} s: {load.counts['answers']:,} answers, {len(load.wrong)} wrong; "
            f"{now.memory / 1e6:,.0f} MB, {now.files} open files, {now.threads} threads",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    await task
    return moments


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=300)
    arguments.add_argument("--clients", type=int, default=64)
    options = arguments.parse_args()
    seconds, clients = (6.0, 8) if options.quick else (options.seconds, options.clients)
    require("fastapi", "serve")
    require("httpx", "test")
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(Path(place) / "tiny")
        asked = questions(folder, 10 if options.quick else 80)
        command = [sys.executable, "-m", "quatrain", "serve", str(folder), "--port", "0"]
        server = subprocess.Popen(command, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, text=True)
        try:
            line = server.stdout.readline() if server.stdout is not None else ""
            address = re.search(r"http://\S+", line)
            if address is None:
                raise SystemExit(f"the server did not start: {line}")
            load = Load(address[0], asked, seconds)
            _wait_until_ready(load.address)
            moments = asyncio.run(under_load(load, server.pid, clients))
            end = time.monotonic() + 30
            while (left := gauge(load.address, "num_requests_running")) and time.monotonic() < end:
                time.sleep(0.1)
            left += gauge(load.address, "num_requests_waiting")
            after = moment(server.pid, time.monotonic())
        finally:
            server.terminate()
            code = server.wait(60)
    answers = load.counts["answers"]
    early = next((each for each in moments if each.seconds >= seconds / 10), moments[-1])
    figures = {
        "answers": answers, "answers_per_second": answers / seconds, "acts": dict(load.counts), "wrong": load.wrong[:5],
        "first_piece_ms": [1000 * percentile(load.first, share) for share in (0.5, 0.99)],
        "between_pieces_ms": [1000 * percentile(load.between, share) for share in (0.5, 0.99)],
        "mean_between_ms": 1000 * statistics.fmean(load.between) if load.between else None,
        "still_running": left, "memory_early": early.memory, "memory_late": after.memory, "exit_code": code,
        "open_files_after": after.files, **trend(moments),
    }  # fmt: skip
    # In a few seconds memory still grows with the code that is read.
    grew = after.memory >= GROWTH * early.memory and not options.quick
    is_well = not load.wrong and not left and not grew and code in (0, 130, 143, -15)
    ratio = (answers - len(load.wrong)) / max(answers, 1) if not is_well else 1.0
    verdict = "PASSED" if is_well else "FAILED"
    print(
        f"{verdict}: {answers:,} answers, {len(load.wrong)} wrong; {left:g} still run; memory "
        f"{early.memory / 1e6:,.0f} MB after a tenth of the time, {after.memory / 1e6:,.0f} MB in the end, "
        f"{figures['slope_mb_per_hour']:+.1f} MB an hour after the first quarter; exit code {code}"
    )
    finish("serving", ratio, "the share of answers that equal the engine's alone; 1 also needs freed slots and memory",
           quick=options.quick, seconds=seconds, clients=clients, **figures)  # fmt: skip
    if not is_well:
        raise SystemExit("wrong answers, slots that were not freed, or memory that grew: see the line above")


def _wait_until_ready(address: str) -> None:
    import httpx

    end = time.monotonic() + 60
    while httpx.get(f"{address}/health").status_code != 200:
        if time.monotonic() > end:
            raise SystemExit("the server did not become ready")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
