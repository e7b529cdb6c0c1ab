"""From a person's question to a statement: what the model reads, and which of its answers is taken."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from quatrain.tasks.text2sql.asking.asker import REFUSAL
from quatrain.tasks.text2sql.judge import is_empty
from quatrain.tasks.text2sql.linking import Linked, Linker, snapped
from quatrain.tasks.text2sql.sandbox import Connection
from quatrain.tasks.text2sql.statements import statement_of

if TYPE_CHECKING:
    from quatrain.generation.engine import Completion

CANDIDATES = 4
"""Answers of the model to one question, of which the best that runs is taken."""
STRANGE = 0.5
"""Share of unknown words above which a question is refused."""
EMPTY_COST = 1.5
"""Nats by which an answer without rows must be likelier than one with rows."""
UNUSED_COST = 1.0
"""Nats for every value of the question that an answer does not use."""


class Answerer:
    """Questions about one database: the prompt of each, and the statement in the model's answers."""

    def __init__(self, linker: Linker, connection: Connection):
        self.linker, self.connection = linker, connection
        self._link = lru_cache(maxsize=4096)(linker.link)

    def link(self, question: str) -> Linked:
        """The question with its values named."""
        return self._link(question)

    def prompt(self, question: str) -> str:
        """What the model reads."""
        return self.link(question).prompt

    def statement(self, question: str, completion: str) -> str:
        """The SQL in a completion, with the question's values spelled right; "" for a refusal.

        A question most words of which are unknown, as one in another language, is refused whatever the model says.
        """
        linked, sql = self.link(question), statement_of(completion)
        words = len(linked.text.split())
        if sql == REFUSAL or not words or (len(linked.unknown) > STRANGE * words and not linked.hints):
            return ""
        return snapped(linked, sql)

    def choose(self, question: str, completions: Sequence[Completion]) -> Completion:
        """The likeliest completion whose statement runs, rather one with rows and with all values of the question.

        The first one where none runs.
        """
        hints = self.link(question).hints
        best, least = completions[0], float("inf")
        for completion in completions:
            sql = self.statement(question, completion.text)
            cost = -sum(completion.logprobs)
            if sql:
                result = self.connection.execute(sql)
                if result.error is not None or completion.finish_reason != "stop":
                    continue
                cost += EMPTY_COST * is_empty(result)
                cost += UNUSED_COST * sum(hint.value.replace("'", "''") not in sql for hint in hints)
            if cost < least:
                best, least = completion, cost
        return best
