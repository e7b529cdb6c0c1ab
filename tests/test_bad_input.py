"""Bad input through the real command line: one clear message, exit code 2 or 1, and nothing lost that was made."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import forks
import pytest

from quatrain.cli import main

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

HEAD = (Path(__file__).parent / "runs" / "recipes" / "tiny.toml").read_text(encoding="utf-8")
TRAIN = """
[[stage]]
kind = "pretrain"
[stage.train]
steps = 6
warmup_steps = 1
batch_tokens = 192
checkpoint_every = 2
"""
SENTENCES = [" ".join(random.Random(i).choices("the cat sat on a mat and saw no dog".split(), k=8)) for i in range(150)]
LIMITED = """
import resource, sys
from quatrain.cli import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""
LATIN = "Müller sagt: schöne Grüße\n".encode("latin-1") * 50


class Place:
    """A folder with a recipe and its text, and the command line run in it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.text = folder / "text.txt"
        self.text.write_text("\n".join(SENTENCES), encoding="utf-8")
        self.recipe = folder / "tiny.toml"
        self.recipe.write_text(HEAD.format(text=self.text) + TRAIN, encoding="utf-8")

    def start(self, *words: str | Path, limit: int | None = None) -> forks.Program:
        """`quatrain WORDS` as a process; no file may grow beyond `limit` bytes. Offline, without catalog or cache."""
        known = {key: value for key, value in os.environ.items() if key != "QUATRAIN_DATA"}
        program = ["-m", "quatrain"] if limit is None else ["-c", LIMITED, str(limit)]
        return forks.start([*program, *map(str, words)], cwd=self.folder, env=known | self.environment())

    def environment(self) -> dict[str, str]:
        home = {"HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder / "cache")}
        return home | {"OMP_NUM_THREADS": "1", "QUATRAIN_OFFLINE": "1"}

    def says(self, code: int, *words: str | Path) -> str:
        """The one message of a command that fails with this code, run in this process: an import of torch less."""
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as errors,
        ):
            patch.chdir(self.folder)
            patch.delenv("QUATRAIN_DATA", raising=False)
            for name, value in self.environment().items():
                patch.setenv(name, value)
            found = main([str(word) for word in words])
        return one_message(errors.getvalue(), found, code)

    def ends(self, code: int, *words: str | Path, limit: int | None = None) -> str:
        """The same in a process of its own."""
        process = self.start(*words, limit=limit)
        found = process.wait(600)
        return one_message(process.errors(), found, code)

    def works(self, *words: str | Path) -> str:
        process = self.start(*words)
        assert process.wait(600) == 0, process.errors()
        assert "Traceback" not in process.errors()
        return process.output()


def one_message(errors: str, found: int | None, code: int) -> str:
    """The message, where it is the only one, and an error of the user's, not of the program."""
    assert found == code, errors
    assert errors.startswith("error: ") and errors.count("error: ") == 1, errors
    assert "Traceback" not in errors and "internal" not in errors and "bug" not in errors, errors
    return errors


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place in which the run is finished."""
    place = Place(tmp_path_factory.mktemp("made"))
    place.works("run", place.recipe)
    return place


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("tixt.txt", None, "does not exist (did you mean "),
        ("empty.txt", b"", "is empty; must be"),
        ("white.txt", b" \n\n\t", "only white space"),
        ("binary.txt", bytes(range(256)) * 9, "is binary, not text"),
        ("image.txt", b"\x89PNG\r\n\x1a\n" + bytes(100), "is not text: it looks like a PNG image"),
        ("latin.txt", LATIN, "latin.txt:1: byte 0xfc at offset 1 is not valid UTF-8. It looks like latin-1"),
        ("lines.jsonl", b'{"text": "a"}\n{"text": \n', "lines.jsonl:2: not valid JSON"),
        ("short.txt", b"the cat sat", "fewer than one context of 48 + 1. Use a longer text or a smaller context"),
    ],
)
def test_a_text_that_cannot_be_learned(place: Place, name: str, content: bytes | None, part: str) -> None:
    source = place.folder / name
    if content is not None:
        source.write_bytes(content)
    error = place.says(2, "run", place.recipe, f"data.source={source}")
    assert part in error
    # Of a text that is whole but short, its tokens are the matter, not its file.
    assert name in error or name == "short.txt"
    assert content is None or source.read_bytes() == content


def test_a_folder_without_text(place: Place) -> None:
    (place.folder / "nothing").mkdir()
    assert "nothing has no text" in place.ends(2, "run", place.recipe, f"data.source={place.folder / 'nothing'}")


def odd_names(connection: sqlite3.Connection) -> None:
    connection.execute('create table "select" ("from where" text, "a""b" integer, "größe €" real, "1st" integer)')
    connection.execute('create table "it\'s; drop table x --" (id integer primary key, "group" text)')
    for i in range(20):
        connection.execute('insert into "select" values (?, ?, ?, ?)', (f"v{i % 5}'s", i, i * 1.5, i))
        connection.execute('insert into "it\'s; drop table x --" values (?, ?)', (i, f'g"{i % 3}'))


def no_tables(connection: sqlite3.Connection) -> None:
    connection.execute("pragma user_version = 3")


def no_rows(connection: sqlite3.Connection) -> None:
    connection.execute("create table town (id integer primary key, name text)")


def database(path: Path, fill: Callable[[sqlite3.Connection], None]) -> Path:
    with sqlite3.connect(path) as connection:
        fill(connection)
    connection.close()
    return path


@pytest.fixture
def questions(place: Place) -> Place:
    """A recipe that learns questions about a database."""
    text = place.recipe.read_text(encoding="utf-8").replace(f"source = '{place.text}'", "database = 'x'\nexamples = 60")
    text = text.replace("embeddings = 48", "embeddings = 192").replace("evaluate.prompts", "")
    place.recipe.write_text(text.replace("steps = 6", "steps = 1"), encoding="utf-8")
    return place


@pytest.mark.parametrize(
    ("fill", "cut", "part"),
    [
        (None, None, "is not an SQLite database"),
        (no_tables, None, "has no tables"),
        (no_rows, None, "has no rows"),
        (odd_names, 5000, "damaged or encrypted"),
    ],
)
def test_a_database_that_cannot_be_asked(
    questions: Place, fill: Callable[[sqlite3.Connection], None] | None, cut: int | None, part: str
) -> None:
    path = questions.folder / "mine.sqlite"
    if fill is None:
        path.write_text("this is no database at all\n" * 100, encoding="utf-8")
    else:
        path.write_bytes(database(path, fill).read_bytes()[:cut])
    before = path.read_bytes()
    error = questions.says(2, "run", questions.recipe, f"data.database={path}")
    assert part in error and "mine.sqlite" in error
    assert path.read_bytes() == before


@pytest.mark.slow
def test_odd_names_in_a_database_are_no_fault(questions: Place) -> None:
    path = database(questions.folder / "it's odd.sqlite", odd_names)
    before = path.read_bytes()
    assert "02-pretrain" in questions.works("run", questions.recipe, f"data.database={path}")
    assert path.read_bytes() == before


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}), encoding="utf-8")


@pytest.mark.parametrize(
    ("breaking", "part"),
    [
        (truncate, "incomplete or invalid safetensors file"),
        (widen, "has shape (32, 16), config.json says (64, 16)"),
        (lambda folder: (folder / "config.json").unlink(), "so it is not a model folder"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json, line 1, column 2: not valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "contains no model.safetensors"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "It is not a valid tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    ],
    ids=["truncated", "shape", "no config", "half a config", "no weights", "half a tokenizer", "no tokenizer"],
)
def test_a_broken_model_folder(made: Place, tmp_path: Path, breaking: Callable[[Path], object], part: str) -> None:

    folder = Path(shutil.copytree(made.folder / "runs/tiny/model", tmp_path / "model"))
    breaking(folder)
    assert part in made.says(2, "generate", folder, "the cat")


def test_a_folder_for_runs_that_cannot_be_written(place: Place) -> None:
    assert "a file is in the way" in place.says(2, "run", place.recipe, "--runs-dir", place.text)
    nowhere = "/proc/nowhere" if sys.platform == "linux" else os.path.join(os.devnull, "x")
    place.says(2, "run", place.recipe, "--runs-dir", nowhere)
    assert place.text.read_text(encoding="utf-8") == "\n".join(SENTENCES)


def test_no_network(place: Place) -> None:
    error = place.ends(1, "run", place.recipe, "data.source=gutenberg:1661")
    assert "QUATRAIN_OFFLINE forbids the network" in error and "QUATRAIN_DATA" in error


@pytest.mark.skipif(resource is None, reason="this system has no limit on the size of files")
@pytest.mark.slow
@pytest.mark.parametrize("limit", [2_000, 30_000])
def test_a_file_that_cannot_be_written_whole(place: Place, limit: int) -> None:
    """Where writing ends by a limit, in the tokenizer or in a checkpoint, the next run goes on from what was whole."""
    error = place.ends(1, "run", place.recipe, limit=limit)
    assert "cannot write " in error and "run the same command again" in error
    assert ("01-tokenizer, finished before" in place.works("run", place.recipe)) == (limit > 20_000)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 150 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except OSError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("a small file system cannot be mounted without root's rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk(place: Place, full_disk: Path) -> None:
    error = place.ends(1, "run", place.recipe, "--runs-dir", full_disk)
    assert "the disk is full (0 B free on that disk)" in error
    assert not list(full_disk.rglob("result.json.*")) and list(full_disk.rglob("01-tokenizer/result.json"))
    subprocess.run(["mount", "-o", "remount,size=5m", str(full_disk)], check=True)
    assert "01-tokenizer, finished before" in place.works("run", place.recipe, "--runs-dir", full_disk)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_at_a_random_moment_the_next_run_goes_on(made: Place, place: Place) -> None:
    seconds = random.Random(time.time_ns()).uniform(0.05, 1.0)
    process = place.start("run", place.recipe)
    time.sleep(seconds)
    process.kill()
    code = process.wait()
    out = place.works("run", place.recipe)
    # Killed after its last write and before its end, it may be finished too.
    assert code or "nothing to do" in out, seconds
    weights = "runs/tiny/model/model.safetensors"
    assert (place.folder / weights).read_bytes() == (made.folder / weights).read_bytes(), seconds


@pytest.mark.parametrize("name", ["tiny", "runs/tiny", "./runs/tiny/"])
def test_every_verb_takes_a_run_for_its_model(
    made: Place, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made.folder)

    def says(verb: str, model: str, *words: str) -> str:
        assert main([verb, model, *words, "--json"]) == 0, capsys.readouterr().err
        out = re.sub(r'"(seconds|tokens_per_second)": [\d.e+-]+', "", capsys.readouterr().out)
        return out.replace(model, "MODEL")

    for verb, *words in (["generate", "the cat", "--max-new-tokens", "3"], ["tokenize", "the cat"],
                         ["plan", "--method", "lora"], ["evaluate", str(made.text)],
                         ["inspect", "--text", "the cat"]):  # fmt: skip
        assert says(verb, name, *words) == says(verb, "runs/tiny/model", *words)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n"))
    assert "the cat" in says("chat", name, "--max-new-tokens", "2")
    assert main(["merge", name, "--out", "merged"]) == 2
    assert "no adapter_config.json" in capsys.readouterr().err
    assert main(["check", str(made.recipe), f"model.folder={made.folder}/runs/tiny", "model=none", "--toml"]) == 2


def test_a_run_without_a_model_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/half").mkdir(parents=True)
    (tmp_path / "runs/half/recipe.toml").touch()
    (tmp_path / "runs/half/run.json").touch()
    for words in (["generate", "half", "x"], ["tokenize", "runs/half", "x"], ["inspect", "half"], ["plan", "half"]):
        assert main(words) == 1
        assert "has no" in capsys.readouterr().err
