"""Inputs that are about where a process is: kinds of files, sizes beyond the machine, streams and variables."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from fuzzing.case import ANY, EITHER, WRONG, Bench, Case
from fuzzing.values import HUGE, Raw, dump, put


def _odd(path: Path, kind: str) -> None:
    """Put something that is no usual file into a place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    if kind == "a folder":
        path.mkdir()
        (path / "x").write_text("x")
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a circle of links":
        path.symlink_to(path.name)
    elif kind == "a broken link":
        path.symlink_to("nowhere")
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a null device":
        path.symlink_to("/dev/null")
    elif kind == "a socket":
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a file of nothing":
        path.write_bytes(b"")
    elif kind == "a sparse file":
        with path.open("wb") as file:
            file.truncate(2**32)
    elif kind == "an unreadable file":
        path.write_bytes(b"x")
        path.chmod(0)


ODD = ("a folder", "a pipe", "a circle of links", "a broken link", "a device", "a null device", "a socket",
       "a file of nothing", "a sparse file", "an unreadable file")  # fmt: skip
NOWHERE = ("x" * 300, "~nosuch", "~nosuch/x", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/nowhere/x", "x\ny",
           "/etc", "", "/",
           "./" * 2500, "\udcff", "text.txt/x", "é" * 200)  # fmt: skip


def kinds_of_files(bench: Bench) -> Case:
    """Something that is no usual file in the place of one: of a model's, of data, of a database, of a recipe."""
    draw = bench.draw
    kind = draw.choice(ODD)
    what = draw.choice(("model", "model", "data", "db", "recipe", "out", "argument", "argument"))
    llama = str(bench.materials.path("models", "llama"))
    tiny = str(bench.materials.path("tiny.toml"))
    if what == "model":
        folder, head = bench.model()
        path = draw.choice([each for each in sorted(folder.rglob("*")) if each.is_file()])
        _odd(path, kind)
        words, typed = bench.asked(folder, head, whole=True)
        # Without a tokenizer's or a generation's settings, a model may do.
        sure = path.name in ("config.json", "model.safetensors")
        return Case(words, f"{path} is {kind}", WRONG if sure else EITHER, typed)
    name = {"data": "x.jsonl", "db": "x.sqlite", "recipe": "x.toml", "out": "x"}.get(what, "x")
    if what == "argument":
        name = draw.choice(NOWHERE)
        kind = "as it is"
    elif what == "out":
        Path(name).mkdir()
        name = draw.choice(("x/y", "x"))
        _odd(Path(name), kind)
    else:
        _odd(Path(name), kind)
    readers = {
        "data": [["data", "check", name], ["evaluate", llama, name], ["check", tiny, f"data.source={name}",
        "--no-measure"],
                 ["check", tiny, f"data.dev={name}", "--no-measure"], ["evaluate", llama, bench.data("sql"),
                                                                       "--databases", name]],
        "db": [["chat", llama, "--db", name], ["check", tiny, f"data.database={name}", "data.source=none",
        "--no-measure"]],
        "recipe": [["check", name], ["plan", name], ["run", name]],
        "out": [["merge", str(bench.materials.path("models", "adapter-lora")), "--out", name], ["run", tiny,
        "--runs-dir", name, "--quiet"],
                ["inspect", llama, "--text", "the cat", "--attention", f"{name}/x.html"]],
    }  # fmt: skip
    others = [["tokenize", name, "x"], ["inspect", name], ["generate", name, "x"], ["plan", name],
              ["check", tiny, f"model.folder={name}", "--no-measure"], ["check", tiny, f"tokenizer.path={name}",
                                                                        "--no-measure"],
              ["merge", name, "--out", "y"], ["generate", llama, "x", "--adapter", name]]  # fmt: skip
    words = draw.choice(
        [*[each for reader in readers.values() for each in reader], *others] if what == "argument" else readers[what]
    )
    if what in ("out", "argument"):
        codes = ANY
    else:
        codes = EITHER if kind in ("a folder", "a file of nothing", "an unreadable file") else WRONG
    return Case(words, f"{name if len(name) < 50 else name[:40] + '…'!a} is {kind}", codes, b"the cat\n")


LARGE = ("1000000", "100000000", "1000000000", "1000000000000", str(2**31), str(2**63 - 1), str(2**63), str(HUGE), "0",
         "-1", "1e9", "9" * 5000)  # fmt: skip


SIZED = tuple(
    """model.hidden_size model.num_hidden_layers model.num_attention_heads model.intermediate_size seed
    model.max_position_embeddings tokenizer.vocab_size stage.pretrain.train.batch_tokens evaluate.max_new_tokens
    stage.pretrain.context stage.pretrain.train.accumulation stage.pretrain.train.warmup_steps data.examples
    stage.pretrain.train.log_every model.rope_theta stage.pretrain.train.learning_rate evaluate.examples""".split()
)


def sizes(bench: Bench) -> Case:
    """Sizes in settings and flags that no machine can hold, or that are none."""
    draw = bench.draw
    size = draw.choice(LARGE)
    tiny = str(bench.materials.path("tiny.toml"))
    bench.copy("text.txt")
    llama = str(bench.materials.path("models", "llama"))
    way = draw.randrange(4)
    if way == 0:
        words = draw.choice((["check", tiny, "--no-measure"], ["plan", tiny], ["check", tiny, "--toml"]))
        words = [*words, f"{draw.choice(SIZED)}={size}"]
        return Case(words, f"{words[-1][:60]}")
    if way == 1:
        flag = draw.choice(
            "--max-new-tokens --num-beams --top-k --seed --length-penalty --temperature --top-p --min-p".split()
        )
        words = ["generate", llama, "the cat", flag, size]
    elif way == 2:
        words = draw.choice((
            ["plan", llama, "--method", draw.choice(("lora", "full", "prompt")),
             draw.choice(("--rank", "--batch-tokens", "--context", "--accumulation")), size],
            ["evaluate", llama, bench.data("chat"), draw.choice(("--context", "--examples", "--max-new-tokens")), size],
            ["inspect", llama, "--text", "the cat", "--next", "--top", size],
            ["inspect", llama, "--neighbours", f"#{size}"],
            ["chat", llama, "--rows", size, "--db", str(bench.materials.path("databases", "shop", "shop.sqlite"))],
            ["chat", llama, "--max-new-tokens", size],
        ))  # fmt: skip
    else:
        folder, head = bench.model()
        path = folder / "config.json"
        tree = json.loads(path.read_text(encoding="utf-8"))
        keys = [key for key, value in tree.items() if isinstance(value, int) and not isinstance(value, bool)]
        key = draw.choice(keys)
        tree = put(tree, (key,), int(size) if size.lstrip("-").isdigit() and len(size) < 100 else Raw(size))
        path.write_bytes(dump(tree))
        words, typed = bench.asked(folder, head)
        return Case(words, f"{path}: {key} = {size[:40]}", EITHER, typed)
    return Case(words, f"{words[0]} {' '.join(words[-2:])[:60]}", EITHER, b"the cat\n")


VARIABLES: dict[str, tuple[str | None, ...]] = {
    "LANG": ("C", "POSIX", "nosuch", ""),
    "LC_ALL": ("C", "de_DE.ISO-8859-1"),
    "PYTHONIOENCODING": ("ascii", "latin-1", "utf-16"),
    "PYTHONUTF8": ("0",),
    "TERM": ("dumb", "", "nosuch", None),
    "COLUMNS": ("20", "1", "0", "-1", "x", "100000"),
    "LINES": ("1", "x"),
    "WORLD_SIZE": ("x", "0", "-1", "2", ""),
    "RANK": ("x", "7", "-1"),
    "LOCAL_RANK": ("x", "9"),
    "HOME": (None, "/nowhere", "/dev/null", ""),
    "XDG_CACHE_HOME": ("/nowhere", "", "/dev/null"),
    "QUATRAIN_DATA": ("/nowhere", "", "/dev/null", "x" * 300),
    "QUATRAIN_CACHE": ("/dev/null", "", "/nowhere/x"),
    "QUATRAIN_OFFLINE": ("x", "0", ""),
    "HF_HOME": ("/dev/null", ""),
    "TMPDIR": ("/nowhere",),
    "NO_COLOR": ("1",),
    "FORCE_COLOR": ("1",),
    "OMP_NUM_THREADS": ("1", "x"),
    "CUDA_VISIBLE_DEVICES": ("x", "-1"),
    "MASTER_PORT": ("x",),
}


def _closing(number: int) -> Callable[[], None]:
    return lambda: os.close(number)


def _full_disk(number: int) -> Callable[[], None]:
    def change() -> None:
        handle = os.open("/dev/full", os.O_WRONLY)
        os.dup2(handle, number)

    return change


def _no_reader() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def _no_folder() -> None:
    here = os.getcwd()
    os.chdir(os.path.dirname(here))
    shutil.rmtree(here)
    os.makedirs(here)
    os.chdir(here)
    os.rmdir(here)


def _ignored_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _small_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


STREAMS: dict[str, Callable[[], None]] = {
    "standard input closed": _closing(0),
    "standard output closed": _closing(1),
    "standard error closed": _closing(2),
    "standard output on a full disk": _full_disk(1),
    "standard error on a full disk": _full_disk(2),
    "nobody who reads": _no_reader,
    "no working folder": _no_folder,
    "signals ignored": _ignored_signals,
    "files of 2,000 bytes at most": _small_files,
}


def environments(bench: Bench) -> Case:
    """Variables, streams and folders as a process may find them; some in an interpreter of their own."""
    draw = bench.draw
    llama = str(bench.materials.path("models", "llama"))
    bench.copy("text.txt")
    bench.copy("tiny.toml")
    choices = [["--help"], ["--version"], ["recipes"], ["data", "list"], ["check", "tiny.toml", "--toml"], ["nosuch"],
               [],
               ["data", "check", bench.data("labelled")], ["tokenize", llama, "the cat é\udcff"], ["run"], ["--debug",
                                                                                                            "run"],
                                                                                                            ["data",
                                                                                                             "--help"],
               ["run", "tiny.toml"], ["inspect", llama], ["generate", llama, "the cat é", "--max-new-tokens", "3"],
               ["plan", "quickstart"],
               ["data", "check", "-"], ["chat", llama, "--max-new-tokens", "2"], ["inspect", llama, "--text",
                                                                                  "é\U0001f600", "--next"],
               ["check", "tiny.toml"], ["data", "get", "nosuch"], ["generate", llama, "-"]]  # fmt: skip
    words = draw.choice(choices)
    given: dict[str, str | None] = {}
    for name in draw.sample(sorted(VARIABLES), draw.choice((0, 1, 1, 2, 3))):
        given[name] = draw.choice(VARIABLES[name])
    stream = draw.choice(sorted(STREAMS)) if bench.chance(0.5) or not given else None
    process = bench.chance(0.12) or (
        any(name.startswith(("PYTHON", "LANG", "LC_")) for name in given) and bench.chance(0.5)
    )
    about = ", ".join([*(f"{name}={value!a}" for name, value in given.items()), *([stream] if stream else [])])
    before = STREAMS[stream] if stream else None
    return Case(words, about, ANY, b"the cat\nno dog\n", given, process, before)


def odd_folders(bench: Bench) -> Case:
    """Folders of data: empty files, unknown endings, links in a circle, names of all kinds."""
    draw = bench.draw
    folder = Path("data")
    folder.mkdir()
    for number in range(draw.choice((0, 1, 3, 6))):
        name = draw.choice(
            ("a.txt", "b.jsonl", "c.csv", "d.bin", ".hidden", "e.txt.gz", "\x1b[31m.txt", "é.txt", "x" * 250, "README")
        )
        path = folder / f"{number}{name}"[:255]
        path.write_bytes(
            draw.choice((b"", b"the cat\n" * 30, b'{"text": "the cat"}\n', bytes(range(256)), b"text,label\na,b\n"))
        )
    kind = draw.choice(ODD)
    _odd(folder / f"odd{draw.choice(('.txt', '.jsonl', ''))}", kind)
    tiny, llama = str(bench.materials.path("tiny.toml")), str(bench.materials.path("models", "llama"))
    words = draw.choice(
        (["data", "check", "data"], ["check", tiny, "data.source=data", "--no-measure"], ["evaluate", llama, "data"])
    )
    return Case(words, f"a folder with {kind}: {sorted(os.listdir(folder))!a}")


ENTRIES: dict[str, dict[str, tuple[Callable[[Bench], Case], float]]] = {
    "surroundings": {
        "file kinds": (kinds_of_files, 6),
        "folders": (odd_folders, 2),
        "sizes": (sizes, 5),
        "environments": (environments, 4),
    },
}
"""What makes an input, and its share, by entry point."""
