"""What the tests of the server share: a tiny model, a server of it, and clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from serving_setup import running
from tiny_models import make_folder

from quatrain.generation.engine import Engine
from quatrain.serving.server import Server


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


@pytest.fixture(scope="session")
def raw(server: Server) -> Iterator[httpx.Client]:
    """A client for what other clients never send."""
    with httpx.Client(base_url=server.address, timeout=30) as client:
        yield client
