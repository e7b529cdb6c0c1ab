"""Finds the folder of a model: one on this machine, or a repository of the Hugging Face hub by its id.

The hub is read through huggingface_hub and its cache (`HF_HOME`), which other tools share. What the cache has whole is
used without touching the network; `QUATRAIN_OFFLINE=1` and `HF_HUB_OFFLINE=1` forbid it. Of a repository only what a
model needs is fetched: settings, tokenizer and safetensors, each once; no code, no pickles, no copies in other formats.
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
from quatrain.core.offline import offline
from quatrain.models.io.tensors import CONVERT_HINT, INDEX, WEIGHTS, pickled_weights, weight_files
from quatrain.models.runs import model_of_run

ADAPTER_CONFIG, ADAPTERS, BASE = "adapter_config.json", "adapters", "base"
"""What makes a folder that of an adapter; the folder of several, and that of their base, or of one's that was moved."""
CONFIG = ("config.json", "generation_config.json", ADAPTER_CONFIG)
MODEL = ("config.json", ADAPTER_CONFIG)
"""A repository of a model has one of these."""
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "target_vocab.json", "*.model", "*.spm", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
SENTENCES = (
    "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json", "[0-9]_*/*.json",
    "[0-9]_*/*.safetensors",
)  # fmt: skip
"""What Sentence Transformers say of the pooling behind an encoder."""
TENSORS = (WEIGHTS, INDEX, "*-of-*.safetensors", "adapter_model.safetensors")
EVERYTHING = (*CONFIG, *TOKENIZER, *SENTENCES, *TENSORS)


def resolve(model: str | Path, *, revision: str | None = None, files: Sequence[str] = EVERYTHING) -> Path:
    """The folder of `model`: an existing folder is taken as it is, a hub id ("name" or "org/name") from the cache.

    A run's folder, or the name of a run in `runs`, stands for its final model or that of its newest stage.

    Where the cache lacks it, it is fetched: those of its files that match a pattern of `files` (`CONFIG` alone costs
    no weights). `revision` is a branch, tag or commit of the hub; a `Path` is never taken for a hub id.

    Raises InputError for what is neither, for a repository without safetensors and for one that needs a login;
    OfflineError where the network is needed and forbidden or not there.
    """
    folder = model_of_run(model) or Path(os.path.expanduser(model))
    if str(model) and os.path.isdir(folder):
        if revision is not None:
            raise InputError(
                f"{model}: a folder has no revision {revision!r}; that is for ids of the hub. Leave it out."
            )
        return folder
    if isinstance(model, Path) or not is_hub_id(model):
        raise _no_folder(str(model), folder)
    cached = _in_cache(model, revision)
    if cached is not None and not _lacking(cached, files) and _has_tokenizer(cached, files):
        return cached
    if variable := _forbidden():
        if cached is not None and not _lacking(cached, files):
            return cached  # a tokenizer may not be there at all; only the hub could say
        raise _not_cached(model, revision, cached, files, f"{variable} forbids the network.", f", or unset {variable}")
    return _fetched(model, revision, files, cached)


def is_hub_id(name: str) -> bool:
    """Whether a name may be that of a repository of the hub: "name" or "owner/name"."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _no_folder(name: str, folder: Path) -> InputError:
    if os.path.isfile(folder):
        return InputError(f"{name}: a file. Name the model's folder, which holds it and its config.json.")
    allowed = "Allowed are a folder of this machine, and an id of the Hugging Face hub such as org/name."
    return InputError(f"{name}: there is no such model folder. {allowed}", _near(name))


def _forbidden() -> str | None:
    """The environment variable that forbids the network."""
    from huggingface_hub import constants

    if offline():
        return "QUATRAIN_OFFLINE"
    return "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None


def _in_cache(name: str, revision: str | None) -> Path | None:
    """The snapshot of a revision that the cache has, whole or not."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import LocalEntryNotFoundError

    try:
        # Its own check of completeness is kept to what every snapshot has: it cannot know which files were left out.
        found = snapshot_download(
            name,
            revision=revision,
            cache_dir=constants.HF_HUB_CACHE,
            local_files_only=True,
            allow_patterns=list(MODEL),
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def _lacking(folder: Path, files: Sequence[str]) -> list[str]:
    """What a snapshot lacks of that which every model has."""
    problems = []
    if "config.json" in files and not any((folder / name).is_file() for name in MODEL):
        problems.append("config.json: missing")
    if WEIGHTS in files and not (folder / "adapter_model.safetensors").is_file():
        try:
            problems += [f"{path.name}: its file is gone" for path in weight_files(folder) if not path.is_file()]
        except InputError as error:
            names = [path.name for path in folder.iterdir()]
            pickled = ", ".join(pickled_weights(names))
            problems += error.problems or [f"{WEIGHTS}: missing{f', there is only {pickled}' if pickled else ''}"]
    return problems


def _has_tokenizer(folder: Path, files: Sequence[str]) -> bool:
    """Whether a snapshot has a tokenizer, where one is asked for: other tools fetch a model without it."""
    asked = [name for name in TOKENIZER if name in files]
    return not asked or bool(_matching((path.name for path in folder.iterdir()), asked))


def _matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern; a star does not reach into another folder."""
    return [
        name
        for name in names
        if any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
    ]


def _fetched(name: str, revision: str | None, files: Sequence[str], cached: Path | None) -> Path:
    """Fetches what is wanted of a repository and the cache lacks."""
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        # One request, and no pauses between tries: whoever has no network should hear of it soon.
        listing = [each.rfilename for each in HfApi().model_info(name, revision=revision, timeout=30).siblings or []]
        patterns = [glob.escape(each) for each in _chosen(name, listing, files)]
        folder = Path(
            snapshot_download(name, revision=revision, cache_dir=constants.HF_HUB_CACHE, allow_patterns=patterns)
        )
    except QuatrainError:
        raise
    except Exception as error:
        if cached is not None and not _lacking(cached, files) and _is_of_the_network(error):
            return cached
        told = _told(error, name, revision, cached, files)
        if told is None:
            raise
        raise told from error
    if lacking := _lacking(folder, files):
        raise InputError(f"{name}: its repository is not whole; tell its authors, or name another revision:", lacking)
    return folder


def _chosen(name: str, listing: Sequence[str], files: Sequence[str]) -> list[str]:
    """Those of a repository's files that are fetched. Raises InputError where it holds no model that can be read."""
    chosen = _matching(listing, files)
    there = ", ".join(sorted(listing)[:6]) or "nothing"
    if not set(MODEL) & set(listing):
        raise InputError(f"{name}: no config.json in this repository, so it holds no model. It has: {there}.")
    if not chosen:
        raise InputError(f"{name}: none of {', '.join(files)} in this repository. It has: {there}.")
    shards = _matching(chosen, ["*-of-*.safetensors"])
    unwanted = set(shards)
    if INDEX in chosen and WEIGHTS not in chosen:
        # Some repositories hold the same weights twice, for another program and under another name.
        unwanted -= set(_matching(shards, ["model-*"]) or shards)
    elif WEIGHTS in chosen:
        unwanted.add(INDEX)
    if WEIGHTS in files and not {WEIGHTS, INDEX, "adapter_model.safetensors"} & set(chosen):
        if pickled := pickled_weights(listing):
            raise InputError(f"{name}: this repository has only pickled weights ({', '.join(pickled)}). {CONVERT_HINT}")
        raise InputError(f"{name}: no {WEIGHTS} in this repository. It has: {there}.")
    return [each for each in chosen if each not in unwanted]


def _is_of_the_network(error: Exception) -> bool:
    """Whether the hub could not be reached, or failed itself."""
    from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        return status >= 500 or status in (0, 408, 429)
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, LocalEntryNotFoundError | ConnectionError | TimeoutError) or library in (
        "httpx", "httpcore", "httpx2", "requests", "urllib3",
    )  # fmt: skip


def _told(
    error: Exception, name: str, revision: str | None, cached: Path | None, files: Sequence[str]
) -> QuatrainError | None:
    """The message for a failure of the hub; None for one that is none of the user's."""
    from huggingface_hub import constants
    from huggingface_hub.utils import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    login = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{name}"
        return InputError(f"{name}: a gated model. Accept its terms at {page}, then {login}.")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"{name}: neither a folder of this machine nor a model of the hub ({constants.ENDPOINT}). Look up its id; "
            f"if it is private, {login}.",
            _near(name),
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{name}: no revision {revision!r}. Allowed are its branches, tags and full commit hashes.")
    if _is_of_the_network(error):
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        again = f"The hub ({constants.ENDPOINT}) cannot be reached: {reason}."
        return _not_cached(name, revision, cached, files, again, ", or try again")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else "nothing"
        return InputError(f"{name}: the hub refuses it (it answered {status}). If it is private, {login}.")
    if isinstance(error, OSError) and error.errno is not None:
        return disk_error(error, constants.HF_HUB_CACHE)
    return None


def _not_cached(
    name: str, revision: str | None, cached: Path | None, files: Sequence[str], why: str, remedy: str
) -> OfflineError:
    """What to do where the network is needed and not there."""
    from huggingface_hub import constants

    of = f" --revision {revision}" if revision else ""
    fetch = f"Fetch it where there is a network (`hf download {name}{of}` fills this cache){remedy}."
    if cached is not None:
        return OfflineError(f"{name}: the cache has a part of it only. {why} {fetch}", _lacking(cached, files))
    what = f"revision {revision!r} of it" if revision else "it"
    known = sorted(path.name for path in Path(constants.HF_HUB_CACHE, _cache_name(name), "refs").glob("*"))
    others = [f"revisions in the cache: {', '.join(known)}"] if known else []
    return OfflineError(
        f"{name}: no such folder on this machine, and {constants.HF_HUB_CACHE} does not have {what}. {why} {fetch}",
        [*others, *_near(name)],
    )


def _cache_name(name: str) -> str:
    return "--".join(["models", *name.split("/")])


def _near(name: str) -> list[str]:
    """What is near by name: folders beside the one that is not there, and models of the cache."""
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
    said = {"folders near it by name": folders, "models of the cache near it by name": list(models)[:3]}
    return [f"{what}: {', '.join(found)}" for what, found in said.items() if found]
