"""Downloads files with resumption and checksums; an incomplete file never gets its final name.

Data is written to `NAME.part`; after a broken connection the download resumes with an HTTP range request (RFC 9110,
section 14), and the file is renamed once it is complete and verified.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quatrain.core.atomic import disk_errors, free_bytes, sync_folder, write_json
from quatrain.core.errors import InputError, OfflineError, QuatrainError
from quatrain.core.offline import offline
from quatrain.core.reading import sha256_of
from quatrain.core.wording import format_bytes

#: Called with the bytes received and the total, None if the server does not send it.
DownloadProgress = Callable[[int, int | None], None]

_BLOCK = 1 << 18
_AGENT = "quatrain (language model toolkit)"


class _Unreachable(Exception):
    """A temporary failure: worth another try."""


class _Refused(Exception):
    """A permanent failure: this address cannot provide the file."""


def download(
    urls: str | Sequence[str],
    target: str | Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: DownloadProgress | None = None,
    tries: int = 4,
    timeout: float = 30.0,
    remedy: str = "",
) -> Path:
    """Download to `target` from the first of `urls` that works, and return that path.

    `sha256` and `size` (bytes) are checked before the file gets its name. Each address is tried `tries` times with
    growing pauses, resuming a broken download. `remedy` is appended to the message of a failure.

    Raises OfflineError when QUATRAIN_OFFLINE forbids it or no address can be reached, QuatrainError for a file that
    is not the one expected or a full disk, InputError for an address that is not http or https.
    """
    addresses = [urls] if isinstance(urls, str) else list(urls)
    target = Path(target)
    for url in addresses:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise InputError(f"address {url!r}: only http and https can be downloaded")
    if offline():
        raise OfflineError(
            f"{target.name} is not on this machine and QUATRAIN_OFFLINE forbids the network. "
            f"{remedy or f'Put the file at {target}'}, or unset QUATRAIN_OFFLINE."
        )
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    faults = []
    for url in addresses:
        try:
            _fetch(url, target, sha256, size, progress, tries, timeout)
            return target
        except _Refused as fault:
            faults.append(f"{url}: {fault}")
        except _Unreachable as fault:
            faults.append(f"{url}: {fault} (tried {tries} times)")
    raise OfflineError(f"{target.name} could not be downloaded. {remedy or f'Put the file at {target}'}.", faults)


def _fetch(
    url: str,
    target: Path,
    sha256: str | None,
    size: int | None,
    progress: DownloadProgress | None,
    tries: int,
    timeout: float,
) -> None:
    part = target.with_name(target.name + ".part")
    note = target.with_name(target.name + ".part.json")
    for attempt in range(tries):
        if attempt:
            time.sleep(min(0.5 * 2**attempt, 10.0))
        try:
            resumed = _receive(url, part, note, sha256, size, progress, timeout)
        except _Unreachable:
            if attempt + 1 == tries:
                raise
            continue
        wrong = _wrong(part, sha256, size)
        if wrong is None:
            with disk_errors(target):
                os.replace(part, target)
                note.unlink(missing_ok=True)
            sync_folder(target.parent)
            return
        part.unlink()
        # A resumed file may mix two versions, so try again; a file received at once is a different file.
        if not resumed:
            raise _Refused(wrong)
    raise _Refused(wrong)


def _receive(
    url: str,
    part: Path,
    note: Path,
    sha256: str | None,
    size: int | None,
    progress: DownloadProgress | None,
    timeout: float,
) -> bool:
    """Complete the file `part`; returns whether an earlier download was resumed."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return True
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    known = _read_note(note) if have else {}
    # Without a checksum, only the server can tell whether the file is still the same.
    may_resume = have > 0 and known.get("url") == url and (sha256 is not None or "validator" in known)
    if may_resume:
        headers["Range"] = f"bytes={have}-"
        if "validator" in known:
            headers["If-Range"] = known["validator"]
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
            resumed = may_resume and response.status == 206 and _starts_at(response, have)
            _keep(response, url, part, note, have if resumed else 0, size, progress)
            return resumed
    except urllib.error.HTTPError as error:
        if error.code == 416:
            part.unlink(missing_ok=True)
            raise _Unreachable("the server cannot resume the download") from error
        fault = f"the server answered {error.code} {error.reason}"
        if error.code >= 500 or error.code in (408, 425, 429):
            raise _Unreachable(fault) from error
        raise _Refused(fault) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Unreachable(f"cannot be reached ({getattr(error, 'reason', None) or error})") from error


def _keep(
    response: Any, url: str, part: Path, note: Path, start: int, size: int | None, progress: DownloadProgress | None
) -> None:
    """Write the body of a response to `part` from byte `start`. Raises _Unreachable if the connection breaks."""
    length = response.headers.get("Content-Length")
    total = start + int(length) if length is not None and length.isdigit() else size
    free = free_bytes(part)
    if total is not None and free is not None and total - start > free:
        raise QuatrainError(
            f"cannot download {url}: it needs {format_bytes(total - start)} and only {format_bytes(free)} are free at "
            f"{part.parent}. Free some space or set QUATRAIN_CACHE to a folder on a larger disk."
        )
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
    # A weak ETag may not be used to resume (RFC 9110, section 13.1.5).
    strong = validator if validator and not validator.startswith("W/") else None
    write_json(note, {"url": url, **({"validator": strong} if strong else {})})
    done = start
    with disk_errors(part):
        handle = open(part, "r+b" if start else "wb")  # noqa: SIM115 - closed below, reading errors are not the disk's
    try:
        handle.seek(start)
        handle.truncate()
        while True:
            try:
                block = response.read(_BLOCK)
            except (http.client.HTTPException, OSError) as error:
                raise _Unreachable(f"the connection broke after {format_bytes(done)} ({error})") from error
            if not block:
                break
            with disk_errors(part):
                handle.write(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
        with disk_errors(part):
            handle.flush()
            os.fsync(handle.fileno())
    finally:
        with disk_errors(part):
            handle.close()
    if total is not None and done < total and length is not None:
        raise _Unreachable(f"the connection broke after {format_bytes(done)} of {format_bytes(total)}")


def _starts_at(response: Any, start: int) -> bool:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == start


def _read_note(note: Path) -> dict[str, str]:
    try:
        read = json.loads(note.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _wrong(part: Path, sha256: str | None, size: int | None) -> str | None:
    """Why `part` is not the expected file; None if it is."""
    if sha256 is not None:
        digest = sha256_of(part)
        if digest != sha256:
            return f"the file is not the one expected (its SHA-256 is {digest}, expected {sha256})"
    elif size is not None and part.stat().st_size != size:
        return f"the file has {part.stat().st_size:,} bytes, expected {size:,}"
    elif part.stat().st_size == 0:
        return "the file is empty"
    return None
