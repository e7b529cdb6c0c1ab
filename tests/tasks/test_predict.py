"""What a predictor says is what transformers' pipelines say of the same folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.tasks import Predictor

transformers = pytest.importorskip("transformers")

TEXTS = ["a fine film, and a long one", "dull from start to end", "Paris is in France; the fox is not."]
LABELS = {0: "bad", 1: "good", 2: "so-so"}


def tokenizer(folder: Path, pieces: str = "bert") -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    if pieces == "bert":
        inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        inner.normalizer = normalizers.BertNormalizer(lowercase=True)
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        inner.train_from_iterator(TEXTS * 3, trainers.WordPieceTrainer(vocab_size=90, special_tokens=special))
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        names = dict(zip(("pad", "unk", "cls", "sep", "mask"), special, strict=True))
    else:
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trainer = trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        inner.train_from_iterator(TEXTS * 3, trainer)
        inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        names = dict(bos="<s>", pad="<pad>", eos="</s>", unk="<unk>", mask="<mask>", cls="<s>", sep="</s>")
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if pieces == "bert" else [])]
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=40,
        model_input_names=inputs,
        **{f"{name}_token": token for name, token in names.items()},
    )
    wrapped.save_pretrained(folder)
    return wrapped


def saved(folder: Path, task: str, pieces: str = "bert", **settings: Any) -> Path:
    """A tiny random model of a task, as transformers writes it."""
    torch.manual_seed(3)
    words = tokenizer(folder, pieces)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    family = "Bert" if pieces == "bert" else "Roberta"
    more = {} if pieces == "bert" else dict(type_vocab_size=1, bos_token_id=0, eos_token_id=2)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(words), max_position_embeddings=42, pad_token_id=words.pad_token_id, **sizes, **more, **settings
    )
    model = getattr(transformers, f"{family}For{task}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(params=["bert", "roberta"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    return lambda task, **settings: saved(tmp_path / "model", task, request.param, **settings)


def pipeline(name: str, folder: Path) -> Any:
    return transformers.pipeline(name, model=str(folder), device="cpu")


def test_classes(make: Callable[..., Path]) -> None:
    folder = make("SequenceClassification", id2label=LABELS)
    found = list(Predictor.load(folder).predict(TEXTS))
    for mine, theirs in zip(found, pipeline("text-classification", folder)(TEXTS, top_k=None), strict=True):
        assert mine.value["label"] == theirs[0]["label"]
        assert mine.value["score"] == pytest.approx(theirs[0]["score"], abs=1e-5)
        assert mine.value["scores"] == pytest.approx({each["label"]: each["score"] for each in theirs}, abs=1e-5)


def test_pairs(make: Callable[..., Path]) -> None:
    folder = make("SequenceClassification", id2label=LABELS)
    (mine,) = Predictor.load(folder).predict([{"text": TEXTS[0], "text_pair": TEXTS[1]}])
    theirs = pipeline("text-classification", folder)({"text": TEXTS[0], "text_pair": TEXTS[1]})
    assert mine.value["label"] == theirs["label"] and mine.value["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_several_labels_and_numbers(make: Callable[..., Path]) -> None:
    folder = make("SequenceClassification", id2label=LABELS, problem_type="multi_label_classification")
    for mine, theirs in zip(
        Predictor.load(folder).predict(TEXTS), pipeline("text-classification", folder)(TEXTS, top_k=None), strict=True
    ):
        assert mine.value["scores"] == pytest.approx({each["label"]: each["score"] for each in theirs}, abs=1e-5)
        assert set(mine.value["labels"]) == {each["label"] for each in theirs if each["score"] > 0.5}
    folder = make("SequenceClassification", id2label={0: "stars"}, problem_type="regression")
    for mine, theirs in zip(
        Predictor.load(folder).predict(TEXTS),
        pipeline("text-classification", folder)(TEXTS, function_to_apply="none"),
        strict=True,
    ):
        assert mine.value["scores"] == pytest.approx({"stars": theirs["score"]}, abs=1e-4)


def test_tags_of_words(make: Callable[..., Path]) -> None:
    folder = make("TokenClassification", id2label=dict(enumerate(["O", "B-X", "I-X"])))
    predictor = Predictor.load(folder)
    tagger = pipeline("token-classification", folder)
    for text, mine in zip(TEXTS, predictor.predict(TEXTS), strict=True):
        theirs = {each["start"]: each for each in tagger(text, ignore_labels=[])}
        words = mine.value["words"]
        assert "".join(word["word"] for word in words) == text.replace(" ", "")
        for word in words:
            assert text[word["start"] : word["end"]] == word["word"]
            # a byte-level token may begin with the space before its word
            there = theirs.get(word["start"]) or theirs[word["start"] - 1]
            assert word["label"] == there["entity"] and word["score"] == pytest.approx(there["score"], abs=1e-5)
    (given,) = predictor.predict([{"words": ["the", "fox", "is"]}])
    assert [word["word"] for word in given.value["words"]] == ["the", "fox", "is"]
    (long,) = predictor.predict([" ".join(TEXTS * 5)])
    assert all("score" in word for word in long.value["words"]), "a long text is read in stretches"


def test_answers(make: Callable[..., Path]) -> None:
    folder = make("QuestionAnswering")
    context, question = TEXTS[2], "where is the fox"
    (mine,) = Predictor.load(folder).predict([{"context": context, "question": question}])
    assert mine.value["answer"] and mine.value["answer"] in context and 0 < mine.value["score"] <= 1
    reader = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = words(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets, parts = encoded.pop("offset_mapping")[0], encoded.sequence_ids(0)
    if reader.config.type_vocab_size < 2:
        encoded.pop("token_type_ids", None)
    with torch.no_grad():
        said = reader(**encoded)
    inside = [place for place, part in enumerate(parts) if part == 1]
    start, end = max(
        ((a, b) for a in inside for b in inside if a <= b < a + 30),
        key=lambda span: float(said.start_logits[0, span[0]] + said.end_logits[0, span[1]]),
    )
    assert mine.value["answer"] == context[int(offsets[start][0]) : int(offsets[end][1])].strip()


def test_masked_words(make: Callable[..., Path]) -> None:
    folder = make("MaskedLM")
    filler = pipeline("fill-mask", folder)
    text = f"a fine {filler.tokenizer.mask_token} film"
    (mine,) = Predictor.load(folder).predict([text])
    (mask,) = mine.value["masks"]
    theirs = filler(text)
    assert [each["id"] for each in mask] == [each["token"] for each in theirs]
    assert [each["score"] for each in mask] == pytest.approx([each["score"] for each in theirs], abs=1e-5)
    with pytest.raises(InputError, match="where a token is to be filled in"):
        list(Predictor.load(folder).predict(["a film"]))


def test_choices(make: Callable[..., Path]) -> None:
    folder = make("MultipleChoice")
    (mine,) = Predictor.load(folder).predict([{"question": TEXTS[0], "choices": TEXTS[1:]}])
    words = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = words([TEXTS[0]] * 2, TEXTS[1:], return_tensors="pt", padding=True)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(folder)
    if model.config.type_vocab_size < 2:
        encoded.pop("token_type_ids", None)
    with torch.no_grad():
        scores = model(**{name: each[None] for name, each in encoded.items()}).logits.softmax(-1)[0]
    assert mine.value["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
    assert mine.value["choice"] == TEXTS[1:][int(scores.argmax())]


def test_texts_out_of_texts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = tokenizer(tmp_path, "roberta")
    sizes = dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32)
    heads = dict(encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64)
    ids = dict(pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2)
    config = transformers.BartConfig(vocab_size=len(words), **sizes, **heads, **ids)
    model = transformers.BartForConditionalGeneration(config).eval()
    model.generation_config.max_length = 12
    model.save_pretrained(tmp_path)
    found = [each.value["text"] for each in Predictor.load(tmp_path, max_new_tokens=8).predict(TEXTS)]
    for text, mine in zip(TEXTS, found, strict=True):
        said = model.generate(
            **words(text, return_tensors="pt", return_token_type_ids=False), max_new_tokens=8, num_beams=1
        )
        assert mine.strip() == words.decode(said[0], skip_special_tokens=True).strip()


def test_heads_that_predict_nothing_are_refused(tmp_path: Path) -> None:
    words = tokenizer(tmp_path)
    config = transformers.GPT2Config(vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="quatrain generate"):
        Predictor.load(tmp_path)


# The verb


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("judge"), "SequenceClassification", id2label=LABELS)


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "b.csv", "c.csv", "a.tsv", "a.txt.bz2"])
def test_files_of_every_kind(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    import bz2

    expected = [each.value for each in Predictor.load(judge).predict(TEXTS)]
    plain = "\n".join(TEXTS) + "\n"
    path = tmp_path / name
    quoted = "".join(f'"{text}",good\n' for text in TEXTS)
    path.write_bytes(
        {
            "a.txt": plain.encode(),
            "a.jsonl": "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS).encode(),
            "a.csv": ("Text,Label\n" + quoted).encode(),
            "b.csv": ("text\n" + "".join(f'"{text}"\n' for text in TEXTS)).encode(),
            "c.csv": ("Meinung,Urteil\n" + quoted).encode(),
            "a.tsv": ("id\treview\n" + "".join(f"1\t{text}\n" for text in TEXTS)).encode(),
            "a.txt.bz2": bz2.compress(plain.encode()),
        }[name]
    )
    options = ["--columns", "text=Meinung"] if name == "c.csv" else []
    assert main(["predict", str(judge), str(path), "--json", *options]) == 0
    found = said(capsys)
    assert [each["text"] for each in found] == TEXTS
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    if options:
        assert main(["predict", str(judge), str(path)]) == 2
        assert "do not say what to read; use --columns text=…" in capsys.readouterr().err


def test_texts_and_standard_input(
    judge: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    label = next(iter(Predictor.load(judge).predict(TEXTS[:1]))).value["label"]
    assert main(["predict", str(judge), *TEXTS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith(f"{label}\t0.") and lines[0].endswith(TEXTS[0])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((TEXTS[0] + "\n\n" + TEXTS[1] + "\n").encode())))
    assert main(["predict", str(judge), "-", "--json"]) == 0
    assert [each["text"] for each in said(capsys)] == TEXTS[:2]
    assert main(["predict", str(judge), "--json", "- begins with a hyphen"]) == 0
    assert said(capsys)[0]["text"] == "- begins with a hyphen"


def test_what_does_not_fit_is_said(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(judge), " ".join(TEXTS * 5), "--json"]) == 0
    written = capsys.readouterr()
    assert json.loads(written.out)["cut"] > 10 and "exceed the model's context" in written.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["missing.csv"], "does not exist"),
        (["{tmp}"], "is a folder"),
        ([" "], "is empty"),
        (["x", "--question", "who"], "does not take questions"),
        (["x", "--max-new-tokens", "0"], "at least 1"),
        (["{tmp}/bad.jsonl"], "bad.jsonl:2"),
        (["{tmp}/null.jsonl"], "null.jsonl:1"),
        (["{tmp}/surrogate.jsonl"], "half of a character"),
        (["{tmp}/empty.jsonl"], "no text in it"),
    ],
)
def test_bad_input_is_named(
    judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "null.jsonl").write_text('{"text": null}\n')
    (tmp_path / "surrogate.jsonl").write_text('{"text": "\\ud800"}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    assert main(["predict", str(judge), *(word.replace("{tmp}", str(tmp_path)) for word in words)]) == 2
    assert part in capsys.readouterr().err


def test_digits_are_no_places_of_named_classes(judge: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = tmp_path / "digits.csv"
    digits.write_text("text,label\n" + "".join(f'"{text}",{number}\n' for number, text in enumerate(TEXTS)))
    assert main(["evaluate", str(judge), str(digits)]) == 2
    assert "the data has the labels 0, 1, 2; the model has bad, good, so-so" in capsys.readouterr().err
    whole, names = tmp_path / "whole.jsonl", tmp_path / "names.jsonl"
    whole.write_text("".join(json.dumps({"text": text, "label": n}) + "\n" for n, text in enumerate(TEXTS)))
    names.write_text("".join(json.dumps({"text": text, "label": LABELS[n]}) + "\n" for n, text in enumerate(TEXTS)))
    found = []
    for path in (whole, names):
        assert main(["evaluate", str(judge), str(path), "--json"]) == 0
        (told,) = said(capsys)
        found.append(told)
    assert found[0]["scores"] == found[1]["scores"]
    assert "0 is bad, 1 is good, 2 is so-so" in found[0]["notes"][0] and not found[1]["notes"]
