"""`quatrain data`: the catalog of named texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from quatrain.text.catalog import Source


def list_sources(*, json_lines: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """List the named sources, with their licence and whether they are on this machine.

    Parameters
    ----------
    json_lines
        Write one JSON object a line, for programs.
    """
    from quatrain.cli.output import show, show_table
    from quatrain.text.catalog import CATALOG
    from quatrain.wording import format_bytes

    rows = []
    for source in CATALOG.values():
        size: object = source.size
        if not json_lines:
            size = format_bytes(source.size) if source.size else ""
        rows.append([source.name, _where(source), size, source.licence, source.description])
    show_table(["name", "where", "size", "licence", "description"], rows, json_lines=json_lines)
    if not json_lines:
        show("Also gutenberg:N for any book of Project Gutenberg, and any file or folder of your own by its path.")
    return 0


def get_source(name: str) -> int:
    """Get a named source: find it on this machine, or download it and check it. Ends with its path.

    Parameters
    ----------
    name
        A name that `quatrain data list` shows, such as gutenberg:1661.
    """
    import sys

    from quatrain.cli.output import show
    from quatrain.progress import create_reporter
    from quatrain.text.catalog import fetch, get

    source = get(name)
    with create_reporter(stream=sys.stderr).task(source.name, total=source.size, unit="byte") as task:
        path = fetch(source, progress=lambda done, total: task.update(done))
    show(str(path))
    return 0


def _where(source: Source) -> str:
    """Whether a source is on this machine, can be downloaded, or has to be put in place by hand."""
    from quatrain.errors import QuatrainError
    from quatrain.text.catalog import locate

    try:
        if locate(source) is not None:
            return "here"
    except QuatrainError:
        return "damaged"
    return "download" if source.urls else "by hand"
