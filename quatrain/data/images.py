"""Pictures of any file as pixels: formats, depths and rotations that a camera or the web produces, or a clear refusal.

Pillow decodes (extra `vision`). A picture is an array (height, width, 3) of bytes, red, green and blue.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.reading import user_path
from quatrain.core.wording import format_value

MAX_PIXELS = 100_000_000
"""The most pixels of a picture: 300 MB once decoded."""

MAX_BYTES = 200_000_000
"""The largest file of a picture."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Files of a folder that are read as pictures."""

DESCRIPTION, LONGEST_DESCRIPTION = 270, 10_000
"""EXIF's tag of a description, and the most characters of one that are read."""

Pixels = np.ndarray
T = TypeVar("T")
_DATA_URI = re.compile(r"data:(image/[\w.+-]+)?(;[\w=.-]+)*;base64,", re.IGNORECASE)


def pillow() -> Any:
    """The package PIL. Raises InputError that says how to install it."""
    with require("a picture", "Pillow", "vision"):
        return importlib.import_module("PIL.Image")


def read_image(
    source: Any, name: str | None = None, *, max_pixels: int | None = None, animations: bool = True
) -> Pixels:
    """The pixels (H, W, 3), uint8, of a path, bytes, a `data:` URI, an array or a Pillow image.

    Of an animation it is the first frame, unless `animations` are refused. 16 bits become 8; palettes, grey, CMYK and
    other spaces become RGB; transparent pixels are seen over white; a photograph is turned as its camera says. Arrays
    are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), of bytes, or of numbers from 0 to 1. Raises InputError for what is no
    picture, is broken, truncated or larger than `max_pixels` (MAX_PIXELS if None); `name` is what the message calls it.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    image, read = pillow(), partial(_of_image, max_pixels=most, animations=animations)
    if isinstance(source, np.ndarray):
        return _of_array(source, name or "the array")
    if isinstance(source, image.Image):
        return read(source, name or "the picture")
    if isinstance(source, str) and source[:5].lower() == "data:":
        source, name = _decoded(source), name or "the data URI"
    if isinstance(source, bytes):
        return _opened(source, name or "the bytes", read)
    path = user_path(source, "the picture")
    return _opened(_bytes_of(path), name or str(path), read)


def _bytes_of(path: Path) -> bytes:
    """The content of a picture's file. Raises InputError for one that is missing, unreadable or too large."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name a picture")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: has {size:,} bytes; a picture may have {MAX_BYTES:,}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class PictureFacts:
    """What the head of a picture's file says: its size in pixels, its format, its frames, and a description."""

    width: int
    height: int
    format: str
    frames: int = 1
    description: str = ""


def picture_facts(path: str | Path) -> PictureFacts:
    """The facts of a picture; no pixel is decoded. Raises InputError for what is no picture, or too large."""
    path = user_path(path, "the picture")
    return _opened(_bytes_of(path), str(path), _facts)


def _facts(opened: Any, name: str) -> PictureFacts:
    _check_size(opened, name)
    tags = {str(key).lower(): value for key, value in opened.info.items()}
    given = (opened.getexif().get(DESCRIPTION), *(tags.get(key) for key in ("title", "description", "comment")))
    texts = (each.decode("utf-8", "replace") if isinstance(each, bytes) else each for each in given)
    said = dict.fromkeys(each.strip("\0 \n") for each in texts if isinstance(each, str))
    description = "\n".join(filter(None, said))[:LONGEST_DESCRIPTION]
    width, height = opened.size
    return PictureFacts(width, height, str(opened.format), int(getattr(opened, "n_frames", 1)), description)


def _decoded(uri: str) -> bytes:
    """The bytes of a `data:image/…;base64,` URI."""
    match = _DATA_URI.match(uri)
    if match is None:
        raise InputError(f"{format_value(uri[:40])}: must be a URI of the form data:image/png;base64,…")
    if len(uri) > MAX_BYTES:
        raise InputError(f"the data URI: has {len(uri):,} characters; a picture may have {MAX_BYTES:,}")
    try:
        return base64.b64decode("".join(uri[match.end() :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"the data URI: is not base64: {error}") from error


def _opened(data: bytes, name: str, read: Callable[[Any, str], T]) -> T:
    """What a function reads of a picture's bytes. Raises InputError for what is no picture, broken or too large."""
    image = pillow()
    if not data:
        raise InputError(f"{name}: is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata, which are handled here.
            with image.open(io.BytesIO(data)) as opened:
                return read(opened, name)
    except InputError:
        raise
    except image.DecompressionBombError as error:
        raise InputError(f"{name}: is too large; a picture may have {MAX_PIXELS:,} pixels") from error
    except image.UnidentifiedImageError as error:
        raise InputError(f"{name}: is no picture that Pillow knows, whatever its name says") from error
    except Exception as error:  # Decoders of broken files raise nearly anything.
        raise InputError(f"{name}: is broken or truncated: {str(error) or type(error).__name__}") from error


def _check_size(opened: Any, name: str, most: int = MAX_PIXELS) -> None:
    width, height = opened.size
    if width * height > most:
        raise InputError(f"{name}: has {width:,}x{height:,} pixels; a picture may have {most:,}")
    if not width or not height:
        raise InputError(f"{name}: has no pixels")


def _of_image(opened: Any, name: str, *, max_pixels: int, animations: bool) -> Pixels:
    _check_size(opened, name, max_pixels)
    if not animations and (frames := getattr(opened, "n_frames", 1)) > 1:
        raise InputError(f"{name}: is an animation of {frames} frames; send one of them")
    ops = importlib.import_module("PIL.ImageOps")
    turned = ops.exif_transpose(opened)
    if turned.mode.startswith("I;16") or turned.mode == "I":
        deep = np.asarray(turned).astype(np.int64)
        scaled = deep if deep.max(initial=0) <= 255 and turned.mode == "I" else deep >> 8
        return _of_array(scaled.clip(0, 255).astype(np.uint8), name)
    if turned.mode == "F":
        raise InputError(f"{name}: has floating-point pixels, whose range is unknown; save it with 8 or 16 bits")
    if "A" in turned.getbands() or "transparency" in turned.info:
        turned = turned.convert("RGBA")
        white = pillow().new("RGBA", turned.size, (255, 255, 255, 255))
        turned = pillow().alpha_composite(white, turned)
    return np.array(turned.convert("RGB"))


def _of_array(array: np.ndarray, name: str) -> Pixels:
    """An array of pixels as (H, W, 3) bytes. Raises InputError for other shapes, types and ranges."""
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise InputError(f"{name}: has shape {shape}; must be (height, width) with 1, 3 or 4 channels last")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise InputError(f"{name}: has {array.dtype} pixels; must be bytes, or numbers from 0 to 1")
        if array.min() < 0 or array.max() > 1:
            raise InputError(f"{name}: has pixels from {array.min():g} to {array.max():g}; must be from 0 to 1")
        array = (array * 255).round().astype(np.uint8)
    if array.shape[2] == 4:
        alpha = array[..., 3:].astype(np.float32) / 255
        array = (array[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def to_png(pixels: Pixels) -> bytes:
    """The PNG file of pixels (H, W, 3)."""
    file = io.BytesIO()
    pillow().fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures_in(folder: str | Path) -> list[tuple[Path, str]]:
    """The pictures of a folder with one subfolder for each class, sorted, each with its class.

    Raises InputError for a folder without classes, and one with fewer than two.
    """
    path = user_path(folder, "the folder of pictures")
    if not path.is_dir():
        raise InputError(f"{folder}: is no folder; name a folder with a subfolder of pictures for each class")
    found = list(_classes(path))
    classes = sorted({label for _, label in found})
    if len(classes) < 2:
        raise InputError(
            f"{folder}: has {len(classes)} classes; must have a subfolder of pictures ({', '.join(SUFFIXES)}) for each "
            "of two classes or more"
        )
    return found


def _classes(path: Path) -> Iterator[tuple[Path, str]]:
    for place in sorted(path.iterdir()):
        if place.is_dir() and not place.name.startswith("."):
            for file in sorted(place.rglob("*")):
                if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
                    yield file, place.name
