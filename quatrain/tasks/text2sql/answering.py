"""From a person's question to a statement: what the model reads, which of its answers is taken, and what is refused.

The likeliest answer is taken if it is sure: the statement runs, returns rows, and uses the values of the question. Only
for the other questions are more candidates searched for, executed, and ranked by likelihood and by their rows, as in
execution-guided decoding (Wang et al. 2018, arXiv 1807.03100).
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from quatrain.tasks.text2sql.asking.asker import REFUSAL, Asker
from quatrain.tasks.text2sql.checking import contradictions, topics_of
from quatrain.tasks.text2sql.judge import execution_match, is_empty
from quatrain.tasks.text2sql.linking import LONGEST_QUESTION, Linked, Linker, snapped
from quatrain.tasks.text2sql.material import Material
from quatrain.tasks.text2sql.opening import few
from quatrain.tasks.text2sql.sandbox import Connection
from quatrain.tasks.text2sql.statements import statement_of
from quatrain.tasks.text2sql.values import HeldOut

if TYPE_CHECKING:
    from quatrain.generation.engine import Completion

CANDIDATES = 4
"""Answers of the model to a question that it is not sure of."""
SURE = 0.6
"""Probability from which the likeliest answer is taken without looking at others."""
STRANGE, LONGEST_UNCHECKED = 0.5, 3
"""Share of unknown words above which a question is refused, among those longer than the second number: shorter ones are
not looked up."""
EMPTY_COST = 1.5
"""Nats by which an answer without rows must be likelier than one with rows."""
UNUSED_COST = 2.0
"""Nats for every value of the question that an answer does not use, and for every word that it contradicts."""

SUGGESTIONS, MOST_SUGGESTIONS = 3, 6
"""Suggestions that are shown at once, and those that are looked for."""
SUGGESTION_SURE = 0.8
"""Probability from which a question is suggested."""
SUGGESTION_DRAWS, SUGGESTION_ROUNDS = 12, 4
"""Questions that are put to the model at once to find suggestions, and how often."""
LONGEST_SUGGESTION = 70
"""Characters of the longest question that is suggested."""
MOST_SUGGESTED_ROWS = 50
_FLUENT = re.compile(
    r"(?:how many (?!of\b)\w+|what (?:is|are) the|which \w+|who|when|list the|show the) ", re.IGNORECASE
)
"""Begins a question that reads well: the others are keywords, or polite at length."""

_DELETES = r"delete|drop|truncate|insert|alter|erase|wipe|destroy"
_CHANGE = re.compile(
    rf"(?:^|[.;:!]|\b(?:please|you)\b)\W*(?:{_DELETES}|update|remove|rename|replace|overwrite|attach)\b"
    rf"|\b(?:and|then|to|now)\s+(?:{_DELETES})\b"
    r"|\bcreate\s+(?:an?\s+|the\s+)?(?:table|index|view|trigger|user|column)\b"
    r"|\bignore\s+(?:all|any|the|every|your|previous|my|these)\b",
    re.IGNORECASE,
)
"""A wish to change the database, or to have the rules of the game changed."""

_ENGLISH = frozenset(
    "the of how many much what which who is are was were in by with for and to from do does did have has list show all "
    "me give each per than more most that not it we our there".split()
)
_OTHER = frozenset(
    # French, German, Spanish, Italian, Portuguese, Dutch: words that are no English ones
    "quel quelle quels quelles est sont les des du une combien avec dans pour qui où le la et nous avons au aux cher "
    "plus "
    "wie viele welche welcher welches ist sind der das und gibt haben wir mit von bei aus nach dem den ein eine kostet "
    "cuántos cuántas cuántes cuantos cuantas qué cuál cuáles hay los las el en con para por tenemos es nuestros un "
    "quanti quante quale quali sono di che della dei gli abbiamo costa quantos quantas qual quais são os dos da do "
    "hoeveel welke zijn het een van hebben klanten".split()
) - {"do"}
"""Function words, by which a question in another language than English is noticed."""


class Answerer:
    """Questions about one database: the prompt of each, and the statement in the model's answers."""

    def __init__(self, linker: Linker, connection: Connection):
        self.linker, self.connection = linker, connection
        self._topics = topics_of(linker.schema)
        self._link = lru_cache(maxsize=4096)(linker.link)
        self._objection = lru_cache(maxsize=4096)(self._objected)  # asked for with each candidate

    def link(self, question: str) -> Linked:
        """The question with its values named."""
        return self._link(question)

    def prompt(self, question: str) -> str:
        """What the model reads."""
        return self.link(question).prompt

    def objection(self, question: str) -> str:
        """Why a question is refused before the model reads it; "" for a question that the model may answer."""
        return self._objection(question)

    def _objected(self, question: str) -> str:
        if len(question) > LONGEST_QUESTION:
            return f"The question has {len(question):,} characters; the longest that is read has {LONGEST_QUESTION:,}."
        if _CHANGE.search(question):
            return "Questions only read the database: nothing in it is changed, deleted or added."
        if _is_foreign(question):
            return "Questions are asked in English."
        linked = self.link(question)
        words = linked.text.split()
        if not any(word[0].isalnum() for word in words):
            return "This is no question."
        long = [word for word in words if len(word) > LONGEST_UNCHECKED]
        if len(linked.unknown) > STRANGE * len(long) and not linked.hints:
            return f"Most of these words are neither English nor in the database: {few(linked.unknown)[0]}"
        return ""

    def statement(self, question: str, completion: str) -> str:
        """The SQL in a completion, with the question's values spelled right; "" for a refusal.

        A question with an `objection` is refused whatever the model answers.
        """
        sql = statement_of(completion)
        return "" if sql == REFUSAL or self.objection(question) else snapped(self.link(question), sql)

    def complete(
        self, questions: Sequence[str], generate: Callable[[Sequence[int], int], list[Completion]]
    ) -> list[Completion]:
        """One completion of each question; see `quatrain.tasks.task.Task.complete`."""
        completions = generate(range(len(questions)), 1)
        unsure = [
            number
            for number, (question, completion) in enumerate(zip(questions, completions, strict=True))
            if not self.is_sure(question, completion)
        ]
        for number, found in zip(unsure, generate(unsure, CANDIDATES) if unsure else (), strict=True):
            # An engine that samples gives one completion, whatever it is asked for.
            completions[number] = self.choose(questions[number], [completions[number], found, *found.alternatives])
        return completions

    def is_sure(self, question: str, completion: Completion) -> bool:
        """Whether the likeliest completion is taken: a likely refusal, or a likely statement with rows.

        So is any completion of a question that is refused for its words alone.
        """
        if self.objection(question):
            return True
        sql, cost = self._judged(question, completion)
        return probability(completion) >= SURE and (not sql or cost == -sum(completion.logprobs))

    def choose(self, question: str, completions: Sequence[Completion]) -> Completion:
        """The likeliest completion whose statement runs, rather one with rows and with all values of the question.

        The first one where none runs.
        """
        costs = [self._judged(question, completion)[1] for completion in completions]
        return completions[costs.index(min(costs))]

    def _judged(self, question: str, completion: Completion) -> tuple[str, float]:
        """The statement of a completion, and its cost in nats; infinite for one that does not run."""
        sql, cost = self.statement(question, completion.text), -sum(completion.logprobs)
        if sql:
            result = self.connection.execute(sql)
            if result.error is not None or completion.finish_reason != "stop":
                return sql, math.inf
            cost += EMPTY_COST * is_empty(result)
            hints = self.link(question).hints
            cost += UNUSED_COST * sum(hint.value.replace("'", "''") not in sql for hint in hints)
            cost += UNUSED_COST * contradictions(self.link(question), sql, self._topics)
        elif self.link(question).hints and not self.objection(question):
            cost += UNUSED_COST  # a refusal uses no value of the question
        return sql, cost

    def suggestions(self, generate: Callable[[Sequence[str], int], list[Completion]]) -> Iterator[str]:
        """Questions about this database that the model surely answers, each of another kind than those before it.

        `generate` gives the likeliest completion of each prompt. A question is drawn with its SQL, and suggested if the
        model is sure of its answer and the answer has the same rows.
        """
        schema = self.linker.schema
        asker = Asker(schema, Material(schema, HeldOut(0, 0.0)), random.Random("suggestions"))
        kinds: set[str] = set()
        for _ in range(SUGGESTION_ROUNDS if asker.tables else 0):
            drawn = [asker.ask() for _ in range(20 * SUGGESTION_DRAWS)]
            asked = [
                each
                for each in drawn
                if each is not None
                and each.sql != REFUSAL
                and each.kind not in kinds
                and _FLUENT.match(each.question)
                and len(each.question) <= LONGEST_SUGGESTION
                and not self.objection(each.question)
            ][:SUGGESTION_DRAWS]
            prompts = [self.prompt(each.question) for each in asked]
            for each, completion in zip(asked, generate(prompts, 1) if prompts else (), strict=True):
                sql = self.statement(each.question, completion.text)
                if not sql or each.kind in kinds or probability(completion) < SUGGESTION_SURE:
                    continue
                result = self.connection.execute(sql)
                if is_empty(result) or len(result.rows) > MOST_SUGGESTED_ROWS:
                    continue
                if execution_match(self.connection, each.sql, sql).correct:
                    kinds.add(each.kind)
                    if len(kinds) > MOST_SUGGESTIONS:
                        return
                    yield as_question(each.question)


def _is_foreign(question: str) -> bool:
    """Whether at least two words are function words of another language, and more than those of English."""
    words = set(re.findall(r"[^\W\d_]+", question.lower()))
    return len(words & _OTHER) > max(1, len(words & _ENGLISH))


def as_question(text: str) -> str:
    """A question as it is shown: with a capital letter, and a question mark where it asks."""
    text = text.rstrip(" .?!")
    asks = re.match(r"(?:how|what|which|who|whose|when|where|is|are|do|does|did|can|could)\b", text, re.IGNORECASE)
    return text[:1].upper() + text[1:] + ("?" if asks else "")


def probability(completion: Completion) -> float:
    """The model's probability of the whole completion; 0 for one that did not end."""
    return math.exp(sum(completion.logprobs)) if completion.finish_reason == "stop" else 0.0
