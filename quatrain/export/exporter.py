"""Exports a model: loads it once, lets an exporter write it, proves what was written, and only then puts it in place.

An exporter is a module of this package with an `EXPORTER`. It writes files and opens them again as `Runtime`s, which
`quatrain.export.proof` compares with the model. A proof that fails refuses the export, unless it is forced.
"""

from __future__ import annotations

import importlib
import pkgutil
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from quatrain import export as package
from quatrain.compression import methods
from quatrain.core.atomic import disk_errors
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.wording import format_value
from quatrain.export.proof import Check, Runtime, compare
from quatrain.loading.merging import merge
from quatrain.loading.model import ResolvedModel, load_weights
from quatrain.models.modules import is_adapter
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class ExportSettings:
    """What a user chooses.

    `format` is the exporter's number format (None: its default). `calibration` is a text file whose words weigh the
    errors of quantization. `context` limits the context length of the file. `force` keeps files that fail the proof.
    """

    format: str | None = None
    calibration: Path | None = None
    context: int | None = None
    force: bool = False


@dataclass
class Source:
    """The model to export: float32 weights without adapters, its tokenizer, its folders and a name."""

    model: Model
    tokenizer: Tokenizer | None
    resolved: ResolvedModel
    name: str

    @classmethod
    def load(cls, model: str | Path, settings: ExportSettings) -> Source:
        """Loads any model of the loading seam; adapters are merged, quantized layers become float32.

        Raises InputError for a folder of several adapters, and for a model that is not a transformer.
        """
        resolved = ResolvedModel.of(model)
        if resolved.adapters:
            names = ", ".join(place.name for place in resolved.adapters)
            raise InputError(f"{model}: holds several adapters ({names}); export the folder of one of them.")
        loaded = merge([resolved.folder]) if resolved.is_adapter else load_weights(resolved)
        if not isinstance(loaded, Model):
            raise InputError(f"{model}: a {loaded.config.family} model; only transformers can be exported.")
        methods.dequantize(loaded)
        if left := [name for name, module in loaded.named_modules() if is_adapter(module)]:
            raise InputError(f"{model}: these adapters cannot be merged, so they cannot be exported:", left[:5])
        if settings.context is not None:
            loaded.config = loaded.config.replace(max_position_embeddings=_context(loaded, settings.context))
        folder = resolved.folder
        name = folder.stem if folder.is_file() else _name(folder)
        return cls(loaded.eval(), resolved.tokenizer(), resolved, name)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids after which the model stops."""
        ends = (self.model.generation_config or {}).get("eos_token_id", self.model.config.eos_token_id)
        ids = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        return frozenset(ids | (self.tokenizer.stop_ids if self.tokenizer is not None else set()))


def _context(model: Model, context: int) -> int:
    if not 1 <= context <= model.config.context_length:
        raise InputError(f"--context {context}; must be from 1 to the model's {model.config.context_length}.")
    if model.config.position not in ("rotary", "alibi", "relative"):
        raise InputError(f"--context {context}: this model has a table of positions; its length is fixed.")
    return context


def _name(folder: Path) -> str:
    """The name of a model: that of its folder, or of the run or repository for a folder called model or a hash."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "-")
    return folder.parent.name if folder.name in ("model", "adapter", "final") else folder.name


@dataclass
class Written:
    """What an exporter wrote: the files, notes for the user, and how to open the files again for the proof."""

    files: list[Path]
    notes: list[str] = field(default_factory=list)
    runtimes: Callable[[], Iterator[Runtime]] = lambda: iter(())
    tolerance: float = 1e-4
    """The largest allowed change of a logit, as a share of the largest logit."""
    exact: bool = True
    """Whether the format keeps the weights, so that greedy ids must be equal."""
    checks: list[Check] = field(default_factory=list)
    """Comparisons that the exporter made itself."""


@dataclass(frozen=True)
class Exporter:
    """A target: its name, what it is for, its number formats (the first is the default) and its functions.

    `problems` yields why a model cannot be exported, before anything is written. `write` writes into an empty folder.
    """

    name: str
    summary: str
    formats: tuple[str, ...]
    write: Callable[[Source, Path, ExportSettings], Written]
    problems: Callable[[Source, ExportSettings], Iterator[str]] = lambda source, settings: iter(())


@dataclass
class Export:
    """A finished export: where it is, its files, what was proved, and notes."""

    target: str
    format: str
    out: Path
    files: list[Path]
    checks: list[Check]
    notes: list[str]

    @property
    def nbytes(self) -> int:
        """The bytes of all its files."""
        return sum(path.stat().st_size for path in self.files)


@cache
def exporters() -> dict[str, Exporter]:
    """All exporters by name, from the modules of this package."""
    found = (
        importlib.import_module(f"{package.__name__}.{each.name}") for each in pkgutil.iter_modules(package.__path__)
    )
    return {module.EXPORTER.name: module.EXPORTER for module in found if hasattr(module, "EXPORTER")}


def exporter(name: str) -> Exporter:
    """The exporter of a target. Raises InputError, with all targets, for an unknown one."""
    if name not in exporters():
        raise InputError(f"--to {format_value(name)}; must be one of {', '.join(sorted(exporters()))}.")
    return exporters()[name]


def export(model: str | Path, to: str, out: str | Path | None = None, settings: ExportSettings | None = None) -> Export:
    """Exports a model folder, hub id, run, adapter or GGUF file to a target, proves the files and returns the result.

    `out` is a new folder (by default beside the model, with the target's name). Raises InputError, and writes nothing,
    for a model that the target cannot hold and for files that do not compute what the model computes.
    """
    settings = settings or ExportSettings()
    chosen = exporter(to)
    form = settings.format or chosen.formats[0]
    if form not in chosen.formats:
        raise InputError(f"--format {format_value(form)}: {to} has {', '.join(chosen.formats)}.")
    settings = ExportSettings(**(vars(settings) | {"format": form}))
    source = Source.load(model, settings)
    place = _default_out(source, to) if out is None else Path(out).expanduser()
    with disk_errors(place):
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise InputError(f"--out {place}: is not empty; name a new folder.")
    if problems := list(chosen.problems(source, settings)):
        raise InputError(f"{model} cannot be exported to {to}:", problems)
    return _write_and_prove(source, chosen, place, settings)


def _default_out(source: Source, to: str) -> Path:
    folder = source.resolved.folder
    if folder.resolve().parent.name == "snapshots":
        return Path(f"{source.name}-{to}")
    stem = folder.stem if folder.is_file() else folder.name
    return folder.with_name(f"{stem}-{to}")


def _write_and_prove(source: Source, chosen: Exporter, out: Path, settings: ExportSettings) -> Export:
    """Writes beside `out`, proves, and renames; a refused or failed export leaves nothing."""
    staging = out.with_name(f"{out.name}.partial")
    with disk_errors(out):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    try:
        written = chosen.write(source, staging, settings)
        checks = [check for runtime in written.runtimes() for check in compare(source, runtime, written)]
        checks += written.checks
        if (wrong := failed(checks)) and not settings.force:
            raise QuatrainError(
                f"The export to {chosen.name} does not compute what the model computes, and nothing is written. "
                "Choose a format with more bits, or keep it with --force:",
                [f"{check.runtime}: {check.name}: {check.result}" for check in wrong],
            )
        with disk_errors(out):
            if out.exists():
                out.rmdir()
            staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    files = [out / path.relative_to(staging) for path in written.files]
    return Export(chosen.name, str(settings.format), out, files, checks, written.notes)


def failed(checks: Sequence[Check]) -> list[Check]:
    """The checks that failed."""
    return [check for check in checks if not check.ok]


def as_json(done: Export) -> dict[str, Any]:
    """The result for programs."""
    return {
        "target": done.target, "format": done.format, "out": str(done.out), "bytes": done.nbytes,
        "files": [str(path) for path in done.files], "notes": done.notes,
        "checks": [vars(each) for each in done.checks],
    }  # fmt: skip
