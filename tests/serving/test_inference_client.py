"""Hugging Face's own client asks our server: every answer is that of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pipeline_setup import LABELS, NLI, TEXTS, saved, summarizer
from serving_setup import running
from tiny_models import make_folder

import quatrain
from quatrain.models.io import model_folder
from quatrain.serving.server import Server
from quatrain.tokenizers.tokenizer import Tokenizer

hub = pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.usefixtures("hub_online")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("served")
    made = {
        "tiny": make_folder(place / "tiny"),
        "classes": saved(place / "classes", "SequenceClassification", id2label=LABELS),
        "nli": saved(place / "nli", "SequenceClassification", **NLI),
        "tags": saved(place / "tags", "TokenClassification", id2label=dict(enumerate(["O", "B-X", "I-X"]))),
        "spans": saved(place / "spans", "QuestionAnswering"),
        "masks": saved(place / "masks", "MaskedLM"),
        "texts": summarizer(place / "texts"),
    }
    model = model_folder.load(made["masks"], head="embedding")
    model.config = model.config.replace(normalize_embedding=True)
    model_folder.save(model, place / "vectors")
    Tokenizer.load(made["masks"]).save(place / "vectors")
    (place / "vectors" / "config_sentence_transformers.json").write_text('{"prompts": {"query": "the fox "}}')
    return made | {"vectors": place / "vectors"}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[Server]:
    with running([f"{name}={folder}" for name, folder in folders.items()]) as server:
        yield server


def client(server: Server, name: str = "") -> Any:
    """The client of a model's address, or of the server's."""
    return hub.InferenceClient(model=f"{server.address}/models/{name}" if name else server.address)


def close(mine: Any, other: Any) -> bool:
    return [each.label for each in mine] == [each["label"] for each in other] and [
        each.score for each in mine
    ] == pytest.approx([each["score"] for each in other], abs=1e-5)


def test_text_classification(server: Server, folders: dict[str, Path]) -> None:
    pipe = quatrain.pipeline("text-classification", folders["classes"])
    asked = client(server, "classes")
    assert close(asked.text_classification(TEXTS[0]), pipe(TEXTS[0], top_k=None))
    assert close(asked.text_classification(TEXTS[0], top_k=1), pipe(TEXTS[0], top_k=1))
    raw = asked.text_classification(TEXTS[0], function_to_apply="none")
    assert close(raw, pipe(TEXTS[0], top_k=None, function_to_apply="none"))


def test_zero_shot_classification(server: Server, folders: dict[str, Path]) -> None:
    expected = quatrain.pipeline("zero-shot-classification", folders["nli"])(TEXTS[0], ["good", "bad"])
    found = client(server, "nli").zero_shot_classification(TEXTS[0], ["good", "bad"])
    assert [each.label for each in found] == expected["labels"]
    assert [each.score for each in found] == pytest.approx(expected["scores"], abs=1e-5)
    several = client(server, "nli").zero_shot_classification(
        TEXTS[0], ["good", "bad"], multi_label=True, hypothesis_template="a {} film"
    )
    assert sum(each.score for each in several) != pytest.approx(1.0)


def test_token_classification(server: Server, folders: dict[str, Path]) -> None:
    pipe = quatrain.pipeline("token-classification", folders["tags"])
    found = client(server, "tags").token_classification(TEXTS[2])
    expected = pipe(TEXTS[2], aggregation_strategy="simple")
    assert [(each.entity_group, each.word, each.start, each.end) for each in found] == [
        (each["entity_group"], each["word"], each["start"], each["end"]) for each in expected
    ]
    none = client(server, "tags").token_classification(TEXTS[2], aggregation_strategy="none", ignore_labels=["B-X"])
    assert none and all(each.entity != "B-X" for each in none)


def test_question_answering(server: Server, folders: dict[str, Path]) -> None:
    expected = quatrain.pipeline("question-answering", folders["spans"])(question="where is the fox", context=TEXTS[2])
    found = client(server, "spans").question_answering(question="where is the fox", context=TEXTS[2])
    assert (found.answer, found.start, found.end) == (expected["answer"], expected["start"], expected["end"])
    assert found.score == pytest.approx(expected["score"], abs=1e-5)
    several = client(server, "spans").question_answering(
        question="where is the fox", context=TEXTS[2], top_k=3, max_answer_len=4, handle_impossible_answer=True
    )
    assert len(several) == 3


def test_fill_mask(server: Server, folders: dict[str, Path]) -> None:
    expected = quatrain.pipeline("fill-mask", folders["masks"])("a fine [MASK] film")
    found = client(server, "masks").fill_mask("a fine [MASK] film")
    assert [each.token for each in found] == [each["token"] for each in expected]
    assert [each.sequence for each in found] == [each["sequence"] for each in expected]
    assert len(client(server, "masks").fill_mask("a fine [MASK] film", targets=["a", "is"], top_k=1)) == 1


def test_summaries_and_translations(server: Server, folders: dict[str, Path]) -> None:
    pipe = quatrain.pipeline("summarization", folders["texts"])
    (expected,) = pipe(TEXTS[0])
    asked = client(server, "texts")
    assert asked.summarization(TEXTS[0]).summary_text == expected["summary_text"]
    assert asked.translation(TEXTS[0]).translation_text == expected["summary_text"]
    (short,) = pipe(TEXTS[0], max_new_tokens=3)
    assert (
        asked.summarization(TEXTS[0], generate_parameters={"max_new_tokens": 3}).summary_text == short["summary_text"]
    )
    named = hub.InferenceClient(model=f"{server.address}/models/texts/pipeline/translation")
    assert dict(named.translation(TEXTS[0])) == {"translation_text": expected["summary_text"]}
    whole = asked.summarization(" ".join(TEXTS * 9), truncation="only_first")
    assert whole.summary_text is not None


def test_vectors(server: Server, folders: dict[str, Path]) -> None:
    pipe = quatrain.pipeline("sentence-embeddings", folders["vectors"])
    asked = client(server, "vectors")
    assert asked.feature_extraction(TEXTS[0]).tolist() == pytest.approx(pipe(TEXTS[0]), abs=1e-5)
    assert asked.feature_extraction(TEXTS).shape == (3, 32)
    query = asked.feature_extraction(TEXTS[0], prompt_name="query", dimensions=8, normalize=True, truncate=True)
    assert query.tolist() == pytest.approx(pipe(TEXTS[0], prompt_name="query", truncate_dim=8), abs=1e-5)
    similar = asked.sentence_similarity(TEXTS[0], TEXTS[1:])
    assert similar == pytest.approx(
        quatrain.pipeline("sentence-similarity", folders["vectors"])(TEXTS[0], TEXTS[1:]), abs=1e-5
    )
    states = client(server, "masks/pipeline/feature-extraction").feature_extraction(TEXTS[0])
    assert states.ndim == 3 and states.shape[2] == 32


def test_text_generation(server: Server, folders: dict[str, Path]) -> None:
    pipe = quatrain.pipeline("text-generation", folders["tiny"])
    (expected,) = pipe("Hello", max_new_tokens=9, return_full_text=False)
    for asked in (client(server), client(server, "tiny")):
        assert asked.text_generation("Hello", max_new_tokens=9) == expected["generated_text"]
        assert "".join(asked.text_generation("Hello", max_new_tokens=9, stream=True)) == expected["generated_text"]
    asked = client(server)
    full = asked.text_generation("Hello", max_new_tokens=9, return_full_text=True)
    assert full == "Hello" + expected["generated_text"]
    told = asked.text_generation("Hello", max_new_tokens=9, details=True)
    assert told.details.generated_tokens == len(told.details.tokens) == 9
    assert "".join(token.text for token in told.details.tokens) == expected["generated_text"]
    assert told.details.finish_reason == "length"
    *_, last = asked.text_generation("Hello", max_new_tokens=9, details=True, stream=True)
    assert last.generated_text == expected["generated_text"] and last.details.generated_tokens == 9
    drawn = {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "seed": 3, "max_new_tokens": 5, "stop": ["x"]}
    assert asked.text_generation("Hello", **drawn) == asked.text_generation("Hello", **drawn)
    number = asked.text_generation("Hello", grammar={"type": "regex", "value": "[0-9]{3}"}, max_new_tokens=9)
    assert number.isdigit() and len(number) == 3


def test_questions_to_a_table(server: Server) -> None:
    """A model that knows nothing writes no SQL: the answer is empty, and says why."""
    found = client(server).table_question_answering(table={"city": ["Oslo", "Rome"]}, query="how many cities are there")
    assert found.answer == "" and found.cells == [] and found["reason"]


def test_chats(server: Server) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    answers = [
        client(server, name).chat_completion(messages, max_tokens=6, temperature=0.0).choices[0].message.content
        for name in ("", "tiny")
    ]
    assert answers[0] and answers[0] == answers[1]
    asked = client(server)  # a stream ends with its client
    pieces = asked.chat_completion(messages, max_tokens=6, temperature=0.0, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == answers[0]
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
              "additionalProperties": False}  # fmt: skip
    told = client(server).chat_completion(
        messages,
        max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert '"a"' in told.choices[0].message.content


def test_lists_the_health_and_other_addresses(server: Server, folders: dict[str, Path]) -> None:
    with httpx.Client(base_url=server.address, timeout=60) as raw:
        both = raw.post("/pipeline/text-classification/classes", json={"inputs": TEXTS}).json()
        assert len(both) == 3 and all(len(each) == 3 for each in both)
        texts = raw.post("/models/texts/pipeline/summarization", json={"inputs": TEXTS}).json()
        assert len(texts) == 3 and all(list(each) == ["summary_text"] for each in texts)
        assert raw.get("/info").json()["model_id"] == "tiny"
    asked = hub.InferenceClient(model=server.address, provider="hf-inference")
    assert asked.health_check() and asked.get_endpoint_info()["model_id"] == "tiny"


@pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
        ("/models/nobody", {"inputs": "a"}, 404, "nobody"),
        ("/pipeline/nothing", {"inputs": "a"}, 404, "the tasks are|The tasks are"),
        ("/models/classes/pipeline/fill-mask", {"inputs": "a"}, 400, "needs a model with the head masked"),
        ("/models/classes", {"inputs": 3}, 400, "must be a text"),
        ("/models/tiny", {"inputs": None}, 400, "must be a text"),
        ("/models/classes", {}, 400, "inputs"),
        ("/models/classes", {"inputs": "a", "parameters": {"top_n": 3}}, 400, "top_n"),
        ("/models/classes", {"inputs": "a", "parameters": {"top_k": 0}}, 400, "top_k"),
        ("/models/spans", {"inputs": {"question": "who"}}, 400, "context: missing"),
        ("/models/texts", {"inputs": " ".join(TEXTS * 9)}, 400, "tokens"),
        ("/models/tiny", {"inputs": "a", "parameters": {"watermark": True}}, 400, "watermark: not supported"),
        ("/models/tiny/pipeline/table-question-answering", {"inputs": {"query": "how many", "table": "/etc/passwd"}},
         400, "a server reads no files"),
        ("/models/tiny/pipeline/table-question-answering", {"inputs": "how many", "parameters": {"db": "/x.sqlite"}},
         400, "a server reads no files"),
    ],
)  # fmt: skip
def test_errors_are_told(server: Server, path: str, body: dict[str, Any], status: int, part: str) -> None:
    answer = httpx.post(f"{server.address}{path}", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    assert any(each in answer.json()["error"] for each in part.split("|")), answer.text
    assert set(answer.json()) == {"error", "error_type"}
