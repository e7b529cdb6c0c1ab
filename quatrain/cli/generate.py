"""`quatrain generate`: one completion of a prompt."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from quatrain.cli.arguments import TextArgument, read_text_argument


def generate(
    model: str,
    prompt: TextArgument,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    stop: tuple[TextArgument, ...] = (),
    num_beams: int = 1,
    length_penalty: float = 1.0,
    truncate: bool = False,
    stream: Annotated[bool, Parameter(negative="--no-stream")] = True,
    adapter: str | None = None,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Complete a prompt.

    Parameters
    ----------
    model
        A model folder, a run's folder or name, or an id of the Hugging Face hub.
    prompt
        The text to go on from, or, for an encoder-decoder, to answer; - reads standard input.
    max_new_tokens
        The most tokens to add.
    temperature
        0 always takes the likeliest token; 1 draws as the model says.
    top_k
        Draw among so many of the likeliest tokens.
    top_p
        Draw among the likeliest tokens that have this share of the probability together.
    min_p
        Draw among tokens at least this share as likely as the likeliest.
    seed
        Makes drawing repeatable.
    stop
        Stop where this text comes up; may be given several times.
    num_beams
        Search for the likeliest text as a whole, with so many beginnings at a time.
    length_penalty
        Of a search with beams: above 0 favours long texts, below 0 short ones.
    truncate
        Cut a prompt that is longer than the model reads, in place of refusing it.
    stream
        Write the text as it comes.
    adapter
        Of a model that holds several, the adapter to go through.
    json_lines
        Write one JSON object with the text, its tokens and why it ended.
    """
    from quatrain.cli.output import shortened, show_error, show_json, show_text
    from quatrain.generation.engine import Engine, SamplingParams

    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop,
        num_beams=num_beams,
        length_penalty=length_penalty,
    )
    prompt = read_text_argument(prompt)
    engine = Engine.load(model, adapter=adapter)
    note = shortened(engine, engine.encode(prompt, adapter), params, truncate=truncate)
    if note is not None:
        show_error(note)
    if json_lines or not stream:
        (completion,) = engine.generate([prompt], params, truncate=truncate)
        if json_lines:
            finish = {"ids": completion.ids, "finish_reason": completion.finish_reason}
            show_json({"prompt": prompt, "text": completion.text} | finish)
        else:
            show_text(completion.text if engine.has_encoder else prompt + completion.text)
        return 0
    show_text("" if engine.has_encoder else prompt, end="")
    for piece in engine.stream(prompt, params, truncate=truncate):
        show_text(piece, end="")
    show_text("")
    return 0
