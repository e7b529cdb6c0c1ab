"""Faults of other implementations of pipelines, each with the right output; and odd inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_setup import LABELS, NLI, TEXTS, decoder, saved

import quatrain
from quatrain.core.errors import InputError
from quatrain.models.io import model_folder
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.heads import pool

transformers = pytest.importorskip("transformers")

AMOUNT = "pay 5.975,74 in may"


class Rigged(torch.nn.Module):
    """A tagger that gives the token at each place of a row the label of the table `says`."""

    def __init__(self, model: Any, says: dict[int, int]):
        super().__init__()
        self.config, self.says, self.device = model.config, says, model.device

    def forward(self, input_ids: torch.Tensor, labels: Any = None, **more: Any) -> Any:
        logits = torch.zeros(*input_ids.shape, len(self.config.labels))
        for place in range(input_ids.shape[1]):
            logits[:, place, self.says.get(place, 0)] = 5.0
        return logits, None


@pytest.mark.parametrize("pieces", ["bert", "roberta"])
@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_the_pieces_of_a_number_stay_one_entity(tmp_path: Path, pieces: str, strategy: str) -> None:
    """BERT's tokenizer divides 5.975,74 at its points; other pipelines then see several words, or several B- tags."""
    folder = saved(tmp_path / "model", "TokenClassification", pieces, id2label=dict(enumerate(["O", "B-SUM", "I-SUM"])))
    tagger = quatrain.pipeline("ner", folder)
    offsets = tagger.tokenizer.encode_with_offsets(AMOUNT)[1]
    inside = [place for place, (start, end) in enumerate(offsets, 1) if start < 12 and end > 4]
    assert len(inside) > 3
    for said in (dict.fromkeys(inside, 1), dict.fromkeys(inside, 2) | {inside[0]: 1}):
        tagger.model = Rigged(tagger.model, said)
        (found,) = tagger(AMOUNT, aggregation_strategy=strategy)
        assert found["entity_group"] == "SUM" and AMOUNT[found["start"] : found["end"]] == "5.975,74"


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "last", "mean_sqrt", "weighted_mean"])
def test_pads_do_not_change_pooled_vectors(pooling: str) -> None:
    """[1,0], [1,0] with the pads [0,2], [0,2] is [1,0]."""
    config = ModelConfig(
        family="bert", vocab_size=9, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=8, architecture="encoder", head="embedding", pooling=pooling,
    )  # fmt: skip
    states = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 2.0]]])
    ids, segments = torch.tensor([[5, 6, 0, 0]]), torch.tensor([[1, 1, 0, 0]])
    scale = 2**0.5 if pooling == "mean_sqrt" else 1.0
    assert torch.allclose(pool(states, config, ids, segments), torch.tensor([[scale, 0.0]]))
    turned = pool(states.flip(1), config, ids.flip(1), segments.flip(1))
    assert torch.allclose(turned, torch.tensor([[scale, 0.0]])), "padding on the left changes nothing either"


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "last", "mean_sqrt", "weighted_mean"])
def test_vectors_of_a_batch_are_those_of_single_texts(tmp_path: Path, pooling: str) -> None:
    folder = saved(tmp_path / "model", "MaskedLM")
    model = model_folder.load(folder, head="embedding")
    model.config = model.config.replace(pooling=pooling)
    from quatrain.tokenizers.tokenizer import Tokenizer

    embed = quatrain.pipeline("sentence-embeddings", model, Tokenizer.load(folder), return_tensors=True)
    texts = ["a", " ".join(TEXTS), "the fox", ""]
    together = embed(texts)
    for text, vector in zip(texts, together, strict=True):
        assert torch.allclose(embed(text), vector, atol=1e-5)


def test_several_labels_are_scored_by_themselves(tmp_path: Path) -> None:
    """With multi_label the score of a label does not depend on the others; without, the scores add up to 1."""
    folder = saved(tmp_path / "model", "SequenceClassification", **NLI)
    classify = quatrain.pipeline("zero-shot-classification", folder)
    labels = ["good", "bad", "film"]
    alone = {label: classify(TEXTS[0], [label])["scores"][0] for label in labels}
    together = classify(TEXTS[0], labels, multi_label=True)
    for label, score in zip(together["labels"], together["scores"], strict=True):
        assert score == pytest.approx(alone[label], abs=1e-6)
    assert sum(classify(TEXTS[0], labels)["scores"]) == pytest.approx(1.0)
    with pytest.raises(InputError, match="its labels are bad, good, so-so"):
        quatrain.pipeline(
            "zero-shot-classification", saved(tmp_path / "other", "SequenceClassification", id2label=LABELS)
        )(TEXTS[0], labels)
    with pytest.raises(InputError, match="hypothesis_template"):
        classify(TEXTS[0], labels, hypothesis_template="no place")
    with pytest.raises(InputError, match="candidate_labels: none"):
        classify(TEXTS[0])


def test_each_of_several_masks_has_its_own_tokens(tmp_path: Path) -> None:
    fill = quatrain.pipeline("fill-mask", saved(tmp_path / "model", "MaskedLM"))
    mask = "[MASK]"
    found = fill(f"a {mask} film, a {mask} one", top_k=3)
    assert len(found) == 2 and all(len(each) == 3 for each in found)
    assert all(mask in proposal["sequence"] for each in found for proposal in each), "the other mask stays"
    assert found[0] != found[1]


def test_a_model_whose_pad_is_its_end_pools_the_right_token(tmp_path: Path) -> None:
    """GPT-2 pads with its end token; the score is read at the last token of the text, even if this is an end token."""
    folder = decoder(tmp_path, "ForSequenceClassification", id2label=LABELS, pad_token_id=2)
    classify = quatrain.pipeline("text-classification", folder, top_k=3)
    for text in (TEXTS[0], "a</s>", "a</s></s>", "</s>"):
        alone = classify(text)
        (_, beside) = classify([" ".join(TEXTS), text])
        for one, other in zip(alone, beside, strict=True):
            assert one["label"] == other["label"] and one["score"] == pytest.approx(other["score"], abs=1e-5)
    for task in ("text-classification", "feature-extraction"):
        with pytest.raises(InputError, match="a text is empty"):
            quatrain.pipeline(task, folder)(["a", ""])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[..., Any]]:
    place = tmp_path_factory.mktemp("models")
    made = {
        "text-classification": saved(place / "classes", "SequenceClassification", id2label=LABELS),
        "ner": saved(place / "tags", "TokenClassification", id2label=dict(enumerate(["O", "B-X"]))),
        "question-answering": saved(place / "spans", "QuestionAnswering"),
        "fill-mask": saved(place / "masks", "MaskedLM"),
    }
    made |= {"feature-extraction": made["fill-mask"], "sentence-embeddings": made["fill-mask"]}
    return {task: quatrain.pipeline(task, folder) for task, folder in made.items()}


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "🙂🙂 👩‍👩‍👧", "é" * 3, "\x00"])
def test_odd_texts(tasks: dict[str, Callable[..., Any]], text: str) -> None:
    assert tasks["text-classification"](text)[0]["label"] in LABELS.values()
    assert all(0 <= each["start"] <= each["end"] <= len(text) for each in tasks["ner"](text, ignore_labels=[]))
    assert len(tasks["sentence-embeddings"](text)) == 32
    assert len(tasks["feature-extraction"](text)[0][0]) == 32
    assert tasks["fill-mask"](f"{text} [MASK]")[0]["score"] > 0
    if not text.strip():
        with pytest.raises(InputError, match="input 1: context: is empty"):
            tasks["question-answering"](question="who", context=text)
        with pytest.raises(InputError, match="input 1: question: is empty"):
            tasks["question-answering"](question=text, context="a")


def test_a_hundred_thousand_characters(tasks: dict[str, Callable[..., Any]]) -> None:
    """What does not fit is read in windows, or cut with a warning that counts the tokens."""
    text = ("the fox is " * 10_000)[:100_000]
    for task in ("text-classification", "sentence-embeddings", "feature-extraction"):
        with pytest.warns(UserWarning, match=r"1 of 2 inputs exceed the model's context of 4\d tokens: [\d,]+ tokens"):
            assert len(tasks[task]([text, "a"])) == 2
    found = tasks["ner"](text, aggregation_strategy="words")
    assert len(found) == len(text.split()) and found[-1]["end"] >= 99_990
    assert tasks["question-answering"](question="who", context=text[:9_000], top_k=2)
    with pytest.raises(InputError, match="it stands beyond them"):
        tasks["fill-mask"](text + " [MASK]")


@pytest.mark.parametrize("given", [3, None, 2.5, b"bytes", object(), True])
def test_inputs_of_another_type(tasks: dict[str, Callable[..., Any]], given: Any) -> None:
    for task in ("text-classification", "ner", "fill-mask"):
        with pytest.raises(InputError, match=r"must be (a text|an object)"):
            tasks[task](given)
        with pytest.raises(InputError, match=r"input 2: .*must be (a text|an object)"):
            tasks[task](["a [MASK]", given])
    with pytest.raises(InputError, match=r"input 1: text: .* must be a text"):
        tasks["text-classification"]({"text": given if given is not None else 3})
    with pytest.raises(InputError, match="half of a character"):
        tasks["text-classification"]("\ud800")


def test_missing_fields_are_named(tasks: dict[str, Callable[..., Any]]) -> None:
    with pytest.raises(InputError, match="input 2: question: missing; give an object of context, question"):
        tasks["question-answering"]([{"question": "who", "context": "a"}, {"context": "a"}])
    with pytest.raises(InputError, match="3 questions for 2 contexts"):
        tasks["question-answering"](question=["a"] * 3, context=["b"] * 2)
    with pytest.raises(InputError, match="batch_size: 0"):
        tasks["ner"]("a", batch_size=0)
