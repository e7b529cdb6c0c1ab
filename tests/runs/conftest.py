"""Tiny texts, chats, preferences and databases."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

WORDS = "the cat sat on a mat and saw no dog at all in the old town by the sea".split()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(2, 12))) + "." for _ in range(count)]


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text.txt, chats.jsonl and pairs.jsonl."""
    folder = tmp_path_factory.mktemp("materials")
    (folder / "text.txt").write_text("\n".join(sentences(300)), encoding="utf-8")
    generator = random.Random(1)
    chats, pairs = [], []
    for _ in range(40):
        word = generator.choice(WORDS)
        question = {"role": "user", "content": f"say {word}"}
        chats.append({"messages": [question, {"role": "assistant", "content": word}]})
        pairs.append({"prompt": f"say {word}", "chosen": word, "rejected": "no " + word})
    for name, records in (("chats", chats), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_database() -> Callable[[Path], Path]:
    """A small database of the user's: two tables that belong together, names with a space and a reserved word."""

    def make(path: Path) -> Path:
        generator = random.Random(2)
        with sqlite3.connect(path) as connection:
            connection.execute("create table town (id integer primary key, name text, people integer)")
            connection.execute(
                'create table "order" (id integer primary key, "town id" integer references town(id), '
                '"unit price" real, placed date)'
            )
            for number, name in enumerate(("Ulm", "Bonn", "Jena", "Köln", "Trier", "St. Ives"), 1):
                connection.execute("insert into town values (?, ?, ?)", (number, name, 1000 * number))
            for number in range(1, 31):
                values = number, generator.randint(1, 6), round(generator.uniform(1, 99), 2), f"2024-03-{number:02d}"
                connection.execute('insert into "order" values (?, ?, ?, ?)', values)
        connection.close()
        return path

    return make
