"""`quatrain data`: the catalog of named texts."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def list_sources(*, json_lines: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """List the named sources, with their licence and whether they are on this machine.

    Parameters
    ----------
    json_lines
        Write one JSON object a line, for programs.
    """
    from quatrain.text import catalog

    raise NotImplementedError(catalog)


def get_source(name: str) -> int:
    """Get a named source: find it on this machine, or download it and check it.

    Parameters
    ----------
    name
        A name that `quatrain data list` shows, such as gutenberg:1661.
    """
    raise NotImplementedError(name)
