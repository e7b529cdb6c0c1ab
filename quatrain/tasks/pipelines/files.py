"""Files of inputs and files of predictions: a text a line, or rows with the columns that a task needs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quatrain.core.atomic import disk_errors
from quatrain.core.errors import InputError
from quatrain.core.reading import decode, exists, lone_surrogate, open_regular, parse_json, user_path
from quatrain.core.wording import format_value
from quatrain.data.decoding import check_head, lines_of, read_text, suffix_of
from quatrain.data.formats import input_columns
from quatrain.data.rows import RECORD_SUFFIXES, read_records
from quatrain.data.sources import TEXT_SUFFIXES, is_record_file
from quatrain.tasks.pipelines.base import Field, Pipeline, Prediction

if TYPE_CHECKING:
    from quatrain.core.reporter import Reporter

Input = str | Mapping[str, Any]
"""A text, or a table of the fields that the task has."""


def is_file(source: str) -> bool:
    """Whether a source names a file rather than being a text itself.

    Raises InputError for a folder, and for what looks like a file's name but does not exist.
    """
    short = "\n" not in source and len(source) < 4096
    if short and source.strip() and exists(source):
        if user_path(source).is_dir():
            raise InputError(f"{source} is a folder; name a file of texts, or write a text")
        return True
    looks = short and len(source.split()) == 1 and suffix_of(Path(source)) in (*TEXT_SUFFIXES, *RECORD_SUFFIXES)
    if looks:
        raise InputError(f"{format_value(source)} does not exist; to mean it as a text, send it to standard input (-)")
    return False


def read_inputs(
    path: str | Path, kind: type[Pipeline], columns: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Input]]:
    """The inputs of a file for a task, each with its place: rows of JSON lines, CSV, …, or of a plain file its lines.

    `columns` say which columns hold the parts, where their names do not. Raises InputError where no column does, at
    the first row that cannot be read, and for a file without an input.
    """
    path = user_path(path)
    check_head(path)
    any_input = False
    rows = _of_records(path, kind, columns) if is_record_file(path) else of_lines(lines_of(read_text(path), path), path)
    for row in rows:
        any_input = True
        yield row
    if not any_input:
        raise InputError(f"{path}: there is no text in it")


def of_lines(lines: Iterable[str], name: str | Path) -> Iterator[tuple[str, Input]]:
    """Each line that is not empty as an input with its place."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{name}:{number}", line.strip("\r\n")


def _of_records(path: Path, kind: type[Pipeline], columns: Mapping[str, str] | None) -> Iterator[tuple[str, Input]]:
    header = None if not columns else not all(name.isdigit() for name in columns.values())
    fields = None if columns is None else _checked(kind, columns)
    known = {field.name: field for field in kind.fields}
    for row in read_records(path, header=header):
        if row.fault is not None:
            raise InputError(f"{row.place}: {row.fault}")
        if isinstance(row.value, str):
            yield row.place, row.value
            continue
        if not isinstance(row.value, Mapping):
            raise InputError(f"{row.place}: must be an object with fields, or a text")
        fields = fields or _columns(path, kind, list(row.value))
        yield row.place, {name: _value(row.value, known[name], column, row.place) for name, column in fields.items()}


def _value(row: Mapping[str, Any], field: Field, column: str, place: str) -> Any:
    if column in row:
        value = row[column]
    elif "," in column and all(name in row for name in column.split(",")):
        value = [row[name] for name in column.split(",")]
    else:
        raise InputError(f"{place}: no column {column!r}; the columns are {', '.join(map(repr, row))}")
    if field.kind in ("messages", "any", "file"):
        return value
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) and each.strip() for each in texts) or not texts:
        raise InputError(f"{place}: field {column!r} is {format_value(value)}; must be text that is not empty")
    for text in texts:
        if (fault := lone_surrogate(text)) is not None:
            raise InputError(f"{place}: field {column!r} has {fault}")
    return value


def _parts(kind: type[Pipeline]) -> dict[str, str]:
    """The parts that a user may give columns to, as in `data.columns`, and the fields they become."""
    return {field.part or field.name: field.name for field in kind.fields}


def _checked(kind: type[Pipeline], columns: Mapping[str, str]) -> dict[str, str]:
    parts = _parts(kind)
    if unknown := [part for part in columns if part not in parts]:
        raise InputError(f"--columns: {', '.join(unknown)}; this model reads {', '.join(parts)}")
    return {parts[part]: column for part, column in columns.items()}


def _columns(path: Path, kind: type[Pipeline], names: Sequence[str]) -> dict[str, str]:
    """The fields of a task, each with the column that holds it: by the field's own name, or by its meaning."""
    parts = _parts(kind)
    found = {parts.get(part, part): column for part, column in input_columns(names, kind.format).items()}
    if "source" in parts and parts["source"] not in found:
        found = {parts.get(part, part): column for part, column in input_columns(names, "pair").items()}
    known = [field.name for field in kind.fields]
    fields = {name: name for name in known if name in names} | {
        field: column for field, column in found.items() if field in known
    }
    if any(field.name not in fields for field in kind.required(fields)):
        wanted = ", ".join(f"{part}=…" for part in parts)
        raise InputError(
            f"{path}: the columns {', '.join(map(repr, names))} do not say what to read; use --columns {wanted}"
        )
    return fields


def output_record(pipe: Pipeline, example: Input, prediction: Prediction) -> dict[str, Any]:
    """The fields of an input and of its prediction, as one JSON object."""
    first = pipe.fields[0]
    given = {first.part or first.name: example} if isinstance(example, str) else dict(example)
    return given | pipe.record(prediction.value) | ({"cut": prediction.cut} if prediction.cut else {})


def predict_file(
    pipe: Pipeline,
    inputs: Iterable[tuple[str, Input]],
    out: Path,
    *,
    model: str,
    reporter: Reporter,
    **options: Any,
) -> int:
    """Writes a JSON line with each input and its prediction to `out`; returns the number of new lines.

    A file of an earlier, stopped call with the same inputs and options is continued; a half-written last line is
    dropped. Raises InputError for a file that holds something else.
    """
    given = {name: repr(value) for name, value in sorted(options.items())}
    settings = hashlib.sha256(json.dumps([model, pipe.name, given]).encode()).hexdigest()[:12]
    done, size = 0, 0
    source = iter(inputs)
    if out.exists():
        done, size = _finished(out, source, pipe, settings)
        reporter.info(f"{out}: {done:,} inputs are done; the rest follows.")
    new, pending = 0, list[tuple[str, Input]]()

    def rest() -> Iterator[Input]:
        for place, example in source:
            pending.append((place, example))
            yield example

    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        file = open(out, "r+b" if out.exists() else "xb")  # noqa: SIM115 - closed below, where disk errors are not meant
    with file, reporter.task("predicting", None, "input") as task:
        file.truncate(size)
        file.seek(size)
        for prediction in pipe.predict(rest(), **options):
            _, example = pending.pop(0)
            record = output_record(pipe, example, prediction) | {"settings": settings}
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))
            new += 1
            if not pending:  # the end of a batch
                file.flush()
                os.fsync(file.fileno())
                task.update(done + new)
    return new


def _finished(out: Path, source: Iterator[tuple[str, Input]], pipe: Pipeline, settings: str) -> tuple[int, int]:
    """How many inputs have their prediction in the file, and the bytes of those lines; `source` is read past them."""
    done = size = 0
    with open_regular(out) as file:
        while (line := file.readline(1 << 28)).endswith(b"\n"):  # a last line without it was half written
            where = f"{out}, line {done + 1}"
            value = parse_json(decode(line, where), where)
            place, example = next(source, ("", None))
            if "settings" not in value or example is None:
                raise InputError(f"{where}: not a prediction for these inputs; give another file with --output")
            if value["settings"] != settings:
                raise InputError(
                    f"{where}: made by another model or with other options; give another file with --output, or remove "
                    "it"
                )
            first = pipe.fields[0]
            given = {first.part or first.name: example} if isinstance(example, str) else dict(example)
            if any(value.get(name) != json.loads(json.dumps(own)) for name, own in given.items()):
                raise InputError(
                    f"{where}: the prediction for another input than {place}; give another file with --output, or "
                    "remove it"
                )
            done, size = done + 1, size + len(line)
    return done, size
