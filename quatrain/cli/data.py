"""`quatrain data`: the catalog of named data sets, checks of the user's own files, and curation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

from quatrain.cli.arguments import RECIPE

if TYPE_CHECKING:
    from quatrain.data.catalog import Source
    from quatrain.data.checking import CheckReport
    from quatrain.data.curation.assessment import Assessment
    from quatrain.data.curation.funnel import Funnel


def list_sources(*, json_lines: Annotated[bool, Parameter(name="--json")] = False) -> int:
    """List the catalog, with licences and whether each source is on this machine.

    Parameters
    ----------
    json_lines
        Write JSON lines, for programs.
    """
    from quatrain.cli.output import show, show_table
    from quatrain.core.wording import format_bytes
    from quatrain.data.catalog import CATALOG, cache_folder, data_folder

    data_folder(), cache_folder()  # invalid settings would show every source as damaged
    rows = []
    for source in CATALOG.values():
        size: object = source.size
        if not json_lines:
            size = format_bytes(source.size) if source.size else ""
        rows.append([source.name, _where(source), size, source.licence, source.description])
    show_table(["name", "where", "size", "licence", "description"], rows, json_lines=json_lines)
    if not json_lines:
        show("Also gutenberg:N for any book of Project Gutenberg, and any file or folder of your own by its path.")
    return 0


def get_source(name: str) -> int:
    """Find a catalog source on this machine, or download and verify it. Prints its path.

    Parameters
    ----------
    name
        A name that `quatrain data list` shows, such as gutenberg:1661.
    """
    import sys

    from quatrain.cli.output import show
    from quatrain.core.progress import create_reporter
    from quatrain.data.catalog import fetch, get

    source = get(name)
    with create_reporter(stream=sys.stderr).task(source.name, total=source.size, unit="byte") as task:
        path = fetch(source, progress=lambda done, total: task.update(done))
    show(str(path))
    return 0


def check_data(
    source: str,
    *,
    format: str | None = None,
    columns: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    databases: str | None = None,
    template: str | None = None,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Check a data file: list every fault with line, field and fix, then describe the data.

    Parameters
    ----------
    source
        A file, a folder, a name that `quatrain data list` shows, or hf:owner/name.
    format
        The format, if it cannot be detected: text, lines, chat, prompts, preference, rated, labelled, tagged,
        qa, choice, pair or sql.
    columns
        The column of each role, such as text=review,label=stars.
    subset
        The subset of a Hugging Face data set.
    split
        The split of a Hugging Face data set.
    databases
        The databases of questions with SQL: a folder, a .zip or a file of SQLite databases. The SQL of each question is
        run on them.
    template
        The chat template that shows which fields are read: a name such as chatml (the default), a Jinja file, or a
        model folder.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.output import show_json
    from quatrain.data.checking import check as check_file

    report = check_file(source, format=format, columns=_columns(columns), subset=subset, split=split, template=template)
    if databases is not None:
        _check_queries(report, databases, _columns(columns), subset, split)
    if json_lines:
        show_json(report.to_dict())
    else:
        _show_report(report)
    return 0 if report.ok else 2


def curate(
    recipe: Annotated[str, RECIPE],
    *overrides: str,
    source: tuple[str, ...] = (),
    output: Path | None = None,
    processes: int = 1,
    plan: bool = False,
    keep_work: bool = False,
    truth: Path | None = None,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Select the text that is worth learning from. The same command resumes after a kill.

    Parameters
    ----------
    recipe
        A shipped curation recipe (web, wiki), or the path of one in TOML.
    overrides
        Settings, such as step.length.min_words=50, or step.language=none to leave a step out.
    source
        A file, a folder, a catalog name or hf:owner/name in place of the recipe's sources; may be given several times.
    output
        The folder of the result; by default the recipe's name.
    processes
        Processes that work side by side. The result does not depend on their number.
    plan
        Only say what the curation will do, and what memory and disk it takes.
    keep_work
        Keep the files of the passes.
    truth
        The truth.jsonl of a generated crawl: show precision and recall of each step.
    json_lines
        Write JSON lines, for programs.
    """
    from quatrain.cli.output import show, show_json
    from quatrain.core.errors import InputError
    from quatrain.core.progress import create_reporter
    from quatrain.data.curation.assessment import assess, read_truth
    from quatrain.data.curation.estimate import estimate
    from quatrain.data.curation.runner import curate as run
    from quatrain.data.curation.settings import load

    if processes < 1:
        raise InputError(f"--processes {processes}; must be at least 1")
    if truth is not None:
        read_truth(truth)  # before the work
    chosen = load(recipe, overrides, sources=source)
    folder = output or Path(chosen.name)
    expected = estimate(chosen, processes)
    if plan:
        show_json(expected.to_dict()) if json_lines else show("\n".join(expected.lines()))
        return 0
    reporter = create_reporter(json_lines=json_lines)
    for line in expected.lines():
        reporter.info(line)
    expected.check(folder)
    result = run(chosen, folder, processes=processes, reporter=reporter, keep_work=keep_work)
    assessment = None if truth is None else assess(folder, truth)
    if json_lines:
        known = {} if assessment is None else assessment.to_dict()
        show_json({"folder": str(folder), "seconds": result.seconds} | result.funnel.summary() | known)
        return 0
    _show_funnel(result.funnel)
    if assessment is not None:
        _show_assessment(assessment)
    show(f"\nwrote {folder}: shards in data/, README.md, funnel.html")
    return 0


def crawl(
    output: Path,
    *,
    source: str = "british-novels",
    documents: Annotated[int, Parameter(validator=validators.Number(gte=50, lte=1_000_000))] = 2000,
    words: Annotated[int, Parameter(validator=validators.Number(gte=60, lte=10_000))] = 250,
    seed: int = 0,
) -> int:
    """Make a crawl with known junk, to learn curation on: pages, the truth about each, and a recipe.

    Parameters
    ----------
    output
        The folder to write.
    source
        Where passages of good text come from.
    documents
        The number of pages.
    words
        The words of a passage.
    seed
        Another seed makes another crawl.
    """
    from quatrain.cli.output import show, show_table
    from quatrain.data.curation.crawl import write_crawl

    counts = write_crawl(output, source=source, documents=documents, words=words, seed=seed)
    show_table(["kind of page", "pages"], [[kind, count] for kind, count in counts.items()])
    show(f"\nNext: quatrain data curate {output}/recipe.toml --output curated --truth {output}/truth.jsonl")
    return 0


def _show_assessment(assessment: Assessment) -> None:
    """Precision and recall of each step, and what is left of each kind of page."""
    from quatrain.cli.output import show, show_table
    from quatrain.data.curation.assessment import COLUMNS

    show()
    show_table(list(COLUMNS), assessment.rows())
    show()
    rows = [[kind, left, count] for kind, (left, count) in assessment.left.items()]
    show_table(["kind of page", "left", "of"], rows)


def _show_funnel(funnel: Funnel) -> None:
    """The funnel as a table, and what could not be read."""
    from quatrain.cli.output import show, show_table

    rows = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in funnel.rows()]
    show_table(funnel.columns, rows)
    for reason, count in sorted(funnel.faults.items()):
        show(f"not read ({reason}): {count:,}: {', '.join(funnel.places[reason][:2])}")
    for name, amount in sorted(funnel.outputs.items()):
        show(f"{name}: {amount.documents:,} documents, {amount.tokens:,} {funnel.unit}")


def _check_queries(
    report: CheckReport, databases: str, columns: dict[str, str] | None, subset: str | None, split: str | None
) -> None:
    """Add a fault to the report for each question whose SQL fails on its database."""
    from quatrain.core.errors import InputError
    from quatrain.data.checking import Finding
    from quatrain.data.corpus import DataParts
    from quatrain.data.settings import source_settings
    from quatrain.tasks.task import source_task

    if report.format != "sql":
        what = f"{report.source} is {report.described}"
        raise InputError(f"--databases: only for questions with SQL; {what}. Omit it.")
    if not report.ok:
        return  # report invalid rows first
    options = {"format": "sql", "columns": columns or {}, "subset": subset, "split": split}
    task = source_task(DataParts(source_settings(report.source, databases).model_copy(update=options)))
    if task is not None:
        with task:
            for fault in task.faults():
                report.add(Finding(fault.place, fault.text, fault.field))


def _columns(text: str | None) -> dict[str, str] | None:
    """Parse `text=review,label=stars`."""
    from quatrain.core.errors import InputError

    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if wrong := [name for name, equals, column in pairs if not (name and equals and column)]:
        raise InputError(f"--columns {text!r}: {wrong[0]!r} has no column; must look like text=review,label=stars")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _show_report(report: CheckReport) -> None:
    """Show faults, then warnings, then the description of the data."""
    from quatrain.cli.output import shorten, show, show_table

    for findings, count in ((report.faults, report.fault_count), (report.warnings, report.warning_count)):
        for finding in findings:
            show(f"{finding.place}: {'warning: ' if finding.warning else ''}{finding.text}")
        if count > len(findings):
            show(f"… and {count - len(findings):,} more")
    if report.faults or report.warnings:
        show()
    show(f"{report.source}: {report.described}")
    show(f"{report.rows:,} rows, {report.records:,} usable")
    for line in report.left_out:
        show(line)
    if report.labels:
        counts = [f"{shorten(name)} {count:,}" for name, count in list(report.labels.items())[:12]]
        more = ", …" if len(report.labels) > 12 else ""
        show(f"labels: {', '.join(counts)}{more}" + (f" ({report.scheme})" if report.scheme else ""))
    if report.preferences:
        show(_preferences_line(report.preferences))
    if report.lengths:
        columns = list(next(iter(report.lengths.values())))
        show()
        show_table([report.unit, *columns], [[name, *values.values()] for name, values in report.lengths.items()])
        show()
    if report.ok:
        warnings = f", {report.warning_count:,} warnings" if report.warning_count else ""
        show(f"No faults{' in the files that are read' if report.left_out_count else ''}{warnings}.")
    else:
        faults = f"{report.fault_count:,} fault{'s' if report.fault_count > 1 else ''}"
        show(f"{faults}. Correct the data before training.")


def _preferences_line(counts: dict[str, Any]) -> str:
    """The counts of preference data as one line."""
    if "up" in counts:
        total = counts["up"] + counts["down"]
        share = f"{counts['up'] / total:.1%} up"
        return f"{counts['up']:,} up and {counts['down']:,} down ({share}), {counts['prompts']:,} prompts"
    parts = [f"{counts['pairs']:,} pairs of {counts['prompts']:,} prompts", f"{counts['ties']:,} ties"]
    parts += [f"{counts[name]:,} {text}" for name, text in (("identical", "with identical answers"),
              ("contradictions", "that contradict another")) if counts[name]]  # fmt: skip
    if "shorter_wins" in counts:
        parts.append(f"the shorter answer wins in {counts['shorter_wins']:.1%}")
    if "mean_margin" in counts:
        parts.append(f"mean margin {counts['mean_margin']:g}")
    return ", ".join(parts)


def _where(source: Source) -> str:
    """Whether a source is on this machine, can be downloaded, or must be obtained by hand."""
    from quatrain.core.errors import QuatrainError
    from quatrain.data.catalog import locate

    try:
        if locate(source) is not None:
            return "here"
    except QuatrainError:
        return "damaged"
    return "download" if source.urls else "by hand"
