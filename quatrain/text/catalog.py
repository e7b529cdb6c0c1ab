"""Named sources of text: where each comes from, its checksum and its licence.

A source is looked for in the folder that QUATRAIN_DATA names, then in the cache, and downloaded only then. Any book of
Project Gutenberg has a name: `gutenberg:` and its number.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quatrain.errors import InputError, OfflineError, QuatrainError
from quatrain.offline import offline
from quatrain.text.download import Progress, download, sha256_of


@dataclass(frozen=True)
class Copy:
    """One file that holds a source: its path below QUATRAIN_DATA or the cache, what it must be, and where it is
    downloaded from (no address: it is found on disk or not at all)."""

    path: str
    sha256: str | None = None
    size: int | None = None
    url: str | None = None


@dataclass(frozen=True)
class Source:
    """A named text. `format` is how it is read: text, jsonl, alpaca or preference; the copies hold the same content."""

    name: str
    description: str
    licence: str
    format: str
    copies: tuple[Copy, ...]

    @property
    def path(self) -> str:
        """Where its first copy is below QUATRAIN_DATA."""
        return self.copies[0].path

    @property
    def size(self) -> int | None:
        """Bytes of its first copy, None where not known."""
        return self.copies[0].size

    @property
    def sha256(self) -> str | None:
        """Checksum of its first copy, None where not known."""
        return self.copies[0].sha256

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses it can be downloaded from."""
        return tuple(copy.url for copy in self.copies if copy.url is not None)


_GITHUB = "https://raw.githubusercontent.com/"
_GUTENBERG = re.compile(r"gutenberg:0*([1-9]\d{0,6})$", re.IGNORECASE)
_PUBLIC_DOMAIN = "public domain in the USA"


def _entries() -> Iterator[Source]:
    yield Source(
        "gutenberg:1661",
        "The Adventures of Sherlock Holmes, A. Conan Doyle (1892), Project Gutenberg's text",
        f"{_PUBLIC_DOMAIN} (Project Gutenberg licence)",
        "text",
        (
            Copy(
                "text/sherlock_holmes_adventures.txt",
                "242ec73a70f0a03dcbe007e32038e7deeaee004aaec9a09a07fa322743440fa8",
                594_933,
                _GITHUB + "BurntSushi/rebar/HEAD/benchmarks/haystacks/sherlock.txt",
            ),
        ),
    )
    yield Source(
        "tinyshakespeare",
        "40,000 lines of Shakespeare's plays; usual split: first 90 % train, last 10 % validation",
        _PUBLIC_DOMAIN,
        "text",
        (
            Copy(
                "text/tinyshakespeare.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                1_115_394,
                _GITHUB + "karpathy/char-rnn/HEAD/data/tinyshakespeare/input.txt",
            ),
        ),
    )
    yield Source(
        "the-verdict",
        "The Verdict, a short story by Edith Wharton (1908)",
        _PUBLIC_DOMAIN,
        "text",
        (
            Copy(
                "text/the-verdict.txt",
                "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
                20_479,
                _GITHUB + "rasbt/LLMs-from-scratch/HEAD/ch02/01_main-chapter-code/the-verdict.txt",
            ),
        ),
    )
    yield Source(
        "names",
        "32,033 given names, one a line, for character-level toy models",
        "MIT",
        "text",
        (
            Copy(
                "text/names.txt",
                "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
                228_145,
                _GITHUB + "karpathy/makemore/HEAD/names.txt",
            ),
        ),
    )
    yield Source(
        "british-novels",
        "24 British novels, 1740-1880 (Austen, Bronte, Dickens, Eliot, Fielding, ...), one book a line",
        _PUBLIC_DOMAIN,
        "jsonl",
        (
            Copy(
                "pretrain/british_novels.jsonl.gz",
                "9a899d126e09612defd81a93d1e447e4528a095bb27f7f5d5748d0510737240f",
                10_971_042,
            ),
        ),
    )
    yield Source(
        "tinystories-sample",
        "a sample of TinyStories, synthetic stories for children (Eldan and Li 2023)",
        "CDLA-Sharing-1.0",
        "text",
        (
            Copy(
                "pretrain/tinystories_sample.txt",
                "727e8b228375be3075114c20729c93ed6e81ae5d8fe7faf7cb54b304f0322d70",
                197_290,
                _GITHUB + "Niklas6/Mini_GPT/HEAD/tinystories.txt",
            ),
        ),
    )
    yield Source(
        "c4-sample",
        "300 documents of C4, web text (Raffel et al. 2020)",
        "ODC-BY",
        "jsonl",
        (
            Copy(
                "pretrain/c4_sample.jsonl.gz",
                "f29e5b493220ebd38b3cf524873546e1e316a9bd06415a50398643e34beec3b3",
                288_794,
            ),
        ),
    )
    yield Source(
        "wikipedia-sample",
        "plain text of 30 long English Wikipedia articles, one a line",
        "CC BY-SA",
        "text",
        (
            Copy(
                "pretrain/wikipedia_plain_sample.txt.gz",
                "c2949ac7550de5333fd4cf15b038cf74cb2dfe6546e523db6182ad0898b9389b",
                380_885,
            ),
        ),
    )
    wikitext = (
        ("valid", "3cdd8cb5bb349a05840c7c3bef9578d90d64df77e27e0c25c033ba9342757ee3", 373_475,
         "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8", 1_121_681),
        ("test", "688887879b4b526692cb2e423a516dcc5f6584a01fd3f33a8e164fbed2de8090", 410_944,
         "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0", 1_256_449),
    )  # fmt: skip
    for split, packed_sha, packed_size, sha, size in wikitext:
        yield Source(
            f"wikitext2-{split}",
            f"WikiText-2, {split} split, split into words, <unk> for rare ones (Merity et al. 2016)",
            "CC BY-SA",
            "text",
            (
                Copy(f"pretrain/wikitext2/{split}.txt.gz", packed_sha, packed_size),
                Copy(
                    f"pretrain/wikitext2/{split}.txt",
                    sha,
                    size,
                    _GITHUB + f"pytorch/examples/HEAD/word_language_model/data/wikitext-2/{split}.txt",
                ),
            ),
        )
    yield Source(
        "instructions",
        "1,100 short instructions with answers, of the book Build a Large Language Model (From Scratch)",
        "Apache-2.0",
        "alpaca",
        (
            Copy(
                "instruct/rasbt_instruction_data.json",
                "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
                203_524,
                _GITHUB + "rasbt/LLMs-from-scratch/HEAD/ch07/01_main-chapter-code/instruction-data.json",
            ),
        ),
    )
    yield Source(
        "alpaca-4000",
        "4,000 rows of Stanford Alpaca",
        "CC BY-NC 4.0 (non-commercial)",
        "alpaca",
        (
            Copy(
                "instruct/alpaca_4000.jsonl.gz",
                "4eb1c556a0731b4c83b8822b683d650fa137e20789ece015601bc380fbb4747e",
                547_907,
            ),
        ),
    )
    yield Source(
        "polite-preferences",
        "the 1,100 instructions with a chosen (polite) and a rejected (impolite) answer",
        "Apache-2.0",
        "preference",
        (
            Copy(
                "preference/rasbt_instruction_data_with_preference.json",
                "305315abf14f65fa42c01a0877572f832606571c2a7d49f152ac1d758b16756e",
                386_968,
                _GITHUB + "rasbt/LLMs-from-scratch/HEAD/ch07/04_preference-tuning-with-dpo/"
                "instruction-data-with-preference.json",
            ),
        ),
    )


CATALOG: dict[str, Source] = {source.name: source for source in _entries()}


def find(name: str) -> Source | None:
    """The source of that name, or any Gutenberg book's `gutenberg:N`; None where there is none."""
    if name in CATALOG:
        return CATALOG[name]
    if found := _GUTENBERG.match(name):
        number = found[1]
        known = f"gutenberg:{number}"
        if known in CATALOG:
            return CATALOG[known]
        url = f"https://www.gutenberg.org/cache/epub/{number}/pg{number}.txt"
        return Source(
            known,
            f"Project Gutenberg's book {number}",
            "as the book's Project Gutenberg licence says; most are public domain in the USA",
            "text",
            (Copy(f"text/gutenberg/pg{number}.txt", url=url),),
        )
    return None


def get(name: str) -> Source:
    """The source of that name; raises InputError with the nearest names where there is none."""
    source = find(name)
    if source is None:
        near = difflib.get_close_matches(name.lower(), CATALOG, 3, 0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            f"{name!r} is no name of the catalog. {hint}Known are {', '.join(CATALOG)}, and gutenberg:N for any book "
            "of Project Gutenberg"
        )
    return source


def cache_folder() -> Path:
    """Where downloads are kept: QUATRAIN_CACHE, or the place that the system has for it."""
    if chosen := os.environ.get("QUATRAIN_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "quatrain" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "quatrain"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quatrain"


def data_folder() -> Path | None:
    """The folder that QUATRAIN_DATA names, None where it is not set."""
    chosen = os.environ.get("QUATRAIN_DATA")
    return Path(chosen).expanduser() if chosen else None


def _folders() -> list[Path]:
    data = data_folder()
    return [*([data] if data is not None else []), cache_folder() / "data"]


def locate(source: Source | str) -> Path | None:
    """The file of a source that is already on this machine, its checksum verified; None where there is none.

    Raises QuatrainError for a file that is there but is not the one expected.
    """
    source = get(source) if isinstance(source, str) else source
    for folder in _folders():
        for copy in source.copies:
            path = folder / copy.path
            if path.is_file():
                _verify(path, copy, source)
                return path
    return None


def fetch(source: Source | str, *, progress: Progress | None = None, tries: int = 4) -> Path:
    """The verified file of a source: from QUATRAIN_DATA, from the cache, or downloaded into the cache.

    Raises InputError for an unknown name, OfflineError, with where to put the file, when the network is needed and
    forbidden or out of reach, QuatrainError for a file that is not the one expected.
    """
    source = get(source) if isinstance(source, str) else source
    found = locate(source)
    if found is not None:
        return found
    remedy = _remedy(source)
    for copy in source.copies:
        if copy.url is not None:
            target = cache_folder() / "data" / copy.path
            return download(
                copy.url, target, sha256=copy.sha256, size=copy.size, progress=progress, tries=tries, remedy=remedy
            )
    forbidden = " (and QUATRAIN_OFFLINE forbids the network)" if offline() else ""
    raise OfflineError(
        f"{source.name} is not on this machine and has no address to download it from{forbidden}. {remedy}."
    )


def _remedy(source: Source) -> str:
    """Where to put the file by hand."""
    data, copy = data_folder(), source.copies[0]
    if data is not None:
        place = f"Put the file at {data / copy.path} (QUATRAIN_DATA)"
    else:
        place = f"Set QUATRAIN_DATA to a folder that holds it as {copy.path}"
    return f"{place}, or at {cache_folder() / 'data' / copy.path}"


def _verify(path: Path, copy: Copy, source: Source) -> None:
    if copy.size is not None and path.stat().st_size != copy.size:
        found, expected = f"{path.stat().st_size:,} bytes", f"{copy.size:,} bytes"
    elif copy.sha256 is not None and (digest := sha256_of(path)) != copy.sha256:
        found, expected = f"SHA-256 {digest}", f"SHA-256 {copy.sha256}"
    else:
        return
    raise QuatrainError(
        f"{path} is not {source.name} as the catalog knows it: found {found}, expected {expected}. Put the right file "
        "there or remove this one; to use it as it is, give its path instead of the name"
    )
