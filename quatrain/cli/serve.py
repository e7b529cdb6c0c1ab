"""`quatrain serve`: models over HTTP, in the protocols of OpenAI and Anthropic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from quatrain.serving.server import Server

KEY_VARIABLE = "QUATRAIN_API_KEY"
"""The environment variable with the key, if no file gives one."""


def serve(
    *models: str,
    adapter: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: Path | None = None,
    allowed_host: tuple[str, ...] = (),
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    quantize: Literal["int8", "int4", "nf4"] | None = None,
    device: str = "cpu",
    memory: Annotated[float | None, Parameter(name="--memory-gb")] = None,
    idle_minutes: float | None = None,
) -> int:
    """Serve models to clients of OpenAI's and Anthropic's APIs, and a chat page.

    Only this machine can reach the server, unless --host names another address; that needs a key, from --key-file or
    the environment variable QUATRAIN_API_KEY. Ctrl-C lets running answers end, a second one stops at once.

    Parameters
    ----------
    models
        Model folders, runs or hub ids. The first is loaded at once, others when they are asked for. A model's name is
        that of its folder, or the one in NAME=MODEL.
    adapter
        An adapter of the first model, as NAME=FOLDER; clients ask for it as for a model. May be given several times.
    host
        The address to listen on; 0.0.0.0 lets other machines in.
    port
        The port to listen on; 0 takes a free one.
    key_file
        A file with the key that clients must send.
    allowed_host
        A name under which the server is reached, as behind a proxy; may be given several times.
    dtype
        The number format of the weights.
    quantize
        Round the weights to 8 or 4 bits while they are loaded.
    device
        Where the models run: cpu, cuda, cuda:1 or mps.
    memory
        The most gigabytes of weights in memory; models that nobody uses make room for others.
    idle_minutes
        Unload a model that nobody has used for so long.
    """
    from quatrain.cli.output import show

    server = _server(
        models, adapter, host, port, key_file, allowed_host, memory, idle_minutes, (dtype, quantize, device)
    )
    show(f"Serving {', '.join(server.service.registry.names)} at {server.address}  (Ctrl-C stops)")
    server.run()
    return 0


def _server(
    models: tuple[str, ...],
    adapter: tuple[str, ...],
    host: str,
    port: int,
    key_file: Path | None,
    allowed_host: tuple[str, ...],
    memory: float | None,
    idle_minutes: float | None,
    loading: tuple[str, str | None, str],
) -> Server:
    """The server of the options. Raises InputError."""
    import torch

    from quatrain.core.errors import InputError
    from quatrain.core.reading import read_text
    from quatrain.core.wording import format_value

    try:
        from quatrain.serving.models import LoadOptions, entries_of
        from quatrain.serving.server import Server
        from quatrain.serving.settings import ServerSettings
    except ImportError as error:
        raise InputError(
            f"serving needs {error.name}, which is not installed. Install it with: pip install 'quatrain[serve]'"
        ) from error
    if not models:
        raise InputError("There is no model to serve: give one, such as `quatrain serve FOLDER`.")
    pairs = dict(text.partition("=")[::2] for text in adapter)
    problems = [f"--adapter {format_value(text)}" for text in adapter if not all(text.partition("="))]
    if problems:
        raise InputError("An adapter is given as NAME=FOLDER:", problems)
    key = read_text(key_file).strip() if key_file is not None else os.environ.get(KEY_VARIABLE) or None
    settings = ServerSettings(
        host=host,
        port=port,
        key=key,
        allowed_hosts=allowed_host,
        memory=None if memory is None else int(memory * 1e9),
        idle_seconds=None if idle_minutes is None else idle_minutes * 60,
    )
    dtype, quantize, device = loading
    return Server(entries_of(models, pairs), settings, LoadOptions(getattr(torch, dtype), device, quantize))
