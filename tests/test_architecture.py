"""The package keeps its structure: layers, no import cycles, no pickles, declared dependencies, described names."""

from __future__ import annotations

import ast
import gc
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from quatrain.tokenizers.templates import TEMPLATE_TOKENS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "quatrain"
LAYERS = [
    {"core"},
    {"data", "tokenizers", "models", "planning"},
    {"adapters", "compression"},
    {"loading", "generation"},
    {"training", "tasks", "retrieval"},
    {"planning.training_memory", "planning.training_plan"},
    {"alignment", "evaluation", "agents", "export"},
    {"serving", "runs"},
    {"cli", "__main__"},
]
"""From the lowest up: a module imports modules of its own layer and of those below. `docs/decisions/0003-layers.md`."""

COMES_WITH = {"markupsafe": "jinja2", "llvmlite": "numba", "starlette": "fastapi"}
WRITTEN_FOR = {"models.kernels.decode_step": "numba", "models.kernels.vectors": "numba",
               "evaluation.lm_eval_model": "lm_eval", "data.curation.datatrove_steps": "datatrove"}  # fmt: skip
"""Modules that are nothing without a library of an extra; who needs them imports them where they are used."""
PART_FOR = {"serving": {"fastapi", "uvicorn", "prometheus_client"}}
"""The same for whole folders."""
IMPORTED_AS = {
    "scikit-learn": "sklearn",
    "rouge-score": "rouge_score",
    "prometheus-client": "prometheus_client",
    "umap-learn": "umap",
    "llama-cpp-python": "llama_cpp",
    "python-docx": "docx",
    "nvidia-ml-py": "pynvml",
    "lingua-language-detector": "lingua",
}
LONGEST_FUNCTION = 90
MOST_PARAMETERS = 10
"""Without `self` and `cls`."""


def part_of(path: Path) -> str:
    """`data` for quatrain/data/corpus.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_of(module: str) -> int:
    """The layer of quatrain.MODULE: that of the module where it has its own, else that of its folder."""
    names = module.split(".")
    for name in (".".join(names[:2]), names[0]):
        numbers = [number for number, layer in enumerate(LAYERS) if name in layer]
        if numbers:
            return numbers[0]
    raise AssertionError(f"quatrain.{module} has no layer yet: add it to LAYERS and to docs/decisions/0003-layers.md")


def module_of(path: Path) -> str:
    """`data.corpus` for quatrain/data/corpus.py, `data` for quatrain/data/__init__.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


SOURCES = sorted(PACKAGE.rglob("*.py"))
PARTS = sorted({part_of(path) for path in SOURCES} - {"__init__"})


@cache
def trees() -> dict[Path, ast.Module]:
    """The syntax tree of every file, parsed when the first test asks: every worker collects this file.

    Python searches no garbage among these two million objects, neither while they are made nor later.
    """
    gc.disable()
    try:
        return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _trees_are_let_go() -> Iterator[None]:
    yield
    trees.cache_clear()


def of_part(part: str) -> Iterator[tuple[Path, ast.Module]]:
    return ((path, tree) for path, tree in trees().items() if part_of(path) == part)


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports anywhere, with its line; `from quatrain import x` counts as quatrain.x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the module in full"
            if node.module == "quatrain":
                yield from ((f"quatrain.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module or "", node.lineno


def when_loaded(tree: ast.Module) -> ast.Module:
    """The statements that run when a module is imported: no function bodies, nothing for type checkers alone."""

    def kept(body: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for node in body:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
                found += kept([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])
            elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.append(node)
        return found

    return ast.Module(kept(tree.body), [])


def test_there_is_something_to_check():
    assert len(SOURCES) > 50 and {"data", "models", "training", "cli"} <= set(PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_imports_run_downwards(part):
    upwards = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, tree in of_part(part)
        for name, line in imports(tree, path)
        if name.startswith("quatrain.") and layer_of(name.removeprefix("quatrain.")) > layer_of(module_of(path))
    ]
    assert not upwards, "\n".join(upwards)


def test_no_files_import_each_other_in_a_circle():
    """Every import counts, in functions and under TYPE_CHECKING too; importing a package counts as its __init__."""
    modules = {f"quatrain.{module_of(path)}".removesuffix("."): path for path in SOURCES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = {name for name in imported_files(trees()[path], modules)} - {module}
    cycles = [sorted(group) for group in strongly_connected(graph) if len(group) > 1]
    assert not cycles, "\n".join(map(", ".join, cycles))


def imported_files(tree: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    """The modules of the package that a file imports anywhere; `from quatrain.x import y` is quatrain.x.y if a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                file = f"{node.module}.{alias.name}"
                yield file if file in modules else node.module


def strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """The strongly connected components of a graph, by Tarjan's algorithm (1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for neighbour in graph[node]:
            if neighbour not in index:
                visit(neighbour)
                low[node] = min(low[node], low[neighbour])
            elif neighbour in stack:
                low[node] = min(low[node], index[neighbour])
        if low[node] == index[node]:
            place = stack.index(node)
            components.append(set(stack[place:]))
            del stack[place:]

    for node in graph:
        if node not in index:
            visit(node)
    return components


def test_the_search_for_circles_finds_them():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert sorted(map(sorted, strongly_connected(graph))) == [["a"], ["b", "c"], ["d"], ["e"]]


@pytest.mark.parametrize(
    ("part", "never"),
    [
        ("models", {"data", "tokenizers", "training"}),
        ("tokenizers", {"models", "training"}),
        ("data", {"models", "training"}),
    ],
)
def test_models_and_text_know_nothing_of_each_other(part, never):
    names = {
        name.split(".")[1]
        for path, tree in of_part(part)
        for name, _ in imports(tree, path)
        if "quatrain." in name and path.stem != "perplexity"  # a step of curation that asks an n-gram model
    }
    assert not names & never


def test_only_the_text_to_sql_task_imports_text_to_sql():
    outside = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path, tree in trees().items()
        for name, line in imports(tree, path)
        if name.startswith("quatrain.tasks.text2sql") and "text2sql" not in path.parts
    ]
    assert not outside, "\n".join(outside)


def test_text_needs_no_torch_but_for_batches():
    heavy = [
        path.name
        for path, tree in [*of_part("data"), *of_part("tokenizers")]
        if any(name.split(".")[0] == "torch" for name, _ in imports(when_loaded(tree), path)) and path.stem != "batches"
    ]
    assert heavy == []


def test_importing_the_package_is_light():
    code = "import sys, quatrain; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(result.stdout.split())
    assert "quatrain" in loaded
    assert not loaded & {"torch", "numpy", "pydantic", "rich", "tokenizers", "jinja2", "cyclopts"}


def declared() -> tuple[set[str], set[str]]:
    """The import names of the core dependencies, and of those of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        found = {re.match(r"[\w-]+", requirement).group() for requirement in requirements}
        return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in found}

    extras = project["optional-dependencies"]
    return names(project["dependencies"]), set().union(*(names(extra) for extra in extras.values()))


def test_what_is_imported_is_declared():
    core, extras = declared()
    wrong = []
    for path, tree in trees().items():
        at_load = {name for name, _ in imports(when_loaded(tree), path)}
        for name, line in imports(tree, path):
            top = name.partition(".")[0]
            top = COMES_WITH.get(top, top)
            if top in sys.stdlib_module_names or top == "quatrain" or top in core:
                continue
            if top not in extras:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {top} is no dependency of pyproject.toml")
            elif top in PART_FOR.get(part_of(path), set()):
                continue
            elif name in at_load and WRITTEN_FOR.get(module_of(path)) != top:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {top} belongs to an extra; import it where it is used")
    assert not wrong, "\n".join(wrong)


def test_extras_are_declared_once_something_imports_them():
    """By an import, or by name where a library is looked for. Two are what others need and do not bring: protobuf for
    sentencepiece's models, lxml_html_clean for trafilatura.
    """
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    package = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    scripts = {
        extra: "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / folder).glob("*.py"))
        for extra, folder in {"hf": "benchmarks", "docs": "tools"}.items()
    }
    idle = []
    for extra in extras.keys() - {"test", "test-weights", "dev"}:
        for requirement in extras[extra]:
            name = re.match(r"[\w-]+", requirement).group()
            name = IMPORTED_AS.get(name, name.replace("-", "_"))
            use = rf"(?:import|from) {name}\b|\"{name}(?:\.\w+)*\""
            if name not in {"protobuf", "lxml_html_clean"} and not re.search(use, scripts.get(extra, package)):
                idle.append(f"{extra}: {requirement}")
    assert not idle, idle


def test_every_dependency_has_its_pinned_version():
    lines = (ROOT / "constraints" / "cpu.txt").read_text(encoding="utf-8").splitlines()
    pins = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {re.match(r"[\w.-]+?(?=[<>=~ \[]|$)", requirement).group().lower() for requirement in needed}
    assert {re.sub(r"[-_.]+", "-", name) for name in names} <= pins
    assert "torch==2.13.0" in lines


FORBIDDEN = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "compile": "runs text as code",
    "breakpoint": "belongs to nobody's run",
    "torch.load": "unpickles: use safetensors",
    "torch.save": "pickles: use safetensors",
    "numpy.load": "may unpickle: use safetensors or a raw memory map",
    "np.load": "may unpickle: use safetensors or a raw memory map",
}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_nothing_is_pickled_or_evaluated():
    wrong = []
    for path, tree in trees().items():
        where = path.relative_to(ROOT)
        wrong += [
            f"{where}:{line}: {name}" for name, line in imports(tree, path) if name.split(".")[0] in UNSAFE_MODULES
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in FORBIDDEN:
                wrong.append(f"{where}:{node.lineno}: {name} {FORBIDDEN[name]}")
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                wrong.append(f"{where}:{node.value.lineno}: trust_remote_code runs what was downloaded")
    assert not wrong, "\n".join(wrong)


def test_the_package_raises_and_never_asserts():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_no_error_is_swallowed_whole():
    found = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = "everything" if node.type is None else ast.unparse(node.type)
            does_nothing = all(isinstance(child, ast.Pass) for child in node.body)
            if node.type is None or (caught in ("Exception", "BaseException") and does_nothing):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: catches {caught}")
    assert found == []


def test_functions_are_short_and_take_few_parameters():
    found = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            parameters = len(names) - (names[:1] in (["self"], ["cls"]))
            if lines > LONGEST_FUNCTION:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {lines} lines")
            # A verb of the command line has a parameter for each of its options.
            if parameters > MOST_PARAMETERS and part_of(path) != "cli":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} has {parameters} parameters")
    assert found == []


def test_what_is_public_is_described():
    silent = []
    for path, tree in trees().items():
        where = path.relative_to(ROOT)
        if tree.body and not ast.get_docstring(tree):
            silent.append(f"{where}: the module")
        for node in tree.body:
            named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if named and not node.name.startswith("_") and not ast.get_docstring(node):
                silent.append(f"{where}:{node.lineno}: {node.name}")
    assert not silent, "\n".join(silent)


def project_texts() -> Iterator[Path]:
    for pattern in (
        "quatrain/**/*",
        "tests/**/*",
        "docs/**/*",
        "benchmarks/**/*",
        "tools/*",
        "*.md",
        "*.toml",
        "Makefile",
    ):
        for path in ROOT.glob(pattern):
            if path.suffix in {".py", ".md", ".toml", ".css", ".jinja", ""} and path.is_file():
                yield path


def test_nothing_is_left_for_later_and_no_machine_is_named():
    later = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X)\b")
    place = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in project_texts()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if later.search(line) or place.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_version_is_said_once_and_the_same():
    import quatrain

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert quatrain.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_wheel_has_all_that_is_read_at_run_time():
    """The wheel holds whatever lies in quatrain/; a rule that leaves files out must not catch one that is needed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert settings["wheel"] == {"packages": ["quatrain"]}
    report = ("evaluation/report/style.css", "evaluation/report/page.html.jinja")
    needed = ["py.typed", "runs/recipes/quickstart.toml", "data/catalog.toml", "tasks/text2sql/frames.toml", *report]
    needed += [f"tokenizers/templates/{name}.jinja" for name in TEMPLATE_TOKENS]
    assert [name for name in needed if not (PACKAGE / name).is_file()] == []
    ignored = subprocess.run(
        ["git", "check-ignore", *(f"quatrain/{name}" for name in needed)], capture_output=True, text=True, cwd=ROOT
    )
    assert ignored.stdout == ""
