"""Finds the folder of a model: a local folder, a run, or a Hugging Face hub id, which is downloaded if necessary.

Downloads go through huggingface_hub and its cache (`HF_HOME`), which other tools share. A model that is complete in the
cache is used without network access; `QUATRAIN_OFFLINE=1` and `HF_HUB_OFFLINE=1` forbid network access. Only
configuration, tokenizer and safetensors files are downloaded, each once: no code, no pickles, no copies in other
formats.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from quatrain.core.atomic import disk_error
from quatrain.core.errors import InputError, OfflineError, QuatrainError
from quatrain.core.gguf_file import SUFFIX
from quatrain.core.offline import offline
from quatrain.models.io.safetensors_reader import CONVERT_HINT, INDEX, WEIGHTS, pickled_weights, weight_files
from quatrain.models.run_folder import model_of_run

ADAPTER_CONFIG, ADAPTERS, BASE = "adapter_config.json", "adapters", "base"
"""The file that marks an adapter folder; in a folder of several adapters, the folders of the adapters and of their
base model. A single adapter may contain its base model as well."""
CONFIG = ("config.json", "generation_config.json", ADAPTER_CONFIG)
MODEL = ("config.json", ADAPTER_CONFIG)
"""A model repository contains one of these."""
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "target_vocab.json", "*.model", "*.spm", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
SENTENCES = (
    "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "[0-9]_*/*.json",
    "[0-9]_*/*.safetensors",
)  # fmt: skip
"""Sentence Transformers' configuration of pooling and normalization."""
PROCESSOR = ("preprocessor_config.json",)
"""How pictures and sound are prepared."""
TENSORS = (WEIGHTS, INDEX, "*-of-*.safetensors", "adapter_model.safetensors")
EVERYTHING = (*CONFIG, *TOKENIZER, *SENTENCES, *PROCESSOR, *TENSORS)


def resolve(model: str | Path, *, revision: str | None = None, files: Sequence[str] = EVERYTHING) -> Path:
    """The folder of `model`: a local folder, a run (its newest model), or a hub id ("name" or "org/name").

    A GGUF file is a model too, and is returned as it is.

    A hub model that is missing in the cache is downloaded: the files that match a pattern of `files` (`CONFIG`: no
    weights). `revision` is a branch, tag or commit of the hub. A `Path` is never interpreted as a hub id.

    Raises InputError if there is no such model, if it has no safetensors or needs a login; OfflineError if the network
    is needed but forbidden or unreachable.
    """
    folder = model_of_run(model) or Path(os.path.expanduser(model))
    if str(model) and os.path.isdir(folder):
        if revision is not None:
            raise InputError(
                f"{model}: a folder has no revision {revision!r}; revisions exist for hub ids only. Leave it out."
            )
        return folder
    if folder.suffix == SUFFIX and os.path.isfile(folder):
        return folder
    if isinstance(model, Path) or not is_hub_id(model):
        raise _no_such_model(str(model), folder)
    cached = _cached_snapshot(model, revision)
    if cached is not None and not _missing(cached, files) and _has_tokenizer(cached, files):
        return cached
    if variable := _offline_variable():
        if cached is not None and not _missing(cached, files):
            return cached  # The model may have no tokenizer; only the hub could tell.
        raise _offline_error(
            model, revision, cached, files, f"{variable} forbids the network.", f", or unset {variable}"
        )
    return _download(model, revision, files, cached)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id: "name" or "owner/name"."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _no_such_model(name: str, folder: Path) -> InputError:
    if os.path.isfile(folder):
        return InputError(
            f"{name}: is a file. Give the model folder that contains it and config.json, or a .gguf file."
        )
    allowed = "Allowed are a local folder, a run, and an id of the Hugging Face hub such as org/name."
    return InputError(f"{name}: there is no such model folder. {allowed}", _suggestions(name))


def _offline_variable() -> str | None:
    """The environment variable that forbids the network."""
    from huggingface_hub import constants

    if offline():
        return "QUATRAIN_OFFLINE"
    return "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The snapshot of a revision in the cache, complete or not; None if there is none."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        # The patterns limit the completeness check of huggingface_hub, which does not know which files were selected.
        snapshot = snapshot_download(
            name,
            revision=revision,
            cache_dir=constants.HF_HUB_CACHE,
            local_files_only=True,
            allow_patterns=list(MODEL),
        )
    except LocalEntryNotFoundError:
        return None
    return Path(snapshot)


def _missing(folder: Path, files: Sequence[str]) -> list[str]:
    """Problems of a snapshot: missing config.json or missing weights."""
    problems = []
    if "config.json" in files and not any((folder / name).is_file() for name in MODEL):
        problems.append("config.json: missing")
    if WEIGHTS in files and not (folder / "adapter_model.safetensors").is_file():
        try:
            problems += [f"{path.name}: missing" for path in weight_files(folder) if not path.is_file()]
        except InputError as error:
            names = [path.name for path in folder.iterdir()]
            pickled = ", ".join(pickled_weights(names))
            problems += error.problems or [
                f"{WEIGHTS}: missing{f', only pickled weights: {pickled}' if pickled else ''}"
            ]
    return problems


def _has_tokenizer(folder: Path, files: Sequence[str]) -> bool:
    """Whether a snapshot has a tokenizer or none is requested: other tools may have downloaded weights alone."""
    patterns = [name for name in TOKENIZER if name in files]
    return not patterns or bool(_matching((path.name for path in folder.iterdir()), patterns))


def _matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern; a star does not match a slash."""
    return [
        name
        for name in names
        if any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
    ]


def _download(name: str, revision: str | None, files: Sequence[str], cached: Path | None) -> Path:
    """Downloads the requested files of a repository that the cache does not have."""
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        # One request without retries, so that a missing network is reported at once.
        listing = [each.rfilename for each in HfApi().model_info(name, revision=revision, timeout=30).siblings or []]
        patterns = [glob.escape(each) for each in _select_files(name, listing, files)]
        folder = Path(
            snapshot_download(name, revision=revision, cache_dir=constants.HF_HUB_CACHE, allow_patterns=patterns)
        )
    except QuatrainError:
        raise
    except Exception as error:
        if cached is not None and not _missing(cached, files) and _is_network_error(error):
            return cached
        user_error = _user_error(error, name, revision, cached, files)
        if user_error is None:
            raise
        raise user_error from error
    if problems := _missing(folder, files):
        raise InputError(f"{name}: the repository is incomplete; try another revision or tell its authors:", problems)
    return folder


def _select_files(name: str, listing: Sequence[str], files: Sequence[str]) -> list[str]:
    """The files of a repository to download. Raises InputError if it contains no model that can be read."""
    chosen = _matching(listing, files)
    contents = ", ".join(sorted(listing)[:6]) or "nothing"
    if not set(MODEL) & set(listing):
        raise InputError(f"{name}: no config.json in this repository, so it is not a model. It contains: {contents}.")
    if not chosen:
        raise InputError(f"{name}: none of {', '.join(files)} in this repository. It contains: {contents}.")
    shards = _matching(chosen, ["*-of-*.safetensors"])
    unwanted = set(shards)
    if INDEX in chosen and WEIGHTS not in chosen:
        # Some repositories contain the same weights twice, for another program under another name.
        unwanted -= set(_matching(shards, ["model-*"]) or shards)
    elif WEIGHTS in chosen:
        unwanted.add(INDEX)
    if WEIGHTS in files and not {WEIGHTS, INDEX, "adapter_model.safetensors"} & set(chosen):
        if pickled := pickled_weights(listing):
            raise InputError(f"{name}: this repository has only pickled weights ({', '.join(pickled)}). {CONVERT_HINT}")
        raise InputError(f"{name}: no {WEIGHTS} in this repository. It contains: {contents}.")
    return [each for each in chosen if each not in unwanted]


def _is_network_error(error: Exception) -> bool:
    """Whether the hub could not be reached, or had an internal error."""
    from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        return status >= 500 or status in (0, 408, 429)
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, LocalEntryNotFoundError | ConnectionError | TimeoutError) or library in (
        "httpx", "httpcore", "httpx2", "requests", "urllib3",
    )  # fmt: skip


def _user_error(
    error: Exception, name: str, revision: str | None, cached: Path | None, files: Sequence[str]
) -> QuatrainError | None:
    """The error to show the user for a failure of the hub; None for an unexpected one."""
    from huggingface_hub import constants
    from huggingface_hub.utils import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    login = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{name}"
        return InputError(f"{name}: a gated model. Accept its terms at {page}, then {login}.")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"{name}: neither a local folder nor a model on the hub ({constants.ENDPOINT}). Check the id; "
            f"if it is private, {login}.",
            _suggestions(name),
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{name}: no revision {revision!r}. Allowed are branches, tags and full commit hashes.")
    if _is_network_error(error):
        details = " ".join(str(error).split())[:200] or type(error).__name__
        reason = f"The hub ({constants.ENDPOINT}) cannot be reached: {details}."
        return _offline_error(name, revision, cached, files, reason, ", or try again")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "nothing"
        return InputError(f"{name}: the hub refuses access (status {status}). If it is private, {login}.")
    if isinstance(error, OSError) and error.errno is not None:
        return disk_error(error, constants.HF_HUB_CACHE)
    return None


def _offline_error(
    name: str, revision: str | None, cached: Path | None, files: Sequence[str], why: str, remedy: str
) -> OfflineError:
    """The error for a model that is not in the cache while the network is unavailable, with the remedy."""
    from huggingface_hub import constants

    of = f" --revision {revision}" if revision else ""
    download = f"Download it with network access (`hf download {name}{of}` fills this cache){remedy}."
    if cached is not None:
        return OfflineError(f"{name}: the cache contains only a part of it. {why} {download}", _missing(cached, files))
    what = f"revision {revision!r} of it" if revision else "it"
    known = sorted(path.name for path in Path(constants.HF_HUB_CACHE, _cache_name(name), "refs").glob("*"))
    others = [f"revisions in the cache: {', '.join(known)}"] if known else []
    return OfflineError(
        f"{name}: no such local folder, and {constants.HF_HUB_CACHE} does not have {what}. {why} {download}",
        [*others, *_suggestions(name)],
    )


def _cache_name(name: str) -> str:
    return "--".join(["models", *name.split("/")])


def _suggestions(name: str) -> list[str]:
    """Suggestions with similar names: local folders, and models in the cache."""
    from huggingface_hub import constants

    folder = Path(os.path.expanduser(name))
    beside: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    folders = [str(folder.parent / each) for each in difflib.get_close_matches(folder.name, beside, n=3)]
    cached = [
        path.name.removeprefix("models--").replace("--", "/")
        for path in sorted(Path(constants.HF_HUB_CACHE).glob("models--*"))
        if (path / "snapshots").is_dir() and path.name != _cache_name(name)
    ]
    by_name = {each.rpartition("/")[2].lower(): each for each in cached} | {each.lower(): each for each in cached}
    words = [name.lower(), name.rpartition("/")[2].lower()]
    models = dict.fromkeys(by_name[each] for word in words for each in difflib.get_close_matches(word, by_name, n=3))
    suggestions = {"folders with similar names": folders, "models in the cache with similar names": list(models)[:3]}
    return [f"{kind}: {', '.join(names)}" for kind, names in suggestions.items() if names]
