"""Word vectors of a file start the embedding of a fresh network, and stay or learn."""

import numpy as np
import pytest

from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.loading.model import load_model
from quatrain.runs.recipe import loads
from quatrain.runs.runner import run

RECIPE = """
name = "small"
[data]
source = "{folder}/texts.csv"
validation = 0.25
[tokenizer]
kind = "word"
vocab_size = 30
[model]
family = "text-cnn"
hidden_size = {width}
num_hidden_layers = 1
max_position_embeddings = 32
[model.classic]
num_filters = 4
kernel_sizes = [2]
vectors = "{folder}/vectors.txt"
train_vectors = {learns}
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "finetune"
objective = "classify"
train = {{ steps = 4, batch_tokens = 64, precision = "float32", warmup_steps = 1, learning_rate = 0.05 }}
[evaluate]
examples = 4
"""
WORDS = ["good", "bad", "film", "absent"]


@pytest.fixture
def folder(tmp_path):
    rows = [f"{label},a {label} film {number}" for number in range(8) for label in ("good", "bad")]
    (tmp_path / "texts.csv").write_text("label,text\n" + "\n".join(rows) + "\n", encoding="utf-8")
    lines = [
        f"{word} " + " ".join(str(5.0 + place + number) for place in range(3)) for number, word in enumerate(WORDS)
    ]
    (tmp_path / "vectors.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("learns", [True, False])
def test_vectors_of_a_file_stay_or_learn(folder, learns):
    recipe = loads(RECIPE.format(folder=folder.as_posix(), width=3, learns=str(learns).lower()))
    done = run(recipe, runs_dir=folder / "runs", reporter=SilentReporter())
    assert any("3 of" in note and "rows of the embedding start" in note for note in done.results[-1]["notes"])
    model, tokenizer = load_model(done.model)
    assert model.config.vectors == ("tuned" if learns else "static")
    matrix = np.array([[5.0 + place + number for place in range(3)] for number in range(len(WORDS))], dtype=np.float32)
    scale = model.embedding_std / matrix.std(ddof=1)
    for number, word in enumerate(WORDS[:3]):
        row = model.embed_tokens.weight[tokenizer.encode(word)[0]].detach().numpy()
        assert np.allclose(row, matrix[number] * scale, atol=1e-6) != learns
        assert np.allclose(row, matrix[number] * scale, atol=0.3)


def test_vectors_wider_than_the_embedding_are_refused_with_the_setting(folder):
    recipe = loads(RECIPE.format(folder=folder.as_posix(), width=2, learns="true"))
    with pytest.raises(InputError, match=r"3 wide, and the embedding has 2; set model"):
        run(recipe, runs_dir=folder / "runs", reporter=SilentReporter())
