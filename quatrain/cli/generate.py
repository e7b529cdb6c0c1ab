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
        The text to continue, or the input of an encoder-decoder; - reads standard input.
    max_new_tokens
        The maximum number of new tokens.
    temperature
        0 is greedy decoding; 1 samples from the model's distribution.
    top_k
        Sample only from the k most likely tokens.
    top_p
        Sample only from the most likely tokens whose probabilities sum to this value.
    min_p
        Sample only from tokens with at least this fraction of the highest probability.
    seed
        Makes sampling repeatable.
    stop
        Stop at this text; may be given several times.
    num_beams
        The number of beams of beam search; 1 turns it off.
    length_penalty
        For beam search: values above 0 favour long texts, below 0 short ones.
    truncate
        Cut a prompt that exceeds the model's context, instead of an error.
    stream
        Write the text while it is generated.
    adapter
        The adapter to use, for a model with several.
    json_lines
        Write one JSON object with the text, its tokens and the finish reason.
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
