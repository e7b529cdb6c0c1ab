"""Retrieval: passages of an index that `quatrain index` made, each with its source and place."""

from __future__ import annotations

from contextlib import ExitStack

from quatrain.agents.tool import Tool, ToolResult, tool
from quatrain.agents.toolbox import ToolSpec
from quatrain.retrieval.index import Index

MOST = 10
"""The most passages of a search."""


def build(value: str, stack: ExitStack) -> list[Tool]:
    """A tool that searches the index `value`, a folder or a name. Raises InputError where there is none."""
    index = Index.open(value)

    def search(query: str, count: int = 3) -> ToolResult:
        """Search the documents for passages that answer a question.

        query: what is looked for, in a few words
        count: how many passages
        """
        hits = index.search(query, k=max(1, min(count, MOST)))
        if not hits:
            return ToolResult("Nothing was found.")
        parts = [f"[{number}] {hit.name}, {hit.start}-{hit.end}\n{hit.text}" for number, hit in enumerate(hits, 1)]
        return ToolResult("\n\n".join(parts), untrusted=True)

    return [tool(search, effect="read", untrusted=True)]


SPEC = ToolSpec("search", build, "passages of an index of documents", "an index of `quatrain index`")
