"""Curation as a whole: equal bytes with any number of processes, killed or not; counts that add up; bad input."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.progress import create_reporter
from quatrain.data.curation.estimate import estimate
from quatrain.data.curation.runner import CurationResult, curate, read_shards
from quatrain.data.curation.settings import CurationRecipe, load, recipe_names
from quatrain.data.curation.units import plan_units, read_unit

REPORTER = create_reporter(quiet=True)
WORDS = "the cat sat on a mat and of to with have be that house tree river stone green blue old new small".split()


def text_of(number: int, words: int = 60) -> str:
    """A text that its number decides."""
    numbers = random.Random(number)
    return " ".join(numbers.choice(WORDS) + ("." if numbers.random() < 0.1 else "") for _ in range(words))


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    """90 documents of which 10 are copies and 10 are too short, with faults between them."""
    rows = [{"text": text_of(number % 80), "url": f"https://example.org/{number}"} for number in range(90)]
    rows += [{"text": text_of(number, 5)} for number in range(10)]
    lines = [json.dumps(row) for row in rows]
    lines[20:20] = ["{broken", "[]", '{"text": null}', "", '{"text": "\\u0000\\u0001"}']
    path = tmp_path / "crawl.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe_of(*paths: Path, **settings: Any) -> CurationRecipe:
    """Length and exact duplicates over these sources, in units of 5 kB."""
    steps = settings.pop("step", [{"kind": "length"}, {"kind": "exact_duplicates"}])
    sources = settings.pop("source", [{"path": str(path)} for path in paths])
    return CurationRecipe.model_validate({"unit_megabytes": 0.005, "source": sources, "step": steps} | settings)


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a result, but for the seconds."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "timing.json"]
    files = [path for path in files if "work" not in path.relative_to(folder).parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(recipe: CurationRecipe, folder: Path, processes: int = 1) -> CurationResult:
    return curate(recipe, folder, processes=processes, reporter=REPORTER)


def test_funnel_counts_every_document(crawl: Path, tmp_path: Path) -> None:
    result = run(recipe_of(crawl, output={"removed": True}), tmp_path / "out")
    funnel = result.funnel
    assert funnel.read.documents == 100
    assert funnel.faults == {"no JSON": 1, "a row that is no object": 1, "no text in the column text": 1, "binary": 1}
    length, copies = funnel.steps
    assert {reason: amount.documents for reason, amount in length.counts.reasons.items()} == {"words below 20": 10}
    assert {reason: amount.documents for reason, amount in copies.counts.reasons.items()} == {"a copy": 10}
    rows = list(read_shards(tmp_path / "out"))
    assert [row["text"] for row in rows] == [text_of(number) for number in range(80)]
    assert rows[3]["url"] == "https://example.org/3"
    assert funnel.kept.tokens == sum(len(row["text"].split()) for row in rows)
    removed = [json.loads(line) for path in sorted((tmp_path / "out" / "removed").iterdir())
               for line in path.read_text(encoding="utf-8").splitlines()]  # fmt: skip
    assert sorted(row["step"] for row in removed) == ["exact_duplicates"] * 10 + ["length"] * 10
    assert "words below 20" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_bytes_do_not_depend_on_processes(crawl: Path, tmp_path: Path) -> None:
    recipe = recipe_of(crawl)
    assert len(plan_units(recipe)) > 3
    run(recipe, tmp_path / "one")
    run(recipe, tmp_path / "two", processes=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_units_read_every_line_once(crawl: Path) -> None:
    whole = [
        item for unit in plan_units(recipe_of(crawl, unit_megabytes=64)) for item in read_unit(unit, recipe_of(crawl))
    ]
    for megabytes in (0.00001, 0.0003, 0.002):
        recipe = recipe_of(crawl, unit_megabytes=megabytes)
        assert [item for unit in plan_units(recipe) for item in read_unit(unit, recipe)] == whole


CHILD = """
import sys
from pathlib import Path
from quatrain.core.progress import create_reporter
from quatrain.data.curation.runner import curate
from quatrain.data.curation.settings import load
if __name__ == "__main__":
    curate(load(sys.argv[1]), Path(sys.argv[2]), processes=int(sys.argv[3]), reporter=create_reporter(quiet=True))
"""


def files_written(folder: Path) -> int:
    return sum(1 for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process group")
def test_killed_curation_resumes_to_the_same_bytes(crawl: Path, tmp_path: Path) -> None:
    """Killed again and again at ever more files, with another number of processes each time."""
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'unit_megabytes = 0.002\n[[source]]\npath = "{crawl}"\n[[step]]\nkind = "length"\n[[step]]\n'
        'kind = "exact_duplicates"\n',
        encoding="utf-8",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(load(str(path)), whole)
    script = tmp_path / "child.py"
    script.write_text(CHILD, encoding="utf-8")
    for number, files in enumerate((10, 50)):
        child = subprocess.Popen(
            [sys.executable, str(script), str(path), str(killed), str(1 + number % 2)], start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        while child.poll() is None and files_written(killed) < files:
            time.sleep(0.002)
        assert child.poll() is None, "the child ended before it was killed"
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert not (killed / "manifest.json").exists()
    (killed / "data").mkdir(exist_ok=True)
    (killed / "data" / ".train-000001.jsonl.0123456789ab.partial").touch()  # where a kill hits the writing of a shard
    run(load(str(path)), killed)
    assert contents(killed) == contents(whole)
    (killed / "work" / "pass-0").mkdir(parents=True)  # and where it hits the cleaning up
    run(load(str(path)), killed)
    assert not (killed / "work").exists()


def test_damaged_unit_is_done_again(crawl: Path, tmp_path: Path) -> None:
    recipe = recipe_of(crawl)
    curate(recipe, tmp_path / "out", reporter=REPORTER, keep_work=True)
    expected = contents(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    shard = next((tmp_path / "out" / "data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-10])
    curate(recipe, tmp_path / "out", reporter=REPORTER, keep_work=True)
    assert contents(tmp_path / "out") == expected


def test_folder_of_another_recipe_is_refused(crawl: Path, tmp_path: Path) -> None:
    run(recipe_of(crawl), tmp_path / "out")
    with pytest.raises(InputError, match="another recipe"):
        run(recipe_of(crawl, step=[{"kind": "length"}]), tmp_path / "out")
    crawl.write_text(crawl.read_text(encoding="utf-8") + '{"text": "more"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="sources that have changed"):
        run(recipe_of(crawl), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(InputError, match=r"not empty \(thesis.txt\)"):
        run(recipe_of(crawl), tmp_path / "mine")


def test_changed_shard_is_refused(crawl: Path, tmp_path: Path) -> None:
    run(recipe_of(crawl), tmp_path / "out")
    shard = next((tmp_path / "out" / "data").iterdir())
    shard.write_bytes(shard.read_bytes().replace(b"cat", b"dog", 1))
    with pytest.raises(QuatrainError, match="has changed"):
        list(read_shards(tmp_path / "out"))


@pytest.mark.parametrize("form", [{"format": "parquet"}, {"compression": "gzip"}])
def test_every_form_of_output_reads_back(crawl: Path, tmp_path: Path, form: dict[str, str]) -> None:
    pytest.importorskip("pyarrow")
    run(recipe_of(crawl, output=form), tmp_path / "out")
    assert [row["text"] for row in read_shards(tmp_path / "out")] == [text_of(number) for number in range(80)]


def bad_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files that bring no document, and why."""
    (folder / "empty.txt").write_bytes(b"")
    yield folder / "empty.txt", "no text"
    (folder / "image.jsonl").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9)
    yield folder / "image.jsonl", "no JSON"
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 40)
    yield folder / "binary.txt", "binary"
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "hello"}\n' * 999)[:-20])
    yield folder / "cut.jsonl.gz", "a damaged file"
    (folder / "line.jsonl").write_text('{"text": "' + "word " * 900_000 + '"}', encoding="utf-8")
    yield folder / "line.jsonl", "longer than max_characters"
    (folder / "wide.txt").write_text("word " * 900_000, encoding="utf-8")
    yield folder / "wide.txt", "longer than max_characters"
    (folder / "cut.xml").write_text("<mediawiki><page><title>a</title>", encoding="utf-8")
    yield folder / "cut.xml", "a damaged file"
    (folder / "table.csv").write_text('a,b\n"1,2\n', encoding="utf-8")
    yield folder / "table.csv", "a damaged file"


def test_faults_are_counted_and_the_rest_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    reasons = [reason for _, reason in bad_files(folder)]
    (folder / "good.txt").write_text(text_of(1), encoding="utf-8")
    (folder / "old.txt").write_bytes("Café du Monde, ".encode("cp1252") + text_of(2).encode())
    settings = {"unit_megabytes": 20, "max_characters": 100_000, "step": [{"kind": "length"}]}
    result = run(recipe_of(folder, **settings), tmp_path / "out")
    kept = [row["text"] for row in read_shards(tmp_path / "out")]
    assert text_of(1) in kept
    assert f"Café du Monde, {text_of(2)}" in kept
    assert set(reasons) <= set(result.funnel.faults), result.funnel.faults


def test_nothing_is_left(tmp_path: Path) -> None:
    """Steps that compare documents have none to compare."""
    pytest.importorskip("rensa")
    path = tmp_path / "empty.jsonl"
    path.write_text('{"text": "short"}\n', encoding="utf-8")
    kinds = ("length", "exact_duplicates", "near_duplicates", "substring_duplicates", "mix", "split")
    source = [{"path": str(path), "weight": 1.0}]
    result = run(recipe_of(source=source, step=[{"kind": kind} for kind in kinds]), tmp_path / "out")
    assert result.funnel.kept.documents == 0
    assert list(read_shards(tmp_path / "out")) == []


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        run(recipe_of(tmp_path / "nowhere.jsonl"), tmp_path / "out")
    with pytest.raises(InputError, match="has no files"):
        run(recipe_of(tmp_path), tmp_path / "out2")


def test_recipe_names_all_problems_at_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[[source]]\npth = "a"\n[[step]]\nkind = "lenght"\n[[step]]\nkind = "length"\nmin_words = -1\n')
    with pytest.raises(InputError) as caught:
        load(str(path))
    text = str(caught.value)
    assert "source[0].pth: unknown; did you mean path?" in text
    assert "did you mean length?" in text
    assert "step[1].min_words: -1; must be at least 0" in text


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_whole(name: str, crawl: Path) -> None:
    recipe = load(name, ["step.near_duplicates.threshold=0.8"], sources=[str(crawl)])
    assert recipe.description and len(recipe.step) >= 5
    assert [step.threshold for step in recipe.step if step.kind == "near_duplicates"] == [0.8]
    shorter = load(name, ["step.unicode=none"])
    assert "unicode" not in [step.kind for step in shorter.step]


def test_estimate_is_said_beforehand(crawl: Path) -> None:
    expected = estimate(recipe_of(crawl), processes=2)
    assert expected.documents == 100
    assert expected.units == len(plan_units(recipe_of(crawl)))
    assert [each.step for each in expected.comparisons] == ["exact_duplicates"]
    assert any("2 processes" in line for line in expected.lines())
