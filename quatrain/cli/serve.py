"""`quatrain serve`: models over HTTP, in the protocols of OpenAI, Anthropic and Hugging Face's inference API."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from quatrain.cli.arguments import named_folders
from quatrain.cli.sampling import LOADING_DEFAULTS, LoadingOptions

if TYPE_CHECKING:
    from quatrain.serving.server import Server
    from quatrain.serving.settings import ServerSettings

KEY_VARIABLE = "QUATRAIN_API_KEY"
"""The environment variable with the key, if no file gives one."""


@Parameter(name="*")
@dataclass(frozen=True)
class MemoryOptions:
    """How long models stay in memory."""

    memory: Annotated[float | None, Parameter(name="--memory-gb")] = None
    """The most gigabytes of weights in memory; models that nobody uses make room for others."""
    idle_minutes: float | None = None
    """Unload a model that nobody has used for so long."""


@Parameter(name="*")
@dataclass(frozen=True)
class DatabaseOptions:
    """The database that the page answers questions from."""

    db: Path | None = None
    """A SQLite file: in the page the model answers with SQL, which is run read-only, and its rows are shown."""
    schema: bool = False
    """Show the model the tables of the database before each question."""
    rows: int = 100
    """The most rows to show of one answer."""


@Parameter(name="*")
@dataclass(frozen=True)
class AskingOptions:
    """The documents that the page /ask answers from."""

    index: str | None = None
    """An index, as quatrain index makes it: answers with citations at /ask, also without a model."""


KEEP_ALL, NO_DATABASE, NO_INDEX = MemoryOptions(), DatabaseOptions(), AskingOptions()


def serve(
    *models: str,
    adapter: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: Path | None = None,
    allowed_host: tuple[str, ...] = (),
    loading: LoadingOptions = LOADING_DEFAULTS,
    memory: MemoryOptions = KEEP_ALL,
    database: DatabaseOptions = NO_DATABASE,
    asking: AskingOptions = NO_INDEX,
) -> int:
    """Serve models to clients of OpenAI's, Anthropic's and Hugging Face's APIs, and a chat page.

    Only this machine can reach the server, unless --host names another address; that needs a key, from --key-file or
    the environment variable QUATRAIN_API_KEY. Ctrl-C lets running answers end, a second one stops at once.

    Parameters
    ----------
    models
        Model folders, runs or hub ids. The first is loaded at once, others when they are asked for. A model's name is
        that of its folder, or the one in NAME=MODEL.
    adapter
        An adapter, as NAME=FOLDER; clients ask for it as for a model. It belongs to the model that it names as its
        base, or to the only one it fits; NAME@MODEL=FOLDER says which one. May be given several times.
    host
        The address to listen on; 0.0.0.0 lets other machines in.
    port
        The port to listen on; 0 takes a free one.
    key_file
        A file with the key that clients must send.
    allowed_host
        A name under which the server is reached, as behind a proxy; may be given several times.
    """
    from quatrain.cli.output import show

    with contextlib.ExitStack() as stack:
        opened = None
        if database.db is not None:
            from quatrain.tasks.task import ANSWER_BYTES, spec_of_database

            open_database = spec_of_database().database
            opened = stack.enter_context(
                open_database(database.db, rows=database.rows, size=ANSWER_BYTES, show_schema=database.schema)
            )
        documents = None
        if asking.index is not None:
            from quatrain.retrieval.index import Index

            documents = stack.enter_context(Index.open(asking.index))
        settings = _settings(host, port, key_file, allowed_host, memory)
        settings = replace(settings, without_models=documents is not None)
        server = server_of(models, adapter, settings, loading)
        server.service.database, server.service.index = opened, documents
        names = ", ".join(server.service.registry.names)
        page = "" if documents is None else f", {documents.folder} at {server.address}/ask"
        show(f"Serving {names or 'no model'} at {server.address}{page}  (Ctrl-C stops)")
        server.run()
    return 0


def _settings(
    host: str, port: int, key_file: Path | None, allowed_host: tuple[str, ...], memory: MemoryOptions
) -> ServerSettings:
    """The settings of the options. Raises InputError."""
    from quatrain.core.reading import read_text
    from quatrain.serving.settings import ServerSettings

    return ServerSettings(
        host=host,
        port=port,
        key=read_text(key_file).strip() if key_file is not None else os.environ.get(KEY_VARIABLE) or None,
        allowed_hosts=allowed_host,
        memory=None if memory.memory is None else int(memory.memory * 1e9),
        idle_seconds=None if memory.idle_minutes is None else memory.idle_minutes * 60,
    )


def server_of(
    models: tuple[str, ...], adapter: tuple[str, ...], settings: ServerSettings, loading: LoadingOptions
) -> Server:
    """The server of the options. Raises InputError."""
    from quatrain.core.errors import InputError
    from quatrain.core.libraries import require

    with require("serving", "fastapi with uvicorn", "serve"):
        from quatrain.serving.models import LoadOptions, entries_of
        from quatrain.serving.server import Server
    if not models and not settings.without_models:
        raise InputError("There is no model to serve: give one, such as `quatrain serve FOLDER`.")
    options = LoadOptions(**loading.checked(), kv_cache=loading.kv_cache, prompt_lookup=loading.prompt_lookup)
    entries = entries_of(models, named_folders("--adapter", adapter), draft=loading.draft)
    return Server(entries, settings, options)
