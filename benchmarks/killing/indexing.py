"""`quatrain index` of a folder with BM25 and vectors, made for the first time, and brought up to date after changes."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

from killing import Note, Work, command

WORDS = "ship sail harbour sea wind captain flour oven bake yeast dough crust river stone tree cloud".split()
QUESTIONS = ("where is the harbour of the captain", "dough and yeast in the oven", "word17", "a stone in the river")
CHANGED = range(0, 12, 3)
"""Files that the second state of the folder has otherwise; one is gone, and one is new."""


class Indexing(Work):
    """The variants: a new index, and one of an older state of the folder, which must answer until the new one does."""

    name = "indexing"
    after_kill = "resumes"
    variants = ("new", "update")
    phases = {
        r"bm25": "words",
        r"lsa": "vectors",
        r"index\.json": "settings",
        r"documents\.sqlite": "documents",
        r"\.lock": "lock",
    }

    def make(self, place: Path) -> None:
        self.folders = {name: place / name for name in ("old", "current")}
        for name, folder in self.folders.items():
            self._write(folder, is_old=name == "old")
        self.encoder = _encoder(place / "encoder")
        self.before = place / "before"
        self._index(self.folders["old"], self.before)

    def _write(self, folder: Path, *, is_old: bool) -> None:
        """The documents: small files, and one with many rows."""
        folder.mkdir()
        for number in range(12):
            draw = random.Random(number + (100 if is_old and number in CHANGED else 0))
            if number != (10 if is_old else 11):
                sentences = (f"The {' '.join(draw.choices(WORDS, k=6))}." for _ in range(6))
                (folder / f"{number}.md").write_text(f"# Part {number}\n\n{' '.join(sentences)}\n", encoding="utf-8")
        draw = random.Random(7)
        rows = ({"text": f"word{number} {' '.join(draw.choices(WORDS, k=5))}"} for number in range(300))
        kept = (json.dumps(row) + "\n" for number, row in enumerate(rows) if not is_old or number % 5)
        (folder / "rows.jsonl").write_text("".join(kept), encoding="utf-8")

    def _index(self, source: Path, folder: Path) -> None:
        dense = ("--dense", "lsa", "--dense", str(self.encoder))
        command("index", str(source), str(folder), "--chunks", "whole", *dense, "--quiet")

    def start(self, folder: Path, variant: str) -> None:
        if variant == "update":
            shutil.copytree(self.before, folder)

    def run(self, folder: Path, variant: str, note: Note) -> None:
        self._index(self.folders["current"], folder)

    def outcome(self, folder: Path, variant: str) -> Any:
        """The documents, chunks and vectors, whatever their ids, and the answers of three rankings."""
        from quatrain.retrieval.index import Index

        with Index.open(folder) as index:
            content = []
            for document in index.store.documents():
                chunks = index.store.chunks_of(document.id)
                numbers = [chunk.id for chunk in chunks]
                vectors = {
                    space: hashlib.sha256(index.store.vectors(space, numbers).tobytes()).hexdigest()
                    for space in index.store.spaces()
                }
                spans = [[chunk.start, chunk.end, list(chunk.path)] for chunk in chunks]
                content.append([document.name, document.text, spans, vectors])
            assert len({json.dumps(each) for each in content}) == len(content), "a document is there twice"
        return {"content": sorted(content), "answers": self.read(folder, variant)}

    def read(self, folder: Path, variant: str) -> Any:
        """The answers of three rankings; None where there is no index yet."""
        from quatrain.core.errors import InputError
        from quatrain.retrieval.index import Index

        try:
            index = Index.open(folder)
        except InputError as error:
            if variant == "new" and "is no index" in str(error):
                return None
            raise
        with index:
            return [
                [hit.name, hit.start, hit.end, hit.score]
                for retriever in ("bm25", "dense", "hybrid")
                for question in QUESTIONS
                for hit in index.search(question, 4, retriever=retriever)
            ]


def _encoder(folder: Path) -> Path:
    """A tiny model of sentence embeddings with random weights."""
    from quatrain.models.io import model_folder
    from quatrain.models.transformer.config import ModelConfig
    from quatrain.models.transformer.stack import Model
    from quatrain.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.train([" ".join(WORDS)] * 20, vocab_size=300)
    config = ModelConfig(
        family="llama", vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128, architecture="encoder",
        head="embedding", pooling="mean",
    )  # fmt: skip
    tokenizer.save(folder)
    model_folder.save(Model(config).initialize(0), folder)
    return folder


WORK = Indexing()
