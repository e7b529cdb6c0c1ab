"""`quatrain generate`: completes a prompt, a file, or a file of prompts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quatrain.cli.arguments import MODEL, TextArgument, read_text_argument
from quatrain.cli.sampling import MODEL_DEFAULTS, SAMPLING_DEFAULTS, ModelOptions, SamplingOptions

if TYPE_CHECKING:
    from quatrain.generation.engine import Completion, Engine, SamplingParams

MAX_NEW_TOKENS = 128
"""The most new tokens where neither an option nor the model's settings say it."""


def generate(
    model: Annotated[str, MODEL],
    prompt: TextArgument | None = None,
    *,
    file: Path | None = None,
    prompts: Path | None = None,
    out: Path | None = None,
    samples: int = 1,
    truncate: bool = False,
    explain: bool = False,
    stream: Annotated[bool, Parameter(negative="--no-stream")] = True,
    sampling: SamplingOptions = SAMPLING_DEFAULTS,
    loading: ModelOptions = MODEL_DEFAULTS,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
    quiet: bool = False,
) -> int:
    """Complete a prompt, the text of a file, or each line of a file of prompts.

    Parameters
    ----------
    model
        A model folder, an adapter folder, a run's folder or name, or an id of the Hugging Face hub.
    prompt
        The text to continue, or the input of an encoder-decoder; - reads standard input.
    file
        Continue the text of this file.
    prompts
        Complete every line of this file: JSON lines of "text", {"prompt": …} or {"messages": […]}. Needs --out.
    out
        Where the completions of --prompts are written, one JSON object a line. A stopped call is continued.
    samples
        The number of completions of each prompt.
    truncate
        Cut a prompt that exceeds the model's context, instead of an error.
    explain
        Show the probability of each token, and the most likely alternatives.
    stream
        Write the text while it is generated.
    json_lines
        Write one JSON object with the text, its tokens and the finish reason.
    quiet
        Write no notes, speed or progress.
    """
    from quatrain.cli.output import shortened, show_error
    from quatrain.core.errors import InputError
    from quatrain.core.reading import read_text

    sources = {"a prompt": prompt, "--file": file, "--prompts": prompts}
    given = [name for name, value in sources.items() if value is not None]
    problems = []
    if len(given) != 1:
        problems.append(f"give one of {', '.join(sources)}; there {'is none' if not given else f'are {_all(given)}'}")
    if (prompts is None) != (out is None):
        problems.append("--prompts and --out: give both, the file of prompts and the file of their completions")
    if prompts is not None and explain:
        problems.append("--explain: only for one prompt; leave it out with --prompts")
    if samples < 1:
        problems.append(f"--samples {samples}: must be at least 1")
    if problems:
        raise InputError("These options do not fit together:", problems)
    more: dict[str, Any] = {"num_return_sequences": samples} if samples > 1 else {}
    if explain:
        from quatrain.cli.explain import ALTERNATIVES

        more["logprobs"] = ALTERNATIVES
    if prompts is not None and out is not None:
        return _complete_file(model, prompts, out, sampling, loading, more, truncate, json_lines, quiet)
    text = read_text(file, 1 << 26) if file is not None else read_text_argument(prompt or "")
    engine = loading.load(model)
    params = sampling.params(engine, max_new_tokens=MAX_NEW_TOKENS, **more)
    note = None if quiet else shortened(engine, engine.encode(text, loading.adapter), params, truncate=truncate)
    if note is not None:
        show_error(note)
    if json_lines or explain or params.num_return_sequences > 1 or not stream:
        started = time.perf_counter()
        (completion,) = engine.generate([text], params, truncate=truncate, adapters=loading.adapter)
        seconds = time.perf_counter() - started
        _show(engine, text, completion, json_lines=json_lines, explain=explain, seconds=seconds)
    else:
        completion, seconds = _stream(engine, text, params, truncate=truncate, adapter=loading.adapter)
    if not json_lines and not quiet:
        show_speed(completion, seconds)
    return 0


def show_speed(completion: Completion, seconds: float) -> None:
    """Writes the number of new tokens and the speed to standard error, if it is a terminal."""
    import sys

    from quatrain.cli.output import show_error

    tokens = sum(len(each.ids) for each in (completion, *completion.alternatives))
    if sys.stderr.isatty():
        show_error(f"({tokens:,} tokens in {seconds:.1f} s, {tokens / max(seconds, 1e-9):,.1f} tokens/s)")


def _all(names: list[str]) -> str:
    return " and ".join(names)


def _stream(
    engine: Engine, text: str, params: SamplingParams, *, truncate: bool, adapter: str | None
) -> tuple[Completion, float]:
    """Writes a completion while it is generated; returns it, and the seconds that it took."""
    from quatrain.cli.output import show_text

    pieces = engine.stream(text, params, truncate=truncate, adapter=adapter)
    show_text("" if engine.has_encoder else text, end="")
    started, completions = time.perf_counter(), []
    for piece in pieces:
        show_text(piece, end="")
        completions += [] if piece.completion is None else [piece.completion]
    show_text("")
    return completions[-1], time.perf_counter() - started


def _show(
    engine: Engine, text: str, completion: Completion, *, json_lines: bool, explain: bool, seconds: float
) -> None:
    from quatrain.cli.explain import explanation, show_explanation
    from quatrain.cli.output import show, show_json, show_text

    every = [completion, *completion.alternatives]
    if json_lines:
        tokens = sum(len(each.ids) for each in every)
        speed = {"seconds": round(seconds, 3), "tokens_per_second": round(tokens / max(seconds, 1e-9), 1)}
        for number, each in enumerate(every):
            record: dict[str, Any] = {"prompt": text, "text": each.text, "ids": each.ids}
            record |= {"finish_reason": each.finish_reason} | ({"sample": number} if len(every) > 1 else {}) | speed
            show_json(record | ({"tokens": explanation(engine, each)} if explain else {}))
        return
    for number, each in enumerate(every, 1):
        if len(every) > 1:
            show(f"{'' if number == 1 else chr(10)}--- sample {number} of {len(every)} ---")
        if explain:
            show_explanation(engine, each)
        else:
            show_text(each.text if engine.has_encoder else text + each.text)


def _complete_file(
    model: str,
    prompts: Path,
    out: Path,
    sampling: SamplingOptions,
    loading: ModelOptions,
    more: dict[str, Any],
    truncate: bool,
    json_lines: bool,
    quiet: bool,
) -> int:
    from quatrain.cli.output import show_json
    from quatrain.cli.prompts import complete_file, read_prompts
    from quatrain.core.progress import create_reporter

    lines = read_prompts(prompts)
    engine = loading.load(model)
    params = sampling.params(engine, max_new_tokens=MAX_NEW_TOKENS, **more)
    reporter = create_reporter(json_lines=json_lines, quiet=quiet)
    started = time.perf_counter()
    tokens = complete_file(engine, lines, params, out, model=model, truncate=truncate, reporter=reporter)
    seconds = time.perf_counter() - started
    speed = tokens / max(seconds, 1e-9)
    if json_lines:
        counts = {"prompts": len(lines), "new_tokens": tokens, "tokens_per_second": round(speed, 1)}
        show_json({"event": "finished"} | counts)
    elif not quiet:
        reporter.info(f"{out}: {len(lines):,} completions; {tokens:,} new tokens, {speed:,.1f} tokens/s.")
    return 0
