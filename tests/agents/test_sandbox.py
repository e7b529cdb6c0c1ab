"""The sandbox: code runs, and none of 60 programs leaves it."""

import os
import socket
import subprocess
import sys
import tempfile

import pytest
from escapes import ESCAPES

from quatrain.agents.sandbox import PARTS, Limits, Sandbox, missing_here, run_code

LIMITS = Limits(seconds=1.5, memory=384 * 2**20, output=5_000)
ON_LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="Linux confines processes; other systems say what they do not"
)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """What the programs try to reach."""
    monkeypatch.setenv("QUATRAIN_TEST_SECRET", "swordfish")
    secret = tmp_path / "secret"
    secret.write_text("swordfish")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], cwd=tmp_path)
        try:
            names = {"secret": secret, "folder": tmp_path, "port": server.getsockname()[1], "pid": victim.pid}
            yield names, secret, server, victim
        finally:
            victim.kill()
            victim.wait()


@ON_LINUX
@pytest.mark.parametrize("without", [(), ("namespaces",)], ids=["namespaces", "landlock"])
def test_no_program_of_sixty_escapes(outside, without):
    names, secret, server, victim = outside
    assert len(ESCAPES) == 60
    with Sandbox(LIMITS, without=without) as sandbox:
        if {"files outside its folder are out of reach", "no network"} & set(sandbox.missing):
            pytest.skip("this kernel offers neither namespaces nor Landlock")
        escaped = []
        for name, text in ESCAPES.items():
            for key, value in names.items():
                text = text.replace("{" + key + "}", str(value))
            result = sandbox.run(text)
            if "ESCAPED" in result.output or result.seconds > 4:
                escaped.append((name, result.output[:200], result.error))
    assert not escaped
    assert secret.read_text() == "swordfish" and [path.name for path in secret.parent.iterdir()] == ["secret"]
    assert victim.poll() is None
    with pytest.raises(BlockingIOError):
        server.accept()


def test_code_runs_and_names_stay():
    with Sandbox(LIMITS) as sandbox:
        assert sandbox.run("x = 20\nprint('hi')").output == "hi\n"
        assert sandbox.run("print(x + 1)").output == "21\n"
        failed = sandbox.run("y = 1\n1 / 0")
        assert failed.error == "ZeroDivisionError: division by zero (line 2)"
        assert sandbox.run("while True: pass").error == "stopped after 1.5 s"
        assert "NameError" in sandbox.run("print(x)").error


def test_code_calls_functions_of_the_caller():
    called = []

    def answer(name, arguments):
        called.append((name, dict(arguments)))
        return ("no", True) if arguments["a"] > 5 else (str(arguments["a"] * 2), False)

    with Sandbox(LIMITS, functions=["double"], answer=answer) as sandbox:
        result = sandbox.run("final_answer(double(a=4))")
        assert (result.answer, called) == ("8", [("double", {"a": 4})])
        assert "RuntimeError: no" in sandbox.run("double(a=9)").error


def test_what_is_not_enforced_is_said():
    with Sandbox(LIMITS, without=["namespaces", "landlock", "seccomp"]) as sandbox:
        assert "no network" in sandbox.missing and "no further processes" in sandbox.missing
        refused = sandbox.run("import socket\nsocket.socket()")
        assert "no network" in refused.error and not refused.isolated
    assert set(missing_here()) <= set(PARTS.values())


def test_a_process_that_dies_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other workers have sandboxes too
    result = run_code("import os\nos._exit(7)", ["assert True"], LIMITS)
    assert result.passed == (False,) and "exit code 7" in result.error
    assert not os.listdir(tmp_path)
