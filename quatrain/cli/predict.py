"""`quatrain predict`: applies a trained model to new inputs through the pipeline of its task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from quatrain.cli.arguments import MODEL, TextArgument
from quatrain.cli.sampling import SAMPLING_DEFAULTS, SamplingOptions
from quatrain.compression.settings import Method

if TYPE_CHECKING:
    from quatrain.tasks.pipelines.base import Pipeline, Prediction
    from quatrain.tasks.pipelines.files import Input


@Parameter(name="*")
@dataclass(frozen=True)
class RunningOptions:
    """Where and how the model runs."""

    device: str = "auto"
    """Where the model runs: auto, cpu, cuda, cuda:1 or mps."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The number format of the weights; auto keeps that of the files, and float32 on a CPU."""
    quantize: Method | None = None
    """Round the weights to 8 or 4 bits while they are loaded."""
    batch_size: int = 32
    """Inputs that are read at once."""


@Parameter(name="*")
@dataclass(frozen=True)
class InputOptions:
    """The parts of an input beside the text."""

    pair: TextArgument | None = None
    """The second text, for a model that takes text pairs."""
    question: TextArgument | None = None
    """The question that a model answers from the text, the table or the database."""

    def given(self) -> dict[str, Any]:
        """The parts by the names of the fields that they become."""
        parts = {"text_pair": self.pair, "question": self.question}
        return {name: value for name, value in parts.items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class TaskOptions:
    """The options of single tasks; docs/pipelines.md says which task has which."""

    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    """Classes: how logits become scores."""
    candidate_labels: tuple[TextArgument, ...] = ()
    """Zero-shot classes: a label to choose from; may be given several times, or once with commas between."""
    hypothesis_template: TextArgument | None = None
    """Zero-shot classes: the hypothesis of a label, such as "This text is about {}."."""
    multi_label: bool = False
    """Zero-shot classes: several labels may hold, and each is scored by itself."""
    aggregation_strategy: Literal["none", "simple", "first", "average", "max", "words"] | None = None
    """Tokens: how they become entities or words."""
    ignore_labels: tuple[TextArgument, ...] = ()
    """Tokens: a label that is left out; may be given several times."""
    stride: int | None = None
    """Tokens: how many two windows of a long text share."""
    doc_stride: int | None = None
    """Answers: tokens that two windows of a long text share."""
    max_answer_len: int | None = None
    """Answers: the most tokens of one."""
    max_seq_len: int | None = None
    """Answers: the most tokens of a window with its question."""
    max_question_len: int | None = None
    """Answers: read so many tokens of the question."""
    handle_impossible_answer: bool = False
    """Answers: "no answer" is possible."""
    threshold: float | None = None
    """Answers: how much likelier "no answer" must be than the best answer, in nats."""
    targets: tuple[TextArgument, ...] = ()
    """Masks: score this word alone; may be given several times."""
    normalize: bool | None = None
    """Vectors: give them length 1, whatever the model says."""
    prompt_name: str | None = None
    """Vectors: the prompt of the model's own that stands before each text, such as query."""
    prompt: TextArgument | None = None
    """Vectors: a text that stands before each text."""
    truncate_dim: int | None = None
    """Vectors: keep the first so many numbers (Matryoshka embeddings)."""
    precision: Literal["float32", "int8", "uint8", "binary", "ubinary"] | None = None
    """Vectors: the format of the numbers."""
    prefix: TextArgument | None = None
    """Texts: what stands before each source, such as "summarize: "."""
    source_prefix: TextArgument | None = None
    """The same as --prefix, under the name that recipes have."""
    truncation: bool = False
    """Texts: shorten a source that exceeds the model's context, instead of an error."""
    src_lang: str | None = None
    """Translations: the language of the texts, for a model of several."""
    tgt_lang: str | None = None
    """Translations: the language of the translations."""
    until: Literal["line", "block", "none"] | None = None
    """Code: where a completion ends."""
    return_full_text: bool | None = None
    """Generated texts: repeat the prompt."""
    language: str | None = None
    """Speech: what is spoken, such as de; by default the model hears it."""
    translate: bool = False
    """Speech: write English, whatever is spoken."""
    timestamps: Literal["none", "segments", "words"] | None = None
    """Speech: the times that are shown."""
    initial_prompt: TextArgument | None = None
    """Speech: a text that is read as if it stood before the recording, such as names."""
    temperatures: tuple[float, ...] = ()
    """Speech: a temperature to try where those before it give a poor text; may be given several times."""
    compression_threshold: float | None = None
    """Speech: a text that compresses better than this repeats itself and is poor."""
    logprob_threshold: float | None = None
    """Speech: a text with a lower mean log-probability, in nats per token, is poor."""
    no_speech_threshold: float | None = None
    """Speech: drop a poor text where the probability of no speech is above this."""
    condition_on_previous: Annotated[bool | None, Parameter(negative="--no-condition-on-previous")] = None
    """Speech: whether the text of a window continues that of the window before."""
    voice_activity: Annotated[bool | None, Parameter(negative="--no-voice-activity")] = None
    """Speech: skip parts without a voice."""
    schema_prompt: bool | None = None
    """Tables: show the model the tables before each question."""
    db: Path | None = None
    """Tables: the SQLite database that is asked; the inputs are questions."""
    table: Path | None = None
    """Tables: the file of a table (.csv, .jsonl, …) that is asked; the inputs are questions."""

    def given(self) -> dict[str, Any]:
        """The options that were given."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        given = {name: value for name, (value, default) in values.items() if value != default}
        if "source_prefix" in given:
            given["prefix"] = given.pop("source_prefix")
        if len(labels := given.get("candidate_labels", ())) == 1:
            given["candidate_labels"] = labels[0]
        return given


@Parameter(name="*")
@dataclass(frozen=True)
class FileOptions:
    """Files of inputs and of predictions."""

    columns: str | None = None
    """The column of each role in a file, such as text=review or context=passage,question=query."""
    output: Path | None = None
    """Write the predictions to this file, one JSON object a line, with progress. A stopped call is continued."""


RUNNING, NO_INPUTS, NO_OPTIONS, NO_FILES = RunningOptions(), InputOptions(), TaskOptions(), FileOptions()


def predict(
    model: Annotated[str, MODEL],
    text: TextArgument,
    *texts: TextArgument,
    task: str | None = None,
    inputs: InputOptions = NO_INPUTS,
    options: TaskOptions = NO_OPTIONS,
    sampling: SamplingOptions = SAMPLING_DEFAULTS,
    running: RunningOptions = RUNNING,
    files: FileOptions = NO_FILES,
    json_lines: Annotated[bool, Parameter(name="--json")] = False,
) -> int:
    """Use a model on new inputs: classes, tags, entities, answers, choices, texts, vectors, masked words.

    The head of the model determines the task, unless --task names one. Classification prints label, probability and
    text; tagging prints one word per line.

    Parameters
    ----------
    model
        A model folder, an adapter, a run's folder or name, or an id of the Hugging Face hub.
    text
        A text, a file, or - for standard input. A file has one text per line, or rows (.jsonl, .csv, …) with a text
        column.
    texts
        More texts or files.
    task
        The task by Hugging Face's name, such as ner or zero-shot-classification.
    json_lines
        Write one JSON object per input, with the probability of every label.
    """
    from quatrain.cli.data import _columns
    from quatrain.cli.output import show, show_json
    from quatrain.tasks.pipelines import pipeline
    from quatrain.tasks.pipelines.files import output_record

    given = sampling.given() | options.given()
    pipe = pipeline(
        task, model, device=running.device, dtype=running.dtype, quantize=running.quantize,
        batch_size=running.batch_size,
    )  # fmt: skip
    chosen = _chosen(pipe, given)
    extra = _extra(pipe, inputs)
    columns = _columns(files.columns)
    if files.output is not None:
        return _to_file(pipe, model, _all_inputs((text, *texts), pipe, columns, extra), files.output, chosen)
    for source in (text, *texts):
        pending: list[tuple[str, Input]] = []
        examples = _pended(_inputs(source, pipe, columns, extra), pending)
        for prediction in pipe.predict(examples, batch_size=1 if source == "-" else None, **chosen):
            place, example = pending.pop(0)
            _warn(place, prediction)
            if json_lines:
                show_json(output_record(pipe, example, prediction))
            else:
                show(pipe.line(_shortened(example), prediction.value))
    return 0


def _chosen(pipe: Pipeline, given: dict[str, Any]) -> dict[str, Any]:
    """The options of the call. Raises InputError for those that the task does not have."""
    from quatrain.core.errors import InputError

    known = pipe.Options.model_fields
    problems = [f"--{name.replace('_', '-')}: {pipe.name} does not take it" for name in given if name not in known]
    if problems:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in known)
        raise InputError("These options do not fit the task:", [*problems, f"{pipe.name} has {names or 'no options'}"])
    return pipe.file_options() | given if not given.keys() & {"top_k"} else given


def _extra(pipe: Pipeline, inputs: InputOptions) -> dict[str, Any]:
    """The parts of every input that options give. Raises InputError for those that the task does not read."""
    from quatrain.core.errors import InputError

    names = {field.name for field in pipe.fields}
    words = {"text_pair": ("--pair", "pairs"), "question": ("--question", "questions")}
    for name in inputs.given():
        if name not in names:
            option, what = words[name]
            raise InputError(f"{option}: the head {pipe.config.head} of the model does not take {what}")
    return inputs.given()


def _to_file(
    pipe: Pipeline, model: str, inputs: Iterator[tuple[str, Input]], output: Path, options: dict[str, Any]
) -> int:
    import sys

    from quatrain.core.progress import create_reporter
    from quatrain.tasks.pipelines.files import predict_file

    reporter = create_reporter(stream=sys.stderr)
    count = predict_file(pipe, inputs, output, model=model, reporter=reporter, **options)
    reporter.info(f"{output}: {count:,} new predictions")
    return 0


def _all_inputs(
    sources: tuple[str, ...], pipe: Pipeline, columns: dict[str, str] | None, extra: dict[str, Any]
) -> Iterator[tuple[str, Input]]:
    for source in sources:
        yield from _inputs(source, pipe, columns, extra)


def _inputs(
    source: str, pipe: Pipeline, columns: dict[str, str] | None, extra: dict[str, Any]
) -> Iterator[tuple[str, Input]]:
    """The inputs of a source with their places."""
    from quatrain.cli.process import input_lines
    from quatrain.core.errors import InputError
    from quatrain.tasks.pipelines.files import is_file, of_lines, read_inputs

    examples: Iterator[tuple[str, Input]]
    if pipe.fields[0].kind == "file":  # The task reads the file itself, and says what is wrong with it.
        examples = iter([(source, source)])
    elif source == "-":
        examples = of_lines(input_lines(), "standard input")
    elif is_file(source):
        examples = read_inputs(source, type(pipe), columns)
    elif not source.strip():
        raise InputError("the text is empty; give a text, a file, or - for standard input")
    else:
        examples = iter([("the text", source)])
    for place, example in examples:
        if extra:
            example = ({pipe.fields[0].name: example} if isinstance(example, str) else dict(example)) | extra
        yield place, example


def _pended(examples: Iterator[tuple[str, Input]], pending: list[tuple[str, Input]]) -> Iterator[Input]:
    """The examples; each is also added to `pending` with its place, until its prediction is shown."""
    for each in examples:
        pending.append(each)
        yield each[1]


def _warn(place: str, prediction: Prediction) -> None:
    import sys

    from quatrain.core.wording import write_text

    if prediction.cut:
        write_text(sys.stderr, f"{place}: {prediction.cut:,} tokens exceed the model's context and were dropped\n")


def _shortened(example: Input) -> str:
    """An input for people, in one line."""
    from quatrain.cli.output import shorten

    return str(shorten(example if isinstance(example, str) else " | ".join(str(each) for each in example.values())))
