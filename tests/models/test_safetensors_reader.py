"""Safetensors folders: read bit for bit, converted right, in bounded memory; broken ones told in full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from quatrain.core.errors import InputError
from quatrain.models.io import safetensors_reader as module
from quatrain.models.io.safetensors_reader import INDEX, WEIGHTS, SafetensorsReader, pickled_weights

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WHOLE_NUMBERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.bool]


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2 if dtype is torch.bool else 100, shape, generator=generator).to(dtype)


def write(folder: Path, shards: dict[str, dict[str, torch.Tensor]], index: object = None) -> Path:
    """A folder of files by name; with more than one, the index of them (or another one)."""
    folder.mkdir(exist_ok=True)
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    if len(shards) > 1 or index is not None:
        weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map} if index is None else index))
    return folder


def error_of(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        SafetensorsReader(folder)
    return caught.value


A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write(
        tmp_path / "model", {A: {"a": random_tensor((3, 4))}, B: {"b": random_tensor((5,)), "c": random_tensor((2, 2))}}
    )


# ---- reading


def test_every_dtype_and_shape_bit_for_bit(tmp_path: Path) -> None:
    shapes = [(), (1,), (0,), (3, 0, 2), (7,), (5, 3), (2, 3, 4, 5)]
    saved = {
        f"{dtype}.{number}": random_tensor(shape, dtype, number)
        for dtype in FLOATS + WHOLE_NUMBERS
        for number, shape in enumerate(shapes)
    }
    with SafetensorsReader(write(tmp_path / "model", {WEIGHTS: saved})) as tensors:
        assert sorted(tensors.names) == sorted(saved) and len(tensors) == len(saved)
        for name, tensor in saved.items():
            assert (
                name in tensors and tensors.shape(name) == tuple(tensor.shape) and tensors.dtype(name) == tensor.dtype
            )
            read = tensors.read(name)
            assert read.dtype == tensor.dtype and read.is_contiguous() and torch.equal(read, tensor)
    assert "another" not in SafetensorsReader(tmp_path / "model")


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats_are_converted_as_torch_does_and_whole_numbers_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    saved = {str(each): random_tensor((6, 5), each) for each in FLOATS + WHOLE_NUMBERS}
    with SafetensorsReader(write(tmp_path / "model", {WEIGHTS: saved})) as tensors:
        for name, tensor in saved.items():
            expected = tensor.to(dtype) if tensor.is_floating_point() else tensor
            read = tensors.read(name, dtype)
            assert read.dtype == expected.dtype and torch.equal(read, expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(1, 7), min_size=1, max_size=4), chunk=st.integers(8, 300))
def test_any_view_in_chunks_of_any_size(data, shape, chunk, tmp_path_factory) -> None:
    """Permuted, cut and converted views are what torch makes of the whole tensor, however small the pieces."""
    saved = random_tensor(tuple(shape), seed=len(shape))
    folder = write(tmp_path_factory.mktemp("views"), {WEIGHTS: {"x": saved}})
    order = data.draw(st.permutations(range(len(shape))))
    axis = data.draw(st.integers(0, len(shape) - 1))
    start = data.draw(st.integers(0, saved.permute(order).size(axis) - 1))
    dtype = data.draw(st.sampled_from(FLOATS))

    def turned(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.permute(order).narrow(axis, start, tensor.permute(order).size(axis) - start)

    with pytest.MonkeyPatch.context() as patch, SafetensorsReader(folder) as tensors:
        patch.setattr(module, "CHUNK", chunk)
        read = tensors.copy(turned(tensors.view("x")), dtype)
    assert read.is_contiguous() and torch.equal(read, turned(saved).to(dtype))


def test_what_was_read_is_its_own_and_outlives_the_file(tmp_path: Path) -> None:
    saved = {"fused": random_tensor((6, 4)), "n": random_tensor((3,), torch.int64)}
    folder = write(tmp_path / "model", {WEIGHTS: saved})
    with SafetensorsReader(folder) as tensors:
        read = {name: tensors.read(name) for name in saved}
        parts = [tensors.copy(part) for part in tensors.view("fused").chunk(3)]
        stacked = tensors.copy(torch.cat([tensors.view("fused"), tensors.view("fused")]), torch.float64)
        piece = tensors.copy(read["fused"][:2])
        parts[0].zero_()  # the file and the other parts do not hear of it
        assert torch.equal(tensors.read("fused"), saved["fused"])
    (folder / WEIGHTS).write_bytes(b"\0" * (folder / WEIGHTS).stat().st_size)
    assert all(torch.equal(read[name], tensor) for name, tensor in saved.items())
    assert torch.equal(torch.cat(parts[1:]), saved["fused"][2:])
    assert torch.equal(stacked, saved["fused"].double().repeat(2, 1)) and torch.equal(piece, saved["fused"][:2])
    for tensor in [*read.values(), *parts, stacked, piece]:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_tensors_need_not_be_aligned(tmp_path: Path) -> None:
    """The format allows any order: here a float32 begins behind three bytes."""
    odd, floats = bytes([1, 2, 3]), random_tensor((4, 2))
    header = json.dumps({
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "floats": {"dtype": "F32", "shape": [4, 2], "data_offsets": [3, 35]},
    }).encode()  # fmt: skip
    body = len(header).to_bytes(8, "little") + header + odd + floats.numpy().tobytes()
    (tmp_path / WEIGHTS).write_bytes(body)
    with SafetensorsReader(tmp_path) as tensors:
        assert torch.equal(tensors.read("floats"), floats)
        assert torch.equal(tensors.copy(tensors.view("floats").t(), torch.bfloat16), floats.t().bfloat16())
        assert tensors.read("odd").tolist() == [1, 2, 3]


def test_shards_and_the_whole_file_before_them(sharded: Path) -> None:
    with SafetensorsReader(sharded) as tensors:
        assert tensors.names == ("a", "b", "c")
        assert torch.equal(tensors.read("c"), random_tensor((2, 2)))
    save_file({"whole": torch.ones(2)}, sharded / WEIGHTS)
    assert SafetensorsReader(sharded).names == ("whole",)  # as transformers chooses


def test_a_tensor_that_the_index_leaves_out_is_still_there(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {A: {"a": torch.ones(1), "extra": torch.ones(1)}}, {"weight_map": {"a": A}})
    assert set(SafetensorsReader(folder).names) == {"a", "extra"}


def test_an_unknown_name_is_told_with_those_near(sharded: Path) -> None:
    with SafetensorsReader(sharded) as tensors:
        for ask in (tensors.shape, tensors.dtype, tensors.view, tensors.read):
            with pytest.raises(InputError, match="no tensor 'aa'; similar names: a"):
                ask("aa")
            with pytest.raises(InputError, match=r"no tensor 'strange'\."):
                ask("strange")


def test_views_that_are_held_keep_the_file(sharded: Path) -> None:
    with SafetensorsReader(sharded) as tensors:
        view = tensors.view("a")
    assert torch.equal(view, random_tensor((3, 4)))
    assert len(tensors) == 0


# ---- files that are wrong


@pytest.mark.parametrize("keep", [1, 5, 8, 20, 0.5, 0.99])
def test_cut_files(keep: float, tmp_path: Path) -> None:
    path = write(tmp_path / "model", {WEIGHTS: {"x": random_tensor((40, 40))}}) / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    message = error_of(path.parent).message
    assert "incomplete or invalid safetensors file" in message and str(path) in message and "or save the" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"\0" * 4096, "incomplete or invalid safetensors file"),
        (b"\xff" * 4096, "incomplete or invalid safetensors file"),
        ((10**6).to_bytes(8, "little") + b"{}", "incomplete or invalid safetensors file"),
        ((16).to_bytes(8, "little") + b"this is no json!", "incomplete or invalid safetensors file"),
        ((8).to_bytes(8, "little") + b'{"a": 1}', "incomplete or invalid safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git lfs pull"),
        (b"PK\x03\x04\x00\x00\x08\x08" + b"\0" * 64, "AutoModelForCausalLM.from_pretrained"),
        (b"\x80\x02}q\x00X\x06\x00\x00\x00" + b"\0" * 64, "AutoModelForCausalLM.from_pretrained"),
    ],
)
def test_what_is_no_safetensors_file(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(data)
    message = error_of(tmp_path).message
    assert words in message and str(tmp_path / WEIGHTS) in message


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"x": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}},
        {"x": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {
            "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "y": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        },
    ],
)
def test_headers_that_contradict_themselves(header: dict[str, object], tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
    assert "incomplete or invalid safetensors file" in error_of(tmp_path).message


def test_headers_of_every_length_are_taken_for_what_they_are(tmp_path: Path) -> None:
    """Whatever bytes the length of a header begins with, pickles' own included."""
    for length in (0x0280, 0x0480, 0x10480):
        text = json.dumps({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(length)
        (tmp_path / WEIGHTS).write_bytes(length.to_bytes(8, "little") + text + b"\7")
        assert SafetensorsReader(tmp_path).read("x").tolist() == [7]


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_wrong_byte_in_the_header_is_an_input_error_or_harmless(place: int, byte: int, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("byte")
    path = write(folder, {WEIGHTS: {"weight": random_tensor((3, 3)), "n": random_tensor((2,), torch.int64)}}) / WEIGHTS
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data)
    try:
        with SafetensorsReader(folder) as tensors:
            for name in tensors.names:
                tensors.read(name)
    except InputError as error:
        assert str(folder) in str(error)


def test_dtypes_that_are_not_read_are_told_by_kind(tmp_path: Path) -> None:
    saved = {f"layer.{n}": torch.zeros(2).to(torch.float8_e5m2) for n in range(3)} | {"b": torch.zeros(2)}
    saved["z"] = torch.zeros(2).to(torch.float8_e5m2)
    error = error_of(write(tmp_path / "model", {WEIGHTS: saved}))
    assert "BF16" in error.message and "bfloat16" in error.message
    assert error.problems == ["F8_E5M2: 4 tensors, the first is layer.0"]


def test_every_missing_shard_is_named(sharded: Path) -> None:
    for name in (A, B):
        (sharded / name).unlink()
    error = error_of(sharded)
    assert INDEX in error.message and error.problems == [f"{A}: missing", f"{B}: missing"]


def test_every_broken_shard_is_named(sharded: Path) -> None:
    (sharded / A).write_bytes(b"")
    (sharded / B).write_bytes((sharded / B).read_bytes()[:-1])
    error = error_of(sharded)
    assert "2 of 2 shards" in error.message and [A in error.problems[0], B in error.problems[1]] == [True, True]


def test_a_tensor_that_is_not_in_its_shard(sharded: Path) -> None:
    save_file({"c": torch.zeros(1)}, sharded / B)
    assert error_of(sharded).problems == [f"b: not in {B}, contrary to {INDEX}"]


def test_a_tensor_that_is_in_two_shards(sharded: Path) -> None:
    save_file({"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)}, sharded / B)
    assert error_of(sharded).problems == [f"a: in {A} and in {B}"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": null}', "\xff"])
def test_what_is_no_index(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text, encoding="latin-1")
    message = error_of(tmp_path).message
    assert INDEX in message


def test_an_index_that_names_nothing(tmp_path: Path) -> None:
    assert "names no tensors" in error_of(write(tmp_path / "model", {}, {"weight_map": {}})).message


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    places = ["../x.safetensors", str(tmp_path / "x.safetensors"), "..\\x.safetensors", "", ".", "model.bin", 3]
    error = error_of(write(tmp_path / "model", {}, {"weight_map": {str(n): place for n, place in enumerate(places)}}))
    assert "outside its folder" in error.message and len(error.problems) == len(places)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickled_weights_are_refused_with_the_way_out(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02")
    message = error_of(tmp_path).message
    assert "pickled" in message and name in message and "save_pretrained" in message


def test_a_trainers_own_pickles_are_no_weights(tmp_path: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth"):
        (tmp_path / name).write_bytes(b"")
    assert pickled_weights(path.name for path in tmp_path.iterdir()) == []
    assert f"no {WEIGHTS}" in error_of(tmp_path).message


def test_folders_without_weights(tmp_path: Path) -> None:
    assert "no such model folder" in error_of(tmp_path / "nothing").message
    assert f"contains no {WEIGHTS}" in error_of(tmp_path).message
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    assert "adapter_model.safetensors" in error_of(tmp_path).message


@pytest.mark.skipif(os.name != "posix", reason="links need a right on Windows")
def test_a_link_to_a_file_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).symlink_to(tmp_path / "blob")
    assert "a link to a missing file" in error_of(tmp_path).message


# ---- memory

ROWS, WIDTH, LAYERS = 24_000, 1024, 16
MEASURE = """
import json, os, sys
import torch
from quatrain.core.process_memory import peak_memory, reset_peak_memory
from quatrain.models.io.safetensors_reader import SafetensorsReader

def read(folder, dtype):
    with SafetensorsReader(folder) as tensors:
        return [tensors.read(name, dtype) for name in tensors.names]

def parts(folder, dtype):
    with SafetensorsReader(folder) as tensors:
        return [tensors.copy(p.t(), dtype) for name in tensors.names for p in tensors.view(name).chunk(2)]

def plain(folder, dtype):
    from safetensors import safe_open
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as file:
        return [file.get_tensor(name).to(dtype, copy=True) for name in file.keys()]

warm, *cases = sys.argv[1:]
for case in cases:
    how, folder, dtype = case.split("|")
    child = os.fork()
    if not child:
        globals()[how](warm, torch.bfloat16)  # so that the code itself is resident
        reset_peak_memory()
        before = peak_memory()
        weights = globals()[how](folder, getattr(torch, dtype))
        grown, size = peak_memory() - before, sum(tensor.nbytes for tensor in weights)
        print(json.dumps({"case": case, "ratio": grown / size, "megabytes": size / 1e6}), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def ratios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Growth of the peak over the bytes of the weights, by way of reading, file and dtype in memory.

    An embedding of 98 MB and 16 matrices of 4 MB, in float32; half of that in bfloat16.
    """
    place = tmp_path_factory.mktemp("memory")
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (ROWS, WIDTH)} | {f"layers.{n}": (WIDTH, WIDTH) for n in range(LAYERS)}
    saved = {name: torch.empty(shape).uniform_(-1, 1, generator=generator) for name, shape in shapes.items()}
    names = list(saved)
    thirds = {f"model-{n + 1:05d}-of-00003.safetensors": {k: saved[k] for k in names[n::3]} for n in range(3)}
    folders = {
        "warm": write(place / "warm", {WEIGHTS: {"a": torch.ones(512, 512)}}),
        "whole": write(place / "whole", {WEIGHTS: saved}),
        "sharded": write(place / "sharded", thirds),
        "half": write(place / "half", {WEIGHTS: {name: tensor.bfloat16() for name, tensor in saved.items()}}),
    }
    cases = ["plain whole float32", "read whole float32", "read sharded float32", "read half float32",
             "read half bfloat16", "read whole bfloat16", "parts whole float32", "parts half float32"]  # fmt: skip
    asked = [f"{how}|{folders[folder]}|{dtype}" for how, folder, dtype in map(str.split, cases)]
    done = subprocess.run([sys.executable, "-c", MEASURE, str(folders["warm"]), *asked], text=True, capture_output=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["case"] for line in lines] == asked and all(line["megabytes"] > 80 for line in lines)
    return dict(zip(cases, [line["ratio"] for line in lines], strict=True))


linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak of a part of a process is Linux's to tell")


@linux
@pytest.mark.parametrize("case", ["read whole float32", "read sharded float32", "read half float32",
                                  "read half bfloat16", "read whole bfloat16", "parts whole float32",
                                  "parts half float32"])  # fmt: skip
def test_peak_memory_is_that_of_the_weights(case: str, ratios: dict[str, float]) -> None:
    assert 0.95 < ratios[case] <= 1.2


@linux
def test_the_measure_sees_mapped_pages(ratios: dict[str, float]) -> None:
    """Reading as the library's own way does must not pass."""
    assert ratios["plain whole float32"] > 1.8
