"""Questions in English to one SQLite database: data to learn from, and a judge that runs the SQL.

    data = Text2SQL.build("shop.sqlite", seed=0)
    data.documents()                      # texts for pretraining
    data.train, messages(data.train[0])   # questions for finetuning
    data.practice, data.development       # for preference learning, for choosing
    data.held_out["new values"]           # one of the three sets that no stage has seen
    with Connection("shop.sqlite") as connection:
        execution_match(connection, example.sql, predicted)

`quatrain.tasks.text2sql.dataset` says what the held-out sets are, `judge` what counts as right.
"""

from __future__ import annotations

from quatrain.tasks.text2sql.dataset import SETS, Text2SQL
from quatrain.tasks.text2sql.examples import Example, messages
from quatrain.tasks.text2sql.introspection import introspect
from quatrain.tasks.text2sql.judge import Verdict, execution_match
from quatrain.tasks.text2sql.sandbox import Connection, Result
from quatrain.tasks.text2sql.schema import Schema
from quatrain.tasks.text2sql.shop import create_shop

__all__ = [
    "SETS",
    "Connection",
    "Example",
    "Result",
    "Schema",
    "Text2SQL",
    "Verdict",
    "create_shop",
    "execution_match",
    "introspect",
    "messages",
]
