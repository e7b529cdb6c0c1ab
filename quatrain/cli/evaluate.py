"""`quatrain evaluate`: how well a model predicts a text."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter


def evaluate(
    model: str,
    text: str,
    *,
    context: int | None = None,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Measure the perplexity of a text: how surprised the model is, over all of it.

    Parameters
    ----------
    model
        A model folder, or an id of the Hugging Face hub.
    text
        A text file, a folder of them, or a name that `quatrain data list` shows.
    context
        The tokens of one window; the model's longest unless given.
    json_lines
        Write one JSON object, for programs.
    """
    import math

    import numpy as np

    from quatrain.cli.output import show, show_json
    from quatrain.errors import InputError
    from quatrain.evaluation.perplexity import text_loss
    from quatrain.generation.loading import load_model
    from quatrain.text.files import read_documents

    network, tokenizer = load_model(model)
    if tokenizer is None:
        raise InputError(f"{model} has no tokenizer: a text cannot be measured without its tokens")
    if network.config.head != "causal":
        raise InputError(f"{model} has the head {network.config.head}: perplexity is of models that say the next token")
    longest = network.config.context_length
    if context is not None and not 1 <= context <= longest:
        raise InputError(f"--context {context}: must be from 1 to the model's longest, {longest}")
    documents = list(read_documents(text))
    ids = [token for document in documents for token in tokenizer.encode(document)]
    measured = text_loss(network, np.asarray(ids, dtype=np.int64), context=context or longest)
    characters = sum(map(len, documents))
    bits = measured.loss * measured.count / math.log(2) / max(1, characters)
    if json_lines:
        figures = {"loss": measured.loss, "perplexity": measured.perplexity, "bits_per_character": bits}
        show_json(figures | {"tokens": measured.count, "characters": characters})
        return 0
    show(f"loss                {measured.loss:.4f} nats a token")
    show(f"perplexity          {measured.perplexity:.3f}")
    show(f"bits per character  {bits:.4f}")
    show(f"tokens              {measured.count:,}")
    return 0
