"""SQL over a database, read-only: one SELECT at a time, with limits on time, rows and memory.

The rules are those of the text-to-SQL task's connection: no writing, no attached files, harmless functions alone.
"""

from __future__ import annotations

from contextlib import ExitStack

from quatrain.agents.tool import Tool, ToolError, ToolResult, tool
from quatrain.agents.toolbox import ToolSpec
from quatrain.core.reading import user_path
from quatrain.core.wording import text_table
from quatrain.tasks.task import ANSWER_BYTES, spec_of_database

ROWS = 50
"""The most rows of a result."""
MAX_TABLES = 4_000
"""The most characters of the tables in the tool's description."""


def build(value: str, stack: ExitStack) -> list[Tool]:
    """A tool that queries the SQLite file `value`. Raises InputError for a file that is none."""
    path = user_path(value, "the database")
    opened = spec_of_database().database(path, rows=ROWS, size=ANSWER_BYTES, show_schema=False)
    database = stack.enter_context(opened)
    tables = "; ".join(f"{name}({', '.join(columns)})" for name, columns in database.tables())
    tables = tables if len(tables) <= MAX_TABLES else f"{tables[:MAX_TABLES]} …"

    def sql(query: str) -> ToolResult:
        """Query the database.

        query: one SELECT statement of SQLite
        """
        result = database.run(query)
        if result.error is not None:
            raise ToolError(result.error)
        note = f"\n(the first {ROWS} rows)" if result.truncated else ""
        cells = [cell for row in result.rows for cell in row]
        # Numbers cannot instruct anyone; names that the query does not hold come from outside as texts do.
        inert = all(cell is None or isinstance(cell, int | float) for cell in cells)
        inert = inert and all(column in query for column in result.columns)
        return ToolResult(text_table(result.columns, result.rows) + note, untrusted=not inert)

    described = f"Query a SQLite database, read-only. Its tables: {tables}"
    return [tool(sql, description=described, effect="read", untrusted=True)]


SPEC = ToolSpec("sql", build, "queries over a SQLite database, read-only", "a SQLite file")
