"""The server's throughput and latency beside llama-cpp-python's server: the same weights at 16 bits, the same clients.

The model is the Llama of 134 M parameters with random weights of `engine.py`, with a byte-level tokenizer; end tokens
are never the likeliest, so that each greedy completion has the full length. Each client asks for streamed completions,
one after the other, with prompts that no request has had before. Both servers run all the time, one of them idle; they
take turns. Times are those of the clients: to the first piece of text, and between two pieces. llama-cpp-python's
server answers one request at a time and is told not to interrupt running ones.

    python benchmarks/serving_speed.py --llama PYTHON [--clients 8 32] [--requests 3] [--repeat 3] [--dtype bfloat16]

`PYTHON` has `llama-cpp-python[server]` and gguf. Ratios are above 1 where ours is ahead; `ratio` is the mean of those
of requests per second. Without llama.cpp, it is that of the requests per second of many clients to those of one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import engine
from common import ROOT, child_environment, finish, geometric_mean, in_turns, parser, require

WORDS = 24_000
"""Words of the text that the tokenizer learns; most of them become tokens."""
MEASURES = ("requests_per_second", "first_ms", "first_p99_ms", "between_ms", "between_p99_ms", "whole_ms")


@dataclass
class Round:
    """What the clients of one turn have seen."""

    seconds: float = 0.0
    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Requests and tokens per second, and the milliseconds of an answer's parts."""
        return {
            "requests_per_second": len(self.texts) / self.seconds,
            "tokens_per_second": sum(self.tokens) / self.seconds,
            "first_ms": 1000 * percentile(self.first, 0.5),
            "first_p99_ms": 1000 * percentile(self.first, 0.99),
            "between_ms": 1000 * percentile(self.between, 0.5),
            "between_p99_ms": 1000 * percentile(self.between, 0.99),
            "whole_ms": 1000 * percentile(self.whole, 0.5),
        }


def percentile(values: list[float], share: float) -> float:
    """A value that so many of the values do not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def words(count: int) -> list[str]:
    """Words without meaning, each of them once."""
    draw, found = random.Random(0), dict[str, None]()
    while len(found) < count:
        found["".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(draw.randint(1, 4)))] = None
    return list(found)


def write_model(folder: Path, shape: dict[str, int], vocabulary: list[str]) -> dict[str, int]:
    """The model with its tokenizer; returns its shape."""
    from quatrain.tokenizers.tokenizer import Tokenizer

    lines = (" ".join(vocabulary[start : start + 50]) for start in range(0, len(vocabulary), 50))
    tokenizer = Tokenizer.train(lines, vocab_size=shape["vocab_size"], split_digits=False)
    shape = shape | {"vocab_size": tokenizer.vocab_size}
    engine.write_model(folder, shape, unlikely=tokenizer.eos_id)
    tokenizer.save(folder / "model")
    return shape


@contextlib.contextmanager
def serving(command: list[str], address: str, ready: str) -> Iterator[str]:
    """A server until the end of the context; its address."""
    process = subprocess.Popen(command, cwd=ROOT, env=child_environment(), stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{address}{ready}", timeout=5).status == 200:
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{' '.join(command[:4])} did not start; its message is above")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
        return port


def sides(folder: Path, shape: dict[str, int], chosen: Any, stack: contextlib.ExitStack) -> dict[str, str]:
    """The addresses of the servers by name."""
    import torch

    model, found = folder / "model", {}
    address = f"http://127.0.0.1:{free_port()}"
    own = [sys.executable, "-m", "quatrain", "serve", f"bench={model}", "--dtype", chosen.dtype]
    own += ["--port", address.rpartition(":")[2]]
    found["ours"] = stack.enter_context(serving(own, address, "/health"))
    if chosen.llama is not None:
        write = [chosen.llama, str(Path(engine.__file__)), "write-gguf", str(folder), json.dumps(shape), "F16"]
        subprocess.run(write, env=child_environment(), check=True)
        port, threads = free_port(), str(torch.get_num_threads())
        options = {
            "model": folder / "F16.gguf", "port": port, "host": "127.0.0.1", "n_threads": threads,
            "n_threads_batch": threads, "n_ctx": shape["max_position_embeddings"], "logits_all": "false",
            "interrupt_requests": "false", "verbose": "false",
        }  # fmt: skip
        command = [chosen.llama, "-m", "llama_cpp.server"]
        command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        found["llama.cpp"] = stack.enter_context(serving(command, f"http://127.0.0.1:{port}", "/v1/models"))
    for npy in folder.glob("*.npy"):
        npy.unlink()
    return found


async def client(address: str, prompts: list[str], new: int, seen: Round) -> None:
    """Asks for the completions of some prompts, one after the other."""
    host, port = address.removeprefix("http://").split(":")
    for prompt in prompts:
        body = json.dumps({"prompt": prompt, "max_tokens": new, "temperature": 0, "stream": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        reader, writer = await asyncio.open_connection(host, int(port))
        start = time.perf_counter()
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        lines: list[tuple[float, bytes]] = []
        while line := await reader.readline():
            if line.startswith(b"data: "):
                lines.append((time.perf_counter(), line[6:]))
            elif line.startswith(b"HTTP/") and b" 200" not in line:
                raise SystemExit(f"{address}: {line.decode()}{(await reader.read()).decode(errors='replace')}")
        writer.close()
        read(lines, start, seen)


def read(lines: list[tuple[float, bytes]], start: float, seen: Round) -> None:
    """Adds an answer to what was seen."""
    text, last, pieces = "", 0.0, 0
    for now, line in lines:
        if line.strip() == b"[DONE]":
            continue
        piece = json.loads(line)["choices"][0]["text"]
        if piece:
            (seen.between if last else seen.first).append(now - (last or start))
            text, last, pieces = text + piece, now, pieces + 1
    if not pieces:
        raise SystemExit(f"an answer without text: {lines[:3]}")
    seen.whole.append(lines[-1][0] - start)
    seen.texts.append(text)
    seen.tokens.append(pieces)


def turn(address: str, prompts: list[list[str]], new: int) -> Round:
    """Each client asks its prompts, all of them at once."""
    seen = Round()

    async def together() -> None:
        await asyncio.gather(*(client(address, each, new, seen) for each in prompts))

    start = time.perf_counter()
    asyncio.run(together())
    seen.seconds = time.perf_counter() - start
    return seen


def merged(rounds: list[Round]) -> dict[str, float]:
    """The figures of several turns together."""
    whole = Round()
    for each in rounds:
        whole.seconds += each.seconds
        for name in ("texts", "tokens", "first", "between", "whole"):
            getattr(whole, name).extend(getattr(each, name))
    return whole.figures()


class Bench:
    """The servers, and prompts that no request has had."""

    def __init__(self, addresses: dict[str, str], vocabulary: list[str], chosen: Any):
        self.addresses, self.vocabulary, self.chosen, self.draw = addresses, vocabulary, chosen, random.Random(1)

    def prompts(self, clients: int, requests: int) -> list[list[str]]:
        """The prompts of each client."""

        def prompt() -> str:
            return " ".join(self.draw.choices(self.vocabulary, k=self.chosen.prompt))

        return [[prompt() for _ in range(requests)] for _ in range(clients)]

    def measure(self, clients: int) -> dict[str, dict[str, float]]:
        """The figures of every side with so many clients; prints a line each."""
        rounds: dict[str, list[Round]] = {name: [] for name in self.addresses}

        def one(name: str) -> float:
            rounds[name].append(
                turn(self.addresses[name], self.prompts(clients, self.chosen.requests), self.chosen.new)
            )
            return 0.0

        calls: dict[str, Callable[[], float]] = {name: lambda name=name: one(name) for name in self.addresses}
        in_turns(calls, self.chosen.repeat)
        found = {name: merged(each) for name, each in rounds.items()}
        for name, figures in found.items():
            shown = ", ".join(f"{key} {value:,.1f}" for key, value in figures.items())
            print(f"{clients:>3} clients, {name:<10} {shown}", flush=True)
        return found

    def agreement(self) -> float:
        """The share of characters that the sides' greedy texts begin with together."""
        if len(self.addresses) < 2:
            return 1.0
        prompts = self.prompts(1, 4)
        ours, theirs = (turn(address, prompts, self.chosen.new).texts for address in self.addresses.values())
        same = 0
        for one, other in zip(ours, theirs, strict=True):
            same += next((place for place, pair in enumerate(zip(one, other)) if pair[0] != pair[1]), len(one))
        return same / sum(map(len, ours))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--llama", help="a Python that has llama-cpp-python[server] and gguf")
    arguments.add_argument("--clients", type=int, nargs="+", default=[8, 32])
    arguments.add_argument("--requests", type=int, default=3, help="completions that each client asks for in a turn")
    arguments.add_argument("--repeat", type=int, default=3)
    arguments.add_argument("--prompt", type=int, default=64, help="words of a prompt")
    arguments.add_argument("--new", type=int, default=64, help="new tokens of a completion")
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    chosen = arguments.parse_args()
    if chosen.quick:
        chosen.clients, chosen.requests, chosen.repeat, chosen.prompt, chosen.new = [3], 1, 1, 4, 4
    require("fastapi", "serve")
    shape = engine.TINY if chosen.quick else engine.SHAPE
    vocabulary = words(500 if chosen.quick else WORDS)
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        shape = write_model(Path(place), shape, vocabulary)
        bench = Bench(sides(Path(place), shape, chosen, stack), vocabulary, chosen)
        agreement = bench.agreement()  # Warms up as well.
        figures = {str(clients): bench.measure(clients) for clients in [1, *chosen.clients]}
    ratios = {}
    for clients in chosen.clients:
        rows = figures[str(clients)]
        if "llama.cpp" in rows:
            for name in MEASURES:
                one, other = rows["ours"][name], rows["llama.cpp"][name]
                ratios[f"{clients}_{name}"] = one / other if name == "requests_per_second" else other / one
        else:
            ratios[f"{clients}_requests_per_second"] = (
                rows["ours"]["requests_per_second"] / figures["1"]["ours"]["requests_per_second"]
            )
    print(f"ratios: {ratios}; the same text: {agreement:.3f}")
    finish(
        "serving_speed",
        geometric_mean(value for key, value in ratios.items() if key.endswith("requests_per_second")),
        "requests/s of ours / of llama-cpp-python's server (without it: of many clients / of one)",
        quick=chosen.quick,
        ratios=ratios,
        figures=figures,
        agreement=agreement,
        shape=shape,
        dtype=chosen.dtype,
        new_tokens=chosen.new,
    )


if __name__ == "__main__":
    main()
