"""Pictures of every kind of file are read as pixels or refused clearly; processors equal those of transformers."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.data import images
from quatrain.data.augmentation import AUGMENTATIONS, augmented
from quatrain.data.image_processor import ImageProcessor
from quatrain.data.images import pictures_in, read_image, to_png
from quatrain.data.processors import find_processor

Image = pytest.importorskip("PIL.Image", reason="needs Pillow (extra vision)")


def colours(height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file_of(image: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_png_a_path_a_uri_and_an_array_are_the_same_picture(tmp_path: Path) -> None:
    pixels = colours()
    png = to_png(pixels)
    (tmp_path / "named.txt").write_bytes(png)  # the content counts, not the name
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    for source in (png, str(tmp_path / "named.txt"), tmp_path / "named.txt", uri, pixels, pixels / 255):
        assert np.array_equal(read_image(source), pixels)
    assert np.array_equal(read_image(Image.fromarray(pixels)), pixels)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_image(data)[0, 0].tolist() == [255, 0, 0]


def test_sixteen_bits_keep_their_range() -> None:
    deep = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    pixels = read_image(file_of(Image.fromarray(deep), "PNG"))
    assert np.array_equal(pixels[..., 0], (deep >> 8).astype(np.uint8))


def test_palettes_grey_and_cmyk_become_rgb() -> None:
    image = Image.fromarray(colours())
    for mode, kind in (("P", "PNG"), ("L", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("LA", "PNG")):
        assert read_image(file_of(image.convert(mode), kind)).shape == (6, 9, 3)
    red = Image.new("RGB", (8, 8), "red")
    assert (abs(read_image(file_of(red.convert("CMYK"), "JPEG")).astype(int) - [255, 0, 0]) < 8).all()
    assert (read_image(file_of(red.convert("P"), "PNG")) == [255, 0, 0]).all()


def test_transparent_pixels_are_seen_over_white() -> None:
    clear = Image.new("RGBA", (3, 3), (255, 0, 0, 0))
    assert (read_image(file_of(clear, "PNG")) == 255).all()
    half = Image.new("RGBA", (3, 3), (255, 0, 0, 128))
    assert read_image(file_of(half, "PNG"))[0, 0].tolist() == [255, 127, 127]
    gif = Image.new("P", (2, 2), 0)
    gif.putpalette([10, 20, 30])
    assert (read_image(file_of(gif, "GIF", transparency=0)) == 255).all()


def test_a_photograph_is_turned_as_the_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :4] = 255
    turned = read_image(file_of(Image.fromarray(pixels), "JPEG", exif=exif, quality=95))
    assert turned.shape == (8, 4, 3)
    assert turned[0].mean() > 200 and turned[-1].mean() < 50


def test_what_is_no_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png = to_png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for data, message in ((b"", "is empty"), (b"hello", "no picture that Pillow knows"),
                          (png[: len(png) // 2], "broken or truncated")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_image(data)
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)
    for uri in ("data:text/plain;base64,aGk=", "data:image/png,raw", "data:image/png;base64,!!"):
        with pytest.raises(InputError, match="URI"):
            read_image(uri)
    monkeypatch.setattr(images, "MAX_PIXELS", 1_000)
    with pytest.raises(InputError, match="40x40 pixels"):
        read_image(png)
    with pytest.raises(InputError, match="floating-point"):
        read_image(file_of(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"))
    for array in (np.zeros((2, 2, 5), np.uint8), np.zeros((0, 2)), np.full((2, 2), 2.0), np.zeros((2, 2), np.int64)):
        with pytest.raises(InputError, match="the array"):
            read_image(array)


@given(st.binary(max_size=200), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_broken_bytes_never_end_in_a_traceback(noise: bytes, place: int) -> None:
    png = to_png(colours())
    for data in (noise, png[:place] + noise + png[place + len(noise) :]):
        try:
            assert read_image(data).dtype == np.uint8
        except InputError as error:
            assert len(error.message) < 500


KINDS = {
    "ViTImageProcessorPil": {},
    "DeiTImageProcessorPil": {},
    "CLIPImageProcessorPil": {},
}
CHANGES: list[dict[str, Any]] = [
    {"size": {"height": 20, "width": 14}},
    {"size": {"shortest_edge": 17}, "crop_size": {"height": 16, "width": 15}, "do_center_crop": True, "resample": 3},
    {"size": {"shortest_edge": 10}, "crop_size": {"height": 13, "width": 31}, "do_center_crop": True},
    {"size": {"height": 9, "width": 9}, "do_normalize": False, "resample": 1},
    {"size": {"height": 9, "width": 9}, "do_rescale": False, "image_mean": [1, 2, 3], "image_std": [2, 3, 4]},
]


@pytest.mark.parametrize("kind", KINDS)
def test_processors_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    for number, change in enumerate([{}, *CHANGES]):
        theirs = getattr(transformers, kind)(**change)
        theirs.save_pretrained(tmp_path)
        ours = find_processor(tmp_path)
        for height, width in ((33, 21), (21, 34), (224, 224)):
            pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
            expected = theirs(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
            np.testing.assert_allclose(ours([pixels]), expected, atol=1e-5, rtol=1e-5)
        ours.save(tmp_path / "again")
        assert ImageProcessor.load(tmp_path / "again") == ours
        again = getattr(transformers, kind).from_pretrained(tmp_path / "again")
        np.testing.assert_allclose(ours([pixels]), again(pixels, return_tensors="np")["pixel_values"], atol=1e-5)


def test_old_files_and_wrong_ones() -> None:
    old = ImageProcessor.read({"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "image_mean": [0.5] * 3})
    assert old.sides == (32, 32) and old.resample == 2
    clip = ImageProcessor.read({"image_processor_type": "CLIPImageProcessor", "size": 30, "crop_size": 20})
    assert clip.size == {"shortest_edge": 30} and clip.sides == (20, 20)
    with pytest.raises(InputError) as caught:
        ImageProcessor.read({"size": "big", "do_pad": True, "image_std": [0, 1, 1], "resample": 9})
    assert {line.split(":")[0] for line in caught.value.problems} == {"size", "do_pad", "image_std", "resample"}
    with pytest.raises(InputError, match="Wav2Vec2"):
        ImageProcessor.read({"image_processor_type": "Wav2Vec2"})


def test_pictures_of_several_sizes_do_not_make_a_batch() -> None:
    processor = ImageProcessor(do_resize=False)
    with pytest.raises(InputError, match="6x9, 9x6"):
        processor([colours(6, 9), colours(9, 6)])


@given(st.sampled_from(sorted(AUGMENTATIONS)), st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_augmentations_keep_shape_and_range_and_follow_from_the_seed(
    name: str, height: int, width: int, seed: int
) -> None:
    pixels = colours(height, width)
    one, same = (augmented(pixels, [name], np.random.default_rng(seed)) for _ in range(2))
    assert one.shape == pixels.shape and np.array_equal(one, same)
    assert one.min() >= 0 and one.max() <= 255


def test_augmentations_change_pictures() -> None:
    for name in AUGMENTATIONS:
        results = {augmented(colours(), [name], np.random.default_rng(seed)).tobytes() for seed in range(8)}
        assert len(results) > 1, name


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").write_bytes(to_png(colours()))
        (tmp_path / label / "notes.txt").write_text("no picture")
    assert [(path.name, label) for path, label in pictures_in(tmp_path)] == [("a.png", "cat"), ("a.png", "dog")]
    with pytest.raises(InputError, match="0 classes"):
        pictures_in(tmp_path / "cat")
    with pytest.raises(InputError, match="no folder"):
        pictures_in(tmp_path / "absent")
