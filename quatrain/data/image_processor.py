"""From pixels to a model's input, as `preprocessor_config.json` says: resize, crop, rescale, normalize.

The results equal those of the image processors of transformers that Pillow computes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from quatrain.core.atomic import write_json
from quatrain.core.errors import InputError
from quatrain.core.reading import read_json
from quatrain.core.wording import format_value
from quatrain.data.images import Pixels, pillow, read_image

FILE = "preprocessor_config.json"

HALF = (0.5, 0.5, 0.5)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {"size": {"height": 224, "width": 224}, "resample": 2},
    "DeiT": {"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
    "CLIP": {
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
}
"""The defaults of each kind of processor, where they differ from those of `ImageProcessor`."""

KNOWN = {"do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
         "image_mean", "image_std"}  # fmt: skip
HARMLESS = {"image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "data_format",
            "input_data_format", "device", "return_tensors", "default_to_square", "image_seq_length", "num_channels",
            "_valid_processor_keys", "crop_pct", "disable_grouping", "auto_map"}  # fmt: skip
"""Keys of a file that do not change what is computed here: every picture is RGB, and one tensor is returned."""


@dataclass(frozen=True)
class ImageProcessor:
    """How a model's pictures are prepared; the fields are those of `preprocessor_config.json`.

    `size` is {"height", "width"}, or {"shortest_edge"}, which keeps the proportions. `resample` is Pillow's number of a
    filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic.
    """

    kind: str = "ViT"
    do_resize: bool = True
    size: Mapping[str, int] = field(default_factory=lambda: {"height": 224, "width": 224})
    resample: int = 3
    do_center_crop: bool = False
    crop_size: Mapping[str, int] | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Sequence[float] = HALF
    image_std: Sequence[float] = HALF

    modality: ClassVar[str] = "pictures"

    @classmethod
    def of(cls, side: int, **more: Any) -> ImageProcessor:
        """The processor of square pictures of `side` pixels, resized bilinearly."""
        return cls(size={"height": side, "width": side}, resample=2, **more)

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> ImageProcessor:
        """The processor of a `preprocessor_config.json`. Raises InputError for options that are not supported."""
        name = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "ViTImageProcessor")
        kind = next((each for each in DEFAULTS if name.startswith(each)), None)
        if kind is None:
            raise InputError(f"image_processor_type: {format_value(name)}; known are those of {', '.join(DEFAULTS)}")
        values = {**DEFAULTS[kind], **{key: raw[key] for key in KNOWN if raw.get(key) is not None}}
        problems = [
            f"{key}: {format_value(value)} is an unknown option"
            for key, value in raw.items()
            if key not in KNOWN | HARMLESS and value not in (None, False)
        ]
        edge = "shortest_edge" if kind == "CLIP" else ""
        for key in ("size", "crop_size"):
            if key in values:
                values[key] = _size(values[key], edge if key == "size" else "")
                if values[key] is None:
                    problems.append(f"{key}: {format_value(raw.get(key))}; must be height and width, or shortest_edge")
        for key in ("image_mean", "image_std"):
            if key in values:
                numbers = values[key] if isinstance(values[key], list | tuple) else [values[key]] * 3
                values[key] = tuple(float(each) for each in numbers) if _are_numbers(numbers) else None
                if values[key] is None or (key == "image_std" and 0.0 in values[key]):
                    problems.append(f"{key}: {format_value(raw.get(key))}; must be three numbers")
        if values.get("resample") not in (None, 0, 1, 2, 3, 4, 5):
            problems.append(f"resample: {format_value(values['resample'])}; must be a number from 0 to 5")
        if problems:
            raise InputError(f"This {FILE} cannot be used:", problems)
        return cls(kind=kind, **values)

    @classmethod
    def load(cls, folder: str | Path) -> ImageProcessor:
        """The processor of a model folder. Raises InputError if it has none."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise InputError(f"{folder}: contains no {FILE}, so pictures cannot be prepared for this model.")
        return cls.read(read_json(path))

    def save(self, folder: str | Path) -> None:
        """Writes `preprocessor_config.json`."""
        values = {key: getattr(self, key) for key in sorted(KNOWN)}
        values |= {"image_processor_type": f"{self.kind}ImageProcessor", "do_convert_rgb": True}
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / FILE, {key: value for key, value in values.items() if value is not None})

    @property
    def fingerprint(self) -> str:
        """What identifies the processor, for caches."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def __call__(self, pictures: Sequence[Any]) -> np.ndarray:
        """Pictures, as `read_image` takes them, as one array (B, 3, H, W) in float32.

        Raises InputError for a picture that cannot be read, and for pictures that differ in size once they are resized.
        """
        shaped = [self.shape(picture) for picture in pictures]
        if len({each.shape for each in shaped}) > 1:
            sizes = ", ".join(f"{each.shape[0]}x{each.shape[1]}" for each in shaped[:4])
            raise InputError(
                f"pictures: have the sizes {sizes}; this processor does not make them equal, give one each"
            )
        return self.scale(np.stack(shaped)) if shaped else np.zeros((0, 3, *self.sides), np.float32)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a prepared picture; of one that keeps its proportions and is not cropped, of a square."""
        size = self.crop_size if self.do_center_crop and self.crop_size else self.size
        side = size.get("shortest_edge", 0)
        return size.get("height", side), size.get("width", side)

    def shape(self, picture: Any) -> Pixels:
        """A picture resized and cropped: pixels (H, W, 3) in bytes."""
        pixels = read_image(picture)
        if self.do_resize:
            height, width = self._resized(*pixels.shape[:2])
            if (height, width) != pixels.shape[:2]:
                pixels = np.asarray(pillow().fromarray(pixels).resize((width, height), resample=self.resample))
        if self.do_center_crop and self.crop_size is not None:
            pixels = center_crop(pixels, self.crop_size["height"], self.crop_size["width"])
        return pixels

    def scale(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (B, H, W, 3) from 0 to 255 as an array (B, 3, H, W) in float32, rescaled and normalized."""
        x = np.moveaxis(pixels, -1, 1).astype(np.float32)
        if self.do_rescale:
            x = x * np.float32(self.rescale_factor)
        if self.do_normalize:
            mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in (self.image_mean, self.image_std))
            x = (x - mean) / std
        return np.ascontiguousarray(x, dtype=np.float32)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        edge = self.size.get("shortest_edge")
        if edge is None:
            return self.size["height"], self.size["width"]
        short, long = min(height, width), max(height, width)
        longer = int(edge * long / short)
        return (edge, longer) if height <= width else (longer, edge)


def center_crop(pixels: Pixels, height: int, width: int) -> Pixels:
    """The middle (height, width) of pixels (H, W, 3); what lies outside them is black."""
    rows, columns = pixels.shape[:2]
    canvas = np.zeros((max(height, rows), max(width, columns), 3), dtype=pixels.dtype)
    above, left = -(-(canvas.shape[0] - rows) // 2), -(-(canvas.shape[1] - columns) // 2)
    canvas[above : above + rows, left : left + columns] = pixels
    top, start = (rows - height) // 2 + above, (columns - width) // 2 + left
    return canvas[top : top + height, start : start + width]


def _size(value: Any, edge: str) -> dict[str, int] | None:
    """A size as a table; old files have a number, or a pair. None if it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {edge: value} if edge else {"height": value, "width": value}
    elif isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, Mapping):
        return None
    table = {str(key): side for key, side in value.items() if side is not None}
    known = set(table) in ({"height", "width"}, {"shortest_edge"})
    right = all(isinstance(side, int) and not isinstance(side, bool) and 0 < side < 100_000 for side in table.values())
    return table if known and right else None


def _are_numbers(values: Sequence[Any]) -> bool:
    return len(values) == 3 and all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
