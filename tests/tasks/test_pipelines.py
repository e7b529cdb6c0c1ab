"""Pipelines give what transformers' pipelines give for the same folder; those that transformers 5 has no longer, what
transformers 4 documented."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_setup import LABELS, NLI, TEXTS, decoder, saved, summarizer
from tiny_models import make_folder

import quatrain
from quatrain.core.errors import InputError
from quatrain.models.io import model_folder
from quatrain.tasks.pipelines import names, pipeline_class, pipelines, task_of_head
from quatrain.tokenizers.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

TAGS = {"id2label": dict(enumerate(["O", "B-X", "I-X", "B-Y"]))}
ODD = ["Paris, is  in France! ünder (the) 🙂 fox", "", "   "]

Make = Callable[..., Path]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Path] = {}

    def folder(task: str, **settings: Any) -> Path:
        key = f"{task}{settings}"
        if key not in made:
            made[key] = saved(tmp_path_factory.mktemp("models") / "model", task, request.param, **settings)
        return made[key]

    return folder


def theirs(task: str, folder: Path, **options: Any) -> Any:
    return transformers.pipeline(task, model=str(folder), device="cpu", **options)


def same(mine: Any, other: Any) -> bool:
    """Whether two outputs have the same shape and text, and numbers that differ by less than 1e-5."""
    if isinstance(other, dict):
        return list(mine) == list(other) and all(same(mine[name], other[name]) for name in other)
    if isinstance(other, list | tuple):
        return isinstance(mine, list | tuple) and len(mine) == len(other) and all(map(same, mine, other))
    if isinstance(mine, float) and not isinstance(mine, bool):
        return abs(mine - float(other)) < 1e-5
    return bool(mine == other)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (TEXTS[0], {}),
        (TEXTS, {}),
        (TEXTS[:1], {}),
        (TEXTS[0], {"top_k": 2}),
        (TEXTS, {"top_k": None}),
        (TEXTS, {"top_k": 1}),
        (TEXTS, {"function_to_apply": "sigmoid", "top_k": None}),
        (TEXTS, {"function_to_apply": "none"}),
        ({"text": TEXTS[0], "text_pair": TEXTS[1]}, {}),
        ([{"text": TEXTS[0], "text_pair": TEXTS[1]}, {"text": TEXTS[2], "text_pair": "a"}], {"top_k": 2}),
        (ODD, {"top_k": None}),
    ],
)
def test_classes(make: Make, inputs: Any, options: dict[str, Any]) -> None:
    folder = make("SequenceClassification", id2label=LABELS)
    mine = quatrain.pipeline("text-classification", folder)
    assert same(mine(inputs, **options), theirs("text-classification", folder)(inputs, **options))


@pytest.mark.parametrize(
    "settings",
    [
        {"id2label": LABELS, "problem_type": "multi_label_classification"},
        {"id2label": {0: "stars"}, "problem_type": "regression"},
        {"id2label": {0: "score"}},
        {"id2label": {0: "spam", 1: "ham"}},
    ],
)
def test_the_function_follows_from_the_kind_of_problem(make: Make, settings: dict[str, Any]) -> None:
    folder = make("SequenceClassification", **settings)
    mine, other = quatrain.pipeline("sentiment-analysis", folder), theirs("sentiment-analysis", folder)
    assert same(mine(TEXTS, top_k=None), other(TEXTS, top_k=None))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_entities(make: Make, strategy: str) -> None:
    folder = make("TokenClassification", **TAGS)
    mine, other = quatrain.pipeline("ner", folder), theirs("ner", folder)
    for ignored in ([], ["O"], ["O", "X", "B-X"]):
        options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
        for text in [*TEXTS, *ODD]:
            assert same(mine(text, **options), other(text, **options)), text
        assert same(mine(TEXTS, **options), other(TEXTS, **options))
    for entity in mine(ODD[0], aggregation_strategy=strategy, ignore_labels=[]):
        word = ODD[0][entity["start"] : entity["end"]]
        assert word == word.strip()


@pytest.mark.parametrize(
    "options",
    [
        {"candidate_labels": ["good", "bad", "film"]},
        {"candidate_labels": "good, bad", "multi_label": True},
        {"candidate_labels": ["film"]},
        {"candidate_labels": ["good", "bad"], "hypothesis_template": "a {} film"},
    ],
)
def test_classes_of_no_training(make: Make, options: dict[str, Any]) -> None:
    folder = make("SequenceClassification", **NLI)
    mine, other = quatrain.pipeline("zero-shot-classification", folder), theirs("zero-shot-classification", folder)
    for inputs in (TEXTS[0], TEXTS):
        assert same(mine(inputs, **options), other(inputs, **options))


def test_masks(make: Make) -> None:
    folder = make("MaskedLM")
    mine, other = quatrain.pipeline("fill-mask", folder), theirs("fill-mask", folder)
    mask = other.tokenizer.mask_token
    for inputs, options in [
        (f"a fine {mask} film", {}),
        (f"a fine {mask} film", {"top_k": 2}),
        (f"a {mask} {mask} film", {"top_k": 3}),
        ([f"a fine {mask} film", f"the {mask}"], {}),
        ([f"a fine {mask} film"], {}),
        (f"a fine {mask} film", {"targets": ["a", "is"]}),
    ]:
        assert same(mine(inputs, **options), other(inputs, **options)), (inputs, options)
    with pytest.warns(UserWarning, match="no token of the vocabulary"):
        found = mine(f"a {mask}", targets=["zzqqzz"])
    assert same(found, other(f"a {mask}", targets=["zzqqzz"]))
    with pytest.raises(InputError, match="where a token is to be filled in"):
        mine("a film")


def test_states(make: Make) -> None:
    folder = make("MaskedLM")
    mine, other = quatrain.pipeline("feature-extraction", folder), theirs("feature-extraction", folder)
    assert same(mine(TEXTS[0]), other(TEXTS[0]))
    assert same(mine(TEXTS, batch_size=3), other(TEXTS))
    assert mine(TEXTS[0], return_tensors=True).shape == other(TEXTS[0], return_tensors=True).shape


@pytest.mark.filterwarnings("ignore")
def test_continuations(tmp_path: Path) -> None:
    folder = decoder(tmp_path)
    mine, other = quatrain.pipeline("text-generation", folder), theirs("text-generation", folder)
    greedy = {"max_new_tokens": 8, "do_sample": False}
    for inputs, options in [
        (TEXTS[0], greedy),
        (TEXTS, greedy),
        (TEXTS[0], {**greedy, "return_full_text": False}),
        (TEXTS[:2], {**greedy, "num_beams": 3, "num_return_sequences": 2}),
        (TEXTS[0], {"max_length": 20, "do_sample": False}),
        (TEXTS[0], {**greedy, "prefix": "the fox "}),
    ]:
        assert same(mine(inputs, **options), other(inputs, **options)), options
    chat = [{"role": "user", "content": "a fox"}]
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    other.tokenizer.chat_template = template
    other.tokenizer.save_pretrained(folder)
    mine = quatrain.pipeline("text-generation", folder)
    for inputs in (chat, [chat, [*chat, {"role": "assistant", "content": "so"}]]):
        for options in (greedy, {**greedy, "return_full_text": False}):
            assert same(mine(inputs, **options), other(inputs, **options))


def answers_of_transformers_4(folder: Path, question: str, context: str, *, longest: int = 15) -> list[dict[str, Any]]:
    """The best answer as the question-answering pipeline of transformers 4 scored it, for a context of one window."""
    reader = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = words(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets, parts = encoded.pop("offset_mapping")[0].tolist(), encoded.sequence_ids(0)
    if reader.config.type_vocab_size < 2:
        encoded.pop("token_type_ids", None)
    with torch.no_grad():
        said = reader(**encoded)
    allowed = torch.tensor([part == 1 for part in parts])
    allowed[0] = True  # [CLS] takes part in the softmax, and then cannot be the answer
    start, end = (
        logits[0].masked_fill(~allowed, -10000.0).softmax(-1) for logits in (said.start_logits, said.end_logits)
    )
    none = float(start[0] * end[0])
    found = [
        {
            "score": float(start[a] * end[b]), "start": offsets[a][0], "end": offsets[b][1],
            "answer": context[offsets[a][0] : offsets[b][1]],
        }
        for a in range(1, len(parts)) for b in range(a, min(a + longest, len(parts)))
        if parts[a] == parts[b] == 1
    ]  # fmt: skip
    return [{"score": none, "start": 0, "end": 0, "answer": ""}, *sorted(found, key=lambda each: -each["score"])]


def test_answers(make: Make) -> None:
    folder = make("QuestionAnswering")
    context, question = TEXTS[2], "where is the fox"
    mine = quatrain.pipeline("question-answering", folder, align_to_words=False)
    none, best, *_ = expected = answers_of_transformers_4(folder, question, context)
    assert same(mine(question=question, context=context), best)
    assert same(mine({"question": question, "context": context}), best)
    assert same(mine(question=[question] * 2, context=context), [best, best])
    assert same(mine([{"question": question, "context": context}]), [best])
    assert same(mine(question=question, context=context, max_answer_len=2),
                answers_of_transformers_4(folder, question, context, longest=2)[1])  # fmt: skip
    ranked = sorted(expected[:4], key=lambda each: -each["score"])
    found = mine(question=question, context=context, top_k=3, handle_impossible_answer=True)
    assert same(found, ranked[:3])
    sure = mine(question=question, context=context, handle_impossible_answer=True, threshold=1e3)
    assert same(sure, best)
    never = mine(question=question, context=context, handle_impossible_answer=True, threshold=-1e3)
    assert never["answer"] == "" and never["score"] == pytest.approx(none["score"], abs=1e-6)


def test_a_long_context_is_read_in_windows(make: Make) -> None:
    mine = quatrain.pipeline("question-answering", make("QuestionAnswering"))
    context = " ".join(TEXTS * 20)
    for options in ({}, {"doc_stride": 3}, {"max_seq_len": 20}):
        found = mine(question="where is the fox", context=context, **options)
        assert context[found["start"] : found["end"]] == found["answer"] and found["answer"]
        around = context[found["start"] - 1 : found["start"] + 1]
        assert len(around) < 2 or not around.isalnum(), "answers are whole words"
    with pytest.raises(InputError, match="leaves"):
        mine(question="where is the fox " * 20, context=context)
    assert mine(question="where is the fox " * 20, context=context, max_question_len=5)["answer"]


def test_choices(make: Make) -> None:
    folder = make("MultipleChoice")
    given = {"question": TEXTS[0], "choices": TEXTS[1:]}
    found = quatrain.pipeline("multiple-choice", folder)([given, {"question": TEXTS[1], "choices": ["a fox"]}])
    words = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = words([TEXTS[0]] * 2, TEXTS[1:], return_tensors="pt", padding=True)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(folder)
    if model.config.type_vocab_size < 2:
        encoded.pop("token_type_ids", None)
    with torch.no_grad():
        scores = model(**{name: each[None] for name, each in encoded.items()}).logits.softmax(-1)[0]
    assert found[0]["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
    assert found[0]["choice"] == TEXTS[1:][int(scores.argmax())] == TEXTS[1:][found[0]["number"]]
    assert found[1] == {"choice": "a fox", "number": 0, "score": 1.0, "scores": [1.0]}


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("summarization", "summary_text"),
        ("translation_en_to_de", "translation_text"),
        ("text2text-generation", "generated_text"),
    ],
)
def test_texts_for_texts(tmp_path: Path, task: str, key: str) -> None:
    """The shapes of transformers 4: a list of one object for a text, a list of objects for a list of texts."""
    folder = summarizer(tmp_path)
    model = transformers.BartForConditionalGeneration.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)

    def expected(text: str, **options: Any) -> list[dict[str, str]]:
        encoded = words(text, return_tensors="pt", return_token_type_ids=False)
        made = model.generate(**encoded, **options)
        return [{key: words.decode(each, skip_special_tokens=True)} for each in made]

    mine = quatrain.pipeline(task, folder)
    assert mine(TEXTS[0]) == expected(TEXTS[0], max_length=12)
    assert mine(TEXTS, max_new_tokens=8) == [expected(text, max_new_tokens=8)[0] for text in TEXTS]
    several = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8}
    assert mine(TEXTS[:2], **several) == [expected(text, **several) for text in TEXTS[:2]]
    with pytest.raises(InputError, match=r"prompt 1: .* tokens; the model reads 64"):
        mine(" ".join(TEXTS * 9))
    with pytest.warns(UserWarning, match="1 of 1 inputs exceed"):
        assert mine(" ".join(TEXTS * 9), truncation=True)[0][key] is not None


def test_settings_of_the_task_in_the_models_files(tmp_path: Path) -> None:
    own = {
        "summarization": {"prefix": "a ", "max_length": 6},
        "translation_en_to_de": {"prefix": "the fox "},
        "translation_en_to_fr": {"prefix": "France "},
    }
    folder = summarizer(tmp_path, task_specific_params=own)
    plain = quatrain.pipeline("text2text-generation", folder)
    (told,) = quatrain.pipeline("summarization", folder)(TEXTS[0])
    assert told["summary_text"] == plain("a " + TEXTS[0], max_length=6)[0]["generated_text"]
    translate = quatrain.pipeline("translation", folder)
    for name, prefix in (("de", "the fox "), ("fr", "France ")):
        expected = plain(prefix + TEXTS[0])[0]["generated_text"]
        assert translate(TEXTS[0], src_lang="en", tgt_lang=name)[0]["translation_text"] == expected
        assert quatrain.pipeline(f"translation_en_to_{name}", folder)(TEXTS[0])[0]["translation_text"] == expected
    with pytest.raises(InputError, match="translation_en_to_xx: the model does not name this pair"):
        quatrain.pipeline("translation_en_to_xx", folder)


def test_a_model_in_one_line(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task follows from the head, the model from the newest run of a recipe; errors name heads and recipes."""
    folder = make("SequenceClassification", id2label=LABELS)
    assert quatrain.pipeline(model=folder).task == "text-classification"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="quatrain run sentiment"):
        quatrain.pipeline("sentiment-analysis")
    for name in ("topic", "sentiment"):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "model").symlink_to(folder)
        (run / "recipe.toml").write_text(f'name = "{name}"\n')
        (run / "run.json").write_text("{}")
    found = quatrain.pipeline("sentiment-analysis")
    assert found.subject.resolved.folder == Path("runs/sentiment/model")
    with pytest.raises(InputError, match=r"head question_answering, and .* has sequence_classification. Models with "
                       r"it: .*BertForQuestionAnswering.* `quatrain run qa` trains one"):  # fmt: skip
        quatrain.pipeline("question-answering", folder)
    with pytest.raises(InputError, match="did you mean text-classification"):
        quatrain.pipeline("text-clasification", folder)
    with pytest.raises(InputError, match=r"top_n: unknown; the options are top_k"):
        quatrain.pipeline("text-classification", folder, top_n=3)
    with pytest.raises(InputError, match='device: "nowhere"'):
        quatrain.pipeline("text-classification", folder, device="nowhere")


def test_lists_and_streams(make: Make) -> None:
    folder = make("SequenceClassification", id2label=LABELS)
    classify = quatrain.pipeline("text-classification", folder)
    read: list[str] = []

    def texts() -> Iterator[str]:
        for text in TEXTS * 10:
            read.append(text)
            yield text

    stream = classify(texts(), batch_size=4)
    assert not isinstance(stream, list) and not read
    first = next(stream)
    assert len(read) == 4, "inputs are read a batch at a time"
    assert same([first, *stream], classify(TEXTS * 10))
    assert same(classify(tuple(TEXTS)), classify(TEXTS)) and classify([]) == []
    mixed = [" ".join(TEXTS[: 1 + number % 3]) for number in range(40)]
    assert same(
        [each.value for each in classify.predict(mixed, batch_size=2)],
        [each.value for text in mixed for each in classify.predict([text])],
    ), "texts of one length share a batch, and the order stays"


def test_every_task_has_a_class() -> None:
    assert len(pipelines()) >= 17
    for name in names():
        assert pipeline_class(name).named(name) is not None
    heads = [(head, kind.reads) for kind in pipelines().values() for head in kind.default_for]
    assert len(heads) == len(set(heads)), "two tasks claim one head of models that read the same"
    assert task_of_head("seq2seq") == "text2text-generation"
    assert task_of_head("seq2seq", "sound") == "automatic-speech-recognition"


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder of unit vectors with prompts."""
    place = tmp_path_factory.mktemp("vectors")
    folder = saved(place / "masks", "MaskedLM")
    model = model_folder.load(folder, head="embedding")
    model.config = model.config.replace(normalize_embedding=True)
    model_folder.save(model, place / "vectors")
    Tokenizer.load(folder).save(place / "vectors")
    (place / "vectors" / "config_sentence_transformers.json").write_text(
        '{"prompts": {"query": "the fox ", "document": ""}, "default_prompt_name": "query"}'
    )
    return place / "vectors"


def test_vectors_of_sentences(vectors: Path) -> None:
    embed = quatrain.pipeline("sentence-embeddings", vectors, return_tensors=True)
    own = embed(TEXTS[0])
    assert embed.task == quatrain.pipeline(model=vectors).task and own.norm() == pytest.approx(1.0)
    assert torch.equal(own, embed("the fox " + TEXTS[0], prompt_name="document")), "the default prompt is put before"
    assert torch.equal(own, embed("the fox " + TEXTS[0], prompt=""))
    assert not torch.allclose(own, embed(TEXTS[0], prompt=""))
    raw = embed(TEXTS[0], normalize=False)
    assert raw.norm() != pytest.approx(1.0) and torch.allclose(raw / raw.norm(), own, atol=1e-6)
    short = embed(TEXTS[0], truncate_dim=8)
    assert torch.allclose(short, own[:8] / own[:8].norm(), atol=1e-6) and torch.allclose(
        embed(TEXTS[0], truncate_dim=8, normalize=False), raw[:8], atol=1e-6
    )
    similar = quatrain.pipeline("sentence-similarity", vectors)
    found = similar(TEXTS[0], TEXTS)
    assert found == pytest.approx([float(own @ embed(text)) for text in TEXTS], abs=1e-5)
    assert similar([{"source_sentence": TEXTS[0], "sentences": TEXTS}]) == [found]
    for options, told in [
        ({"truncate_dim": 99}, "truncate_dim: 99; the vectors of this model have 32"),
        ({"truncate_dim": 9, "precision": "binary"}, "multiple of 8"),
        ({"prompt_name": "nothing"}, "the model has query, document"),
        ({"precision": "int4"}, "precision"),
        ({"precision": "int8", "ranges": ([0.0], [1.0])}, "ranges: 1 and 1 values"),
    ]:
        with pytest.raises(InputError, match=told):
            embed(TEXTS[0], **options)


def test_whole_numbers_and_bits_as_sentence_transformers_make_them(vectors: Path) -> None:
    import numpy as np

    embed = quatrain.pipeline("sentence-embeddings", vectors, return_tensors=True)
    rows = torch.stack(embed(TEXTS)).numpy()
    ranges = rows.min(0), rows.max(0)
    # The formulas of quantize_embeddings.
    steps = (ranges[1] - ranges[0]) / 255
    given = (ranges[0].tolist(), ranges[1].tolist())
    for precision, expected in [
        ("uint8", ((rows - ranges[0]) / steps).astype(np.uint8)),
        ("int8", ((rows - ranges[0]) / steps - 128).astype(np.int8)),
        ("binary", (np.packbits(rows > 0).reshape(len(rows), -1) - 128).astype(np.int8)),
        ("ubinary", np.packbits(rows > 0).reshape(len(rows), -1)),
    ]:
        found = torch.stack(embed(TEXTS, precision=precision, ranges=given)).numpy()
        assert found.dtype == expected.dtype and np.abs(found.astype(int) - expected.astype(int)).max() <= 1
        if precision.endswith("binary"):
            assert (found == expected).all()
    whole = torch.stack(embed(TEXTS, precision="int8")).float()
    cosines = torch.nn.functional.cosine_similarity(whole, torch.from_numpy(rows))
    assert cosines.min() > 0.999, "without ranges each vector keeps its direction"


def test_rewards(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", "SequenceClassification", id2label={0: "LABEL_0"})
    judge, raw = quatrain.pipeline("reward", folder), theirs("text-classification", folder, function_to_apply="none")
    pair = raw({"text": TEXTS[0], "text_pair": TEXTS[1]})["score"]
    assert judge({"prompt": TEXTS[0], "completion": TEXTS[1]})["score"] == pytest.approx(pair, abs=1e-5)
    chat = [{"role": "user", "content": TEXTS[0]}, {"role": "assistant", "content": TEXTS[1]}]
    assert judge(chat)["score"] == pytest.approx(pair, abs=1e-5)
    assert [each["score"] for each in judge([chat, chat])] == pytest.approx([pair] * 2, abs=1e-5)
    assert judge(TEXTS[0])["score"] == pytest.approx(raw(TEXTS[0])[0]["score"], abs=1e-5)
    with pytest.raises(InputError, match="end with the assistant's answer"):
        judge(chat[:1])
    with pytest.raises(InputError, match="needs a model with one score"):
        quatrain.pipeline("reward", saved(tmp_path / "other", "SequenceClassification", id2label=LABELS))


def test_code_and_other_wordings(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "code")
    complete = quatrain.pipeline("code-completion", folder, max_new_tokens=8)
    plain = quatrain.pipeline("text-generation", folder, max_new_tokens=8, return_full_text=False)
    (expected,), (found,) = plain("a fine"), complete("a fine", until="none")
    assert found == expected
    stop = expected["generated_text"].strip()[-1]
    assert complete("a fine", stop=stop)[0]["generated_text"] == plain("a fine", stop=stop)[0]["generated_text"]
    with pytest.raises(InputError, match="no tokens for filling in"):
        complete({"text": "a", "suffix": "b"})
    other = quatrain.pipeline("paraphrase", summarizer(tmp_path / "texts"), num_beams=4, num_return_sequences=4)
    wordings = [each["generated_text"] for each in other(TEXTS[0])]
    assert 1 <= len(wordings) == len({" ".join(each.lower().split()) for each in wordings})


TABLE = {"city": ["Oslo", "Rome", "Bern"], "people": ["700000", "2800000", "140000"]}
ASKED = {
    "How many people live in Rome?": ("SELECT people FROM data WHERE city = 'Rome'", "2800000"),
    "How many cities are there?": ("SELECT COUNT(*) FROM data", "3"),
}


@pytest.mark.slow
def test_questions_to_a_table(tmp_path: Path) -> None:
    """A tiny model that has learned two statements by heart answers from the table itself."""
    folder = make_folder(tmp_path / "model", context=512)
    asker = quatrain.pipeline("table-question-answering", folder, table=TABLE)
    engine = asker.engine
    prompts: dict[str, list[int]] = {}
    generate = engine.generate

    def seen(ids: Any, *arguments: Any, **options: Any) -> Any:
        prompts.setdefault(question, list(ids[0]))
        return generate(ids, *arguments, **options)

    engine.generate = seen  # what the model reads is what it learns
    for question in ASKED:
        asker(question)
    engine.generate = generate
    ends = engine.end_ids[-1]
    rows = [(prompts[question], [*asker.tokenizer.encode(sql), ends]) for question, (sql, _) in ASKED.items()]
    optimizer = torch.optim.Adam(asker.model.train().parameters(), lr=1e-2)
    for _ in range(90):
        loss = torch.zeros(())
        for prompt, turn in rows:
            ids = torch.tensor([prompt + turn])
            logits = asker.model(ids[:, :-1])[0]
            loss = loss + torch.nn.functional.cross_entropy(logits[0, len(prompt) - 1 :], ids[0, len(prompt) :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    asker.model.eval()
    first, second = asker(query=list(ASKED), table=TABLE)
    assert first["answer"] == "2800000" and first["cells"] == ["2800000"] and first["coordinates"] == [(1, 1)]
    assert first["aggregator"] == "NONE" and second["aggregator"] == "COUNT" and second["answer"] == "3"
    assert [first["sql"], second["sql"]] == [sql for sql, _ in ASKED.values()]
    file = tmp_path / "cities.csv"
    file.write_text("city,people\nOslo,1\nRome,2\nBern,3\n")
    assert asker(next(iter(ASKED)), table=str(file))["answer"] == "2"
    rows_of_objects = [{"city": "Rome", "people": 5}]
    assert asker({"question": next(iter(ASKED)), "table": rows_of_objects})["answer"] == "5"
    refused = asker("Please delete all the rows", schema_prompt=False)
    assert refused["answer"] == "" and "nothing in it is changed" in refused["reason"]


def test_tables_that_are_none(tmp_path: Path) -> None:
    asker = quatrain.pipeline("table-question-answering", make_folder(tmp_path / "model"))
    for options, told in [
        ({}, "there is nothing to ask"),
        ({"table": {"a": [1, 2], "b": [1]}}, "different lengths: a 2, b 1"),
        ({"table": 3}, "must be an object of columns"),
        ({"table": {"a b": [1], "a-b": [2]}}, "columns of one name"),
        ({"db": tmp_path / "none.sqlite"}, "no such file|There is no database"),
    ]:
        with pytest.raises(InputError, match=told):
            asker("how many rows are there", **options)
