"""The stages of pictures: classes of a folder, captions; their files, scores and what they refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import quatrain
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.data.images import to_png
from quatrain.data.pictures import load_pictures, odd_shapes, shapes
from quatrain.models.io import model_folder
from quatrain.runs.recipe import load
from quatrain.runs.runner import Run

pytest.importorskip("PIL", reason="needs Pillow (extra vision)")

SMALL = ["model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2",
         "model.intermediate_size=16"]  # fmt: skip
STEPS = ["epochs=none", "steps=3", "warmup_steps=1", "batch_tokens=8", "evaluate_every=2", "learning_rate=0.01"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten dark and ten bright pictures of several sizes, in a folder by class."""
    place = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for label, low in (("dark", 0), ("bright", 180)):
        (place / label).mkdir()
        for number in range(10):
            pixels = draw.integers(low, low + 60, (9 + number, 12, 3), dtype=np.uint8)
            (place / label / f"{number}.png").write_bytes(to_png(pixels))
    return place


def run(name: str, kind: str, place: Path, *more: str) -> Run:
    torch.set_num_threads(1)
    overrides = [*(f"stage.{kind}.train.{step}" for step in STEPS), *more]
    return quatrain.run(load(name, overrides), runs_dir=place, reporter=SilentReporter())


def small_images(folder: Path, *more: str) -> list[str]:
    return [*SMALL, f"stage.vision.images={folder}", "stage.vision.image_size=12", "stage.vision.patch_size=4", *more]


def test_a_folder_of_classes_becomes_a_classifier(folder: Path, tmp_path: Path) -> None:
    sizes = small_images(folder, "stage.vision.patch_size=[4,6]")
    done = run("images", "vision", tmp_path, *sizes, "stage.vision.train.steps=30")
    (scores,) = done.results[-1]["scores"].values()
    assert list(scores) == ["accuracy", "f1_macro", "count"] and scores["accuracy"] == 1.0 and scores["count"] == 4
    assert done.results[-1]["baselines"][folder.name]["accuracy"] == 0.5
    assert any("logistic regression" in note for note in done.results[-1]["notes"])
    pipe = quatrain.pipeline(model=done.model)
    found = pipe([str(folder / "dark" / "1.png"), np.full((5, 7), 240, np.uint8)])
    assert [each[0]["label"] for each in found] == ["dark", "bright"]
    # transformers reads the folder, and prepares and names the pictures in the same way.
    theirs = transformers.AutoModelForImageClassification.from_pretrained(done.model)
    prepare = transformers.AutoImageProcessor.from_pretrained(done.model)
    from PIL import Image

    with torch.no_grad():
        logits = theirs(**prepare(Image.open(folder / "dark" / "1.png"), return_tensors="pt")).logits
    score = logits.softmax(-1)[0, theirs.config.label2id["dark"]]
    assert found[0][0]["score"] == pytest.approx(float(score), abs=1e-5)


def test_augmented_training_follows_from_the_seed(folder: Path, tmp_path: Path) -> None:
    weights = []
    for place, seed in (("one", 0), ("same", 0), ("other", 1)):
        done = run("images", "vision", tmp_path / place, *small_images(folder), f"seed={seed}")
        weights.append(model_folder.load(done.model).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_a_teacher_a_distillation_token_and_another_size(folder: Path, tmp_path: Path) -> None:
    teacher = run("images", "vision", tmp_path / "teacher", *small_images(folder))
    done = run("images", "vision", tmp_path / "student", *small_images(folder), "model.family=deit",
               f"stage.vision.teacher={teacher.model}")  # fmt: skip
    assert json.loads((done.model / "config.json").read_text())["architectures"] == [
        "DeiTForImageClassificationWithTeacher"
    ]
    sizes = [f"stage.vision.images={folder}", "stage.vision.image_size=20", "stage.vision.patch_size=4"]
    larger = run("images", "vision", tmp_path / "larger", *sizes, "model=none", f"model.folder={teacher.model}")
    config = model_folder.load_config(larger.model)
    assert config.frontend.grid == (5, 5) and config.max_position_embeddings == 26
    assert json.loads((larger.model / "preprocessor_config.json").read_text())["size"] == {"height": 20, "width": 20}


def test_predict_names_pictures_and_refuses_the_rest(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from quatrain.cli import main

    done = run("images", "vision", tmp_path, *small_images(folder))
    os.chdir(folder)  # the name is shown whole: a long one is cut
    picture = str(Path("bright") / "3.png")
    assert main(["predict", str(done.model), picture]) == 0
    assert capsys.readouterr().out.split("\t")[2].strip() == picture
    assert main(["predict", str(done.model), picture, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["scores"]) == {"dark", "bright"}
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert main(["predict", str(done.model), str(broken)]) == 2
    assert "broken.png" in capsys.readouterr().err
    assert main(["predict", str(done.model), picture, "--stride", "3"]) == 2


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("images", ["stage.vision.image_size=50"], "image_size"),
        ("images", ["model.family=llama"], "family"),
        ("images", ["stage.vision.teacher=runs/digits/model"], "teacher"),
        ("images", ["stage.vision.augment=[\"spin\"]"], "augment"),
        ("digits", ["stage.vision.patch_size=[5,2]"], "5 x 2"),
        ("clip-shapes", ["model.family=vit"], "family"),
        ("clip-shapes", ["stage.image-text.patch_size=5"], "image_size"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_named(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        load(name, overrides)
    assert any(message in problem for problem in error.value.problems)


def test_folders_without_two_classes_are_refused(tmp_path: Path) -> None:
    for source, message in ((str(tmp_path / "absent"), "neither a folder"), (str(tmp_path), "0 classes")):
        with pytest.raises(InputError, match=message):
            load_pictures(source)


def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "TRAIN", 24)
    monkeypatch.setattr(shapes, "HELD", 6)
    monkeypatch.setattr(odd_shapes, "NUMBER", 12)


def test_shapes_hold_out_pairs_of_known_colours_and_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    few_shapes(monkeypatch)
    one, same = shapes.load(3), shapes.load(3)
    assert all(np.array_equal(a.source, b.source) for a, b in zip(one.train, same.train, strict=True))
    assert len(shapes.UNSEEN) == 16
    seen = set(shapes.PAIRS) - shapes.UNSEEN
    assert {colour for colour, _ in seen} == set(shapes.COLOURS) and {shape for _, shape in seen} == set(shapes.SHAPES)
    for picture in one.train:
        _, _, colour, shape = picture.caption.split()
        answers = {question.text: question.answer for question in picture.questions}
        assert (colour, shape) in seen and answers["what colour is it?"] == colour
    far = load_pictures("shapes + odd-shapes", 3)
    odd = far.train[24:]
    assert len(odd) == 12 and all(picture.caption.split()[2] == "odd" for picture in odd)
    for picture in odd:  # none has a shade of a named colour, so that no pair that is held out is seen
        pixels = picture.source.reshape(-1, 3).astype(float)
        inner = np.median(pixels[np.ptp(pixels - np.median(pixels, 0), 1) > 40], 0) if picture.label != "ring" else None
        if inner is not None and np.isfinite(inner).all():
            assert min(np.abs(inner - np.array(colour)).max() for colour in shapes.COLOURS.values()) > 15
    for picture in one.held_out["combinations never seen"]:
        assert tuple(picture.caption.split()[2:]) in shapes.UNSEEN


def test_captions_and_pictures_become_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_shapes(monkeypatch)
    done = run("clip-shapes", "image-text", tmp_path, *SMALL, "stage.image-text.patch_size=8")
    scores = done.results[-1]["scores"]
    assert list(scores) == ["combinations never seen", "combinations seen"]
    assert all(each["accuracy_own_captions"] >= each["accuracy"] for each in scores.values())
    theirs = transformers.CLIPModel.from_pretrained(done.model)
    ours: Any = model_folder.load(done.model)
    x, ids = torch.randn(2, 3, 32, 32), torch.tensor([[5, 6, ours.config.eos_token_id]])
    expected = theirs(input_ids=ids, pixel_values=x).logits_per_text
    torch.testing.assert_close(ours(ids, features=x)[0], expected, atol=1e-5, rtol=1e-5)


def test_a_picture_is_named_in_words_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few_shapes(monkeypatch)
    done = run("clip-shapes", "image-text", tmp_path, *SMALL)
    pipe = quatrain.pipeline(model=done.model)
    picture = shapes.draw_picture((0, 0, 0), shapes.PAIRS).source
    found = pipe(picture, candidate_labels="a red circle, a blue star", hypothesis_template="{}")
    assert {each["label"] for each in found} == {"a red circle", "a blue star"}
    assert sum(each["score"] for each in found) == pytest.approx(1, abs=1e-5)
    same = pipe([picture], candidate_labels=["a red circle", "a blue star"])[0]
    assert same == found
    with pytest.raises(InputError, match="candidate_labels"):
        pipe(picture)


def test_shorter_captions_belong_to_every_picture_of_which_they_are_true() -> None:
    from quatrain.data.image_processor import ImageProcessor
    from quatrain.data.image_text import ImageTextProcessor
    from quatrain.tokenizers.tokenizer import Tokenizer
    from quatrain.training.objectives.image_text import ImageText

    pictures = [shapes.draw_picture((0, 0, number), shapes.PAIRS) for number in range(40)]
    tokenizer = Tokenizer.train([each.caption for each in pictures], kind="word", vocab_size=99, eos="<|endoftext|>")
    objective = ImageText(ImageTextProcessor(ImageProcessor.of(32), tokenizer), length=16, augment=["flip"], short=0.5)
    plain = objective.collate(pictures).labels
    said = [picture.caption for picture in pictures]
    assert plain.tolist() == [[float(one == other) for other in said] for one in said]
    drawn, same, other = (objective.collate(pictures, seed=[(seed, n) for n in range(40)]) for seed in (0, 0, 1))
    assert torch.equal(drawn.labels, same.labels) and torch.equal(drawn.inputs["features"], same.inputs["features"])
    assert not torch.equal(drawn.labels, other.labels)
    assert (drawn.labels.diagonal() == 1).all() and drawn.labels.sum() > plain.sum()
