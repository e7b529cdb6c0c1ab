"""`quatrain data curate` over some hundred documents in many units: a rule, exact duplicates, and near duplicates."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from killing import Note, Work, command
from quatrain.core.reading import sha256_of

RECIPE = """
unit_megabytes = 0.01
[[source]]
path = '{place}/crawl.jsonl'
[output]
removed = true
[[step]]
kind = "length"
[[step]]
kind = "exact_duplicates"
[[step]]
kind = "near_duplicates"
"""
WORDS = "the cat sat on a mat and of to with have be that house tree river stone green blue old new small".split()
DOCUMENTS = 300


class Curation(Work):
    """Units that are whole are kept: three passes over the units, each interrupted anywhere."""

    name = "curation"
    after_kill = "resumes"
    phases = {
        r"manifest": "manifest",
        r"funnel|README|\.html|timing": "reports",
        r"removed/": "removed documents",
        r"data/": "shards",
        r"work/pass-0": "first pass",
        r"work/pass-1": "second pass",
        r"work/pass-2": "third pass",
        r"work/?$|^[^/]": "clean-up",
        r"work": "preparation",
    }

    def make(self, place: Path) -> None:
        texts = []
        for number in range(DOCUMENTS):
            draw = random.Random(number % 270)
            texts.append(" ".join(draw.choice(WORDS) for _ in range(8 if number % 20 == 0 else 60)))
        texts += [f"{text} again" for text in texts[5:25]]
        rows = (json.dumps({"text": text, "url": f"https://example.org/{n}"}) for n, text in enumerate(texts))
        (place / "crawl.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        self.recipe = place / "curation.toml"
        self.recipe.write_text(RECIPE.format(place=place), encoding="utf-8")
        self.run(place / "warm", "", lambda phase: None)

    def run(self, folder: Path, variant: str, note: Note) -> None:
        command("data", "curate", str(self.recipe), "--output", str(folder), "--json")

    def outcome(self, folder: Path, variant: str) -> Any:
        """The SHA-256 of every file but the one of seconds."""
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "timing.json")
        return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}

    def read(self, folder: Path, variant: str) -> Any:
        """The documents of a result that says that it is whole."""
        from quatrain.data.curation.runner import MANIFEST, read_shards

        return list(read_shards(folder)) if (folder / MANIFEST).is_file() else None


WORK = Curation()
