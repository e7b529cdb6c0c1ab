"""Reads the safetensors files of a model folder from memory-mapped files.

Resident pages of a mapped file count as memory of the process, and a tensor that is converted or transposed exists
twice for a moment. Therefore tensors are copied in chunks of at most `CHUNK` bytes, in file order, and the pages that
were read are released. Loading a model takes the memory of its weights in the requested dtype plus `CHUNK`, whatever
the size of its largest tensor.

The safetensors library checks the header of each file (8 bytes of length, then a JSON object): its length, its offsets,
and that the data is complete. Nothing is ever unpickled.
"""

from __future__ import annotations

import difflib
import json
import mmap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.reading import read_json
from quatrain.core.wording import format_value

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CHUNK = 8 * 2**20
"""Maximum number of resident bytes of the files."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip
"""The supported dtypes by their names in the format."""

RETRY_HINT = "Download or save the model again."
CONVERT_HINT = (
    "Loading pickled files can run code. If you trust the source, convert them once in transformers: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW), or the class of the model's head instead."
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")


MAX_INDEX_BYTES = 256 * 2**20
"""Limit for the index file; that of the largest models has about 10 MB."""

MAX_SHOWN = 50
"""Maximum number of problems of one kind in a message."""


def first_problems(problems: Sequence[str]) -> list[str]:
    """The first problems, and the number of the others."""
    more = len(problems) - MAX_SHOWN
    return [*problems[:MAX_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]


class SafetensorsReader:
    """Reads the tensors of a model folder by name: from `model.safetensors`, or the shards that its index names.

    Opening reads only the headers. Use it in a `with` statement, which closes the files; tensors from `read` and `copy`
    stay valid. Raises InputError naming every invalid file and tensor.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._resident = 0
        indexed = weight_files(self.folder)
        self._files = _open_all(self.folder, list(indexed))
        self._entries = _entries(self.folder, self._files, indexed)

    def __enter__(self) -> SafetensorsReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files. A file stays mapped as long as a view of it exists."""
        # A mapping cannot be closed while tensors use it; it ends with the last of them.
        self._files, self._entries = [], {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, in the order of the files."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Total size of all tensors in bytes."""
        return sum(entry.size for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises InputError for an unknown name."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor in the file. Raises InputError for an unknown name."""
        return self._entry(name).dtype

    def view(self, name: str) -> Tensor:
        """A tensor over the mapped file; data is read when it is used.

        It can be transposed, split and reshaped without cost before `copy`, so the parts of a fused tensor are loaded
        without copying the whole. The memory belongs to the file: do not keep the view.
        """
        entry = self._entry(name)
        if not entry.size:
            return torch.empty(entry.shape, dtype=entry.dtype)
        data = torch.frombuffer(entry.file.mapping, dtype=torch.uint8, offset=entry.start, count=entry.size)
        if entry.start % entry.dtype.itemsize:
            data = self.copy(data)  # The format does not guarantee the alignment that some processors need.
        return data.view(entry.dtype).view(entry.shape)

    def view_whole(self, name: str) -> Tensor:
        """`view` for a caller that reads the whole tensor, such as quantization; releases pages of others first."""
        view = self.view(name)
        self._make_room(view.nbytes)
        return view

    def copy(self, view: Tensor, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """A contiguous copy of a tensor on `device`; floating-point tensors are converted to `dtype`.

        `view` is a result of `view` or derived from one. `dtype` None keeps the dtype; integers and booleans always
        keep theirs. A tensor that is not a view of the files is copied only if necessary.
        """
        dtype = dtype if dtype is not None and view.is_floating_point() else view.dtype
        if not any(file.contains(view) for file in self._files):
            copied = view.to(device=device, dtype=dtype).contiguous()
            return copied.clone() if copied.untyped_storage().nbytes() > copied.nbytes else copied
        target = torch.empty(view.shape, dtype=dtype, device=device)
        self._fill(target, view)
        return target

    def read(self, name: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """A copy of a tensor on `device`; floating-point tensors in `dtype` (None: the file's).

        Raises InputError for an unknown name.
        """
        return self.copy(self.view(name), dtype, device)

    def equal(self, first: str, second: str) -> bool:
        """Whether two tensors have equal values in the less precise of their dtypes; compared in chunks."""
        one, other = self.view(first), self.view(second)
        if one.shape != other.shape:
            return False
        coarse = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
        rows = max(1, CHUNK * max(1, one.shape[0] if one.dim() else 1) // max(1, 2 * max(one.nbytes, other.nbytes)))
        for left, right in zip(torch.atleast_1d(one).split(rows), torch.atleast_1d(other).split(rows), strict=True):
            self._make_room(left.nbytes + right.nbytes)
            if not torch.equal(left.to(coarse), right.to(coarse)):
                return False
        return True

    def _fill(self, target: Tensor, view: Tensor) -> None:
        """Copies in chunks along the axis with the largest stride in the file, so that each page is read once."""
        if view.nbytes <= CHUNK:
            self._make_room(view.nbytes)
            target.copy_(view)
            return
        axis = max((axis for axis in range(view.dim()) if view.size(axis) > 1), key=view.stride)
        rows = max(1, CHUNK * view.size(axis) // view.nbytes)
        for start in range(0, view.size(axis), rows):
            count = min(rows, view.size(axis) - start)
            self._fill(target.narrow(axis, start, count), view.narrow(axis, start, count))

    def _make_room(self, size: int) -> None:
        """Releases the pages of the files before more than `CHUNK` bytes of them are resident."""
        if self._resident + size > CHUNK:
            for file in self._files:
                file.release_pages()
            self._resident = 0
        self._resident += size

    def _entry(self, name: str) -> _Entry:
        if name in self._entries:
            return self._entries[name]
        similar = difflib.get_close_matches(name, self._entries, n=3)
        hint = f"; similar names: {', '.join(similar)}" if similar else ""
        raise InputError(f"{self.folder}: no tensor {name!r}{hint}.")


class _File:
    """One mapped safetensors file with its checked header."""

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            if problem := _not_safetensors(path):
                raise InputError(f"{path}: {problem}")
            with safe_open(path, framework="pt"):
                pass
            with open(path, "rb") as handle:
                # Copy-on-write because torch has no read-only tensors; nothing writes to it.
                self.mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        except SafetensorError as error:
            raise InputError(f"{path}: incomplete or invalid safetensors file ({error}). {RETRY_HINT}") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
        self.address = torch.frombuffer(self.mapping, dtype=torch.uint8).data_ptr()
        self.data = 8 + int.from_bytes(self.mapping[:8], "little")
        self.header: dict[str, dict[str, Any]] = json.loads(self.mapping[8 : self.data])
        self.header.pop("__metadata__", None)

    def contains(self, tensor: Tensor) -> bool:
        """Whether a tensor is a view of this file."""
        return tensor.device.type == "cpu" and 0 <= tensor.data_ptr() - self.address < len(self.mapping)

    def release_pages(self) -> None:
        """Releases the resident pages, if the system supports it; they are read again when used."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class _Entry:
    """Location of a tensor: its file, the offset of its first byte and its size in bytes."""

    file: _File
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


def pickled_weights(names: Iterable[str]) -> list[str]:
    """The names of pickled weight files, sorted, without pickles of a trainer's state."""
    return sorted(name for name in names if name.endswith(_PICKLES) and not name.startswith(_NOT_WEIGHTS))


def weight_files(folder: Path) -> dict[Path, list[str]]:
    """The weight files of a folder, each with its tensors according to the index (none without an index).

    Raises InputError if there are none, or if files named by the index are missing.
    """
    # With both a single file and an index, transformers reads the single file too.
    if _exists(folder / WEIGHTS):
        return {folder / WEIGHTS: []}
    if _exists(folder / INDEX):
        return _indexed(folder / INDEX)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such model folder.")
    names = sorted(path.name for path in folder.iterdir())
    if pickled := pickled_weights(names):
        raise InputError(f"{folder}: contains only pickled weights ({', '.join(pickled)}). {CONVERT_HINT}")
    others = [name for name in names if name.endswith((".safetensors", ".gguf", ".h5", ".msgpack"))]
    hint = f" It contains {', '.join(others)}, which are not read." if others else ""
    raise InputError(f"{folder}: contains no {WEIGHTS}. A model folder needs its weights in safetensors.{hint}")


def _indexed(index: Path) -> dict[Path, list[str]]:
    """The shards that an index names, each with its tensors. Raises InputError for a bad index or missing shards."""
    weight_map = read_json(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(
            f"{index}: weight_map: {format_value(weight_map)}; must be an object of tensors and files. {RETRY_HINT}"
        )
    if not weight_map:
        raise InputError(f"{index}: names no tensors. {RETRY_HINT}")
    outside = [
        f"{format_value(name)}: {format_value(shard)}; must be the name of a .safetensors file in the same folder"
        for name, shard in weight_map.items()
        if not isinstance(shard, str)
        or Path(shard).name != shard
        or "\\" in shard
        or "\0" in shard
        or len(shard.encode("utf-8", "replace")) > 255
        or not shard.endswith(".safetensors")
    ]
    if outside:
        raise InputError(f"{index}: names files outside its folder. {RETRY_HINT}", first_problems(outside))
    tensors: dict[str, list[str]] = defaultdict(list)
    for name, shard in weight_map.items():
        tensors[shard].append(name)
    missing = [f"{shard}: missing" for shard in sorted(tensors) if not _exists(index.parent / shard)]
    if missing:
        raise InputError(f"{index.parent}: {INDEX} names missing files. Download them:", first_problems(missing))
    return {index.parent / shard: tensors[shard] for shard in sorted(tensors)}


def _open_all(folder: Path, paths: list[Path]) -> list[_File]:
    """Opens the files. Raises InputError with every one that cannot be read."""
    files, problems = [], []
    for path in paths:
        try:
            files.append(_File(path))
        except InputError as error:
            problems.append(error.message)
    if problems and len(paths) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(f"{folder}: {len(problems)} of {len(paths)} shards cannot be read:", problems)
    return files


def _entries(folder: Path, files: list[_File], indexed: dict[Path, list[str]]) -> dict[str, _Entry]:
    """All tensors of the files. Raises InputError if files and index disagree, and for unknown dtypes."""
    entries: dict[str, _Entry] = {}
    unknown: dict[str, list[str]] = defaultdict(list)
    problems = []
    for file in files:
        problems += [
            f"{name}: not in {file.path.name}, contrary to {INDEX}"
            for name in indexed[file.path]
            if name not in file.header
        ]
        for name, header in sorted(file.header.items(), key=lambda item: item[1]["data_offsets"]):
            if name in entries:
                problems.append(f"{name}: in {entries[name].file.path.name} and in {file.path.name}")
            elif header["dtype"] not in DTYPES:
                unknown[header["dtype"]].append(name)
            else:
                start, end = header["data_offsets"]
                shape = tuple(header["shape"])
                entries[name] = _Entry(file, DTYPES[header["dtype"]], shape, file.data + start, end - start)
    if problems:
        raise InputError(
            f"{folder}: the shards contradict each other or the index. {RETRY_HINT}", first_problems(problems)
        )
    if unknown:
        raise InputError(
            f"{folder}: tensors with unsupported dtypes; supported are {', '.join(DTYPES)}. Use bfloat16 or "
            "float weights of the model, or convert it.",
            [f"{dtype}: {len(names)} tensors, the first is {names[0]}" for dtype, names in sorted(unknown.items())],
        )
    return entries


def _not_safetensors(path: Path) -> str | None:
    """What a file is instead of safetensors, and the remedy; None if only the library can tell."""
    if not path.is_file():
        return f"a link to a missing file. {RETRY_HINT}" if path.is_symlink() else "not a file."
    with open(path, "rb") as handle:
        start = handle.read(48)
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the weights. Run `git lfs pull` in its folder."
    if not start:
        return f"an empty file. {RETRY_HINT}"
    if start.startswith(_PICKLED) and start[8:9] not in (b"", b"{"):
        return f"pickled weights under another name. {CONVERT_HINT}"
    return None


def _exists(path: Path) -> bool:
    """Whether the path exists; a broken link counts, so that it is reported as one."""
    return path.is_file() or path.is_symlink()
