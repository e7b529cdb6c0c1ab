"""`quatrain predict`: applies a trained model to new texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from quatrain.cli.arguments import TextArgument

if TYPE_CHECKING:
    from quatrain.tasks.predict import Prediction


def predict(
    model: str,
    text: TextArgument,
    *texts: TextArgument,
    pair: TextArgument | None = None,
    question: TextArgument | None = None,
    columns: str | None = None,
    source_prefix: str = "",
    max_new_tokens: int = 120,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Predict on new texts: classes, word tags, answers, choices, translations and summaries, embeddings, masked words.

    The head of the model determines the task. Classification prints label, probability and text; tagging prints one
    word per line.

    Parameters
    ----------
    model
        A model folder, an adapter, a run's folder or name, or an id of the Hugging Face hub.
    text
        A text, a file, or - for standard input. A file has one text per line, or rows (.jsonl, .csv, …) with a text
        column.
    texts
        More texts or files.
    pair
        The second text, for a model that takes text pairs.
    question
        The question that an extractive model answers from the text.
    columns
        The column of each role in a file, such as text=review or context=passage,question=query.
    source_prefix
        The prefix of each source with which a sequence-to-sequence model was trained, such as "summarize: ".
    max_new_tokens
        The maximum number of generated tokens per source.
    json_lines
        Write one JSON object per text, with the probability of every label.
    """
    from quatrain.cli.data import _columns
    from quatrain.cli.output import show, show_json
    from quatrain.core.errors import InputError
    from quatrain.tasks.predict import Predictor

    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens {max_new_tokens}: must be at least 1")
    predictor = Predictor.load(model, source_prefix=source_prefix, max_new_tokens=max_new_tokens)
    head = predictor.config.head
    more = {"text_pair": pair, "question": question}
    if pair is not None and head != "sequence_classification":
        raise InputError(f"--pair: the head {head} of the model does not take pairs")
    if question is not None and head != "question_answering":
        raise InputError(f"--question: the head {head} of the model does not take questions")
    extra = {name: value for name, value in more.items() if value is not None}
    for source in (text, *texts):
        pending: list[tuple[str, Any]] = []
        live = source == "-"
        inputs = _inputs(source, head, _columns(columns), extra, pending)
        for prediction in predictor.predict(inputs, batch_size=1 if live else 32):
            place, example = pending.pop(0)
            _warn(place, prediction)
            if json_lines:
                record = (
                    {"source" if head == "seq2seq" else "text": example} if isinstance(example, str) else dict(example)
                )
                show_json(record | prediction.value | ({"cut": prediction.cut} if prediction.cut else {}))
            else:
                show(_line(example, prediction))
    return 0


def _inputs(
    source: str, head: str, columns: dict[str, str] | None, extra: dict[str, str], pending: list[tuple[str, Any]]
) -> Iterator[Any]:
    """The inputs of a source; each is also added to `kept` with its place."""
    from quatrain.cli.process import input_lines
    from quatrain.core.errors import InputError
    from quatrain.tasks.inputs import is_file, of_lines, read_inputs
    from quatrain.tasks.predict import FIELDS

    if source == "-":
        examples = of_lines(input_lines(), "standard input")
    elif is_file(source):
        examples = read_inputs(source, head, columns)
    elif not source.strip():
        raise InputError("the text is empty; give a text, a file, or - for standard input")
    else:
        examples = iter([("the text", source)])
    for place, example in examples:
        if extra:
            example = ({FIELDS[head][0]: example} if isinstance(example, str) else dict(example)) | extra
        pending.append((place, example))
        yield example


def _warn(place: str, prediction: Prediction) -> None:
    import sys

    from quatrain.core.wording import write_text

    if prediction.cut:
        write_text(sys.stderr, f"{place}: {prediction.cut:,} tokens exceed the model's context and were dropped\n")


def _line(example: Any, prediction: Prediction) -> str:
    """A prediction formatted for people."""
    from quatrain.cli.output import shorten

    value = prediction.value
    text = example if isinstance(example, str) else " | ".join(str(each) for each in example.values())
    if "words" in value:
        return "\n".join(f"{each['word']}\t{each['label']}" for each in value["words"]) + "\n"
    if "masks" in value:
        return "\n".join(
            ", ".join(f"{each['token'].strip()} {each['score']:.4f}" for each in mask) for mask in value["masks"]
        )
    if "vector" in value:
        return " ".join(f"{number:.6g}" for number in value["vector"])
    if "choice" in value:
        return f"{value['choice']}\t{value['scores'][value['number']]:.4f}"
    if "answer" in value:
        return f"{value['answer']}\t{value['score']:.4f}"
    if "text" in value:
        return str(value["text"])
    if "labels" in value:
        labels = ", ".join(f"{label} {value['scores'][label]:.4f}" for label in value["labels"])
        return f"{labels or 'none'}\t{shorten(text)}"
    if "label" in value:
        return f"{value['label']}\t{value['score']:.4f}\t{shorten(text)}"
    return "\t".join([*(f"{number:.4f}" for number in value["scores"].values()), str(shorten(text))])
