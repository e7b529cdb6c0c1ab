"""`quatrain prompt`: shows what a model will read, compares prompts on a task, and searches for the best one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from quatrain.evaluation.prompting import Comparison
    from quatrain.tasks.prompting.prompt import Prompt
    from quatrain.tasks.task import Task

Selection = Literal["random", "balanced", "similar", "bm25"]
DATABASES = (".sqlite", ".sqlite3", ".db")
"""Files of databases, for which questions are generated."""
GENERATED = 2000
"""Questions that are generated for a database, to draw shots from."""


@Parameter(name="*")
@dataclass(frozen=True)
class PromptOptions:
    """Which prompts are meant; those that may be given several times make every combination."""

    pool: str | None = None
    """The data that shots are drawn from; by default the part of the data that is not asked about."""
    prompt: Path | None = None
    """A file of a prompt, such as those that --out writes, instead of the options below."""
    templates: str = "plain"
    """A shipped file of templates (arithmetic, dialogue-summary, plain, sentiment, sql), or a TOML file."""
    template: tuple[str, ...] = ()
    """The name of a template in the file; may be given several times. All of them by default."""
    shots: tuple[int, ...] = ()
    """Worked examples before the question; may be given several times. 0 by default."""
    selection: tuple[Selection, ...] = ()
    """How shots are chosen; may be given several times. random by default."""
    embedder: str | None = None
    """The model folder of sentence embeddings for --selection similar."""
    style: Literal["auto", "chat", "text"] = "auto"
    """Shots as turns of a chat or as one text; auto asks the model."""
    decide: Literal["text", "likelihood", "calibrated"] = "text"
    """Generate the answer, or take the likeliest of the file's labels; calibrated by a question without content."""
    too_long: Literal["drop", "refuse"] = "drop"
    """What happens to shots that do not fit into the model's context."""
    max_new_tokens: tuple[int, ...] = ()
    """The most tokens of an answer; may be given several times. 64 by default."""
    temperature: tuple[float, ...] = ()
    """0 takes the likeliest token; may be given several times. 0 by default."""
    votes: int = 1
    """Self-consistency: take the most frequent answer of so many samples; needs a temperature."""
    seed: int = 0
    """Of drawn shots and samples."""

    def prompts(self) -> list[Prompt]:
        """Every combination, or the prompt of the file. Raises InputError."""
        from quatrain.core.settings import parse
        from quatrain.evaluation.prompting import grid
        from quatrain.generation.decoding import Decoding
        from quatrain.tasks.prompting.prompt import load_prompt

        if self.prompt is not None:
            return [load_prompt(self.prompt).prompt]
        decodings = [
            parse(
                Decoding,
                {"max_new_tokens": tokens, "temperature": temperature, "seed": self.seed},
                what="the options of decoding",
            )
            for tokens in self.max_new_tokens or (64,)
            for temperature in self.temperature or (0.0,)
        ]
        more: dict[str, Any] = {"embedder": self.embedder, "style": self.style, "decide": self.decide}
        more |= {"too_long": self.too_long, "seed": self.seed}
        return grid(
            self.templates, self.template, self.shots or (0,), self.selection or ("random",), decodings,
            samples=self.votes, **more,
        )  # fmt: skip

    @contextmanager
    def task(self, data: str, examples: int) -> Iterator[Task[Any]]:
        """The task of the data, with the examples to draw from. Raises InputError."""
        import tempfile

        from quatrain.core.settings import parse
        from quatrain.data.corpus import DataParts
        from quatrain.data.settings import DataSettings
        from quatrain.runs.inputs import OWN_DATABASES
        from quatrain.tasks.prompting.texts import text_task
        from quatrain.tasks.task import generating_names

        if data in generating_names():
            named: dict[str, Any] = {"task": data}
        elif data in OWN_DATABASES or data.endswith(DATABASES):
            named = {"database": data, "examples": GENERATED}
        else:
            named = {"source": data} if self.pool is None else {"source": self.pool, "test": data}
        parts = DataParts(parse(DataSettings, named, what="the data"), self.seed)
        with tempfile.TemporaryDirectory() as folder, text_task(parts, folder=Path(folder), limit=examples) as task:
            yield task


PROMPT_DEFAULTS = PromptOptions()


def preview(
    model: str,
    data: str,
    *,
    number: int = 1,
    options: PromptOptions = PROMPT_DEFAULTS,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Show exactly what a model reads for an example: its text with special tokens, and the tokens of each part.

    Parameters
    ----------
    model
        A model folder, a run's folder or name, a hub id, or an endpoint http://HOST/v1#NAME.
    data
        A file, a folder, a catalog name, a SQLite file, or what generates its examples: arithmetic, shop.
    number
        Which example to show, from 1.
    json_lines
        Write one JSON object for each prompt.
    """
    from quatrain.cli.output import show, show_json
    from quatrain.core.errors import InputError
    from quatrain.generation.endpoint import open_model
    from quatrain.tasks.prompting.prompter import Prompter
    from quatrain.tasks.prompting.texts import usable

    prompts, opened = options.prompts(), open_model(model)
    with options.task(data, max(number, 1)) as task:
        shown_sets = [name for name in task.held_out if name not in task.hidden]
        examples = [each for name in shown_sets for each in usable(task, task.held_out[name])]
        if not examples:
            raise InputError(f"{data}: no row is left to be shown; give more rows, or those of shots with --pool")
        if not 1 <= number <= len(examples):
            raise InputError(f"--number {number}: must be from 1 to {len(examples):,}")
        pool = usable(task, task.splits.get("train", ())) if any(each.shots for each in prompts) else []
        for prompt in prompts:
            shown = Prompter(opened, task, prompt, pool).preview(examples[number - 1])
            facts = {"template": prompt.template.name, "shots": prompt.shots, "dropped": shown.dropped}
            facts |= {"tokens": shown.tokens, "context": shown.limit, "fits": shown.fits}
            if json_lines:
                show_json(facts | {"parts": dict(shown.parts), "text": shown.text, "ids": shown.ids})
                continue
            show(f"--- {prompt.label} ---\n{shown.text}\n")
            parts = ", ".join(f"{name} {tokens:,}" for name, tokens in shown.parts)
            limit = "" if shown.limit is None else f" of {shown.limit:,}"
            show(f"tokens: {'not told' if shown.tokens is None else f'{shown.tokens:,}'}{limit} ({parts})")
            new = prompt.decoding.max_new_tokens
            if shown.dropped:
                show(f"dropped: {shown.dropped} shots, which with {new:,} new tokens do not fit")
            if not shown.fits:
                show(f"does not fit with {new:,} new tokens; it would count as wrong")
    return 0


def compare(
    model: str,
    data: str,
    *,
    examples: int = 100,
    out: Path | None = None,
    options: PromptOptions = PROMPT_DEFAULTS,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Score prompts and generation settings on a task, side by side, beside its dumb baseline.

    Parameters
    ----------
    model
        A model folder, a run's folder or name, a hub id, or an endpoint http://HOST/v1#NAME.
    data
        A file, a folder, a catalog name, a SQLite file, or what generates its examples: arithmetic, shop.
    examples
        How many examples of each set to ask about.
    out
        A folder: each prompt is kept there as a file, and its score is appended.
    json_lines
        Write one JSON object.
    """
    from quatrain.core.progress import SilentReporter, create_reporter
    from quatrain.evaluation.prompting import compare as compared
    from quatrain.generation.endpoint import open_model
    from quatrain.tasks.prompting.texts import usable

    prompts, opened = options.prompts(), open_model(model)
    reporter = SilentReporter() if json_lines else create_reporter()
    found: dict[str, Comparison] = {}
    with options.task(data, examples) as task:
        pool = usable(task, task.splits.get("train", ())) if any(each.shots for each in prompts) else []
        for name in task.held_out:
            chosen = usable(task, task.held_out[name])[:examples]
            with reporter.task("prompting", total=len(prompts) * len(chosen), unit="prompt") as bar:
                found[name] = compared(opened, task, name, prompts, chosen, pool, progress=bar.update)
    _show(found, model, out, json_lines)
    return 0


def search(
    model: str,
    data: str,
    *,
    examples: int = 100,
    out: Path | None = None,
    options: PromptOptions = PROMPT_DEFAULTS,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Find the best prompt: score every combination on development examples, and the best one once on held-out ones.

    Parameters
    ----------
    model
        A model folder, a run's folder or name, a hub id, or an endpoint http://HOST/v1#NAME.
    data
        A file, a folder, a catalog name, a SQLite file, or what generates its examples: arithmetic, shop. Development
        examples are a share of --pool.
    examples
        How many development and held-out examples to ask about.
    out
        A folder: each prompt is kept there as a file, and its score is appended.
    json_lines
        Write one JSON object.
    """
    from quatrain.core.errors import InputError
    from quatrain.core.progress import SilentReporter, create_reporter
    from quatrain.evaluation.prompting import search as searched
    from quatrain.generation.endpoint import open_model
    from quatrain.tasks.prompting.texts import usable

    prompts, opened = options.prompts(), open_model(model)
    reporter = SilentReporter() if json_lines else create_reporter()
    with options.task(data, examples) as task:
        held_out = {name: usable(task, task.held_out[name])[:examples] for name in task.held_out}
        development = usable(task, task.splits.get("development", ()))[:examples]
        if not development or "held out" in held_out:
            raise InputError(f"{data}: gives no development examples beside the held-out ones; name --pool DATA")
        pool = usable(task, task.splits.get("train", ())) if any(each.shots for each in prompts) else []
        with reporter.task("searching", total=len(prompts) * len(development), unit="prompt") as bar:
            found, scored = searched(opened, task, prompts, development, held_out, pool, progress=bar.update)
    _show({"development": found} | {f"{name} (the best prompt)": each for name, each in scored.items()}, model, out,
          json_lines)  # fmt: skip
    return 0


def _show(found: dict[str, Comparison], model: str, out: Path | None, json_lines: bool) -> None:
    """Write the tables and notes, and keep the prompts with their scores."""
    from quatrain.cli.output import show, show_error, show_json, terminal_width
    from quatrain.core.wording import text_table
    from quatrain.tasks.prompting.prompt import save_prompt

    for comparison in found.values():
        for result in comparison.results if out is not None else ():
            place = Path(out or "") / f"{result.prompt.name}-{result.prompt.hash[:6]}.toml"
            save_prompt(result.prompt, place, (result.score(model),))
    if json_lines:
        show_json({"model": model, "sets": {name: comparison.as_dict() for name, comparison in found.items()}})
        return
    for name, comparison in found.items():
        columns, rows = comparison.table()
        show(f"{name}, {int(comparison.results[0].scores['count']):,} examples")
        show(text_table(columns, _fitted(rows), width=terminal_width()))
        notes = [f"{name}: {each.prompt.label}: {note}" for each in comparison.results for note in each.notes]
        for note in dict.fromkeys(notes):
            show_error(note)


def _fitted(rows: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    return [[cell.replace("\n", " ") for cell in row] for row in rows]
