"""Shell completion: the script of each shell, and what bash completes with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quatrain.cli import main
from quatrain.runs.recipe import recipe_names

ROOT = Path(__file__).parents[2]
BASH = shutil.which("bash")
LINES = {
    "quatrain ch": {"check", "chat"},
    "quatrain run quick": {"quickstart"},
    "quatrain check senti": {name for name in recipe_names() if name.startswith("senti")},
    "quatrain run mi": {"mine.toml"},
    "quatrain chat fi": {"first"},
    "quatrain run --rest": {"--restart"},
    "quatrain new --goal da": {"database"},
    "quatrain data cu": {"curate"},
    "quatrain completion z": {"zsh"},
}
"""What is typed before Tab, and all that it may become."""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_bash_completes_verbs_options_choices_and_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").touch()
    (tmp_path / "runs" / "first" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "fifth-is-not-finished").mkdir()
    asked = "".join(f"complete_line {line}\n" for line in LINES)
    (tmp_path / "ask.bash").write_text(
        f'quatrain() {{ "{sys.executable}" -m quatrain "$@"; }}\n'
        + script("bash", capsys)
        + 'complete_line() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _quatrain\n'
        + 'echo "${COMPREPLY[*]}"; }\n'
        + asked,
        encoding="utf-8",
    )
    assert BASH is not None
    done = subprocess.run(
        [BASH, "--norc", "ask.bash"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    found = [set(line.split()) for line in done.stdout.splitlines()]
    assert dict(zip(LINES, found, strict=True)) == LINES
    assert "complete -o default -F _quatrain quatrain" in (tmp_path / "ask.bash").read_text(encoding="utf-8")


@pytest.mark.parametrize(("shell", "start"), [("zsh", "#compdef quatrain"), ("fish", "complete -c quatrain")])
def test_other_shells_have_a_script_with_every_verb(shell: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    from quatrain.cli.app import build_app

    text = script(shell, capsys)
    assert start in text
    assert [verb for verb in build_app() if not verb.startswith("-") and verb not in text] == []
    program = shutil.which(shell)
    if program is not None:
        assert subprocess.run([program, "-n"], input=text, text=True).returncode == 0


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == 2
    assert "fish" in capsys.readouterr().err
