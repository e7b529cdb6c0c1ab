"""A process that has seen nothing but the files reads back what was written, bit for bit."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from tiny_models import llama, random_model

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.peft_files import save_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.compression import methods
from quatrain.compression.methods import METHODS
from quatrain.export.exporter import ExportSettings, export
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.tokenizers.tokenizer import Tokenizer

IDS = [[5, 6, 7, 8, 9]]
FORMS = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_K", "Q2_K")
READER = """
import hashlib, json, sys, torch
from quatrain.loading.model import load_model
for path in sys.argv[2:]:
    model, tokenizer = load_model(path)
    seen = hashlib.sha256(tokenizer.fingerprint.encode() if tokenizer else b"")
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    with torch.no_grad():
        logits = model(torch.tensor(json.loads(sys.argv[1])))[0]
    print(path, seen.hexdigest(), hashlib.sha256(logits.numpy().tobytes()).hexdigest())
"""


def digests(model, tokenizer):
    """What the reader prints of a model: a digest of tokenizer and tensors, and one of the logits."""
    seen = hashlib.sha256(tokenizer.fingerprint.encode() if tokenizer else b"")
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    with torch.no_grad():
        logits = model(torch.tensor(IDS))[0]
    return seen.hexdigest(), hashlib.sha256(logits.numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folders and files of every kind, with the digests of the models that were written, None where a file rounds."""
    place = tmp_path_factory.mktemp("written")
    tokenizer = Tokenizer.train(["the quick brown fox jumps over a lazy dog " * 9], vocab_size=300)
    config = llama(vocab_size=300, hidden_size=256, intermediate_size=256, num_attention_heads=4)
    model = random_model(config, scale=0.05)
    expected = {}

    def save(name, network):
        model_folder.save(network, place / name)
        tokenizer.save(place / name)
        expected[str(place / name)] = digests(network.eval(), tokenizer)

    save("plain", model)
    for method in METHODS:
        quantized = random_model(config, scale=0.05)
        methods.quantize(quantized, method)
        save(method, quantized)
    adapted = random_model(config, scale=0.05)
    apply_adapter(adapted, AdapterSettings(method="lora", rank=2))
    save_adapter(adapted, place / "lora", base_model=str(place / "plain"))
    tokenizer.save(place / "lora")
    expected[str(place / "lora")] = digests(adapted.eval(), tokenizer)
    for form in FORMS:
        (path,) = export(place / "plain", "gguf", place / form, ExportSettings(form, force=True)).files
        expected[str(path)] = digests(*load_model(path))
    return expected


def test_every_file_is_read_back_bit_for_bit(written):
    words = [sys.executable, "-c", READER, json.dumps(IDS), *written]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {path: (tensors, logits) for path, tensors, logits in map(str.split, done.stdout.splitlines())}
    assert found == written
    plain = next(iter(written.values()))
    f32 = next(value for path, value in written.items() if path.endswith("F32.gguf"))
    assert f32[1] == plain[1], "float32 in GGUF is the same model"
