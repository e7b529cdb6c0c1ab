"""Implementation of the prompting stage: prompts are scored and kept as files, and the report gets their tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from quatrain.compression.methods import weight_count
from quatrain.core.errors import InputError
from quatrain.core.wording import format_metric
from quatrain.evaluation.evaluate import spread
from quatrain.evaluation.prompting import Comparison, KeptResults, PromptResult, compare, grid, search
from quatrain.generation.endpoint import Endpoint
from quatrain.generation.engine import Engine
from quatrain.runs.material import model_of, opened_task, tokenizer_of
from quatrain.runs.stage import StageContext, StageResult
from quatrain.runs.stages.prompting import PromptingStage
from quatrain.tasks.prompting.prompt import Prompt, make_prompt, save_prompt, with_settings
from quatrain.tasks.prompting.texts import usable
from quatrain.tasks.task import Task

SHOWN = 8
"""Examples whose answers the report has side by side."""


def run(settings: PromptingStage, context: StageContext) -> StageResult:
    """Scores the prompts; writes each with its scores into `prompts/`, and no model."""
    model, named = opened(context)
    result = StageResult(parameters=weight_count(model.model) if isinstance(model, Engine) else None)
    limit = context.recipe.evaluate.examples
    with opened_task(settings, context) as task:
        sets = {name: usable(task, examples)[:limit] for name, examples in task.held_out.items()}
        sets = {name: examples for name, examples in sets.items() if examples}
        if not sets:
            raise InputError("nothing to score prompts on: name data.test, or a share with data.validation")
        pool = usable(task, task.splits.get("train", ()))
        done: dict[str, list[tuple[str, Comparison]]] = {}
        tables = []
        for title, name, comparison in _compared(settings, context, model, task, sets, pool):
            done.setdefault(name, []).append((title, comparison))
            tables.append(_table(title, name, comparison))
            _report(title, name, comparison, context)
            for each in comparison.results:
                _keep(each, named, context)
    result.extra["comparisons"] = tables
    result.extra["side_by_side"] = [
        row for name in sets if name not in task.hidden for row in _rows(task, sets[name], done[name])
    ]
    for name, own in done.items():
        if name not in sets:
            continue
        best = max((comparison.best for _, comparison in own), key=lambda each: each.main)
        result.notes.append(f"{name}: the score is that of the best prompt here, {best.prompt.label}")
        result.notes += list(dict.fromkeys(f"{name}: {note}" for _, each in own for note in _notes(each)))
        result.scores = (result.scores or {}) | {name: best.scores}
        baseline = {"name": own[0][1].baseline_name, **own[0][1].baseline}
        result.baselines = (result.baselines or {}) | {name: baseline}
    return result


def opened(context: StageContext) -> tuple[Engine | Endpoint, str]:
    """The model to prompt, and its name in scores."""
    address = context.recipe.model.endpoint
    if address is not None:
        return Endpoint.of(address), address
    folder = context.previous_model or context.recipe.model.folder
    return Engine(model_of(context), tokenizer_of(context)), str(folder)


def _compared(
    settings: PromptingStage,
    context: StageContext,
    model: Engine | Endpoint,
    task: Task[Any],
    sets: dict[str, list[Any]],
    pool: Sequence[Any],
) -> Iterator[tuple[str, str, Comparison]]:
    """Titles, sets and comparisons: of the prompts, of the generation settings, of the search."""
    prompts = [prompt_of(settings, context, each.template, **each.model_dump(exclude={"template"}))
               for each in settings.prompts]  # fmt: skip
    kept = KeptResults(context.stage_folder / "results")
    varied = [with_settings(prompts[0], decoding=each) for each in settings.decodings]
    for name, examples in sets.items():
        for title, chosen in (("prompts", prompts), ("generation settings", varied)):
            if chosen:
                with context.reporter.task(title, total=len(chosen) * len(examples), unit="prompt") as bar:
                    yield (
                        title,
                        name,
                        compare(model, task, name, chosen, examples, pool, progress=bar.update, kept=kept),
                    )
    if settings.search is None:
        return
    wanted = settings.search
    development = usable(task, task.splits.get("development", ()))[: wanted.examples]
    if not development:
        raise InputError("search: there are no development examples: name data.dev, or a share with data.validation")
    plain = prompt_of(settings, context, (wanted.templates or _first(settings))[0])
    more = {key: getattr(plain, key) for key in ("style", "decide", "too_long", "seed", "embedder")}
    candidates = grid(
        settings.templates, wanted.templates, wanted.shots, wanted.selections, [settings.decoding], **more
    )
    with context.reporter.task("search", total=len(candidates) * len(development), unit="prompt") as bar:
        found, scored = search(model, task, candidates, development, sets, pool, progress=bar.update, kept=kept)
    yield "search", "development", found
    for name, comparison in scored.items():
        yield "best of the search", name, comparison


def _first(settings: PromptingStage) -> list[str]:
    from quatrain.tasks.prompting.template import load_templates

    return [load_templates(settings.templates).template[0].name]


def prompt_of(settings: PromptingStage, context: StageContext, template: str, **more: Any) -> Prompt:
    """The prompt of a template with the stage's settings."""
    own: dict[str, Any] = {"decoding": settings.decoding, "style": settings.style, "decide": settings.decide}
    own |= {"too_long": settings.too_long, "seed": context.seed, "embedder": settings.embedder}
    samples = more.pop("samples", 1)
    return make_prompt(settings.templates, template, **own, **more, samples=samples)


def _keep(result: PromptResult, model: str, context: StageContext) -> None:
    """Write a prompt and its score into the stage's folder."""
    name = f"{result.prompt.name}-{result.prompt.hash[:6]}"
    save_prompt(result.prompt, context.stage_folder / "prompts" / f"{name}.toml", (result.score(model),))


def _report(title: str, name: str, comparison: Comparison, context: StageContext) -> None:
    context.reporter.table(f"{title} on {name}", *comparison.table())


def _table(title: str, name: str, comparison: Comparison) -> dict[str, Any]:
    columns, rows = comparison.table()
    return {"title": f"{title} on {name}", "columns": columns, "rows": rows, **comparison.as_dict()}


def _notes(comparison: Comparison) -> Iterator[str]:
    for result in comparison.results:
        yield from (f"{result.prompt.label}: {note}" for note in result.notes)


def _rows(task: Task[Any], examples: Sequence[Any], own: Sequence[tuple[str, Comparison]]) -> Iterator[dict[str, Any]]:
    """Some examples with their references and the answers of all prompts and settings."""
    results = [result for _, comparison in own for result in comparison.results]
    answered = [place for place in range(len(examples)) if any(result.texts[place] for result in results)]
    for place in spread(answered, SHOWN):
        example = examples[place]
        references = task.references(example) if hasattr(task, "references") else [task.reference(example)]
        answers = [
            {"label": _answer_label(title, result), "output": result.texts[place]}
            for title, comparison in own
            for result in comparison.results
        ]
        yield {"prompt": task.question(example), "references": list(dict.fromkeys(references)), "answers": answers}


def _answer_label(title: str, result: PromptResult) -> str:
    named = result.prompt.decoding.label if title == "generation settings" else result.prompt.label
    return f"{named}: {result.metric} {format_metric(result.metric, result.main)}"
