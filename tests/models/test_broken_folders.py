"""Broken files of a model folder: each is refused by name, by the reading and by `inspect`, and never shown."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_configs import tiny

from quatrain.compression import files
from quatrain.core.errors import InputError
from quatrain.evaluation.inspection import open_subject
from quatrain.models.families import get_family
from quatrain.models.io import model_folder, sentence_transformers
from quatrain.models.io.safetensors_reader import INDEX, WEIGHTS, SafetensorsReader
from quatrain.models.transformer.stack import Model

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**30,
    math.nan,
    "",
    "x",
    "../x",
    "/etc/passwd",
    "a\0b",
    [],
    [1],
    {},
    {"a": []},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model in two shards."""
    model = Model(get_family("llama").from_hf(tiny("llama"))).initialize(0)
    model_folder.save(model, tmp_path, shard_bytes=3_000)
    assert (tmp_path / INDEX).is_file()
    return tmp_path


def refused(folder: Path) -> str:
    """What is said of a broken folder; `inspect` says it too."""
    with pytest.raises(InputError) as caught:
        model_folder.load(folder)
    with pytest.raises(InputError):
        _ = open_subject(folder).weights
        _ = open_subject(folder).config
    assert len(str(caught.value)) < 10_000
    return str(caught.value)


def write_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(change(index)))


@pytest.mark.parametrize("value", [*VALUES, {"a": "../x.safetensors"}, {"a": "/x.safetensors"}, {"a": "x" * 400}])
def test_an_index_of_wrong_values(folder: Path, value: Any) -> None:
    write_index(folder, lambda index: index | {"weight_map": value})
    assert INDEX in refused(folder)


@pytest.mark.parametrize("value", VALUES)
def test_an_index_that_is_another_value(folder: Path, value: Any) -> None:
    write_index(folder, lambda index: value)
    assert INDEX in refused(folder)


@pytest.mark.parametrize("value", [*VALUES, "nowhere.safetensors", ".safetensors", "a/b.safetensors", "x" * 300])
def test_an_entry_of_an_index(folder: Path, value: Any) -> None:
    name = next(iter(json.loads((folder / INDEX).read_text())["weight_map"]))
    write_index(folder, lambda index: index | {"weight_map": index["weight_map"] | {name: value}})
    assert INDEX in refused(folder)


def test_a_tensor_that_no_shard_has(folder: Path) -> None:
    shard = next(iter(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    write_index(folder, lambda index: index | {"weight_map": index["weight_map"] | {"lm_head.extra": shard}})
    assert "lm_head.extra: not in" in refused(folder)


@pytest.mark.parametrize("text", ["", "[" * 10_000, '{"weight_map": ' + "9" * 5000 + "}", "\ufeff[]", "{} {}"])
def test_an_index_that_is_no_table(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    assert INDEX in refused(folder)


@pytest.fixture
def whole(folder: Path) -> Path:
    """The same in one file."""
    with SafetensorsReader(folder) as tensors:
        every = {name: tensors.read(name) for name in tensors.names}
    save_file(every, folder / WEIGHTS)
    (folder / INDEX).unlink()
    return folder


def with_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(change(json.loads(content[8 : 8 + size]))).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1])
def test_a_file_that_is_cut(whole: Path, length: int) -> None:
    content = (whole / WEIGHTS).read_bytes()
    (whole / WEIGHTS).write_bytes(content[:length])
    assert WEIGHTS in refused(whole)


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_of_a_wrong_length(whole: Path, size: int) -> None:
    content = (whole / WEIGHTS).read_bytes()
    (whole / WEIGHTS).write_bytes(struct.pack("<Q", size) + content[8:])
    assert WEIGHTS in refused(whole)


@pytest.mark.parametrize("key", ["dtype", "shape", "data_offsets"])
@pytest.mark.parametrize("value", [*VALUES, "F99", "C64", [0, 8], [8, 0], [-1, 2], [2**62, 2**62], [0, 2**63]])
def test_a_header_of_wrong_values(whole: Path, key: str, value: Any) -> None:
    with_header(
        whole / WEIGHTS, lambda header: header | {"model.norm.weight": header["model.norm.weight"] | {key: value}}
    )
    refused(whole)


def test_tensors_that_overlap(whole: Path) -> None:
    def overlap(header: dict[str, Any]) -> dict[str, Any]:
        names = sorted(header)
        same = [name for name in names if name != "__metadata__" and header[name]["shape"] == [8]]
        return header | {same[1]: header[same[0]]}

    with_header(whole / WEIGHTS, overlap)
    assert WEIGHTS in refused(whole)


def test_numbers_that_are_none(whole: Path) -> None:
    tensors = load_file(whole / WEIGHTS)
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, whole / WEIGHTS)
    with pytest.raises(InputError, match="contain NaN") as caught:
        model_folder.load(whole)
    assert caught.value.problems == ["model.norm.weight: contains NaN"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_large_numbers_are_none_of_these(whole: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(whole / WEIGHTS).items()}
    tensors["model.norm.weight"][:] = torch.finfo(torch.float16).max
    save_file(tensors, whole / WEIGHTS)
    assert model_folder.load(whole).norm.weight[0] > 60_000


def test_many_layers_that_the_files_lack_are_counted(whole: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 40}))
    with pytest.raises(InputError, match=r"and \d+ more") as caught:
        model_folder.load(whole)
    assert len(caught.value.problems) == 51
    (whole / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1_500}))
    assert "one of them belongs to another model" in refused(whole)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes by name are of POSIX")
@pytest.mark.parametrize("name", ["config.json", INDEX, WEIGHTS, "generation_config.json"])
def test_what_is_no_file(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    try:
        model_folder.load(folder)
    except InputError:
        pass
    else:
        assert name == WEIGHTS  # the shards are whole


@pytest.mark.parametrize("text", ["", "[]", "[" * 10_000, "null", '{"a": ' + "1" * 5000 + "}", "{}", '"x"'])
def test_a_config_that_is_no_table(whole: Path, text: str) -> None:
    (whole / "config.json").write_text(text)
    with pytest.raises(InputError):
        model_folder.load(whole)
    with pytest.raises(InputError):
        model_folder.load_config(whole)


MODULES = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
           {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_folders_of_sentences_are_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    values = json_values | st.sampled_from(VALUES)
    modules: Any = [
        module | data.draw(st.dictionaries(st.sampled_from(["path", "type"]), values)) for module in MODULES
    ]
    modules = data.draw(st.just(modules) | values)
    keys = [*sentence_transformers.FLAGS, "pooling_mode", "include_prompt", "word_embedding_dimension"]
    pooling = {"pooling_mode_mean_tokens": True} | data.draw(st.dictionaries(st.sampled_from(keys), values))
    (tmp_path / "1_Pooling").mkdir(exist_ok=True)
    (tmp_path / sentence_transformers.MODULES).write_text(json.dumps(modules))
    (tmp_path / sentence_transformers.POOLING).write_text(json.dumps(data.draw(st.just(pooling) | values)))
    (tmp_path / sentence_transformers.LENGTH).write_text(json.dumps({"max_seq_length": data.draw(values)}))
    (tmp_path / sentence_transformers.TOKENIZER).write_text(json.dumps({"model_max_length": data.draw(values)}))
    (tmp_path / sentence_transformers.SETTINGS).write_text(json.dumps({"default_prompt_name": data.draw(values)}))
    try:
        found = sentence_transformers.read(tmp_path)
    except InputError:
        return
    assert found is not None and found["pooling"] in sentence_transformers.POOLINGS.values()


GROUP = {"targets": ["Linear"], "weights": files.WEIGHTS[4] | {"group_size": 32}}
QUANTIZED = {"quant_method": files.METHOD, "format": files.FORMAT, "config_groups": {"g": GROUP}, "ignore": ["lm_head"]}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_quantization_is_known_or_refused(data: st.DataObject) -> None:
    values = json_values | st.sampled_from([*VALUES, 4, 8, 128, ["re:("], ["re:.*"]])
    weights = GROUP["weights"] | data.draw(st.dictionaries(st.sampled_from(list(GROUP["weights"])), values, max_size=2))
    group = GROUP | {"weights": weights} | data.draw(st.dictionaries(st.sampled_from(list(GROUP)), values, max_size=1))
    wanted = QUANTIZED | {"config_groups": {"g": group}}
    wanted = data.draw(st.sampled_from([wanted, NF4, wanted | {"config_groups": data.draw(values)}]))
    more = [*QUANTIZED, *NF4, "llm_int8_skip_modules", "bnb_4bit_use_double_quant"]
    wanted = wanted | data.draw(st.dictionaries(st.sampled_from(more), values, max_size=2))
    config = get_family("llama").from_hf(tiny("llama") | {"hidden_size": 32, "intermediate_size": 64})
    with torch.device("meta"):
        model = Model(config)
    try:
        files.replace_layers(model, {"quantization_config": data.draw(st.just(wanted) | values)})
    except InputError:
        return
