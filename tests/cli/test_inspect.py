"""`quatrain inspect` on tiny models of every architecture: what it writes, and what it says of what cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import llama

from quatrain.cli import main
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer

TEXT = "the quick brown fox jumps over the lazy dog"


def make(place: Path, *, kind: str = "bpe", **changes: object) -> Path:
    """A model folder of fresh weights with its tokenizer."""
    tokenizer = Tokenizer.train([f"{TEXT}. " * 9], kind=kind, vocab_size=320)
    tokenizer.max_length = 64
    settings = {
        "vocab_size": tokenizer.vocab_size, "intermediate_size": 64, "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_id,
    }  # fmt: skip
    tokenizer.save(place)
    model_folder.save(Model(llama(**(settings | changes))).initialize(seed=0), place)
    return place


BERT = {
    "family": "bert", "architecture": "encoder", "head": "masked", "num_key_value_heads": 4, "position": "learned",
    "norm": "layer", "norm_position": "post", "feed_forward": "plain", "activation": "gelu", "attention_bias": "all",
    "feed_forward_bias": True, "type_vocab_size": 2, "embedding_norm": True, "head_transform": "gelu",
    "head_bias": "learned", "tie_word_embeddings": True, "eos_token_id": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("encoder"), kind="wordpiece", **BERT)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder-decoder that transformers wrote, with a tokenizer of ours."""
    import transformers

    place = tmp_path_factory.mktemp("both")
    tokenizer = Tokenizer.train([f"{TEXT}. " * 9], vocab_size=320)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=tokenizer.vocab_size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(place)
    tokenizer.save(place)
    return place


def run(*words: object) -> int:
    return main(["inspect", *map(str, words)])


def found(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert run(*words, "--json") == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(*words) in (1, 2)
    caught = capsys.readouterr()
    assert "Traceback" not in caught.err and "internal error" not in caught.err
    return caught.err


def test_the_tree(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(decoder) == 0
    text = capsys.readouterr().out
    parameters = model_folder.load(decoder).num_parameters()
    for part in (f"{parameters:,} parameters, float32", "layers (2 ×)", "q_proj", "= embed_tokens", "rotary", "SwiGLU"):
        assert part in text
    told = found(capsys, decoder)
    assert told["parameters"] == parameters and told["tree"]["children"][0]["name"] == "embed_tokens"
    assert told["tree"]["children"][0]["tensors"] == {"weight": [Tokenizer.load(decoder).vocab_size, 32]}
    assert told["weights"]["files"] == 1 and told["weights"]["problem"] == ""


def test_the_tree_needs_config_json_alone(
    decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((decoder / "config.json").read_text())
    config |= {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8}
    config |= {"intermediate_size": 28672, "vocab_size": 128256, "head_dim": 128, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    monkeypatch.setenv("COLUMNS", "80")
    assert run(tmp_path) == 0
    text = capsys.readouterr().out
    assert "70,553,706,496 parameters, bfloat16, 141 GB" in text and "Without weights:" in text
    assert all(len(line) <= 80 for line in text.splitlines() if str(tmp_path) not in line)
    assert "no tokenizer" in refused(capsys, tmp_path, "--text", "hi")
    (tmp_path / "tokenizer.json").write_bytes((decoder / "tokenizer.json").read_bytes())
    assert run(tmp_path, "--text", "the fox") == 0
    error = refused(capsys, tmp_path, "--text", "the fox", "--next")
    assert "no model.safetensors" in error and "need no weights" in error
    (tmp_path / "config.json").unlink()
    assert found(capsys, tmp_path, "--text", "the fox")["tokens"], "tokens need a tokenizer alone"


def test_the_tokens_of_a_text(decoder: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "the fox ü\n你"
    read = found(capsys, decoder, "--text", text)["tokens"]
    assert [token["id"] for token in read] == Tokenizer.load(decoder).encode(text, special_tokens=True)
    assert {"<0xC3>", "<0xBC>"} <= {token["text"] for token in read}
    assert run(decoder, "--text", text) == 0
    out = capsys.readouterr().out
    assert "␣fox" in out and "\\n" in out and "<0xE4>" in out
    assert run(encoder, "--text", "the fox") == 0
    assert "[CLS]  (special)" in capsys.readouterr().out
    assert len(found(capsys, encoder, "--text", "the fox", "--no-special-tokens")["tokens"]) == 2


def test_text_from_standard_input(
    decoder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("the fox"))
    assert "".join(token["text"] for token in found(capsys, decoder, "--text", "-")["tokens"]) == "the fox"


def test_next_tokens(
    decoder: Path, encoder: Path, both: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = found(capsys, decoder, "--text", TEXT, "--next", "--top", "3")["predictions"]
    tokens = Tokenizer.load(decoder).encode(TEXT)
    assert told["kind"] == "next" and len(told["positions"]) == len(tokens)
    assert all(len(each["candidates"]) == 3 for each in told["positions"])
    masked = found(capsys, encoder, "--text", "the [MASK] fox", "--next")["predictions"]
    assert masked["kind"] == "masked" and [each["position"] for each in masked["positions"]] == [2]
    assert found(capsys, encoder, "--text", "the fox", "--next")["predictions"]["kind"] == "each masked"
    answered = found(capsys, both, "--text", "the fox", "--answer", "the dog", "--next")["predictions"]
    assert answered["kind"] == "answer" and len(answered["positions"]) == 3
    monkeypatch.setenv("COLUMNS", "80")
    for folder, text in ((decoder, TEXT), (encoder, "the [MASK] fox"), (both, TEXT)):
        assert run(folder, "--text", text, "--next") == 0
        assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


def test_attention_maps_are_written(
    decoder: Path, both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    told = found(capsys, decoder, "--text", TEXT, "--attention", tmp_path / "maps")["attention"]
    assert told["files"] == [str(tmp_path / "maps" / name) for name in ("attention.html", "attention.png")]
    tokens = len(Tokenizer.load(decoder).encode(TEXT))
    assert told["shapes"] == {"decoder": [2, 4, tokens, tokens]}
    assert (tmp_path / "maps" / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert "␣quick" in (tmp_path / "maps" / "attention.html").read_text(encoding="utf-8")
    assert run(both, "--text", TEXT, "--answer", "the dog", "--attention", tmp_path / "both.html") == 0
    assert "cross of 3 layers × 4 heads" in capsys.readouterr().out
    assert run(decoder, "--text", TEXT, "--attention", tmp_path / "one.PNG") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.html", "maps", "one.PNG"]


def test_without_matplotlib_the_page_is_written(
    decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(decoder, "--text", TEXT, "--attention", tmp_path) == 0
    caught = capsys.readouterr()
    assert "quatrain[plot]" in caught.err and "attention.png is not written" in caught.err
    assert [path.name for path in tmp_path.iterdir()] == ["attention.html"]
    assert "quatrain[plot]" in refused(capsys, decoder, "--text", TEXT, "--attention", tmp_path / "x.png")


def test_neighbours(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = found(capsys, decoder, "--neighbours", "fox", "--top", "4")
    assert told["token"]["text"].strip() == "fox" and len(told["neighbours"]) == 4
    assert all(-1 <= each["similarity"] <= 1 for each in told["neighbours"])
    error = refused(capsys, decoder, "--neighbours", "quikc")
    assert "is not a token" in error and "near it: " in error and "quick" in error


def test_runs_adapters_and_quantized_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    from quatrain.adapters import peft_files
    from quatrain.adapters.apply import apply_adapter
    from quatrain.adapters.settings import AdapterSettings
    from quatrain.compression import methods

    run_folder = tmp_path / "run"
    base = make(run_folder / "stages" / "01-pretrain" / "model")
    (run_folder / "recipe.toml").write_text("name = 'run'\n")
    assert found(capsys, run_folder)["parameters"] == model_folder.load(base).num_parameters()
    adapted = model_folder.load(base)
    apply_adapter(adapted, AdapterSettings(rank=4, alpha=8.0, dropout=0.0, target_modules=["q_proj", "v_proj"]))
    peft_files.save_adapter(adapted, tmp_path / "adapter", base_model=str(base))
    assert run(tmp_path / "adapter") == 0
    text = " ".join(capsys.readouterr().out.split())  # lines break where the folder's name is long
    assert "lora_A 4 × 32, lora_B 32 × 4" in text and "With the adapter" in text
    assert found(capsys, tmp_path / "adapter", "--text", "the fox", "--next")["predictions"]
    for method in methods.METHODS:
        small = model_folder.load(base)
        methods.quantize(small, method)
        model_folder.save(small, tmp_path / method)
        assert run(tmp_path / method) == 0
        text = capsys.readouterr().out
        assert f" parameters, float32 and {method}, " in text and f"32 → 32, {method}" in text
        assert found(capsys, tmp_path / method)["parameters"] == model_folder.load(base).num_parameters()


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr", "ia3", "bottleneck", "prompt", "prefix"])
def test_adapters_of_every_method_are_shown(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from quatrain.adapters import peft_files
    from quatrain.adapters.apply import apply_adapter
    from quatrain.adapters.settings import AdapterSettings

    base = make(tmp_path / "model")
    adapted = model_folder.load(base)
    apply_adapter(adapted, AdapterSettings(method=method, rank=4))  # type: ignore[arg-type]
    peft_files.save_adapter(adapted, tmp_path / "adapter", base_model=str(base))
    assert found(capsys, tmp_path / "adapter")["parameters"] > model_folder.load(base).num_parameters()


def test_flags_that_cannot_be_are_told_at_once(decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, decoder, "--next", "--attention", "maps.pdf", "--answer", "x", "--top", "0")
    for part in (
        "--next: needs a text",
        "--attention: needs",
        "--answer: needs",
        "--top 0",
        "maps.pdf: must be a folder",
    ):
        assert part in error


def test_texts_that_cannot_be_are_refused(decoder: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "empty" in refused(capsys, decoder, "--text", "", "--next")
    long = f"{TEXT} " * 40
    count = len(Tokenizer.load(decoder).encode(long))
    error = refused(capsys, decoder, "--text", long, "--next")
    assert f"{count:,} tokens; at most 64" in error and "--truncate" in error
    assert run(decoder, "--text", long, "--next", "--truncate") == 0
    assert f"The text is truncated to 64 of its {count:,} tokens." in capsys.readouterr().out
    assert "plain decoder" in refused(capsys, decoder, "--text", "a", "--answer", "b", "--next")


def test_what_a_model_cannot_do_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(
        tmp_path / "embedding", kind="wordpiece", **(BERT | {"head": "none", "head_bias": "none", "pooler": "tanh"})
    )
    assert "there is no next token to show" in refused(capsys, folder, "--text", "the fox", "--next")
    assert found(capsys, folder, "--neighbours", "fox")["neighbours"]
    config = json.loads((folder / "config.json").read_text())
    tokenizer = Tokenizer.train([TEXT * 3, "äöüßéèàñ" * 20], kind="char")
    small = make(tmp_path / "small", vocab_size=20)
    tokenizer.save(small)
    assert "do not fit" in refused(capsys, small, "--text", "äöü the fox", "--next")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "berd"}))
    unknown = found(capsys, folder)
    assert "berd" in str(unknown) and "bert" in str(unknown), "an unknown family is compared with those that are known"


def test_unwritable_output(decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file.txt"
    file.write_text("x")
    assert "cannot write" in refused(capsys, decoder, "--text", "the fox", "--attention", file / "maps")
    assert "must be a folder" in refused(capsys, decoder, "--text", "the fox", "--attention", file)
    assert "NUL" in refused(capsys, decoder, "--text", "the fox", "--attention", "a\0.html")
    assert "no token has this id" in refused(capsys, decoder, "--neighbours", "#" + "9" * 30)
    assert file.read_text() == "x"


def test_no_such_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such model folder" in refused(capsys, tmp_path / "nothing")
    assert "no config.json" in refused(capsys, tmp_path)


def test_a_hub_id_needs_its_config_alone(
    decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree of a repository of which the cache has the config.json and nothing else, without the network."""
    from huggingface_hub import constants

    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((decoder / "config.json").read_bytes())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert run("org/name") == 0
    assert "weights are not on this machine" in capsys.readouterr().out
    assert "org/name" in refused(capsys, "org/name", "--text", "the fox", "--next")
