"""Model folders and hub ids: the cache first, the network where it may be used, and messages for whatever is amiss.

The cache is laid out on disk as huggingface_hub lays it out; the hub is a server of this process that answers as the
real one does.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from quick_set import some
from safetensors.torch import save

from quatrain.core.errors import InputError, OfflineError
from quatrain.models import hub as model_hub
from quatrain.models.hub import CONFIG, EVERYTHING, TOKENIZER, resolve
from quatrain.models.io.safetensors_reader import INDEX, WEIGHTS, SafetensorsReader

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TENSOR = torch.arange(6.0).view(2, 3)
CONFIG_JSON = json.dumps({"model_type": "llama"}).encode()
MODEL = {"config.json": CONFIG_JSON, WEIGHTS: save({"x": TENSOR}), "tokenizer.json": b"{}"}
A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SHARDED = {
    "config.json": CONFIG_JSON, "vocab.txt": b"a\n", A: save({"x": TENSOR}), B: save({"y": TENSOR}),
    INDEX: json.dumps({"weight_map": {"x": A, "y": B}}).encode(),
}  # fmt: skip


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name not in names}


def fill_cache(
    cache: Path, name: str, files: dict[str, bytes], *, commit: str = COMMIT, ref: str | None = "main"
) -> Path:
    """Puts a repository into a cache: blobs by their checksum, a snapshot of links to them, a ref to the commit."""
    folder = cache / "--".join(["models", *name.split("/")])
    snapshot = folder / "snapshots" / commit
    for path, data in files.items():
        blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
        place = snapshot / path
        for parent in (blob.parent, place.parent):
            parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        try:
            place.symlink_to(os.path.relpath(blob, place.parent))
        except OSError:  # Windows without the right to make links: the cache then holds copies
            place.write_bytes(data)
    if ref is not None:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the network is forbidden."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("QUATRAIN_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


# ---- folders of this machine


def test_a_folder_is_taken_as_it_is(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    fill_cache(cache, "org/model", MODEL)
    assert resolve("org/model") == Path("org/model")
    assert resolve(tmp_path / "org" / "model") == tmp_path / "org" / "model"
    assert resolve(str(tmp_path)) == tmp_path


def test_home_is_understood(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert resolve("~/mine") == tmp_path / "mine"


def test_a_folder_has_no_revision(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a folder has no revision 'v2'"):
        resolve(str(tmp_path), revision="v2")


@pytest.mark.parametrize("name", ["", "./model", "a/b/c", "a b", "~nobody-of-this-name/x", "x" * 5000, "a..b", "a\0b"])
def test_what_is_neither_folder_nor_id(name: str, cache: Path) -> None:
    with pytest.raises(InputError, match="there is no such model folder") as caught:
        resolve(name)
    assert "org/name" in caught.value.message


def test_a_path_is_never_an_id(cache: Path) -> None:
    fill_cache(cache, "org/model", MODEL)
    with pytest.raises(InputError, match="there is no such model folder"):
        resolve(Path("org/model"))


def test_a_file_is_told_from_a_folder(cache: Path, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"")
    with pytest.raises(InputError, match=r"is a file\. Give the model folder"):
        resolve(str(tmp_path / WEIGHTS))


def test_folders_near_by_name_are_told(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "sherlock").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        resolve(tmp_path / "runs" / "sherlok")
    assert caught.value.problems == [f"folders with similar names: {tmp_path / 'runs' / 'sherlock'}"]
    with pytest.raises(OfflineError, match="folders with similar names: runs"):
        resolve("runs/sherlok")


# ---- the cache


@pytest.mark.parametrize("files", [MODEL, SHARDED, without(MODEL, "tokenizer.json")], ids=["whole", "sharded", "plain"])
@pytest.mark.parametrize("name", ["tiny", "org/tiny.v1"])
def test_what_the_cache_has_is_used(name: str, files: dict[str, bytes], cache: Path) -> None:
    snapshot = fill_cache(cache, name, files)
    found = resolve(name)
    assert found.samefile(snapshot)
    with SafetensorsReader(found) as tensors:
        assert torch.equal(tensors.read("x"), TENSOR)


def test_an_adapter_is_a_model_too(cache: Path) -> None:
    snapshot = fill_cache(
        cache, "org/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": MODEL[WEIGHTS]}
    )
    assert resolve("org/lora").samefile(snapshot)


def test_revisions_are_branches_tags_and_commits(cache: Path) -> None:
    other = "f" * 40
    fill_cache(cache, "org/tiny", MODEL)
    snapshot = fill_cache(cache, "org/tiny", SHARDED, commit=other, ref="v2")
    assert resolve("org/tiny", revision="v2").samefile(snapshot)
    assert resolve("org/tiny", revision=other).samefile(snapshot)
    assert resolve("org/tiny", revision=COMMIT).name == COMMIT
    with pytest.raises(OfflineError) as caught:
        resolve("org/tiny", revision="v3")
    assert "does not have revision 'v3'" in caught.value.message and "--revision v3" in caught.value.message
    assert caught.value.problems == ["revisions in the cache: main, v2"]


def test_settings_alone_need_no_weights(cache: Path) -> None:
    snapshot = fill_cache(cache, "org/tiny", {"config.json": CONFIG_JSON})
    assert resolve("org/tiny", files=CONFIG).samefile(snapshot)
    with pytest.raises(OfflineError) as caught:
        resolve("org/tiny")
    assert "only a part of it" in caught.value.message and caught.value.problems == [f"{WEIGHTS}: missing"]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        (without(SHARDED, B), f"{B}: missing"),
        (without(MODEL, "config.json") | {"adapter.txt": b""}, "config.json: missing"),
        (
            without(MODEL, WEIGHTS) | {"pytorch_model.bin": b""},
            f"{WEIGHTS}: missing, only pickled weights: pytorch_model.bin",
        ),
    ],
)
def test_a_part_of_a_model_is_told_as_such(files: dict[str, bytes], problem: str, cache: Path) -> None:
    fill_cache(cache, "org/tiny", files)
    with pytest.raises(OfflineError) as caught:
        resolve("org/tiny")
    assert caught.value.problems == [problem] and "hf download org/tiny" in caught.value.message


@pytest.mark.skipif(os.name != "posix", reason="links need a right on Windows")
def test_a_snapshot_whose_blob_is_gone(cache: Path) -> None:
    snapshot = fill_cache(cache, "org/tiny", MODEL)
    (snapshot / WEIGHTS).resolve().unlink()
    with pytest.raises(OfflineError) as caught:
        resolve("org/tiny")
    assert caught.value.problems == [f"{WEIGHTS}: missing"]


def test_what_is_nowhere_is_told_with_what_is_near(cache: Path) -> None:
    for name in ("HuggingFaceTB/SmolLM-135M", "org/tiny-llama", "gpt2", "org/else"):
        fill_cache(cache, name, MODEL)
    with pytest.raises(OfflineError) as caught:
        resolve("tiny-lama")
    assert "no such local folder" in caught.value.message and "hf download tiny-lama" in caught.value.message
    assert "QUATRAIN_OFFLINE forbids the network" in caught.value.message and str(cache) in caught.value.message
    assert caught.value.problems == ["models in the cache with similar names: org/tiny-llama"]
    with pytest.raises(OfflineError) as caught:
        resolve("huggingfacetb/smollm-135m")
    assert "HuggingFaceTB/SmolLM-135M" in caught.value.problems[0]


def test_huggingfaces_own_variable_forbids_the_network_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUATRAIN_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineError, match=r"HF_HUB_OFFLINE forbids the network.*unset HF_HUB_OFFLINE"):
        resolve("org/nothing")


@pytest.mark.parametrize("variable", some(["QUATRAIN_OFFLINE", "HF_HUB_OFFLINE"], ["QUATRAIN_OFFLINE"]))
def test_a_process_with_its_own_hf_home(variable: str, tmp_path: Path) -> None:
    """The environment alone: the cache of HF_HOME is read, and nothing reaches for the network."""
    snapshot = fill_cache(tmp_path / "hub", "org/tiny", MODEL)
    code = """
import socket, sys
def refuse(*arguments, **settings):
    raise SystemExit("the network was touched")
socket.socket.connect = socket.getaddrinfo = refuse
from quatrain.core.errors import OfflineError
from quatrain.models.hub import resolve
print(resolve("org/tiny"))
try:
    resolve("org/tony")
except OfflineError as error:
    print(error.problems)
"""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "QUATRAIN_OFFLINE", "TRANSFORMERS_"))}
    done = subprocess.run([sys.executable, "-c", code], env=kept | {"HF_HOME": str(tmp_path), variable: "1"}, text=True,
                          capture_output=True, cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.returncode == 0, done.stderr
    path, problems = done.stdout.splitlines()
    assert Path(path).samefile(snapshot) and "org/tiny" in problems


# ---- the hub


@dataclass
class Hub:
    """What the server holds: files by repository, answers that refuse, and what it was asked."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def downloaded(self) -> set[str]:
        return {
            path.split("/resolve/")[1].split("/", 1)[1]
            for path in self.asked
            if path.startswith("GET") and "/resolve/" in path
        }


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            hub.asked.append(f"{self.command} {path}")
            name = next((name for name in {**hub.repositories, **hub.refused} if f"/{name}/" in f"{path}/"), "")
            if name in hub.refused and not (path.startswith("/api") and hub.refused[name][1] == "file"):
                status, code = hub.refused[name]
                return self.answer(status, X_Error_Code=code, X_Error_Message=code)
            if name not in hub.repositories:
                return self.answer(401, X_Error_Code="RepoNotFound")
            files = hub.repositories[name]
            if "/resolve/" in path:
                data = files[path.split(f"/resolve/{COMMIT}/")[1]]
                return self.answer(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=COMMIT)
            if "/tree/" in path:
                listed = [
                    {"type": "file", "path": each, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for each, data in files.items()
                ]
                return self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
            if "/revision/" in path and not path.endswith(("/main", COMMIT)):
                return self.answer(404, X_Error_Code="RevisionNotFound")
            found = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": each} for each in files]}
            self.answer(200, json.dumps(found).encode(), Content_Type="application/json")

        do_HEAD = do_GET

    return Handler


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub of our own, which the environment allows to reach."""
    made = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(made))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    made.address = f"http://127.0.0.1:{server.server_address[1]}"
    point_to(made.address, monkeypatch)
    yield made
    server.shutdown()
    server.server_close()


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUATRAIN_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def test_a_model_is_fetched_once_and_then_used_without_the_network(hub: Hub, cache: Path) -> None:
    hub.repositories["org/tiny"] = MODEL
    found = resolve("org/tiny")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == MODEL
    assert found.is_relative_to(cache.resolve())
    hub.asked.clear()
    assert resolve("org/tiny") == found and hub.asked == []
    with SafetensorsReader(found) as tensors:
        assert torch.equal(tensors.read("x"), TENSOR)


def test_only_what_a_model_needs_is_fetched(hub: Hub) -> None:
    pooled = {
        "modules.json": b"[]",
        "1_Pooling/config.json": b"{ }",
        "2_Dense/model.safetensors": b"1",
        "spiece.model": b"2",
    }
    pickles, code = ["pytorch_model.bin", "training_args.bin"], ["modeling.py", "onnx/model.onnx"]
    copies = ["consolidated.safetensors", "model.fp16.safetensors", INDEX, A, B, "original/tokenizer.model"]
    unwanted = [*pickles, *code, *copies, "tf_model.h5", "model.gguf"]
    hub.repositories["org/tiny"] = MODEL | pooled | dict.fromkeys(unwanted, b"unwanted")
    found = resolve("org/tiny")
    names = {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()}
    assert names == hub.downloaded() == {*MODEL, *pooled}


@pytest.mark.parametrize("shards", [("model", "model"), ("weights", "weights")])
def test_shards_are_fetched_once(shards: tuple[str, str], hub: Hub) -> None:
    names = [f"{stem}-0000{n}-of-00002.safetensors" for n, stem in enumerate(shards, 1)]
    index = json.dumps({"weight_map": {"x": names[0], "y": names[1]}}).encode()
    others = {"consolidated-00001-of-00001.safetensors": b"1"} if shards[0] == "model" else {}
    hub.repositories["org/tiny"] = {
        "config.json": CONFIG_JSON,
        INDEX: index,
        names[0]: SHARDED[A],
        names[1]: SHARDED[B],
    } | others
    with SafetensorsReader(resolve("org/tiny")) as tensors:
        assert set(tensors.names) == {"x", "y"}
    assert hub.downloaded() == {"config.json", INDEX, *names}


@pytest.mark.parametrize(("files", "names"), [(CONFIG, {"config.json"}), (TOKENIZER, {"tokenizer.json"})])
def test_a_part_is_fetched_alone_and_the_rest_later(files: tuple[str, ...], names: set[str], hub: Hub) -> None:
    hub.repositories["org/tiny"] = MODEL
    found = resolve("org/tiny", files=files)
    assert {path.name for path in found.iterdir()} == names == hub.downloaded()
    assert {path.name for path in resolve("org/tiny").iterdir()} == set(MODEL)


def test_what_the_cache_lacks_is_added(hub: Hub, cache: Path) -> None:
    """A model that another tool fetched without its tokenizer, or that an interruption left without a shard."""
    hub.repositories |= {"org/tiny": MODEL, "org/shards": SHARDED}
    fill_cache(cache, "org/tiny", without(MODEL, "tokenizer.json"))
    fill_cache(cache, "org/shards", without(SHARDED, B))
    assert (resolve("org/tiny") / "tokenizer.json").is_file()
    assert hub.downloaded() == {"tokenizer.json"}
    assert len(SafetensorsReader(resolve("org/shards"))) == 2


def refused(hub: Hub, name: str, status: int, code: str = "") -> InputError | OfflineError:
    hub.refused[name] = status, code
    with pytest.raises((InputError, OfflineError)) as caught:
        resolve(name)
    return caught.value


def test_a_model_that_the_hub_does_not_know(hub: Hub, cache: Path) -> None:
    fill_cache(cache, "org/tiny-model", MODEL)
    with pytest.raises(InputError, match="neither a local folder nor a model on the hub") as caught:
        resolve("org/tiny-mode")
    assert "hf auth login" in caught.value.message and hub.address in caught.value.message
    assert caught.value.problems == ["models in the cache with similar names: org/tiny-model"]
    assert isinstance(refused(hub, "org/gone", 404, "RepoNotFound"), InputError)


def test_a_gated_model(hub: Hub) -> None:
    error = refused(hub, "org/gated", 403, "GatedRepo")
    assert isinstance(error, InputError)
    assert f"Accept its terms at {hub.address}/org/gated" in error.message and "HF_TOKEN" in error.message


def test_a_gated_model_whose_list_is_open(hub: Hub) -> None:
    """The hub tells the files of a gated model to everyone, and refuses the files."""
    hub.repositories["org/gated"] = MODEL
    hub.refused["org/gated"] = 401, "file"
    with pytest.raises(InputError) as caught:
        resolve("org/gated")
    assert "log in" in caught.value.message


def test_a_revision_that_is_not_there(hub: Hub) -> None:
    hub.repositories["org/tiny"] = MODEL
    with pytest.raises(InputError, match="no revision 'v9'"):
        resolve("org/tiny", revision="v9")


@pytest.mark.parametrize("status", [400, 401, 403])
def test_refusals(status: int, hub: Hub) -> None:
    error = refused(hub, "org/tiny", status, "Invalid credentials in Authorization header")
    assert isinstance(error, InputError) and f"status {status}" in error.message


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_that_is_down(status: int, hub: Hub) -> None:
    error = refused(hub, "org/tiny", status)
    assert isinstance(error, OfflineError) and "cannot be reached" in error.message and "try again" in error.message


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(OfflineError, match=r"127.0.0.1:9\) cannot be reached") as caught:
        resolve("org/tiny")
    assert "hf download org/tiny" in caught.value.message
    snapshot = fill_cache(cache, "org/tiny", without(MODEL, "tokenizer.json"))
    assert resolve("org/tiny").samefile(snapshot)  # the hub would only be asked whether there is a tokenizer
    fill_cache(cache, "org/shards", without(SHARDED, A))
    with pytest.raises(OfflineError) as caught:
        resolve("org/shards")
    assert caught.value.problems == [f"{A}: missing"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"config.json": b"{}", "pytorch_model.bin": b""},
            r"only pickled weights \(pytorch_model.bin\).*save_pretrained",
        ),
        (
            {"config.json": b"{}", "model.gguf": b""},
            f"no {WEIGHTS} in this repository. It contains: config.json, model.gguf",
        ),
        ({"data.csv": b""}, "is not a model. It contains: data.csv"),
        ({}, "It contains: nothing"),
    ],
)
def test_repositories_without_a_model_are_not_downloaded(files: dict[str, bytes], words: str, hub: Hub) -> None:
    hub.repositories["org/tiny"] = files
    with pytest.raises(InputError, match=words):
        resolve("org/tiny")
    assert hub.downloaded() == set()


def test_a_repository_without_what_is_asked_for(hub: Hub) -> None:
    hub.repositories["org/tiny"] = without(MODEL, "tokenizer.json")
    with pytest.raises(InputError, match=r"none of tokenizer\.json.* in this repository"):
        resolve("org/tiny", files=TOKENIZER)


def test_a_repository_that_lacks_a_shard(hub: Hub) -> None:
    hub.repositories["org/tiny"] = without(SHARDED, B)
    with pytest.raises(InputError, match="the repository is incomplete") as caught:
        resolve("org/tiny")
    assert caught.value.problems == [f"{B}: missing"]


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/tiny"] = MODEL

    def full(*arguments: object, **settings: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    monkeypatch.setattr(model_hub, "_cached_snapshot", lambda name, revision: None)
    with pytest.raises(Exception, match="the disk is full"):
        resolve("org/tiny")


def test_what_is_fetched_can_hold_no_code() -> None:
    assert not [name for name in EVERYTHING if name.endswith((".py", ".bin", ".pt", ".pkl", "*"))]
