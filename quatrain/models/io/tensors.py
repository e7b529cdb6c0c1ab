"""Reads the safetensors files of a model folder, straight from the memory-mapped file into place.

The pages of a mapped file count as memory of the process for as long as they stay resident, and a tensor that is
converted or transposed on the way exists twice for a moment. So tensors are copied in pieces of at most `CHUNK` bytes,
rows in the order of the file, and the pages behind them are given back: reading a model takes the memory of its
weights in the dtype asked for, and `CHUNK` more, however large its largest tensor is.

The header of a file (Hugging Face's safetensors format: 8 bytes of length, a JSON object, the data) is checked by the
safetensors library: its length, its offsets, and that the data are all there. Nothing is ever unpickled.
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
"""The most bytes of the files that are resident at a time."""

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32,
    "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
"""The format's names of the dtypes that are read."""

RETRY_HINT = "Fetch or write the model again."
CONVERT_HINT = (
    "Pickled files can run code when they are read. Convert them once, with a source that you trust, in transformers: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW), or the class of the model's head in its place."
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")


MAX_INDEX_BYTES = 256 * 2**20
"""An index of the largest models has some 10 MB."""

SHOWN = 50
"""Problems of one kind that a message names."""


def first_problems(problems: Sequence[str]) -> list[str]:
    """The first problems, and how many there are beside."""
    more = len(problems) - SHOWN
    return [*problems[:SHOWN], *([f"and {more:,} more"] if more > 0 else [])]


class SafetensorsReader:
    """The tensors of a model folder by name: `model.safetensors`, or the shards that its index names.

    Opening reads the headers alone. Use it in a `with` statement: leaving it lets go of the files; what `read` and
    `copy` gave stays. Raises InputError naming every file and tensor that is wrong.
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
        """Lets go of the files. Views that are still held keep theirs mapped."""
        # A mapping ends with the last tensor on it: closing it under one would be refused.
        self._files, self._entries = [], {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor, in the order of the files."""
        return tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for entry in self._entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises InputError for an unknown name."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor in the file. Raises InputError for an unknown name."""
        return self._entry(name).dtype

    def view(self, name: str) -> Tensor:
        """A tensor over the mapped file, of which nothing is read before it is used.

        Transpose it, cut it, reshape it at no cost, and hand what comes of it to `copy`: so the parts of a fused tensor
        are read without a second copy of the whole. It is the file's memory: it must not be kept.
        """
        entry = self._entry(name)
        if not entry.size:
            return torch.empty(entry.shape, dtype=entry.dtype)
        data = torch.frombuffer(entry.file.mapping, dtype=torch.uint8, offset=entry.start, count=entry.size)
        if entry.start % entry.dtype.itemsize:
            data = self.copy(data)  # the format does not promise alignment, which processors may insist on
        return data.view(entry.dtype).view(entry.shape)

    def view_whole(self, name: str) -> Tensor:
        """`view` for one that reads all of it, such as what rounds it: pages of others are given back before."""
        found = self.view(name)
        self._make_room(found.nbytes)
        return found

    def copy(self, view: Tensor, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """A tensor's values in contiguous memory of their own on `device`, floating-point ones in `dtype`.

        `view` is one of `view`, or made of one; None keeps the file's dtype, which integers and booleans always do. A
        tensor that is no view of the files is converted where it has to be.
        """
        dtype = dtype if dtype is not None and view.is_floating_point() else view.dtype
        if not any(file.holds(view) for file in self._files):
            made = view.to(device=device, dtype=dtype).contiguous()
            return made.clone() if made.untyped_storage().nbytes() > made.nbytes else made
        target = torch.empty(view.shape, dtype=dtype, device=device)
        self._fill(target, view)
        return target

    def read(self, name: str, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
        """A tensor in memory of its own on `device`, floating-point ones in `dtype` (None: the file's).

        Raises InputError for an unknown name.
        """
        return self.copy(self.view(name), dtype, device)

    def equal(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same values, those of the less precise dtype of the two; read piece by piece."""
        one, other = self.view(first), self.view(second)
        if one.shape != other.shape:
            return False
        coarse = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
        rows = max(1, CHUNK * max(1, one.shape[0] if one.dim() else 1) // max(1, 2 * max(one.nbytes, other.nbytes)))
        for piece, its in zip(torch.atleast_1d(one).split(rows), torch.atleast_1d(other).split(rows), strict=True):
            self._make_room(piece.nbytes + its.nbytes)
            if not torch.equal(piece.to(coarse), its.to(coarse)):
                return False
        return True

    def _fill(self, target: Tensor, view: Tensor) -> None:
        """Copies piece by piece along the axis whose steps in the file are the largest, so that pages are met once."""
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
        """Gives the files' pages back before more than `CHUNK` bytes of them are resident."""
        if self._resident + size > CHUNK:
            for file in self._files:
                file.release_pages()
            self._resident = 0
        self._resident += size

    def _entry(self, name: str) -> _Entry:
        if name in self._entries:
            return self._entries[name]
        near = difflib.get_close_matches(name, self._entries, n=3)
        raise InputError(f"{self.folder}: no tensor {name!r}{'; near it: ' + ', '.join(near) if near else ''}.")


class _File:
    """One safetensors file, mapped, its header checked and read."""

    def __init__(self, path: Path):
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            if wrong := _no_safetensors(path):
                raise InputError(f"{path}: {wrong}")
            with safe_open(path, framework="pt"):
                pass
            with open(path, "rb") as handle:
                # A copy on write, since torch has no read-only tensors; nothing writes to it.
                self.mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        except SafetensorError as error:
            raise InputError(f"{path}: not a whole safetensors file ({error}). {RETRY_HINT}") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
        self.address = torch.frombuffer(self.mapping, dtype=torch.uint8).data_ptr()
        self.data = 8 + int.from_bytes(self.mapping[:8], "little")
        self.header: dict[str, dict[str, Any]] = json.loads(self.mapping[8 : self.data])
        self.header.pop("__metadata__", None)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's memory is this file's."""
        return tensor.device.type == "cpu" and 0 <= tensor.data_ptr() - self.address < len(self.mapping)

    def release_pages(self) -> None:
        """Drops the resident pages, where the system can; the next use reads them again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class _Entry:
    """Where a tensor is: its file, its first byte there and its size in bytes."""

    file: _File
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


def pickled_weights(names: Iterable[str]) -> list[str]:
    """Those of some file names that are pickled weights, sorted; a trainer's own pickles are none."""
    return sorted(name for name in names if name.endswith(_PICKLES) and not name.startswith(_NO_WEIGHTS))


def weight_files(folder: Path) -> dict[Path, list[str]]:
    """The weight files of a folder, each with the tensors that the index promises of it (none without an index).

    Raises InputError where there are none, or not all that the index names.
    """
    # transformers, too, takes the whole file where there are both.
    if _exists(folder / WEIGHTS):
        return {folder / WEIGHTS: []}
    if _exists(folder / INDEX):
        return _indexed(folder / INDEX)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such model folder.")
    names = sorted(path.name for path in folder.iterdir())
    if pickled := pickled_weights(names):
        raise InputError(f"{folder}: only pickled weights in it ({', '.join(pickled)}). {CONVERT_HINT}")
    others = [name for name in names if name.endswith((".safetensors", ".gguf", ".h5", ".msgpack"))]
    there = f" It has {', '.join(others)}, which is no such file by its name." if others else ""
    raise InputError(f"{folder}: no {WEIGHTS} in it. A model folder needs its weights in safetensors.{there}")


def _indexed(index: Path) -> dict[Path, list[str]]:
    """The shards that an index names, all of them beside it, each with its tensors."""
    weight_map = read_json(index, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InputError(
            f"{index}: weight_map: {format_value(weight_map)}; must be an object of tensors and files. {RETRY_HINT}"
        )
    if not weight_map:
        raise InputError(f"{index}: names no tensors. {RETRY_HINT}")
    outside = [
        f"{format_value(name)}: {format_value(shard)}; allowed are names of .safetensors files beside the index"
        for name, shard in weight_map.items()
        if not isinstance(shard, str)
        or Path(shard).name != shard
        or "\\" in shard
        or "\0" in shard
        or len(shard.encode("utf-8", "replace")) > 255
        or not shard.endswith(".safetensors")
    ]
    if outside:
        raise InputError(f"{index}: must name files of its own folder. {RETRY_HINT}", first_problems(outside))
    tensors: dict[str, list[str]] = defaultdict(list)
    for name, shard in weight_map.items():
        tensors[shard].append(name)
    missing = [f"{shard}: missing" for shard in sorted(tensors) if not _exists(index.parent / shard)]
    if missing:
        raise InputError(
            f"{index.parent}: {INDEX} names files that are not there. Fetch them:", first_problems(missing)
        )
    return {index.parent / shard: tensors[shard] for shard in sorted(tensors)}


def _open_all(folder: Path, paths: list[Path]) -> list[_File]:
    """The files, opened. Raises InputError with every one that cannot be."""
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
    """Every tensor of the files. Raises InputError where they and the index disagree, or for an unknown dtype."""
    entries: dict[str, _Entry] = {}
    unknown: dict[str, list[str]] = defaultdict(list)
    problems = []
    for file in files:
        problems += [
            f"{name}: not in {file.path.name}, where {INDEX} says that it is"
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
        raise InputError(f"{folder}: the shards do not fit each other. {RETRY_HINT}", first_problems(problems))
    if unknown:
        raise InputError(
            f"{folder}: tensors of dtypes that cannot be read. Allowed are {', '.join(DTYPES)}: take the model's "
            "bfloat16 or float weights, or convert it.",
            [f"{dtype}: {len(names)} tensors, the first is {names[0]}" for dtype, names in sorted(unknown.items())],
        )
    return entries


def _no_safetensors(path: Path) -> str | None:
    """What a file is in the place of safetensors, and the remedy; None where only the library can tell."""
    if not path.is_file():
        return f"a link to a file that is gone. {RETRY_HINT}" if path.is_symlink() else "no file."
    with open(path, "rb") as handle:
        beginning = handle.read(48)
    if beginning.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in the place of the weights. Run `git lfs pull` in its folder."
    if not beginning:
        return f"not a whole safetensors file (it is empty). {RETRY_HINT}"
    if beginning.startswith(_PICKLED) and beginning[8:9] not in (b"", b"{"):
        return f"pickled weights by another name. {CONVERT_HINT}"
    return None


def _exists(path: Path) -> bool:
    """Whether there is something of this name; a link to nothing counts, so that it is told as such."""
    return path.is_file() or path.is_symlink()
