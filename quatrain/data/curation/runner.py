"""Runs a curation recipe: unit by unit, in several processes, resumable after a kill at any moment.

The steps form passes. A pass reads each unit, settles the decisions of the corpus step before it, applies the steps up
to the next corpus step and collects what that step compares. All files of a unit are written aside and renamed; the
last is its `.json` with their SHA-256, without which a unit is done again. What a unit becomes follows from the recipe
and the sources alone, so the result is the same to the byte with any number of processes, killed or not.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quatrain.core.atomic import atomic_write, disk_errors, remove_leftovers, write_json
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.failures import ended_workers_explained
from quatrain.core.locks import FolderLock
from quatrain.core.progress import Reporter
from quatrain.core.reading import read_json, sha256_of
from quatrain.data.curation.arrays import Array, read_array, write_array
from quatrain.data.curation.document import Fault, Removal, SourceDocument, content_key
from quatrain.data.curation.funnel import (
    SNIPPET,
    Funnel,
    FunnelStep,
    Sample,
    StepCounts,
    UnitCounts,
    samples_of_unit,
)
from quatrain.data.curation.settings import CurationRecipe, to_dict
from quatrain.data.curation.step import AnyStep, Collector, CorpusStep, Step, StepContext
from quatrain.data.curation.steps import steps
from quatrain.data.curation.units import Part, Unit, plan_units, read_unit

FORMAT = 1
"""Raised when the same recipe would give other bytes than before."""
WORK = "work"
MANIFEST = "manifest.json"
MOST_JSON = 1 << 30
"""Bytes of a unit's counts that are read back."""


@dataclass(frozen=True)
class Pass:
    """A corpus step whose decisions are settled first, steps that follow it, and the corpus step that collects."""

    settles: int | None
    applies: tuple[int, ...]
    collects: int | None


def passes(recipe: CurationRecipe) -> list[Pass]:
    """The passes of a recipe: one more than it has corpus steps."""
    found: list[Pass] = []
    settles: int | None = None
    applies: list[int] = []
    for number, settings in enumerate(recipe.step):
        if issubclass(steps()[settings.kind], CorpusStep):
            found.append(Pass(settles, tuple(applies), number))
            settles, applies = number, []
        else:
            applies.append(number)
    return [*found, Pass(settles, tuple(applies), None)]


@dataclass(frozen=True)
class Job:
    """What each process needs: the recipe, the units, and the folder of the result."""

    recipe: CurationRecipe
    units: tuple[Unit, ...]
    folder: Path

    @property
    def work(self) -> Path:
        """Where passes keep their files until the result is whole."""
        return self.folder / WORK

    def place(self, number: int, unit: int) -> Path:
        """The files of a unit in a pass, without their endings."""
        return self.work / f"pass-{number}" / f"{unit:06d}"

    def context(self, number: int) -> StepContext:
        """The context of a step."""
        weights = {source.title: source.weight for source in self.recipe.source if source.weight is not None}
        return StepContext(self.work / f"step-{number:02d}", self.recipe.seed, weights)


class Worker:
    """Does units of one job in one process. Steps are made when a pass first needs them."""

    def __init__(self, job: Job):
        self.job = job
        self.passes = passes(job.recipe)
        self.steps: dict[int, AnyStep] = {}
        self.count = _counter(job.recipe)
        self.samples = samples_of_unit(len(job.units))
        self.seconds: dict[str, float] = {}

    def step(self, number: int) -> AnyStep:
        """The step of this number."""
        if number not in self.steps:
            settings = self.job.recipe.step[number]
            self.steps[number] = steps()[settings.kind](settings, self.job.context(number))
        return self.steps[number]

    def run(self, number: int, unit: int) -> None:
        """Does one unit of a pass and writes its files."""
        this, counts = self.passes[number], UnitCounts()
        place = self.job.place(number, unit)
        collector: Collector | None = None
        if this.collects is not None:
            corpus = self.step(this.collects)
            if not isinstance(corpus, CorpusStep):
                raise TypeError(f"step {this.collects} does not compare documents")
            collector = corpus.collect()
        writer = (_Shards(self.job.folder, self.job.recipe, unit) if this.collects is None
                  else _Kept(place.with_suffix(".jsonl")))  # fmt: skip
        removed = _Removed(self.job, number, unit)
        with writer, removed:
            for document in self._documents(number, unit, counts, removed):
                if collector is not None:
                    collector.add(document)
                writer.write(document)
                if this.collects is None:
                    tokens, size = self.count(document.text), len(document.text)
                    for _ in range(document.copies):
                        counts.outputs.setdefault(document.split, type(counts.read)()).add(tokens, size)
                        counts.sources.setdefault(document.source, type(counts.read)()).add(tokens, size)
        files = {**writer.files(), **removed.files()}
        if collector is not None:
            files |= _write_arrays(place, "collected", collector.arrays())
        seconds, self.seconds = self.seconds, {}
        relative = {str(Path(path).relative_to(self.job.folder)): digest for path, digest in files.items()}
        write_json(place.with_suffix(".json"),
                   {"files": relative, "counts": counts.to_dict(), "seconds": seconds}, indent=None)  # fmt: skip

    def _documents(self, number: int, unit: int, counts: UnitCounts, removed: _Removed) -> Iterator[SourceDocument]:
        """The documents of a unit that all steps of the pass keep."""
        this = self.passes[number]
        applied = [(each, self.step(each)) for each in this.applies]
        for document, removal in self._settled(number, unit, counts):
            if removal is not None and this.settles is not None:
                removed.write(document, this.settles, removal)
                continue
            tokens, key = self.count(document.text), sample_key(document.text)
            for each, step in applied:
                made = counts.steps.setdefault(each, StepCounts(most=self.samples))
                removal, tokens = self._apply(made, step, document, tokens, key)
                if removal is not None:
                    removed.write(document, each, removal)
                    break
            else:
                yield document

    def _settled(self, number: int, unit: int, counts: UnitCounts) -> Iterator[tuple[SourceDocument, Removal | None]]:
        """The documents that enter the pass, with what the corpus step before it decided."""
        settles = self.passes[number].settles
        if settles is None:
            for item in read_unit(self.job.units[unit], self.job.recipe):
                if isinstance(item, Fault):
                    counts.fault(item.place, item.reason)
                else:
                    counts.read.add(self.count(item.text), len(item.text))
                    yield item, None
            return
        step = self.step(settles)
        if not isinstance(step, CorpusStep):
            raise TypeError(f"step {settles} does not compare documents")
        before = self.job.place(number - 1, unit)
        decisions = read_arrays(before, "decided")
        made = counts.steps.setdefault(settles, StepCounts(most=self.samples))
        for place, document in enumerate(_read_kept(before.with_suffix(".jsonl"))):
            tokens, text = self.count(document.text), document.text
            made.entered.add(tokens, len(text))
            began = time.perf_counter()
            removal = step.settle(document, place, decisions)
            self._time(step, began)
            self._conclude(made, document, text, tokens, removal, sample_key(text), {})
            yield document, removal

    def _apply(
        self, made: StepCounts, step: AnyStep, document: SourceDocument, tokens: int, key: int
    ) -> tuple[Removal | None, int]:
        """Applies one step and counts what it did; returns the tokens that the document has then."""
        if not isinstance(step, Step):
            raise TypeError(f"{step} compares documents")
        text = document.text
        made.entered.add(tokens, len(text))
        began = time.perf_counter()
        measures: dict[str, float] = {}
        if made.wants(key) and step.limits():
            measures = step.measures(document)
            began = time.perf_counter()
        removal = step.apply(document)
        self._time(step, began)
        return removal, self._conclude(made, document, text, tokens, removal, key, measures)

    def _conclude(
        self, made: StepCounts, document: SourceDocument, text: str, tokens: int, removal: Removal | None,
        key: int, measures: Mapping[str, float],
    ) -> int:  # fmt: skip
        """Counts what a step decided about a document whose text was `text`."""
        if made.wants(key):
            found = {name: round(float(value), 6) for name, value in measures.items()}
            reason, detail = (None, "") if removal is None else (removal.reason, removal.detail)
            made.add_sample(Sample(key, document.place, tokens, found, reason, detail, text[:SNIPPET]))
        if removal is not None:
            made.remove(removal, document, tokens)
            return tokens
        if document.text is not text:
            made.changed += document.text != text
            tokens = self.count(document.text)
        for _ in range(document.copies):
            made.left.add(tokens, len(document.text))
        return tokens

    def _time(self, step: AnyStep, began: float) -> None:
        kind = step.settings.kind
        self.seconds[kind] = self.seconds.get(kind, 0.0) + time.perf_counter() - began


def sample_key(text: str) -> int:
    """Orders documents at random, the same way in every process: those with the smallest keys are the samples."""
    return content_key(f"{len(text)} {text[:1000]}")


def _counter(recipe: CurationRecipe) -> Callable[[str], int]:
    """Counts the tokens of a text: by the recipe's tokenizer, else words between white space."""
    if recipe.tokenizer is None:
        return lambda text: len(text.split())
    from quatrain.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(recipe.tokenizer)
    return lambda text: len(tokenizer.encode(text))


# Files of a unit


class _Kept:
    """Writes the documents of a unit for the next pass."""

    def __init__(self, path: Path):
        self.path = path
        self._open = atomic_write(path, "wb")

    def __enter__(self) -> None:
        self._handle = self._open.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def write(self, document: SourceDocument) -> None:
        """The next document."""
        self._handle.write(json.dumps(asdict(document), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

    def files(self) -> dict[str, str]:
        """The files and their SHA-256."""
        return {str(self.path): sha256_of(self.path)}


def _read_kept(path: Path) -> Iterator[SourceDocument]:
    with open(path, "rb") as handle:
        for line in handle:
            yield SourceDocument(**json.loads(line))


def _write_arrays(place: Path, name: str, arrays: Mapping[str, Array]) -> dict[str, str]:
    """Writes arrays beside a unit's files; returns them with their SHA-256."""
    paths = [write_array(place.parent, f"{place.name}.{name}.{key}", array) for key, array in arrays.items()]
    return {str(path): sha256_of(path) for path in paths}


def read_arrays(place: Path, name: str) -> dict[str, Array]:
    """The arrays of a unit, mapped from disk."""
    prefix = f"{place.name}.{name}."
    return {
        path.name[len(prefix) :].partition(".")[0]: read_array(path) for path in place.parent.glob(f"{prefix}*.bin")
    }


class _Shards:
    """Writes the final documents of a unit: one shard for each split."""

    def __init__(self, folder: Path, recipe: CurationRecipe, unit: int):
        self.folder, self.recipe, self.unit = folder / "data", recipe, unit
        self.rows: dict[str, Any] = {}
        self.paths: list[Path] = []

    def __enter__(self) -> None:
        pass

    def write(self, document: SourceDocument) -> None:
        """The next document, as often as it has copies."""
        if document.split not in self.rows:
            make = _ParquetShard if self.recipe.output.format == "parquet" else _JsonShard
            path = self.folder / f"{document.split}-{self.unit:06d}"
            self.rows[document.split] = make(path, self.recipe.output.compression)
            self.paths.append(self.rows[document.split].path)
        for _ in range(document.copies):
            self.rows[document.split].write(document.to_row())

    def __exit__(self, *error: Any) -> None:
        for shard in self.rows.values():
            shard.close(*error)

    def files(self) -> dict[str, str]:
        """The shards and their SHA-256."""
        return {str(path): sha256_of(path) for path in self.paths}


class _JsonShard:
    def __init__(self, path: Path, compression: str):
        self.path = path.with_name(path.name + (".jsonl.gz" if compression == "gzip" else ".jsonl"))
        self._open = atomic_write(self.path, "wb")
        self._file = self._open.__enter__()
        # A fixed time and no name: the bytes follow from the content.
        self._handle = gzip.GzipFile("", "wb", 6, self._file, mtime=0) if compression == "gzip" else self._file

    def write(self, row: dict[str, Any]) -> None:
        self._handle.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n")

    def close(self, *error: Any) -> None:
        if self._handle is not self._file:
            self._handle.close()
        self._open.__exit__(*(error or (None, None, None)))


class _ParquetShard:
    """Text, source and place as columns; the other fields as one column of JSON, since pages have any fields."""

    ROWS = 1000

    def __init__(self, path: Path, compression: str):
        import pyarrow

        self.path = path.with_name(path.name + ".parquet")
        names = ("text", "source", "place", "fields")
        self.schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
        self._open = atomic_write(self.path, "wb")
        self._file = self._open.__enter__()
        self._writer: Any = None
        self.rows: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        main = {name: row.pop(name) for name in ("text", "source", "place")}
        self.rows.append({**main, "fields": json.dumps(row, ensure_ascii=False, default=str)})
        if len(self.rows) == self.ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self._file, self.schema, compression="zstd")
        self._writer.write_table(pyarrow.Table.from_pylist(self.rows, self.schema))
        self.rows = []

    def close(self, *error: Any) -> None:
        if not error or error[0] is None:
            self._flush()
            self._writer.close()
        self._open.__exit__(*(error or (None, None, None)))


class _Removed:
    """Writes the removed documents of a unit, if the recipe asks for them."""

    def __init__(self, job: Job, number: int, unit: int):
        self.recipe = job.recipe
        self.path = job.folder / "removed" / f"{unit:06d}-{number}.jsonl"
        self._shard: _JsonShard | None = None

    def __enter__(self) -> None:
        pass

    def write(self, document: SourceDocument, step: int, removal: Removal) -> None:
        """A removed document with its step and reason."""
        if not self.recipe.output.removed:
            return
        if self._shard is None:
            self._shard = _JsonShard(self.path.with_suffix(""), "none")
        why = {"step": self.recipe.step[step].kind, "reason": removal.reason, "detail": removal.detail}
        self._shard.write({**why, **document.to_row()})

    def __exit__(self, *error: Any) -> None:
        if self._shard is not None:
            self._shard.close(*error)

    def files(self) -> dict[str, str]:
        """The file and its SHA-256, if there is one."""
        return {} if self._shard is None else {str(self.path): sha256_of(self.path)}


# Processes

_WORKER: list[Worker] = []


def _start(job: Job, parent: int) -> None:
    """In a new process: end with the parent, whatever ends it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _WORKER.append(Worker(job))


def _work(number: int, unit: int) -> int:
    _WORKER[0].run(number, unit)
    return unit


def _submitted(pool: ProcessPoolExecutor, number: int, units: Sequence[int]) -> set[Future[int]]:
    try:
        return {pool.submit(_work, number, unit) for unit in units}
    except OSError as error:  # No process begins, or the first has ended already and the pool closes meanwhile.
        raise BrokenProcessPool(str(error)) from error


def _in_processes(job: Job, number: int, units: Sequence[int], processes: int, done: Callable[[int], None]) -> None:
    if processes == 1 or len(units) < 2:
        worker = Worker(job)
        for unit in units:
            worker.run(number, unit)
            done(unit)
        return
    context = multiprocessing.get_context("spawn")
    with (
        ended_workers_explained("the curation", "where it was"),
        ProcessPoolExecutor(min(processes, len(units)), context, _start, (job, os.getpid())) as pool,
    ):
        try:
            waiting = _submitted(pool, number, units)
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    done(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# The whole run


@dataclass(frozen=True)
class CurationResult:
    """A finished curation: its folder, its funnel, and seconds by step over all processes."""

    folder: Path
    funnel: Funnel
    seconds: dict[str, float]


def curate(
    recipe: CurationRecipe,
    folder: Path,
    *,
    processes: int = 1,
    reporter: Reporter,
    keep_work: bool = False,
) -> CurationResult:
    """Runs a recipe into `folder`; the same call resumes after a kill. Raises InputError if the folder is another's."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder):
        sources = fingerprint_sources(recipe, folder, reporter)
        mark = _fingerprint(recipe, sources)
        _check_folder(folder, mark)
        remove_leftovers(folder)
        if (folder / MANIFEST).is_file():
            if not keep_work:  # A kill may have come between the manifest and the end.
                shutil.rmtree(folder / WORK, ignore_errors=True)
            reporter.info(f"{folder} is whole already")
            return _finished(recipe, folder)
        job = Job(recipe, tuple(plan_units(recipe)), folder)
        write_json(job.work / "fingerprint.json", {"fingerprint": mark})
        for number, settings in enumerate(recipe.step):
            _prepare(job, number, settings.kind, reporter)
        for number, this in enumerate(passes(recipe)):
            _run_pass(job, number, this, processes, reporter)
        return _conclude(job, sources, keep_work=keep_work)


def _prepare(job: Job, number: int, kind: str, reporter: Reporter) -> None:
    """What a step writes before the first document; once."""
    context = job.context(number)
    mark = context.folder / "prepared.json"
    if mark.is_file():
        return
    shutil.rmtree(context.folder, ignore_errors=True)
    context.folder.mkdir(parents=True)
    steps()[kind].prepare(job.recipe.step[number], context)
    write_json(mark, {"kind": kind})


def _run_pass(job: Job, number: int, this: Pass, processes: int, reporter: Reporter) -> None:
    """The units of a pass that are not done yet, then the decisions of the corpus step that collected."""
    units = range(len(job.units))
    missing = [unit for unit in units if not is_whole(job, number, unit)]
    names = [job.recipe.step[each].kind for each in this.applies]
    title = f"pass {number + 1} of {len(passes(job.recipe))}" + (f": {', '.join(names)}" if names else "")
    with reporter.task(title, total=len(job.units), unit="unit") as task:
        task.update(len(job.units) - len(missing))
        _in_processes(job, number, missing, processes, lambda unit: task.advance())
    if this.collects is None:
        return
    decided = job.work / f"pass-{number}" / "decided.json"
    if decided.is_file():
        return
    settings = job.recipe.step[this.collects]
    step = steps()[settings.kind](settings, job.context(this.collects))
    if not isinstance(step, CorpusStep):
        raise TypeError(f"{settings.kind} does not compare documents")
    collected = [read_arrays(job.place(number, unit), "collected") for unit in units]
    for unit, arrays in zip(units, step.decide(collected), strict=True):
        _write_arrays(job.place(number, unit), "decided", arrays)
    write_json(decided, {"step": settings.kind})


def is_whole(job: Job, number: int, unit: int) -> bool:
    """Whether a unit of a pass is done, with all its files as they were written."""
    path = job.place(number, unit).with_suffix(".json")
    if not path.is_file():
        return False
    files: dict[str, str] = read_json(path, max_bytes=MOST_JSON)["files"]
    return all((job.folder / name).is_file() and sha256_of(job.folder / name) == digest
               for name, digest in files.items())  # fmt: skip


def fingerprint_sources(recipe: CurationRecipe, folder: Path, reporter: Reporter) -> list[dict[str, Any]]:
    """Each file of each source with its size and SHA-256. Files that have not changed since are not read again."""
    known_path = folder / WORK / "sources.json"
    known: dict[str, list[Any]] = read_json(known_path, max_bytes=MOST_JSON) if known_path.is_file() else {}
    found: dict[str, list[Any]] = {}
    rows: list[dict[str, Any]] = []
    paths = dict.fromkeys((part.source, part.path) for unit in plan_units(recipe) for part in unit.parts)
    for source, path in paths:
        title = recipe.source[source].title
        if not os.path.isfile(path):  # a data set on the hub is known by its name
            rows.append({"source": title, "path": path})
            continue
        about = os.stat(path)
        stamp = [about.st_size, about.st_mtime_ns]
        digest = known[path][2] if path in known and known[path][:2] == stamp else sha256_of(path)
        found[path] = [*stamp, digest]
        rows.append({"source": title, "path": path, "bytes": about.st_size, "sha256": digest})
    if found != known and not (folder / MANIFEST).is_file():
        write_json(known_path, found, indent=None)
    return rows


def _fingerprint(recipe: CurationRecipe, sources: Iterable[Mapping[str, Any]]) -> str:
    value = {"format": FORMAT, "recipe": to_dict(recipe), "sources": list(sources)}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _check_folder(folder: Path, mark: str) -> None:
    """Raises InputError for a folder that holds something else, or the result of another recipe or other sources."""
    for path in (folder / MANIFEST, folder / WORK / "fingerprint.json"):
        if path.is_file():
            if read_json(path).get("fingerprint") != mark:
                raise InputError(
                    f"{folder} holds the result of another recipe, or of sources that have changed since. Choose "
                    "another folder with --output, or remove this one"
                )
            return
    names = sorted(each.name for each in folder.iterdir() if each.name not in (WORK, ".lock", ".lock.json"))
    if names:
        raise InputError(f"{folder} is not empty ({names[0]}); choose another folder with --output")


def _conclude(job: Job, sources: Sequence[Mapping[str, Any]], *, keep_work: bool) -> CurationResult:
    """Writes manifest, funnel, card and page; the manifest comes last."""
    from quatrain.data.curation.card import write_reports

    funnel, seconds, files = _gather(job)
    manifest: dict[str, Any] = {
        "fingerprint": _fingerprint(job.recipe, sources),
        "recipe": to_dict(job.recipe),
        "sources": list(sources),
        "files": files,
    }
    write_json(job.folder / "timing.json", {"seconds": seconds})
    write_reports(job.folder, job.recipe, funnel, manifest)
    write_json(job.folder / MANIFEST, manifest)
    if not keep_work:
        shutil.rmtree(job.work, ignore_errors=True)
    return CurationResult(job.folder, funnel, seconds)


def _gather(job: Job) -> tuple[Funnel, dict[str, float], dict[str, str]]:
    """The counts of all units, the seconds of each step, and the final files with their SHA-256."""
    total, seconds, files = UnitCounts(), dict[str, float](), dict[str, str]()
    for number in range(len(passes(job.recipe))):
        for unit in range(len(job.units)):
            value = read_json(job.place(number, unit).with_suffix(".json"), max_bytes=MOST_JSON)
            total.merge(UnitCounts.of(value["counts"]))
            for kind, spent in value["seconds"].items():
                seconds[kind] = seconds.get(kind, 0.0) + spent
            files |= {name: digest for name, digest in value["files"].items() if not name.startswith(WORK)}
    return make_funnel(job, total), seconds, dict(sorted(files.items()))


def make_funnel(job: Job, total: UnitCounts) -> Funnel:
    """The funnel of merged counts."""
    rows = []
    for number, settings in enumerate(job.recipe.step):
        cls = steps()[settings.kind]
        limits = tuple(cls(settings, job.context(number)).limits())
        counts = total.steps.get(number, StepCounts())
        rows.append(FunnelStep(settings.kind, cls.about, cls.source, limits, counts))
    unit = "tokens" if job.recipe.tokenizer else "words"
    return Funnel(
        job.recipe.name, unit, total.read, total.faults, total.places, tuple(rows), total.outputs, total.sources
    )


def _finished(recipe: CurationRecipe, folder: Path) -> CurationResult:
    """The result that a folder holds."""
    from quatrain.data.curation.card import read_funnel

    timing = folder / "timing.json"
    seconds = read_json(timing)["seconds"] if timing.is_file() else {}
    return CurationResult(folder, read_funnel(folder), seconds)


def read_shards(folder: Path, split: str = "train") -> Iterator[dict[str, Any]]:
    """The rows of a finished curation. Raises QuatrainError for a shard whose bytes have changed."""
    from quatrain.data.rows import read_records

    manifest = read_json(folder / MANIFEST, max_bytes=MOST_JSON)
    for name, digest in manifest["files"].items():
        path = folder / name
        if not Path(name).name.startswith(f"{split}-"):
            continue
        if sha256_of(path) != digest:
            raise QuatrainError(f"{path} has changed since it was written; curate again")
        yield from (row.value for row in read_records(path))


__all__ = ["CurationResult", "Job", "Part", "curate", "passes", "read_shards"]
