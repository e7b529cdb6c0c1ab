"""What is released: the wheel and the source distribution are built, complete, installed elsewhere, and used.

Nothing is downloaded: hatchling, the build backend, is in the extra `test`, and the installed package finds its
dependencies in the environment of the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import quatrain

pytest.importorskip("hatchling", reason="hatchling, the build backend, is not installed")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TINY = [
    *("model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2"),
    *("model.intermediate_size=64", "tokenizer.vocab_size=280", "stage.pretrain.context=32"),
    *("stage.pretrain.train.steps=3", "stage.pretrain.train.batch_tokens=256", "evaluate.max_new_tokens=8"),
]


def built(kind: str, source: Path, into: Path) -> Path:
    """A distribution of the project in `source`, built by its backend as pip and build do, in a process of its own."""
    into.mkdir()
    code = f"import sys; from hatchling.build import build_{kind}; print(build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(into)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return into / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built("sdist", ROOT, tmp_path_factory.mktemp("release") / "sdist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the unpacked source distribution, not from the checkout."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return built("wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        there = set(archive.namelist())
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "quatrain").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package - there == set()
    others = {name.rpartition("/")[2] for name in there if not name.startswith("quatrain/")}
    assert others == {
        "METADATA",
        "WHEEL",
        "entry_points.txt",
        "LICENSE",
        "RECORD",
    }
    assert wheel.stat().st_size < 5_000_000


def test_the_source_distribution_has_what_its_tests_and_pages_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "SECURITY.md",
    }
    wanted |= {"Makefile", "tools/make.py", "constraints/cpu.txt", "docs/index.md", "tests/public_api.txt"}
    assert wanted - there == set()
    assert not {name for name in there if "__pycache__" in name or name.startswith((".venv", "runs/"))}


@pytest.mark.slow
def test_the_installed_package_runs_a_recipe_far_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(installed), "QUATRAIN_CACHE": str(tmp_path / "cache")}
    program = next(
        path for path in (installed / "bin" / "quatrain", installed / "Scripts" / "quatrain.exe") if path.exists()
    )

    def typed(*words: str) -> str:
        done = subprocess.run(
            [str(program), *words], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8"
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import quatrain; print(quatrain.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)
    assert "quatrain run quickstart" in typed("--help")
    (tmp_path / "my.txt").write_text("The old road ran down to the sea, and nobody came.\n" * 100, encoding="utf-8")
    typed("new", "tiny.toml", "--goal", "text", "--data", "my.txt", "--size", "small")
    assert "model" in typed("run", "tiny.toml", *TINY)
    assert (tmp_path / "runs" / "tiny" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()


def test_versions_agree_and_the_changelog_begins_with_what_is_next() -> None:
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] == quatrain.__version__
    assert citation["license"] == PROJECT["license"]
    required = {"cff-version", "message", "title", "authors"}  # of the format's schema
    assert required <= set(citation) and citation["authors"] == [{"name": PROJECT["authors"][0]["name"]}]
    assert "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
