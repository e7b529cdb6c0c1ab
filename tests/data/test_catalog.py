"""The catalog: every entry is what it says, and is found in the right order of places."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from quatrain.core.errors import InputError, OfflineError, QuatrainError
from quatrain.data import catalog
from quatrain.data.catalog import CATALOG, Copy, Source, fetch, find, get, locate
from quatrain.data.corpus import Corpus, FileSource
from quatrain.data.formats import FORMATS

DATA = Path(os.environ.get("QUATRAIN_DATA") or "absent")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="QUATRAIN_DATA names no folder of shared data")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """An empty QUATRAIN_DATA and an empty cache, offline."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    monkeypatch.setenv("QUATRAIN_DATA", str(data))
    monkeypatch.setenv("QUATRAIN_CACHE", str(cache))
    monkeypatch.setenv("QUATRAIN_OFFLINE", "1")
    return data, cache


@needs_data
@pytest.mark.parametrize("name", [name for name, source in CATALOG.items() if source.derived is None])
def test_every_entry_is_in_the_shared_data_and_whole(name: str) -> None:
    path = locate(name)
    assert path is not None and path.is_file()
    assert path == DATA / CATALOG[name].path


@pytest.mark.parametrize("source", CATALOG.values(), ids=list(CATALOG))
def test_every_entry_is_complete(source: Source) -> None:
    assert source.description and source.licence and source.format in ("jsonl", "alpaca", "sqlite", "audio", *FORMATS)
    if source.derived is not None:
        module = source.derived.partition(":")[0]
        assert hasattr(import_module(f"quatrain.data.derived.{module}"), "rows")
        assert all(CATALOG[origin].derived is None for origin in source.origins)  # Generated sets have none.
        return
    for copy in source.copies:
        assert copy.sha256 is not None and len(copy.sha256) == 64 and copy.size
        assert copy.url is None or copy.url.startswith("https://")


def test_any_gutenberg_number_has_an_address() -> None:
    source = find("gutenberg:84")
    assert source is not None
    assert source.urls == ("https://www.gutenberg.org/cache/epub/84/pg84.txt",)
    assert find("Gutenberg:0084") == source
    assert find("gutenberg:1661") is CATALOG["gutenberg:1661"]
    assert find("gutenberg:0") is None and find("gutenberg:x") is None


@pytest.mark.parametrize(("name", "near"), [("tinyshakespear", "tinyshakespeare"), ("wikitext2", "wikitext2-")])
def test_an_unknown_name_brings_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"Did you mean .*{near}"):
        get(name)


def test_found_in_the_data_folder_then_the_cache(places: tuple[Path, Path]) -> None:
    data, cache = places
    source = find("gutenberg:84")
    assert source is not None and locate(source) is None
    cached = cache / "data" / source.path
    cached.parent.mkdir(parents=True)
    cached.write_text("from the cache")
    assert fetch(source) == cached
    first = data / source.path
    first.parent.mkdir(parents=True)
    first.write_text("from the data folder")
    assert fetch(source) == first


@needs_data
def test_another_copy_of_the_same_content_is_found(places: tuple[Path, Path]) -> None:
    import gzip

    data, _ = places
    source = CATALOG["wikitext2-valid"]
    target = data / source.copies[1].path
    target.parent.mkdir(parents=True)
    target.write_bytes(gzip.decompress((DATA / source.path).read_bytes()))
    assert locate(source) == target


@needs_data
def test_a_changed_file_is_refused(places: tuple[Path, Path]) -> None:
    data, _ = places
    target = data / CATALOG["the-verdict"].path
    target.parent.mkdir(parents=True)
    shutil.copy(DATA / CATALOG["the-verdict"].path, target)
    assert fetch("the-verdict") == target
    text = target.read_bytes()
    target.write_bytes(text.replace(b"I", b"J", 1))
    with pytest.raises(QuatrainError, match="SHA-256") as caught:
        fetch("the-verdict")
    assert str(target) in str(caught.value)
    target.write_bytes(text + b"\n")
    with pytest.raises(QuatrainError, match="20,480 bytes, expected 20,479"):
        fetch("the-verdict")


def test_offline_says_where_the_file_belongs(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = places
    for name in ("tinyshakespeare", "british-novels"):
        with pytest.raises(OfflineError) as caught:
            fetch(name)
        message = str(caught.value)
        assert str(data / CATALOG[name].path) in message and "QUATRAIN_OFFLINE" in message
        assert str(cache / "data" / CATALOG[name].path) in message
    monkeypatch.delenv("QUATRAIN_DATA")
    with pytest.raises(OfflineError, match="Set QUATRAIN_DATA to a folder that holds it as text"):
        fetch("tinyshakespeare")


def test_downloads_go_to_the_cache(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, cache = places
    asked = {}

    def downloaded(url: str, target: Path, **options: object) -> Path:
        asked.update(options, url=url, target=target)
        return target

    monkeypatch.setattr(catalog, "download", downloaded)
    source = Source("x", "x", "x", "text", (Copy("a/x.txt.gz"), Copy("a/x.txt", "0" * 64, 7, "https://x.org/x.txt")))
    assert fetch(source) == cache / "data" / "a/x.txt"
    assert asked["url"] == "https://x.org/x.txt" and asked["sha256"] == "0" * 64 and asked["size"] == 7


def test_the_cache_is_where_the_system_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("QUATRAIN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    for platform, place in (("linux", tmp_path / "quatrain"), ("win32", tmp_path / "quatrain" / "Cache")):
        monkeypatch.setattr(catalog.sys, "platform", platform)
        assert catalog.cache_folder() == place
    monkeypatch.setattr(catalog.sys, "platform", "darwin")
    assert catalog.cache_folder() == Path.home() / "Library" / "Caches" / "quatrain"


def test_a_source_may_be_a_range_of_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "row {number}", "half": "{number % 2}"}}\n' for number in range(6)))
    for where, expected in (({"#": "1:3"}, [1, 2]), ({"#": "4:"}, [4, 5]), ({"#": "0:4", "half": "1"}, [1, 3])):
        source = FileSource([path], selection={path: [where]})
        source.layout(None, None)
        assert [row.value["text"] for row in source.rows()] == [f"row {number}" for number in expected]


@needs_data
def test_the_two_parts_of_hh_harmless_share_no_pair():
    parts = [list(Corpus(name)) for name in ("hh-harmless-train", "hh-harmless-test")]
    assert [len(part) for part in parts] == [1200, 500]
    prompts = [{repr(record.prompt) for record in part} for part in parts]
    assert len(prompts[0] & prompts[1]) <= 2
