"""The contacts stage: an EvoFormer beside mutual information, its maps in the report, and the same after a resume."""

import json

import numpy as np
import torch

from quatrain.core.progress import SilentReporter
from quatrain.data.proteins import generate
from quatrain.models.io import model_folder
from quatrain.runs.recipe import load
from quatrain.runs.runner import run
from quatrain.runs.stages._contacts import SET

SMALL = ["stage[0].families=6", "stage[0].held_out=2", "stage[0].depth=4", "stage[0].length=24",
         "stage[0].train.steps=2", "stage[0].train.warmup_steps=1", "stage[0].train.batch_tokens=192",
         "stage[0].evoformer.num_hidden_layers=1",
         "stage[0].evoformer.recycles=0"]  # fmt: skip


def test_the_stage_measures_other_families_and_draws_their_contacts(tmp_path):
    folder = run(load("contacts", SMALL), runs_dir=tmp_path, reporter=SilentReporter()).folder
    result = json.loads((folder / "stages/01-contacts/result.json").read_text())
    scores, baseline = result["scores"][SET], result["baselines"][SET]
    assert set(scores) == {"precision_L", "precision_L_2", "precision_L_5", "count"} and scores["count"] == 2
    assert baseline["name"] == "mutual information with APC" and 0 < result["chance"] < 0.3
    families = generate(2, seed=1_000_003, length=24, depth=4)
    drawn = np.array(result["figures"][0]["values"])
    assert np.array_equal(np.tril(drawn), np.tril(families[0].contacts)) and drawn.shape == (24, 24)
    page = (folder / "report.html").read_text()
    assert "EvoFormer: contacts of a family held out" in page and "Mutual information with APC" in page
    model = model_folder.load(folder / "model")
    found = model.contacts(torch.from_numpy(families[0].alignment)[None])
    np.testing.assert_allclose(np.triu(found[0], 6), np.triu(drawn, 6), atol=1e-4)


def test_it_learns_contacts(tmp_path):
    """A tiny model overfits two families: the planted contacts are what the loss asks for."""
    learned = [each for each in SMALL if "steps" not in each]
    settings = [*learned, "stage[0].families=2", "stage[0].train.steps=60", "stage[0].train.warmup_steps=5",
                "stage[0].train.learning_rate=0.01"]  # fmt: skip
    folder = run(load("contacts", settings), runs_dir=tmp_path, reporter=SilentReporter()).folder
    (family, _), model = generate(2, seed=0, length=24, depth=4), model_folder.load(folder / "model")
    scores = model.contacts(torch.from_numpy(family.alignment)[None])[0].numpy()
    rows, columns = np.triu_indices(24, 6)
    touching = family.contacts[rows, columns]
    assert scores[rows, columns][touching].mean() > 2 * scores[rows, columns][~touching].mean()
