"""Prompts a model with the examples of any task: shots, the context guard, previews, answers.

    prompt = make_prompt("sentiment", "plain", shots=4, selection="balanced")
    prompter = Prompter(Engine.load("runs/instruct"), task, prompt, pool=task.splits["train"])
    print(prompter.preview(example).text)
    answers = prompter.answer(task.held_out["sst2-test"])

Few-shot prompting: Brown et al. 2020 (arXiv 2005.14165). Chain of thought is a template whose answer holds the steps
and whose `extract` finds the result (Wei et al. 2022, arXiv 2201.11903; Kojima et al. 2022, arXiv 2205.11916).
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data.messages import content_text
from quatrain.generation.endpoint import Endpoint
from quatrain.generation.engine import Completion, Engine
from quatrain.tasks.prompting.prompt import Prompt
from quatrain.tasks.prompting.reader import Content, reader_of, shown
from quatrain.tasks.prompting.selection import Embed, Pool, embedder, ranking
from quatrain.tasks.prompting.template import fill
from quatrain.tasks.task import Task

NAMED = 3
"""Prompts that do not fit and that an error names; it counts the others."""
EMPTY = "N/A"
"""A question without content."""
BATCH = 64
"""Prompts that are completed at a time."""


@dataclass(frozen=True)
class BuiltPrompt:
    """What a model reads for one example. `shots` are numbers of the pool's examples, in their order in the prompt.

    `tokens` and `limit` are None where an endpoint does not tell them. `dropped` shots were left out by the guard.
    """

    content: Content
    lead: str
    """What a text still lacks before the answer: a space that the answer's first token takes."""
    empty: Content = ""
    """The same prompt with a question without content, where answers are calibrated by it."""
    shots: tuple[int, ...] = ()
    dropped: int = 0
    tokens: int | None = None
    limit: int | None = None
    fits: bool = True


@dataclass(frozen=True)
class Preview:
    """One prompt as the model reads it: its text with special tokens, ids, and the tokens of each part."""

    text: str
    ids: list[int] | None
    parts: list[tuple[str, int]]
    """Names and tokens of the parts; they sum up to all tokens."""
    tokens: int | None
    limit: int | None
    dropped: int
    fits: bool


@dataclass
class PromptAnswer:
    """The answer that counts, as the task takes it, with what the model wrote.

    `votes` counts the answers of the samples. `found` is False where the template's `extract` matched nothing, and
    the completion stands for the answer.
    """

    text: str
    completions: list[Completion] = field(default_factory=list)
    votes: Counter[str] = field(default_factory=Counter)
    found: bool = True


@dataclass
class Answers:
    """The answers to some examples, in their order, and notes on what was dropped and on what did not fit."""

    answers: list[PromptAnswer]
    notes: list[str]
    shots: float = 0.0
    """The mean number of shots that the model read."""
    tokens: int = 0
    """Tokens generated."""

    @property
    def texts(self) -> list[str]:
        """The answers as texts."""
        return [answer.text for answer in self.answers]


class Prompter:
    """A model, a task and a prompt. `pool` are the examples that shots are drawn from.

    `embed` gives vectors of texts for the selection "similar"; by default the model of `prompt.embedder` does. Raises
    InputError for a prompt that the model, the pool or the task does not allow.
    """

    def __init__(
        self,
        model: Engine | Endpoint,
        task: Task[Any],
        prompt: Prompt,
        pool: Sequence[Any] = (),
        *,
        embed: Embed | None = None,
    ):
        self.task, self.prompt, self.reader = task, prompt, reader_of(model)
        self.chats = self.reader.chats if prompt.style == "auto" else prompt.style == "chat"
        if self.chats and not self.reader.chats:
            raise InputError('style "chat": this model has no chat template; set style = "text"')
        self.pool = list(pool) if prompt.shots else []
        if prompt.shots > len(self.pool):
            what = f"the pool has {len(self.pool):,} examples" if self.pool else "there are no examples to draw from"
            raise InputError(f"shots: {prompt.shots}; {what}")
        self._fields = [self.fields(example) for example in self.pool]
        self._choose: Callable[[str], list[int]] = lambda question: []
        if prompt.shots:
            if prompt.selection == "similar" and embed is None and prompt.embedder is not None:
                embed = embedder(prompt.embedder)
            questions = [str(each["input"]) for each in self._fields]
            answers = [str(each["output"]) for each in self._fields]
            drawn = Pool(questions, answers, prompt.seed, embed)
            rank = ranking(prompt.selection, drawn)
            self._choose = lambda question: drawn.choose(rank, question, prompt.shots)
        self._answers = {word.casefold(): label for label, word in prompt.labels.items()}

    def fields(self, example: Any) -> dict[str, Any]:
        """The fields that a template can name: `input`, `output`, the prompt's own names for them, those of a record.

        `options` lists the words of the labels, as FLAN's templates do.
        """
        own = _own_fields(example)
        question = content_text(self.task.prompt(example)[-1])
        reference = self.task.reference(example) if self.task.answered(example) else ""
        word = self.prompt.labels.get(reference, reference)
        named = {"input": question, "output": word, self.prompt.input: question, self.prompt.output: word}
        if self.prompt.labels:
            named["options"] = "\n".join(["OPTIONS:", *(f"- {word}" for word in self.prompt.labels.values())])
        return {name: each for name, each in own.items() if isinstance(each, str | int | float)} | named

    def build(self, example: Any) -> BuiltPrompt:
        """The prompt of an example, without shots that do not fit into the context.

        `fits` is False where even the question alone does not fit, or where `too_long` forbids to drop shots.
        """
        fields = self.fields(example)
        shots, new = self._choose(str(fields["input"])), self.prompt.decoding.max_new_tokens
        limit, dropped = self.reader.limit, 0
        nothing = {name: EMPTY if value == fields["input"] else value for name, value in fields.items()}
        while True:
            content, lead = self._content(example, fields, shots)
            empty = self._content(example, nothing, shots)[0] if self.prompt.decide == "calibrated" else ""
            if limit is None:
                return BuiltPrompt(content, lead, empty, tuple(shots), dropped)
            tokens = self.reader.count(content)
            fits = tokens is None or self.reader.fits(tokens, new)
            if fits or not shots or self.prompt.too_long == "refuse":
                return BuiltPrompt(content, lead, empty, tuple(shots), dropped, tokens, limit, fits)
            shots, dropped = shots[1:], dropped + 1  # The first is the least wanted one.

    def _content(self, example: Any, fields: Mapping[str, Any], shots: Sequence[int]) -> tuple[Content, str]:
        """The prompt with these shots, and what its text still lacks before the answer."""
        template = self.prompt.template
        before = self.task.prompt(example)[:-1]
        question = fill(template.prompt, fields)
        pairs = [(fill(template.prompt, each), fill(template.answer, each)) for each in map(self._shot, shots)]
        if self.chats:
            turns = [dict(message) for message in before]
            if template.instruction:
                turns = _instructed(turns, fill(template.instruction, fields))
            for asked, answered in pairs:
                turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            turns.append({"role": "user", "content": question})
            return turns, ""
        parts = [content_text(message) for message in before]
        parts += [fill(template.instruction, fields)] if template.instruction else []
        parts += [f"{asked}{template.lead}{answered}" for asked, answered in pairs]
        text = template.separator.join([*parts, f"{question}{template.lead}"])
        # Most tokenizers write a word with the space before it, so that a space at the end misleads the model.
        stripped = text.rstrip(" ")
        return stripped, text[len(stripped) :]

    def _shot(self, number: int) -> dict[str, Any]:
        return self._fields[number]

    def preview(self, example: Any) -> Preview:
        """Exactly what the model reads for an example, special tokens shown, with the tokens of each part."""
        built = self.build(example)
        ids = self.reader.ids(built.content)
        text = shown(built.content)
        if ids is not None:
            tokenizer: Any = self.reader.engine.tokenizer  # type: ignore[attr-defined]
            text = tokenizer.decode(ids, skip_special_tokens=False)
        fields, parts, last = self.fields(example), list[tuple[str, int]](), 0
        for count in range(len(built.shots) + 1):
            kept = built.shots[len(built.shots) - count :]
            tokens = self.reader.count(self._content(example, fields, kept)[0])
            if tokens is None:
                break
            name = "question and instruction" if not count else f"shot {len(built.shots) - count + 1}"
            parts.append((name, tokens - last))
            last = tokens
        return Preview(text, ids, parts[::-1], built.tokens or last or None, built.limit, built.dropped, built.fits)

    def answer(self, examples: Sequence[Any], progress: Callable[[int], None] = lambda done: None) -> Answers:
        """The answer to each example.

        A prompt that does not fit has an empty answer, and a note says so; with `too_long` "refuse" it is an
        InputError that names the first ones. Nothing is ever cut.
        """
        built = [self.build(example) for example in examples]
        long = [number for number, each in enumerate(built, 1) if not each.fits]
        if long and self.prompt.too_long == "refuse":
            raise InputError(
                f"{len(long):,} of {len(built):,} prompts do not fit into the model's context. Take fewer shots, or "
                'set too_long = "drop":',
                [self._place(number, built[number - 1]) for number in long[:NAMED]],
            )
        answers = [PromptAnswer("", found=False) for _ in built]
        runnable = [place for place, each in enumerate(built) if each.fits]
        for start in range(0, len(runnable), BATCH):
            part = runnable[start : start + BATCH]
            for place, answer in zip(part, self._answered([built[place] for place in part]), strict=True):
                answers[place] = answer
            progress(start + len(part))
        tokens = sum(len(each.ids or each.logprobs) for answer in answers for each in answer.completions)
        read = sum(len(each.shots) for each in built) / max(1, len(built))
        return Answers(answers, self._notes(built, long, answers), read, tokens)

    def _place(self, number: int, built: BuiltPrompt) -> str:
        new = self.prompt.decoding.max_new_tokens
        return f"prompt {number}: {built.tokens:,} tokens and {new:,} new ones; the context has {built.limit:,}"

    def _notes(self, built: Sequence[BuiltPrompt], long: Sequence[int], answers: Sequence[PromptAnswer]) -> list[str]:
        notes = []
        cut = [each for each in built if each.dropped]
        if cut:
            shots = sum(each.dropped for each in cut)
            notes.append(
                f"{shots:,} shots of {len(cut):,} prompts were dropped: with them the prompt and "
                f"{self.prompt.decoding.max_new_tokens:,} new tokens are longer than the context of {cut[0].limit:,}"
            )
        if long:
            notes.append(
                f"{len(long):,} of {len(built):,} prompts do not fit into the context even without shots and count as "
                f"wrong, such as {self._place(long[0], built[long[0] - 1])}"
            )
        fewer = sum(len(each.shots) + each.dropped < self.prompt.shots for each in built)
        if fewer:
            notes.append(f"{fewer:,} prompts have fewer shots than asked for: the rest of the pool says what they say")
        lost = sum(bool(each.completions) and not each.found for each in answers)
        if lost:
            notes.append(f"in {lost:,} completions no answer was found; the whole completion is taken")
        return notes

    def _answered(self, built: Sequence[BuiltPrompt]) -> list[PromptAnswer]:
        if self.prompt.decide != "text":
            return self._likeliest(built)
        prompt = self.prompt
        params = prompt.decoding.params(num_return_sequences=prompt.samples)
        if not self.chats and self.reader.continues:
            params = replace(params, stop=tuple(prompt.template.stop) or (prompt.template.separator,))
        completions = self.reader.complete([each.content for each in built], params)
        return [self._voted([each, *each.alternatives]) for each in completions]

    def _likeliest(self, built: Sequence[BuiltPrompt]) -> list[PromptAnswer]:
        """The likeliest label of each prompt, or the one that gains most over a question without content."""
        labels, totals = list(self.prompt.labels), self._totals(built)
        if self.prompt.decide == "calibrated":
            # Prompts with the same shots have the same one without content.
            plain = {repr(each.empty): each for each in built}
            known = dict(zip(plain, self._totals([replace(each, content=each.empty) for each in plain.values()]),
                             strict=True))  # fmt: skip
            totals = [
                [total - prior for total, prior in zip(own, known[repr(each.empty)], strict=True)]
                for own, each in zip(totals, built, strict=True)
            ]
        return [PromptAnswer(labels[own.index(max(own))]) for own in totals]

    def _totals(self, built: Sequence[BuiltPrompt]) -> list[list[float]]:
        """The log-probability of each label's word after each prompt."""
        words = list(self.prompt.labels.values())
        contents = [each.content for each in built for _ in words]
        totals = self.reader.totals(contents, [f"{each.lead}{word}" for each in built for word in words])
        return [totals[start : start + len(words)] for start in range(0, len(totals), len(words))]

    def _voted(self, completions: list[Completion]) -> PromptAnswer:
        """The most frequent answer of the samples; of equally frequent ones the first."""
        found = [self.read(completion.text) for completion in completions]
        votes = Counter(answer for answer in found if answer)
        if votes:
            return PromptAnswer(votes.most_common(1)[0][0], completions, votes)
        return PromptAnswer(completions[0].text.strip(), completions, votes, found=False)

    def read(self, completion: str) -> str | None:
        """The answer in a completion, as the task takes it; None where there is none.

        For a prompt with labels it is the label whose word comes first.
        """
        text = self.prompt.template.find(completion)
        if text is None or not self._answers:
            return text
        words = "|".join(re.escape(word) for word in sorted(self._answers, key=len, reverse=True))
        match = re.search(rf"(?<!\w)(?:{words})(?!\w)", text.casefold())
        return self._answers[match.group(0)] if match else None


def _own_fields(example: Any) -> dict[str, Any]:
    """The fields of a record, a mapping or a dataclass."""
    value = getattr(example, "value", example)
    if isinstance(value, Mapping):
        return dict(value)
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)} if is_dataclass(value) else {}


def _instructed(turns: list[dict[str, Any]], instruction: str) -> list[dict[str, Any]]:
    """A conversation with an instruction: in its system message, or in one before it."""
    if turns and turns[0].get("role") == "system":
        return [{**turns[0], "content": f"{content_text(turns[0])}\n\n{instruction}"}, *turns[1:]]
    return [{"role": "system", "content": instruction}, *turns]
