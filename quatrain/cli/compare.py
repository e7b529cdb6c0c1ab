"""`quatrain compare`: models on the same questions, paired; or a leaderboard of all results in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import Parameter


def compare(
    *models: str,
    suite: str | None = None,
    text: str | None = None,
    kv_cache: Annotated[bool, Parameter(negative=())] = False,
    documents: str | None = None,
    limit: int | None = None,
    shots: int | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    output: str | None = None,
    page: str | None = None,
    fresh: bool = False,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Compare models, adapters, settings or quantizations on one suite; or list all results of a folder.

    Both sides answer the same examples. Differences have paired bootstrap intervals, right and wrong answers McNemar's
    test. With one folder and no suite: the leaderboard of the results of `quatrain evaluate` below it.

    Parameters
    ----------
    models
        Models (folders, runs, hub ids, http://HOST/v1#NAME), each perhaps with settings: MODEL@quantize=int8,shots=2.
        Or one folder with results, such as runs.
    suite
        SUITE or SUITE:FILE, as for `quatrain evaluate`.
    text
        Instead of a suite: a text (file, folder or catalog name). Shows weights, bytes, perplexity and generated tokens
        per second of each model, measured in turns.
    kv_cache
        With --text and one model: the KV cache in float, int8 and int4, by bytes, perplexity, divergence and speed.
    documents
        Instead of a suite: a collection with judgements (cranfield, a folder in BEIR's form), or questions and answers.
        Compares rankings, bm25, dense, hybrid or feedback, as RETRIEVER@dense=lsa+MODEL,chunks=headings,size=200.
    limit
        How many examples to take from the beginning; all by default.
    shots
        Worked examples before each question.
    max_new_tokens
        The most tokens of an answer; the suite's own number by default.
    batch_size
        Answers that are computed together.
    output
        The folder of the stored answers; by default as for `quatrain evaluate`.
    page
        Write an HTML page to this file.
    fresh
        Ask everything anew, although answers are stored.
    json_lines
        Write one JSON object, for programs.
    """
    from quatrain.cli.output import show, show_json
    from quatrain.core.errors import InputError
    from quatrain.core.progress import SilentReporter, create_reporter
    from quatrain.evaluation.compare import compare as compared
    from quatrain.evaluation.compare import leaderboard

    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: must be at least 1")
    if kv_cache:
        return _compare_caches(models, text, json_lines=json_lines)
    if text is not None:
        return _compare_footprints(models, text, suite=suite, json_lines=json_lines)
    if documents is not None:
        return _compare_rankings(models, documents, limit, json_lines=json_lines)
    if suite is None:
        if len(models) != 1:
            raise InputError(
                "compare needs two models and --suite NAME or --text FILE, rankings and --documents SOURCE, or one "
                "folder with results"
            )
        result = leaderboard(models[0])
    else:
        given = {"shots": shots, "max_new_tokens": max_new_tokens}
        options = {name: value for name, value in given.items() if value is not None}
        reporter = SilentReporter() if json_lines else create_reporter()
        result = compared(models, suite, options=options, limit=limit, folder=output, batch_size=batch_size,
                          reporter=reporter, fresh=fresh)  # fmt: skip
    if page is not None:
        from quatrain.evaluation.report.model_comparison import write_comparison

        write_comparison(result, page)
    if json_lines:
        show_json(result)
        return 0
    (_show_board if suite is None else _show_comparison)(result)
    if page is not None:
        show(f"page: {page}")
    return 0


def _compare_footprints(models: tuple[str, ...], text: str, *, suite: str | None, json_lines: bool) -> int:
    """Bytes, perplexity and speed of models on one text. Raises InputError."""
    from quatrain.cli.compressing import MEASURED, Texts, present
    from quatrain.core.errors import InputError
    from quatrain.evaluation.compare import Contestant
    from quatrain.evaluation.compression import text_tokens
    from quatrain.loading.model import load_model

    problems = [] if len(models) > 1 else ["--text compares at least two models: quatrain compare A B --text FILE"]
    if suite is not None:
        problems.append(f"--suite {suite}: leave it out beside --text")
    sides = [Contestant.of(name) for name in models]
    for side in sides:
        problems += [f"{side.name}: {name}; --text reads quantize alone" for name in side.options]
    if problems:
        raise InputError("These models cannot be compared:", problems)
    loaded = [load_model(side.model, quantize=side.quantize) for side in sides]
    tokenizers = [tokenizer for _, tokenizer in loaded]
    if any(each is None or each.fingerprint != tokenizers[0].fingerprint for each in tokenizers):
        raise InputError("The models have different tokenizers, so their perplexities cannot be compared: "
                         "take `--suite perplexity:FILE`, which counts bits per byte.")  # fmt: skip
    context = min(model.config.context_length for model, _ in loaded)
    texts = Texts(tokens=text_tokens(text, tokenizers[0], MEASURED), context=min(2048, context))
    named = [(side.name, model) for side, (model, _) in zip(sides, loaded, strict=True)]
    present(named, texts, out=None, json_lines=json_lines)
    return 0


def _compare_caches(models: tuple[str, ...], text: str | None, *, json_lines: bool) -> int:
    """What a rounded KV cache costs one model on a text. Raises InputError."""
    from quatrain.cli.compressing import LONGEST, MEASURED
    from quatrain.cli.output import show, show_json, show_marked, show_table
    from quatrain.core.errors import InputError
    from quatrain.evaluation.compression import CACHE_COLUMNS, cache_costs, cache_verdict, text_tokens
    from quatrain.loading.model import load_model

    if len(models) != 1 or text is None:
        raise InputError("--kv-cache compares the caches of one model on a text: quatrain compare MODEL --kv-cache "
                         "--text FILE")  # fmt: skip
    model, tokenizer = load_model(models[0])
    if tokenizer is None:
        raise InputError(f"{models[0]}: has no tokenizer, so it cannot read a text.")
    context = min(model.config.context_length, LONGEST)
    costs = cache_costs(model, text_tokens(text, tokenizer, MEASURED), context=context)
    lines = list(cache_verdict(costs))
    if json_lines:
        show_json({"verdict": lines, "caches": [vars(each) for each in costs]})
        return 0
    for line in lines:
        show_marked(line, red=line.startswith("SLOWER"))
    show_table(CACHE_COLUMNS, [each.row() for each in costs])
    show(f"{text}, windows of {context:,} tokens; speed after half a window")
    return 0


def _compare_rankings(rankings: tuple[str, ...], source: str, limit: int | None, *, json_lines: bool) -> int:
    """Chunkers, retrievers and encoders on the same questions. Raises InputError, all problems at once."""
    import tempfile
    from pathlib import Path

    from quatrain.cli.output import show, show_json, show_table
    from quatrain.core.errors import InputError
    from quatrain.core.progress import SilentReporter, create_reporter
    from quatrain.core.wording import format_bytes
    from quatrain.evaluation.retrieval import Choice, as_records, compare_retrieval, question_sets

    problems: list[str] = []
    choices: list[Choice] = []
    for text in rankings:
        try:
            choices.append(Choice.of(text))
        except InputError as error:
            problems += [error.message, *(f"  {each}" for each in error.problems)]
    if not rankings:
        problems.append("name at least one ranking, such as bm25 or hybrid@dense=lsa")
    if problems:
        raise InputError("These rankings cannot be compared:", problems)
    reporter = SilentReporter() if json_lines else create_reporter()
    with tempfile.TemporaryDirectory() as name:
        sets = question_sets(source, Path(name), limit)
        records = as_records(list(compare_retrieval(sets, choices, Path(name), reporter=reporter)))
    if json_lines:
        show_json({"documents": source, "questions": len(sets.answerable), "rankings": records})
        return 0
    show(f"{source}: {len(sets.answerable):,} questions, {len(sets.unanswerable):,} without an answer")
    rows = []
    for record in records:
        over = record.get("over_first")
        shown = f"{over['value']:+.3f} ({over['low']:+.3f} to {over['high']:+.3f})" if over else ""
        measures = (f"{record[key]:.3f}" for key in ("ndcg_10", "map", "mrr", "recall_10", "recall_100"))
        costs = f"{record['index_seconds']:.1f}", f"{record['search_ms']:.1f}", format_bytes(record["bytes"])
        rows.append((record["ranking"], *measures, shown, f"{record['chunks']:,}", *costs))
    names = ("nDCG@10", "MAP", "MRR", "recall@10", "recall@100", "nDCG@10 over the first (95 %)")
    show_table(("ranking", *names, "chunks", "index s", "ms a question", "index"), rows)
    if any("answers" in record for record in records):
        measured = ("answered", "refused", "right_document", "overlap", "verified")
        table = [(each["ranking"], *(f"{each['answers'][name]:.3f}" for name in measured)) for each in records]
        show_table(("ranking", *(name.replace("_", " ") for name in measured)), table)
    return 0


def _show_comparison(result: Mapping[str, Any]) -> None:
    from quatrain.cli.output import show, show_marked, show_table
    from quatrain.core.wording import format_bytes
    from quatrain.evaluation.compare import verdict
    from quatrain.evaluation.measures import shown, shown_interval

    models = result["models"]
    show(f"{result['suite']}: {result['title']}, {result['count']:,} examples")
    names = list(dict.fromkeys(score["name"] for model in models for score in model["scores"]))
    rows = []
    for side in [*models, *result["baselines"]]:
        own = {score["name"]: score for score in side["scores"]}
        sizes, speed = side.get("size") or {}, side.get("speed") or {}
        memory = format_bytes(sizes["bytes"]) if sizes.get("bytes") else ""
        rate = f"{speed['examples_per_second']:.2f}" if speed else ""
        rows.append((side["name"], *(shown(own[name]) if name in own else "" for name in names), memory, rate))
    show_table(("model", *names, "memory", "examples/s"), rows)
    for model in models:
        for each in model["below"]:
            show_marked(f"{model['name']}: {each['score']} is below {each['baseline']}", red=True)
    for pair in result["pairs"]:
        show(f"\n{pair['first']} minus {pair['second']}")
        table = []
        for score in pair["scores"]:
            p_value = "" if score["p_value"] is None else f"{score['p_value']:.3f}"
            interval = shown_interval(score)
            table.append((score["name"], shown(score), interval, p_value, verdict(score)))
        show_table(("score", "difference", "95 % interval", "p", f"{pair['first']} is"), table)
        if test := pair.get("mcnemar"):
            show(f"right alone: {test['only_first']:,} and {test['only_second']:,} examples; McNemar's exact test: "
                 f"p = {test['p_value']:.3f}")  # fmt: skip
    apart = result["differing"]
    show(f"\nThey differ on {apart['count']:,} of {apart['of']:,} examples.")
    for example in apart["examples"][:3]:
        show(f"{example['prompt']}\n  reference: {example['reference']}")
        for model, answer in zip(models, example["answers"], strict=True):
            show(f"  {model['name']}: {answer}")


def _show_board(result: Mapping[str, Any]) -> None:
    from quatrain.cli.output import show, show_marked
    from quatrain.core.wording import format_bytes, text_table
    from quatrain.evaluation.measures import shown, shown_interval

    for board in result["suites"]:
        show(board["suite"])
        rows = []
        for row in board["rows"]:
            memory = format_bytes(row["size"]["bytes"]) if row["size"].get("bytes") else ""
            interval = shown_interval(row)
            rows.append(
                (row["name"], row["dtype"], row["metric"], shown(row), interval, memory, ", ".join(row["below"]))
            )
        columns = ("model", "weights", "score", "value", "95 % interval", "memory", "below")
        metric = board["rows"][0]["metric"]
        rows += [
            (f"  {each['name']}", each["kind"], metric, shown(score), "", "", "")
            for each in board["baselines"] for score in each["scores"] if score["name"] == metric
        ]  # fmt: skip
        lines = text_table(columns, rows).splitlines()
        beaten = [bool(row[-1]) for row in rows]
        for line, red in zip(lines, [False, False, *beaten], strict=True):
            show_marked(line, red=red)
        show()
    for path in result["damaged"]:
        show(f"left out, unreadable: {path}")
