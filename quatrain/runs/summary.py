"""The closing summary of a run: its files, scores and cost, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quatrain.core.atomic import write_text
from quatrain.core.progress import Reporter
from quatrain.core.wording import format_bytes, format_duration, format_metric
from quatrain.evaluation.safety.card import write_safety_section
from quatrain.planning.energy import Energy, format_energy, format_grams
from quatrain.runs.folder import Run, free_name
from quatrain.runs.gates import GateOutcome
from quatrain.runs.recipe import load, recipe_names

_SUITES = ("<!-- suites: begin -->", "<!-- suites: end -->")
"""Around the card's section on suites, which `quatrain evaluate` writes anew."""
_COLUMNS = {"validation_loss": "validation loss", "perplexity": "perplexity"}


def report_done_before(run: Run, reporter: Reporter) -> None:
    """Report that the run had already finished, and where its results are."""
    reporter.info(f"{run.folder} is finished: nothing to do. (--restart runs it again; name=other starts another run.)")
    _made(run, reporter)
    _scores(run, reporter)
    _next(run, reporter)


def report_finished(
    run: Run, reporter: Reporter, seconds: float, energy: Energy, gates: Sequence[GateOutcome] = ()
) -> None:
    """The closing summary of a run that has just finished; `seconds` is its whole duration."""
    _samples(run, reporter)
    peak = max((result.get("peak_memory_bytes") or 0 for result in run.results), default=0)
    memory = f", peak memory {format_bytes(peak)}" if peak else ""
    reporter.info("")
    reporter.info(f"Finished in {format_duration(seconds)}{memory}.")
    if energy.method:
        reporter.info(f"Energy: {energy.text}.")
    _made(run, reporter)
    _scores(run, reporter)
    if gates:
        reporter.table("Bill", *bill_table(run.results, gates))
    _next(run, reporter)


def bill_table(results: Sequence[Mapping[str, Any]], gates: Sequence[GateOutcome]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what each stage cost and reached, and of the whole run."""
    rows = []
    for result in results:
        reached = "; ".join(f"{each.name} {each.shown}, {each.limit}" for each in gates if each.stage == result["name"])
        rows.append([str(result["name"]), *_costs([result]), reached])
    rows.append(["the whole run", *_costs(results), f"{len(gates)} gates passed"])
    return ["stage", "time", "FLOPs", "energy", "CO2", "gate"], rows


def _costs(results: Sequence[Mapping[str, Any]]) -> list[str]:
    flops = sum(result.get("flops") or 0 for result in results)
    energy = sum((Energy.of(result.get("energy")) for result in results), Energy())
    return [
        format_duration(sum(result.get("seconds") or 0 for result in results)), f"{flops:.3g}" if flops else "",
        format_energy(energy.kwh), format_grams(1000 * energy.co2_kg),
    ]  # fmt: skip


def write_card(run: Run, energy: Energy) -> None:
    """Write the final model's `README.md`: its data, method, energy and scores."""
    if run.model is not None:
        write_text(run.model / "README.md", _card(run, energy))
        update_card(run.folder)


def update_card(folder: Path) -> None:
    """Write the section on suites into the card of a run's final model anew, and leave the rest of it."""
    from quatrain.evaluation.report.suites import card_section, stored_results

    card = folder / "model" / "README.md"
    if not card.is_file():
        return
    own = (folder / "model").resolve()
    results = [
        result for result in stored_results(folder)[0]
        if Path(result["passport"]["model"].get("folder") or "").resolve() == own
    ]  # fmt: skip
    before, _, rest = card.read_text(encoding="utf-8").partition(_SUITES[0])
    after = rest.partition(_SUITES[1])[2]
    section = card_section(results)
    if section or rest:
        marked = "\n".join([_SUITES[0], *section, _SUITES[1]])
        write_text(card, f"{before.rstrip()}\n\n{marked}\n{after.lstrip()}")
    write_safety_section(card, results)


def score_table(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the scores after each stage, one column a set, after a row of the dumb baselines.

    Rows without a score are left out.
    """
    sets = list(dict.fromkeys(name for result in results for name in result.get("scores") or {}))
    extra = [key for key in _COLUMNS if any(result.get(key) is not None for result in results)]
    rows = []
    for result in results:
        scores = result.get("scores") or {}
        cells = [_score(scores.get(name)) for name in sets]
        cells += [format_metric(key, result[key]) if result.get(key) is not None else "" for key in extra]
        if any(cells):
            rows.append([str(result.get("name")), *cells])
    baselines = [_baseline(name, results) for name in sets]
    if any(baselines):
        rows.insert(0, ["dumb baseline", *baselines, *("" for _ in extra)])
    return ["after", *sets, *(_COLUMNS[key] for key in extra)], rows


def below_baseline(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each set on which the last evaluated model is worse than the dumb baseline by the main metric."""
    from quatrain.evaluation.measures import higher_is_better, is_below

    lines = []
    last: Mapping[str, Any] = next((result for result in reversed(results) if result.get("scores")), {})
    for name, metrics in (last.get("scores") or {}).items():
        main = next((key for key, value in metrics.items() if key != "count" and value is not None), None)
        baseline = ((last.get("baselines") or {}).get(name) or {}).get(main)
        if main is None or not isinstance(baseline, int | float):
            continue
        if is_below(metrics[main], baseline, higher_is_better=higher_is_better(main)):
            value, other = format_metric(main, metrics[main]), format_metric(main, baseline)
            lines.append(f"{name}: {main.replace('_', ' ')} {value} is below the dumb baseline, {other}")
    return lines


def wrong_by_kind(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each set whose examples have kinds, how many of each kind the last evaluated model gets wrong."""
    kinds: Mapping[str, Any] = next((result["kinds"] for result in reversed(results) if result.get("kinds")), {})
    lines = []
    for name, counts in kinds.items():
        wrong = [(kind, each["count"] - each["right"], each["count"]) for kind, each in counts.items()]
        listed = ", ".join(f"{kind} {failed} of {count}" for kind, failed, count in wrong if failed)
        if listed:
            lines.append(f"{name}, wrong: {listed}")
    return lines


def _baseline(name: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The dumb baseline's value of the metric that stands for a set in the table."""
    for result in results:
        main = next((key for key in (result.get("scores") or {}).get(name) or {} if key != "count"), None)
        baseline = (result.get("baselines") or {}).get(name) or {}
        if main is not None and main in baseline:
            return format_metric(main, baseline[main])
    return ""


def _score(metrics: Mapping[str, float] | None) -> str:
    """The main metric of a set: the first one that is not a count."""
    for name, value in (metrics or {}).items():
        if name != "count" and value is not None:
            return format_metric(name, value)
    return ""


def _made(run: Run, reporter: Reporter) -> None:
    rows = []
    if run.model is not None:
        rows.append([str(run.model), format_bytes(_size(run.model)), "the model, a Hugging Face folder"])
    if run.report is not None:
        rows.append([str(run.report), format_bytes(_size(run.report)), "curves, scores, samples and costs"])
    for path in sorted(run.folder.glob("*.sqlite")):
        rows.append([str(path), format_bytes(_size(path)), "the database"])
    if rows:
        reporter.table("Made", ["path", "size", "what it is"], rows)


def _scores(run: Run, reporter: Reporter) -> None:
    columns, rows = score_table(run.results)
    if rows:
        reporter.table("Scores", columns, rows)
    for line in below_baseline(run.results):
        reporter.warn(line)
    for line in wrong_by_kind(run.results):
        reporter.info(line)


def _next(run: Run, reporter: Reporter) -> None:
    hints = next_hints(run)
    if hints:
        reporter.info("What to try next:")
        for text in hints:
            reporter.info("  " + text)


def next_hints(run: Run) -> list[str]:
    """The recipe's hints that fit this run, with the run's own paths.

    Hints are left out if they name a file that the run has not written, or suggest the user's own data to a run that
    has already read such data.
    """
    hints = []
    for text in run.recipe.next:
        words = text.split(" ")
        named = [run.folder / word[6:] for word in words if word.startswith("{run}/")]
        if "{database}" in words and _database(run) is None:
            continue
        if all(path.exists() for path in named) and not _done_already(run, words):
            hints.append(" ".join(_filled(run, word) for word in words))
    return hints


def _database(run: Run) -> Path | None:
    """The database of the run's questions: the user's, or the generated one."""
    named = run.recipe.data.database
    path = Path(named).expanduser() if named not in (None, "shop") else run.folder / "shop.sqlite"
    return path if path.is_file() else None


def _done_already(run: Run, words: Sequence[str]) -> bool:
    """Whether a hint suggests a shipped recipe on the user's own data, and this run has done that."""
    if words[:2] != ["quatrain", "run"] or len(words) < 3 or words[2] not in recipe_names():
        return False
    shipped = load(words[2])
    if [stage.kind for stage in shipped.stage] != [stage.kind for stage in run.recipe.stage]:
        return False  # The hint is about another recipe.
    keys = {word.partition("=")[0] for word in words[3:]} & {"data.source", "data.database", "data.task"}
    return any(getattr(shipped.data, key[5:]) != getattr(run.recipe.data, key[5:]) for key in keys)


def _filled(run: Run, word: str) -> str:
    """A word of a hint with the run's own paths and a free name, quoted for a shell if necessary."""
    if word.startswith("{run}"):
        return shlex.quote(f"{run.folder}{word[5:]}")
    if "={run}" in word:
        key, _, rest = word.partition("={run}")
        return f"{key}={shlex.quote(f'{run.folder}{rest}')}"
    if word == "{database}":
        return shlex.quote(str(_database(run)))
    if word.startswith("name=") and (run.folder.parent / word[5:]).exists():
        return f"name={free_name(run.folder.with_name(word[5:]))}"
    return word.replace("{run}", str(run.folder))


def _samples(run: Run, reporter: Reporter) -> None:
    """Shows the samples of the last stage that generated free text."""
    for sample in _free_samples(run.results):
        temperature = sample.get("temperature")
        reporter.info("")
        reporter.info(f"Sample at temperature {temperature}:")
        between = "\n→ " if sample.get("turns") else ""
        reporter.info(f"{sample.get('prompt', '')}{between}{sample.get('output', '')}")


def _free_samples(results: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for result in reversed(results):
        free = [
            sample
            for sample in result.get("samples") or ()
            if sample.get("temperature") is not None and not sample.get("reference")
        ]
        if free:
            yield from free
            return


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def _card(run: Run, energy: Energy) -> str:
    recipe = run.recipe
    source = recipe.data.source or recipe.data.database or recipe.data.task or "the data of its stages"
    shape = recipe.model.folder or (
        f"{recipe.model.family} family, {recipe.model.num_hidden_layers} layers, {recipe.model.hidden_size} wide"
    )
    parameters = next((result["parameters"] for result in reversed(run.results) if result.get("parameters")), None)
    size = f", {parameters:,} parameters" if parameters else ""
    lines = ["---", "library_name: quatrain", "tags: [quatrain]", "---", "", f"# {recipe.name}", ""]
    if recipe.description:
        lines += [f"{recipe.description}.", ""]
    lines += [
        f"- Model: {shape}{size}",
        f"- Data: `{source}`",
        f"- Stages: {', '.join(stage.kind for stage in recipe.stage)} (seed {recipe.seed})",
        "- Recipe: `recipe.toml` in this folder; `quatrain run recipe.toml` makes it again",
        *([f"- Energy: {energy.text}"] if energy.method else []),
        "",
    ]
    columns, rows = score_table(run.results)
    if rows:
        lines += ["## Scores", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += ["", *(f"- 🔴 {line}" for line in below_baseline(run.results))]
        lines += [f"- {line}" for line in wrong_by_kind(run.results)]
        lines.append("")
    return "\n".join(lines)
