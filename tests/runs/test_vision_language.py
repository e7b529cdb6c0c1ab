"""The recipe that teaches a decoder to answer questions about pictures, and what is used with its model."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
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
from quatrain.data.pictures import load_pictures, scenes, shapes
from quatrain.models.io import model_folder
from quatrain.runs.recipe import load
from quatrain.runs.runner import Run

pytest.importorskip("PIL", reason="needs Pillow (extra vision)")

TINY = ["model.hidden_size=16", "model.num_hidden_layers=2", "model.num_attention_heads=2",
        "model.intermediate_size=16", *(f"stage.{stage}.train.{key}" for stage in range(4) for key in (
            "epochs=none", "steps=2", "warmup_steps=1", "batch_tokens=8", "evaluate_every=0"))]  # fmt: skip


def few(patch: pytest.MonkeyPatch) -> None:
    for module in (shapes, scenes):
        patch.setattr(module, "TRAIN", 24)
        patch.setattr(module, "HELD", 3)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        torch.set_num_threads(1)
        place = tmp_path_factory.mktemp("runs")
        return quatrain.run(load("picture-qa", TINY), runs_dir=place, reporter=SilentReporter())


def test_each_stage_trains_its_part_and_no_other(done: Run) -> None:
    folders = sorted((done.folder / "stages").iterdir())
    clip, blind, aligned, whole = (model_folder.load(folder / "model").state_dict() for folder in folders)
    for name in (name for name in clip if name.startswith("image_tower.layers.0.")):
        assert torch.equal(clip[name], blind[name.replace("image_tower.", "frontend.tower.")])
    assert {name for name in blind if not torch.equal(blind[name], aligned[name])} == {
        f"frontend.linear_{layer}.{leaf}" for layer in (1, 2) for leaf in ("weight", "bias")
    }
    learned = {name for name in whole if not torch.equal(aligned[name], whole[name])}
    assert {"frontend.tower.layers.0.mlp.up_proj.weight", "layers.0.mlp.down_proj.weight"} <= learned
    assert not any(name.startswith(("frontend.tower.layers.1.", "frontend.tower.norm.")) for name in learned)


def test_scores_stand_beside_the_commonest_answers_and_the_model_without_pictures(done: Run) -> None:
    blind, whole = done.results[1], done.results[-1]
    sets = ["combinations never seen", "combinations seen"]
    assert list(whole["scores"]) == sets and list(whole["without_picture"]) == sets
    assert "without_picture" not in blind and any("not shown" in note for note in blind["notes"])
    for name in sets:
        kinds = whole["kinds"][name]
        assert set(kinds) == {"colour", "shape", "count", "position", "yes or no"}
        assert sum(kind["count"] for kind in kinds.values()) == whole["scores"][name]["count"]
        assert 0 < whole["baselines"][name]["accuracy"] < 1


def test_transformers_reads_the_model_and_quatrain_predicts_with_it(
    done: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from quatrain.cli import main

    loaded: Any = transformers.LlavaForConditionalGeneration.from_pretrained(done.model, output_loading_info=True)
    info = loaded[1]
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    picture = tmp_path / "picture.png"
    pixels = np.full((40, 30, 3), 120, np.uint8)
    picture.write_bytes(to_png(pixels))
    question = "how many shapes are there?"
    assert (
        main(["predict", str(done.model), str(picture), "--question", question, "--max-new-tokens", "3", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    pipe = quatrain.pipeline(model=done.model, max_new_tokens=3)
    assert pipe.task == "image-text-to-text"
    (found,) = pipe({"image": pixels, "question": question})
    assert found["generated_text"] == told["generated_text"]
    chat = [{"role": "user", "content": [{"type": "image", "image": pixels}, {"type": "text", "text": question}]}]
    assert pipe(chat)[0]["generated_text"].strip() == found["generated_text"]
    assert main(["predict", str(done.model), str(picture)]) == 2
    assert "question: missing" in capsys.readouterr().err
    assert main(["predict", str(done.model), str(tmp_path), "--question", question]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_scenes_have_an_answer_of_each_kind_and_pairs_that_are_never_learned() -> None:
    seen = [pair for pair in shapes.PAIRS if pair not in shapes.UNSEEN]
    learned = [scenes.draw_scene((0, 3, number), seen) for number in range(80)]
    assert np.array_equal(learned[5].source, scenes.draw_scene((0, 3, 5), seen).source)
    kinds = Counter(question.kind for picture in learned for question in picture.questions)
    assert set(kinds) == {"colour", "shape", "count", "position", "yes or no"}
    answers = Counter(question.answer for picture in learned for question in picture.questions)
    assert answers["yes"] == answers["no"] == 80
    for picture in learned:
        words = picture.caption.replace(",", "").split()
        assert not any((colour, shape) in shapes.UNSEEN for colour, shape in pairwise(words))
    for number in range(20):
        picture = scenes.draw_scene((0, 5, number), seen, sorted(shapes.UNSEEN))
        words = picture.caption.replace(",", "").split()
        assert any((colour, shape) in shapes.UNSEEN for colour, shape in pairwise(words))


def test_pictures_without_questions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    for overrides, message in (
        (["stage.1.images=digits"], "has pictures without questions"),
        (["stage.1.patch_size=5"], "must be a multiple of patch_size"),
    ):
        with pytest.raises(InputError) as error:
            quatrain.run(load("picture-qa", [*TINY, *overrides]), runs_dir=tmp_path, reporter=SilentReporter())
        assert message in " ".join([error.value.message, *error.value.problems])


def test_a_file_of_questions_is_read_with_llavas_conversations(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(to_png(np.full((4, 4, 3), 40 * number, np.uint8)))
    asked = {"question": "how dark?", "answer": "very", "kind": "light"}
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "grey"},
             {"from": "human", "value": "sure?"}, {"from": "gpt", "value": "yes"}]  # fmt: skip
    rows = [{"image": f"{number}.png", **asked} for number in range(4)] + [{"image": "4.png", "conversations": turns}]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, rows[0] | {"question": "and now?"}])))
    found = load_pictures(str(file))
    pictures = {picture.place: picture for picture in (*found.train, *found.held_out["mine"])}
    assert len(pictures) == 5 and len(found.held_out["mine"]) == 1
    assert [question.text for question in pictures["0.png"].questions] == ["how dark?", "and now?"]
    assert [(each.text, each.answer) for each in pictures["4.png"].questions] == [("what?", "grey"), ("sure?", "yes")]
    file.write_text(
        "\n".join(map(json.dumps, [{"image": "no.png", **asked}, {"image": "0.png", "question": "what?"}, 3]))
    )
    with pytest.raises(InputError) as error:
        load_pictures(str(file))
    assert [problem.partition(": ")[2][:30] for problem in error.value.problems] == [
        'image: "no.png"; must be the p', "must have a question and an an", "must be an object with fields",
    ]  # fmt: skip
