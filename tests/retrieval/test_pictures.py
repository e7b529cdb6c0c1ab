"""Pictures in an index: found by words and by pictures, beside texts; what cannot be read is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.data.image_processor import ImageProcessor
from quatrain.data.image_text import ImageTextProcessor
from quatrain.data.images import to_png
from quatrain.data.pictures import shapes
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.retrieval.building import build_index
from quatrain.retrieval.encoders.pictures import PictureEncoder
from quatrain.retrieval.generated import answer
from quatrain.retrieval.index import Index
from quatrain.retrieval.settings import IndexSettings
from quatrain.tokenizers.tokenizer import Tokenizer

pytest.importorskip("PIL", reason="needs Pillow (extra vision)")
pytest.importorskip("bm25s", reason="needs bm25s (extra rag)")

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = Tokenizer.train(shapes.captions(), kind="word", vocab_size=50, eos="<|endoftext|>")
    ends = {"eos_token_id": tokenizer.eos_id, "bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    text = SIZES | ends | {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 12}
    raw = {"text_config": text, "vision_config": SIZES | {"image_size": 16, "patch_size": 8}, "projection_dim": 12}
    model = Model(get_family("clip").from_hf(raw)).initialize(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model_folder.save(model, folder)
    processor = ImageProcessor.of(16, kind="CLIP")
    ImageTextProcessor(processor, tokenizer).save(folder)
    return folder


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Six shapes in two folders, with the same name in both, and a text."""
    folder = tmp_path / "gallery"
    for number in range(6):
        place = folder / ("new", "old")[number % 2] / f"{number // 2}_shape.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(to_png(shapes.draw_picture((0, 0, number), shapes.PAIRS).source))
    (folder / "notes.md").write_text("# Shapes\n\nA red circle was drawn on Monday.\n")
    return folder


def settings(clip: Path) -> IndexSettings:
    return IndexSettings(dense=(str(clip),))


def test_words_and_pictures_find_pictures_as_transformers_ranks_them(clip: Path, gallery: Path, tmp_path: Path) -> None:
    report = build_index(gallery, tmp_path / "index", settings(clip))
    assert (report.counts.sources, report.counts.vectors, report.left_out) == (7, 6, [])
    theirs = transformers.CLIPModel.from_pretrained(clip)
    both = ImageTextProcessor(ImageProcessor.load(clip), Tokenizer.load(clip))
    files = sorted(gallery.rglob("*.png"))
    ids, mask = map(torch.from_numpy, both.ids(["a red star"], 12))
    with torch.no_grad():
        outputs = theirs(input_ids=ids, attention_mask=mask, pixel_values=torch.from_numpy(both.images(files)))
    images = outputs.image_embeds
    names = [path.relative_to(gallery).as_posix() for path in files]
    with Index.open(tmp_path / "index") as index:
        for vector, hits in (
            (outputs.text_embeds[0], index.pictures("a red star", 6)),
            (images[2], index.pictures(like=files[2], k=6)),
            (images[2], index.pictures(like=files[2].read_bytes(), k=6)),
        ):
            cosines = dict(zip(names, (images @ vector).tolist(), strict=True))
            assert [hit.source for hit in hits] == sorted(names, key=lambda name: -cosines[name])
            assert [hit.score for hit in hits] == pytest.approx([cosines[hit.source] for hit in hits], abs=1e-5)
        assert index.pictures(like=files[2], k=1)[0].score == pytest.approx(1, abs=1e-5)
        assert {hit.source for hit in index.pictures("a star", where={"source": names[1]})} == {names[1]}
        # Passages stay passages: pictures neither crowd them out nor are quoted.
        found = answer(index, "When was a red circle drawn?", k=3)
        assert found.citations[0].source == "notes.md" and len(found.pictures) == 3
        assert {hit.source for hit in found.hits} == {"notes.md"}
        mixed = {hit.source for hit in index.search("a red circle on Monday", 7)}
        assert mixed == {*names, "notes.md"}
        with pytest.raises(InputError, match="give one of them"):
            index.pictures("a star", like=files[0])
        with pytest.raises(InputError, match="no such file"):
            index.pictures(like=tmp_path / "none.png")


def test_what_cannot_be_seen_is_named_and_the_rest_is_indexed(
    clip: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image, PngImagePlugin

    whole = (gallery / "old" / "0_shape.png").read_bytes()
    (gallery / "cut.png").write_bytes(whole[: len(whole) // 2])
    (gallery / "text.jpg").write_text("This is no picture.")
    (gallery / "empty.gif").touch()
    Image.new("L", (60, 50)).save(gallery / "huge.png")
    monkeypatch.setattr("quatrain.data.images.MAX_PIXELS", 2000)
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(gallery / "moving.gif", save_all=True, append_images=frames[1:])
    said = PngImagePlugin.PngInfo()
    said.add_text("Description", "The harbour of Lisbon")
    frames[1].save(gallery / "IMG_0042.png", pnginfo=said)
    reports = [build_index(gallery, tmp_path / "index", settings(clip)) for _ in range(2)]
    for report in reports:
        reasons = dict(report.left_out)
        assert set(reasons) == {"cut.png", "text.jpg", "empty.gif", "huge.png"}
        assert "truncated" in reasons["cut.png"] and reasons["text.jpg"].startswith("is no picture")
        assert "60x50" in reasons["huge.png"]
        assert (report.counts.sources, report.counts.vectors) == (9, 8)
    assert (reports[1].unchanged, reports[1].encoded) == (9, 0)
    with Index.open(tmp_path / "index") as index:
        (first,) = index.pictures(like=np.array(frames[0]), k=1)
        assert first.source == "moving.gif" and first.metadata["frames"] == 2  # seen by its first frame
        assert index.search("Lisbon harbour", 1, retriever="bm25")[0].source == "IMG_0042.png"


def test_an_index_of_pictures_follows_its_folder_and_continues(
    clip: Path, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "index"
    build_index(gallery, place)  # without a model of pictures, they are left out with the remedy
    assert "--dense MODEL" in dict(build_index(gallery, place).left_out)["old/0_shape.png"]
    monkeypatch.setattr("quatrain.retrieval.building.ENCODED_FILES", 2)
    seen: list[Any] = []
    prepare = PictureEncoder.prepare

    def stopping(self: PictureEncoder, source: Any) -> np.ndarray:
        seen.append(source)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return prepare(self, source)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PictureEncoder, "prepare", stopping)
        build_index(gallery, place, settings(clip))
    report = build_index(gallery, place)
    assert (report.encoded, report.counts.vectors) == (4, 6)  # the first two had theirs
    (gallery / "old" / "1_shape.png").unlink()
    picture = gallery / "new" / "2_shape.png"
    picture.write_bytes(to_png(np.full((9, 9, 3), 200, np.uint8)))
    report = build_index(gallery, place)
    assert (report.read, report.removed, report.encoded, report.counts.vectors) == (1, 1, 1, 5)
    with Index.open(place) as index:
        assert index.pictures(like=picture, k=1)[0].source == "new/2_shape.png"
    assert build_index(gallery, place, IndexSettings()).counts.sources == 1  # no model of pictures, no pictures


def test_the_verbs_find_pictures(clip: Path, gallery: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (gallery / "notes.md").unlink()
    place, picture = str(tmp_path / "index"), str(gallery / "old" / "1_shape.png")
    assert main(["index", str(gallery), place, "--dense", str(clip), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["ask", place, "--image", picture, "--k", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "1. old/1_shape.png, 32x32, score 1.000" and lines[-1].startswith("2. ")
    assert main(["ask", place, "a red star", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pictures"]) == 5
    assert main(["ask", place, "a red star"]) == 0
    assert "Not in the documents" not in capsys.readouterr().out
    assert main(["ask", place, "a red star", "--image", picture]) == 2
    assert main(["index", picture, str(tmp_path / "one")]) == 2
    assert "pictures" in capsys.readouterr().err
