"""What the tests of the server share: a tiny model, a server of it, and clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import torch
from serving_setup import ASKED, TOOLS, TURN, running
from tiny_models import make_folder

from quatrain.generation.engine import Engine
from quatrain.models.io import model_folder
from quatrain.serving.server import Server
from quatrain.tokenizers.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def engine(folder: Path) -> Engine:
    """The same model without a server: what single results are compared with."""
    return Engine.load(folder)


@pytest.fixture(scope="session")
def server(folder: Path) -> Iterator[Server]:
    with running([str(folder)]) as server:
        yield server


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


@pytest.fixture
def hub_online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests forbid the network to huggingface_hub, and with it the address of our own server.

    Newer versions ask the hub once for the names of agents, to name the one that runs them.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._headers.detect_agent", lambda: None, raising=False)


@pytest.fixture(scope="session")
def raw(server: Server) -> Iterator[httpx.Client]:
    """A client for what other clients never send."""
    with httpx.Client(base_url=server.address, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a model that has learned to answer with one turn: it reasons, speaks and calls a tool."""
    place = make_folder(tmp_path_factory.mktemp("caller") / "caller", context=1536)
    model, tokenizer = model_folder.load(place), Tokenizer.load(place)
    engine = Engine(model, tokenizer)
    turn = [*tokenizer.encode(TURN), engine.end_ids[-1]]
    prompts = [engine.render(ASKED, TOOLS), engine.render(ASKED)]
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-2)
    for _ in range(160):
        loss = torch.zeros(())
        for prompt in prompts:
            ids = torch.tensor([prompt + turn])
            logits = model(ids[:, :-1])
            logits = logits[0] if isinstance(logits, tuple) else logits
            loss = loss + torch.nn.functional.cross_entropy(logits[0, len(prompt) - 1 :], ids[0, len(prompt) :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model_folder.save(model.eval(), place)
    with running([str(place)]) as server:
        yield server
