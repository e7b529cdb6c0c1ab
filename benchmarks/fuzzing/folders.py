"""Inputs that are model folders of others: settings, tokenizers, shards, headers, adapters and pooling, broken."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzzing.case import DONE, EITHER, WRONG, Bench, Case
from fuzzing.keys import ADAPTER_KEYS, CONFIG_KEYS, GENERATION_KEYS, TOKENIZER_KEYS
from fuzzing.values import ABSENT, BYTES, VALUES, dump, mutated_tree, shown

SPECIAL_KEYS = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "additional_special_tokens")
STRUCTURAL = frozenset(
    """hidden_size n_embd d_model num_hidden_layers n_layer num_layers num_attention_heads n_head num_heads vocab_size
    encoder_layers decoder_layers""".split()
)
"""Keys without which there is no model: of another type than a whole number, or below 1, they are wrong."""


def _is_no_size(value: Any) -> bool:
    """Whether a value can be no size of a network, whatever the network."""
    if value is ABSENT or value is None:
        return False  # the family may have a usual one
    if isinstance(value, int) and not isinstance(value, bool):
        return value < 1 or value >= 10**12
    return isinstance(value, str | list | dict) or (isinstance(value, float) and not value.is_integer())


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _edit(bench: Bench, path: Path, keys: tuple[str, ...] = ()) -> tuple[str, Any, Any]:
    """Put a bad value somewhere into a file of JSON; the words for it, the top key and the value."""
    tree = _read(path) if path.exists() else {}
    about = []
    place, value = (), None
    for _ in range(bench.draw.choice((1, 1, 1, 1, 2, 4))):
        try:
            tree, place, value = mutated_tree(tree, bench.draw, keys)
        except (KeyError, IndexError, TypeError):
            break
        about.append(f"{'.'.join(map(str, place))} = {shown(value)}")
    path.write_bytes(dump(tree, indent=bench.draw.choice((None, 2))))
    key = place[0] if len(place) == 1 and len(about) == 1 else None
    return f"{path}: {'; '.join(about)}", key, value


def _break(bench: Bench, path: Path) -> tuple[str, bool]:
    """Break the text of a file; the words for it, and whether it cannot be valid."""
    name = bench.draw.choice(list(BYTES))
    function, wrong = BYTES[name]
    data = path.read_bytes()
    broken = function(data, bench.draw)
    path.write_bytes(broken)
    return f"{path}: {name}", wrong and broken != data


def _settings(bench: Bench, name: str, keys: tuple[str, ...], folder: Path, head: str, *, needed: bool) -> Case:
    """A settings file of a model folder, by value or by text; `needed`: a verb that reads weights reads it too."""
    path = folder / name
    if not path.exists():
        path.write_text("{}")
    sure = bench.chance(0.5)
    words, typed = bench.asked(folder, head, whole=sure)
    if bench.chance(0.7):
        about, key, value = _edit(bench, path, keys)
        wrong = name == "config.json" and key in STRUCTURAL and key in _read_keys(bench, folder) and _is_no_size(value)
        wrong = wrong and words[0] != "tokenize"  # which reads no sizes
        return Case(words, about, WRONG if wrong else EITHER, typed)
    about, wrong = _break(bench, path)
    return Case(words, about, WRONG if wrong and sure and needed else EITHER, typed)


def _read_keys(bench: Bench, folder: Path) -> set[str]:
    """The keys that the valid config.json of a copied folder has."""
    original = bench.materials.path("models", folder.name, "config.json")
    return set(_read(original)) if original.exists() else set()


def valid(bench: Bench) -> Case:
    """Nothing is broken."""
    if bench.chance(0.2):
        name = bench.draw.choice(list(bench.materials.adapters))
        adapter = bench.materials.path("models", name)
        words, typed = bench.asked(adapter, bench.materials.adapters[name])
        return Case(words, f"{adapter.name}, valid", EITHER if words[0] in ("plan", "tokenize") else DONE, typed)
    name = bench.draw.choice(list(bench.materials.models))
    folder, head = bench.materials.path("models", name), bench.materials.models[name]
    words, typed = bench.asked(folder, head)
    # Of a shape that a method does not fit, `plan` says so.
    return Case(words, f"{name}, valid", EITHER if words[0] == "plan" else DONE, typed)


def config(bench: Bench) -> Case:
    """config.json of every family."""
    folder, head = bench.model()
    return _settings(bench, "config.json", CONFIG_KEYS, folder, head, needed=True)


def generation(bench: Bench) -> Case:
    """generation_config.json."""
    folder, head = bench.model("causal", "seq2seq")
    case = _settings(bench, "generation_config.json", GENERATION_KEYS, folder, head, needed=False)
    if bench.chance(0.6):
        case.words = ["generate", str(folder), "the cat", "--max-new-tokens", "3"]
    return case


def tokenizer_config(bench: Bench) -> Case:
    """tokenizer_config.json."""
    folder, head = bench.model()
    return _settings(bench, "tokenizer_config.json", TOKENIZER_KEYS, folder, head, needed=True)


def special_tokens(bench: Bench) -> Case:
    """special_tokens_map.json and added_tokens.json."""
    folder, head = bench.model()
    name = bench.draw.choice(("special_tokens_map.json", "added_tokens.json"))
    keys = SPECIAL_KEYS if name == "special_tokens_map.json" else ("<a>", "<|im_end|>", "the")
    start: dict[str, Any] = {"eos_token": "<|endoftext|>"} if name == "special_tokens_map.json" else {"<a>": 400}
    (folder / name).write_bytes(dump(start))
    return _settings(bench, name, keys, folder, head, needed=False)


def tokenizer(bench: Bench) -> Case:
    """tokenizer.json."""
    folder, head = bench.model()
    path = folder / "tokenizer.json"
    words, typed = bench.asked(folder, head, whole=True)
    if bench.chance(0.5):
        words = [
            "tokenize",
            str(path if bench.chance(0.3) else folder),
            bench.draw.choice(("the cat", "", "日本 é \u0301")),
        ]
    if bench.chance(0.7):
        about, _, _ = _edit(bench, path)
        return Case(words, about, EITHER, typed)
    about, wrong = _break(bench, path)
    return Case(words, about, WRONG if wrong and words[0] in ("tokenize", "generate") else EITHER, typed)


def older_tokenizer(bench: Bench) -> Case:
    """vocab.json with merges.txt, vocab.txt, and SentencePiece's files."""
    folder, head = bench.model()
    tree = _read(folder / "tokenizer.json")
    (folder / "tokenizer.json").unlink()
    kind = bench.draw.choice(
        ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "source.spm", "qwen.tiktoken")
    )
    vocabulary = tree["model"].get("vocab", {})
    if isinstance(vocabulary, list):
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    path = folder / kind
    if kind == "vocab.json":
        path.write_bytes(dump(vocabulary))
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tree["model"].get("merges", [])]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
        path = bench.draw.choice((path, folder / "merges.txt"))
    elif kind == "vocab.txt":
        path.write_text("\n".join(vocabulary), encoding="utf-8")
    else:
        data = b"".join(b"\x0a\x0b\x0a\x04" + piece.encode()[:4].ljust(4) + b"\x15\0\0\0\0" for piece in vocabulary)
        path.write_bytes(data if kind != "qwen.tiktoken" else b"".join(b"aGk= %d\n" % n for n in range(40)))
    words, typed = bench.asked(folder, head)
    if bench.chance(0.6):
        words = ["tokenize", str(path if bench.chance(0.4) else folder), "the cat"]
    if path.suffix == ".json" and bench.chance(0.5):
        return Case(words, _edit(bench, path)[0], EITHER, typed)
    return Case(words, _break(bench, path)[0], EITHER, typed)


def index(bench: Bench) -> Case:
    """The index of shards, and shards that are not there."""
    folder, head = bench.model(names=("sharded",))
    path = folder / "model.safetensors.index.json"
    sure = bench.chance(0.6)
    words, typed = bench.asked(folder, head, whole=sure)
    way = bench.draw.randrange(4)
    if way == 0:
        shard = bench.draw.choice(sorted(folder.glob("model-*.safetensors")))
        shard.unlink()
        return Case(words, f"{shard} is missing", WRONG if sure else EITHER, typed)
    if way == 1:
        about, wrong = _break(bench, path)
        return Case(words, about, WRONG if wrong and sure else EITHER, typed)
    tree = _read(path)
    if way == 2:
        name = bench.draw.choice(list(tree["weight_map"]))
        value = bench.draw.choice(
            (*VALUES, "../../../etc/passwd", "/etc/passwd", ".", "model-00009-of-00004.safetensors")
        )
        if value is ABSENT:
            del tree["weight_map"][name]
        else:
            tree["weight_map"][name] = value
        path.write_bytes(dump(tree))
        # A tensor that no shard is named for may be found in one all the same.
        right = WRONG if sure and value is not ABSENT else EITHER
        return Case(words, f"{path}: weight_map.{name} = {shown(value)}", right, typed)
    about, _, _ = _edit(bench, path, ("weight_map", "metadata"))
    return Case(words, about, EITHER, typed)


def header(bench: Bench) -> Case:
    """The header and the length of safetensors."""
    folder, head = bench.model() if bench.chance(0.7) else bench.adapter()
    path = next(iter(sorted(folder.glob("*.safetensors"))))
    sure = bench.chance(0.6)
    words, typed = bench.asked(folder, head, whole=sure)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    way = bench.draw.randrange(4)
    if way == 0:
        about, _ = _break(bench, path)
        return Case(words, about, EITHER, typed)
    if way == 1:
        claimed = bench.draw.choice((0, 1, length - 1, length + 8, len(data), 10**9, 2**40, 2**63, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", claimed) + data[8:])
        return Case(words, f"{path}: a header of {claimed} bytes, which has {length}", WRONG if sure else EITHER, typed)
    tree = json.loads(data[8 : 8 + length])
    tree, place, value = mutated_tree(tree, bench.draw, ("__metadata__", "x"))
    written = dump(tree)
    path.write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])
    return Case(words, f"{path}: header {'.'.join(map(str, place))} = {shown(value)}", EITHER, typed)


def adapter(bench: Bench) -> Case:
    """adapter_config.json."""
    folder, head = bench.adapter()
    path = folder / "adapter_config.json"
    words, typed = bench.asked(folder, head, whole=True)
    if (folder / "labels.json").exists() and bench.chance(0.5):
        path = folder / "labels.json"
        keys = ("labels", "problem_type", "x")
        return Case(words, _edit(bench, path, keys)[0] if bench.chance(0.7) else _break(bench, path)[0], EITHER, typed)
    if bench.chance(0.4):
        words = ["merge", str(folder), "--out", "merged"]
    if bench.chance(0.75):
        about, _, _ = _edit(bench, path, ADAPTER_KEYS)
        return Case(words, about, EITHER, typed)
    about, wrong = _break(bench, path)
    return Case(words, about, WRONG if wrong else EITHER, typed)


def merged(bench: Bench) -> Case:
    """Several adapters, weights and tolerances of `merge`."""
    draw = bench.draw
    names = draw.sample(list(bench.materials.adapters), draw.choice((1, 2, 2, 3)))
    words = ["merge", *(str(bench.materials.path("models", name)) for name in names), "--out", "merged"]
    bad = ("nan", "inf", "-inf", "1e400")
    weights = [draw.choice(("1", "0.5", "0", "-1", "1e30", *bad)) for _ in range(draw.choice((0, 1, len(names))))]
    for weight in weights:
        words += ["--weights", weight]
    tolerance = draw.choice((None, "0", "1", "-1", *bad))
    if tolerance is not None:
        words += ["--tolerance", tolerance]
    if bench.chance(0.3):
        words += ["--quantize", draw.choice(("int8", "nf4", "x", "", "int4"))]
    wrong = any(weight in bad for weight in weights) or tolerance == "nan"
    return Case(words, f"merge of {', '.join(names)}", WRONG if wrong else frozenset({0, 1, 2}))


def pooling(bench: Bench) -> Case:
    """modules.json and the files of its modules."""
    folder, head = bench.model(names=("sentences",))
    names = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
    path = folder / bench.draw.choice(names)
    if not path.exists():
        path.write_text('{"prompts": {}, "default_prompt_name": null}')
    words, typed = bench.asked(folder, head)
    about = _edit(bench, path, ("path", "type", "prompts", "max_seq_length"))[0] if bench.chance(0.7) else None
    return Case(words, about or _break(bench, path)[0], EITHER, typed)


ENTRIES: dict[str, dict[str, tuple[Callable[[Bench], Case], float]]] = {
    "models": {
        "valid": (valid, 2),
        "config": (config, 14),
        "generation": (generation, 7),
        "index": (index, 4),
        "header": (header, 5),
        "pooling": (pooling, 2),
    },
    "tokenizers": {
        "tokenizer_config": (tokenizer_config, 6),
        "special_tokens": (special_tokens, 3),
        "tokenizer": (tokenizer, 6),
        "older_tokenizer": (older_tokenizer, 3),
    },
    "adapters": {"adapter": (adapter, 8), "merge": (merged, 1.5)},
}
"""What makes an input, and its share, by entry point."""
