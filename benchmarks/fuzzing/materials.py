"""Valid things, made once in a second or two: models of every family and head, tokenizers, adapters, data, databases.

Every kind of input begins from one of these and breaks it.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = "the cat sat on a mat and saw no dog at all by then".split()
SIZES = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 48}  # fmt: skip
LABELS = ("no", "yes", "maybe")
HEADED = {
    "classifier": ("bert", "sequence_classification"),
    "tagger": ("distilbert", "token_classification"),
    "spans": ("roberta", "question_answering"),
    "choices": ("modernbert", "multiple_choice"),
    "sentences": ("bert", "embedding"),
    "llama-classifier": ("llama", "sequence_classification"),
}
"""Models with a head that tells something, by name."""

RECIPE = """name = "tiny"
[data]
source = "text.txt"
[tokenizer]
vocab_size = 300
chat_template = "chatml"
[model]
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 32
max_position_embeddings = 48
[evaluate]
examples = 3
prompts = ["the cat"]
temperatures = [0.0, 1.0]
max_new_tokens = 8
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
[stage.train]
steps = 2
warmup_steps = 1
batch_tokens = 192
"""

CURATION = """name = "tiny"
[[source]]
path = "data/text.jsonl"
[[step]]
kind = "unicode"
[[step]]
kind = "length"
min_words = 1
[[step]]
kind = "exact_duplicates"
"""

TEMPLATES = """input = "text"
output = "label"
[[template]]
name = "a"
prompt = "{text}"
"""

DOCUMENTS = {
    "a.txt": "The cat sat on a mat. It saw no dog at all.\n",
    "b.md": "# Cats\n\nA cat sat.\n\n## Dogs\n\nNo dog sat by then.\n",
    "c.html": "<html><title>Mats</title><body><h1>Mats</h1><p>A mat saw the cat.</p></body></html>",
    "d.csv": "text,title\nthe cat saw,One\nno dog at all,Two\n",
    "e.jsonl": '{"text": "a dog by then", "title": "Three"}\n{"text": "the mat"}\n',
    "f/g.txt": "A text in a folder: then the dog saw the cat.\n",
}
"""Files of an index."""

FURTHER = (
    "run tiny.toml --quiet",
    "index documents index --dense lsa --quiet",
    "agent run models/long cat --tool calculator --record record.jsonl --steps 1 --max-new-tokens 4 --quiet",
)
"""Command lines that make the rest."""
FEWER = ("run tiny.toml --quiet", "index documents index --quiet")
"""Those that make enough for all inputs but those of agents."""

ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": "the cat sat on a mat"}, {"text": "and saw no dog at all"}],
    "chat": [
        {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat on a mat"}]},
        {"messages": [{"role": "system", "content": "no dog"}, {"role": "user", "content": "saw"},
                      {"role": "assistant", "content": "the cat"}]},
    ],
    "instructions": [{"instruction": "saw the cat", "input": "", "output": "sat"},
                     {"instruction": "no dog", "input": "a mat", "output": "at all"}],
    "prompts": [{"prompt": "the cat"}, {"prompt": "no dog"}],
    "preference": [{"prompt": "the cat", "chosen": "sat", "rejected": "saw"},
                   {"prompt": "no dog", "chosen": "at all", "rejected": "a mat"}],
    "labelled": [{"text": "the cat sat", "label": "yes"}, {"text": "no dog", "label": "no"},
                 {"text": "a mat", "label": "maybe"}],
    "tagged": [{"tokens": ["the", "cat", "sat"], "tags": ["no", "yes", "no"]},
               {"tokens": ["no", "dog"], "tags": ["no", "maybe"]}],
    "qa": [{"context": "the cat sat on a mat", "question": "saw the cat", "id": "1",
            "answers": {"text": ["cat"], "answer_start": [4]}},
           {"context": "no dog at all", "question": "saw the dog", "id": "2",
            "answers": {"text": ["dog"], "answer_start": [3]}}],
    "choice": [{"question": "the cat", "choices": ["sat", "saw"], "answer": 0},
               {"question": "no", "choices": ["dog", "mat"], "answer": 1}],
    "pair": [{"source": "the cat sat", "target": "sat the cat"}, {"source": "no dog", "target": "dog no"}],
    "sql": [{"question": "saw the cat", "query": "SELECT name FROM pet", "db_id": "pets"},
            {"question": "no dog", "query": "SELECT count(*) FROM pet", "db_id": "pets"}],
}  # fmt: skip
"""A few valid rows of every format."""

FITTING = {"sequence_classification": "labelled", "token_classification": "tagged", "question_answering": "qa",
           "multiple_choice": "choice", "seq2seq": "pair", "embedding": "pair"}  # fmt: skip
"""The format of the data that a head is measured on."""

PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


class Materials:
    """Where everything is, and what there is of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.about: dict[str, Any] = {}

    @property
    def models(self) -> dict[str, str]:
        """Folders of models below `models/`, each with its head."""
        found: dict[str, str] = self.about["models"]
        return found

    @property
    def adapters(self) -> dict[str, str]:
        """Folders of adapters below `models/`, each with the head of its model."""
        found: dict[str, str] = self.about["adapters"]
        return found

    def path(self, *parts: str) -> Path:
        """A file or folder of these."""
        return self.folder.joinpath(*parts)

    def load(self) -> Materials:
        """These, made before by `make`."""
        self.about = json.loads(self.path("about.json").read_text())
        return self

    def make(self, *, families: Sequence[str] = ()) -> None:
        """Writes everything; of the models without a head only these families, where any are named."""
        texts = sentences()
        self.path("text.txt").write_text("\n".join(texts), encoding="utf-8")
        self.path("tiny.toml").write_text(RECIPE, encoding="utf-8")
        self.path("curation.toml").write_text(CURATION, encoding="utf-8")
        self.path("templates.toml").write_text(TEMPLATES, encoding="utf-8")
        for name, text in DOCUMENTS.items():
            self.path("documents", name).parent.mkdir(parents=True, exist_ok=True)
            self.path("documents", name).write_text(text, encoding="utf-8")
        make_databases(self.path("databases"))
        self.path("data").mkdir()
        for name, rows in ROWS.items():
            lines = [json.dumps(row) for row in rows]
            self.path("data", f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        models, adapters = _make_models(self.path("models"), texts, families)
        self.about = {"models": models, "adapters": adapters}
        self.path("about.json").write_text(json.dumps(self.about))


def sentences(count: int = 150) -> list[str]:
    """Sentences of a few words, always the same ones."""
    return [" ".join(random.Random(number).choices(WORDS, k=8)) for number in range(count)]


def make_databases(folder: Path) -> None:
    """Two small databases: `pets/pets.sqlite`, which the questions ask, and one with several tables."""
    for name in ("pets", "shop"):
        (folder / name).mkdir(parents=True)
    with sqlite3.connect(folder / "pets" / "pets.sqlite") as connection:
        connection.execute("create table pet (id integer primary key, name text, weight real, owner integer)")
        connection.executemany("insert into pet values (?, ?, ?, ?)",
                               [(i, f"pet {i}", i * 1.5, i % 3) for i in range(20)])  # fmt: skip
    connection.close()
    with sqlite3.connect(folder / "shop" / "shop.sqlite") as connection:
        connection.execute("create table town (id integer primary key, name text not null, people integer)")
        connection.execute("create table customer (id integer primary key, name text, town_id integer "
                           "references town(id), joined date)")  # fmt: skip
        connection.executemany("insert into town values (?, ?, ?)", [(i, f"Town {i}", i * 1000) for i in range(8)])
        connection.executemany("insert into customer values (?, ?, ?, ?)",
                               [(i, f"Name {i}", i % 8, f"2020-01-{i % 28 + 1:02d}") for i in range(40)])  # fmt: skip
    connection.close()


def _make_models(folder: Path, texts: list[str], families: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The heads of the models and of the adapters that were written."""
    import torch

    from quatrain.adapters.apply import apply_adapter
    from quatrain.adapters.peft_files import save_adapter
    from quatrain.adapters.settings import AdapterSettings
    from quatrain.compression.methods import quantize
    from quatrain.data.image_processor import ImageProcessor
    from quatrain.models.families.fresh import fresh_config
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.settings import DECODERS, ENCODER_DECODERS, ENCODERS
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

    kinds = {"bpe": "decoder", "wordpiece": "encoder", "unigram": "encoder-decoder"}
    trained = {
        shape: Tokenizer.train(texts, kind=kind, vocab_size=400, chat_template="chatml" if kind == "bpe" else None)
        for kind, shape in kinds.items()
    }

    def fresh(family: str, head: str | None, **more: Any) -> tuple[Model, Tokenizer]:
        shape = "decoder" if family in DECODERS else "encoder" if family in ENCODERS else "encoder-decoder"
        tokenizer = trained[shape]
        ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id", None) for role in ("pad", "bos", "eos")}
        sizes = SIZES | {"vocab_size": tokenizer.vocab_size} | {k: v for k, v in ids.items() if v is not None}
        config = fresh_config(family, sizes, head=head)
        model = Model(config.replace(**more) if more else config).initialize(0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval(), tokenizer

    def save(name: str, model: Model, tokenizer: Tokenizer, **more: Any) -> None:
        model_folder.save(model, folder / name, **more)
        tokenizer.save(folder / name)
        heads[name] = model.config.head

    heads: dict[str, str] = {}
    adapters: dict[str, str] = {}
    for family in families or (*DECODERS, *ENCODERS, *ENCODER_DECODERS):
        save(family, *fresh(family, None))
    for name, (family, head) in HEADED.items():
        more: dict[str, Any] = {"labels": LABELS} if head.endswith("classification") else {}
        save(name, *fresh(family, head, **more))
    save("long", *fresh("llama", None, max_position_embeddings=2048))
    save("sharded", *fresh("llama", None), shard_bytes=20_000)
    for method in ("int8", "int4", "nf4"):
        model, tokenizer = fresh("llama", None, **({"hidden_size": 32, "head_dim": 16} if method == "int4" else {}))
        quantize(model, method, **({"group": 32} if method == "int4" else {}))
        save(method, model, tokenizer)
    seeing, tokenizer = _seeing(texts)
    save("seeing", seeing, tokenizer)
    ImageProcessor(**{**vars(ImageProcessor.of(12)), "kind": "CLIP"}).save(folder / "seeing")
    over = [("llama", None, method) for method in ("lora", "dora", "ia3", "prompt", "loha")]
    for family, head, method in [*over, *((family, head, "lora") for family, head in HEADED.values())]:
        if head is not None and not head.endswith("classification"):
            continue
        name = f"adapter-{method}" if head is None else f"adapter-{family}-{head}"
        base = "llama" if head is None else next(each for each, of in HEADED.items() if of == (family, head))
        model, tokenizer = fresh(family, head, **({} if head is None else {"labels": LABELS}))
        apply_adapter(model, AdapterSettings(method=method), tokenizer=tokenizer)  # type: ignore[arg-type]
        save_adapter(model, folder / name, base_model=str(folder / base))
        adapters[name] = model.config.head
    return heads, adapters


def _seeing(texts: list[str]) -> tuple[Any, Any]:
    """A model that reads pictures of 12x12 pixels, and its tokenizer."""
    from quatrain.models.families import get_family
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(texts, kind="char", eos="<|endoftext|>", special_tokens=["<image>"],
                                chat_template="llava")  # fmt: skip
    raw = {
        "model_type": "llava", "image_token_index": tokenizer.token_to_id("<image>"),
        "text_config": {"model_type": "llama", **SIZES, "vocab_size": tokenizer.vocab_size,
                        "eos_token_id": tokenizer.eos_id},
        "vision_config": {"model_type": "clip_vision_model", "image_size": 12, "patch_size": 4,
                          **{key: size for key, size in SIZES.items() if key != "max_position_embeddings"}},
    }  # fmt: skip
    return Model(get_family("llava").from_hf(raw)).initialize(0).eval(), tokenizer
