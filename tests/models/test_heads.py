"""Heads: the losses are those of transformers, wrong labels are named, and a body takes another head."""

import json

import battery
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.models.families import families
from quatrain.models.io import model_folder
from quatrain.models.transformer import heads
from quatrain.models.transformer.stack import Model

transformers = pytest.importorskip("transformers")

EVERY = battery.all_cases()
ENCODERS = {name: next(case for case in EVERY if case.name == f"{name} masked") for name in (
    "bert", "roberta", "distilbert", "modernbert")}  # fmt: skip
DECODERS = {name: next(case for case in EVERY if case.name == f"{name} plain") for name in ("llama", "gpt2")}
LABELS = ["no", "perhaps", "yes"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each family, with its language head."""
    root = tmp_path_factory.mktemp("folders")
    for name, case in (ENCODERS | DECODERS).items():
        battery.theirs(case).save_pretrained(root / name)
    return root


def head_tensors(model):
    return {name for name in model.state_dict() if name.startswith(("lm_head", "transform", "pooler", "score"))}


def body(model):
    return {name: tensor for name, tensor in model.state_dict().items() if name not in head_tensors(model)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


SWITCHES = [
    (name, head)
    for name in (*ENCODERS, *DECODERS)
    for head in families()[name].heads
    if head not in ("masked", "causal")
]


@pytest.mark.parametrize(("name", "head"), SWITCHES)
def test_a_body_takes_another_head(folders, tmp_path, name, head):
    given = LABELS if head.endswith("classification") else None
    before, model = model_folder.load(folders / name), model_folder.load(folders / name, head=head, labels=given)
    assert model.config.head == head and not model.training
    assert same(body(model), body(before))
    named = set(model.newly_initialized)
    assert named <= head_tensors(model)
    assert {tensor for tensor in named if tensor.startswith("score")} == {
        tensor for tensor in head_tensors(model) if tensor.startswith("score")
    }
    if head in ("none", "embedding"):
        assert not named
    if given:
        assert model.config.labels == tuple(LABELS)
    again, other = (model_folder.load(folders / name, head=head, labels=given, seed=seed) for seed in (0, 1))
    assert same(again.state_dict(), model.state_dict())
    if "score.weight" in named:
        weights = model.score.weight
        assert 0 < weights.std() < 0.1 and not torch.equal(other.score.weight, weights)
    model_folder.save(model, tmp_path)
    returned = model_folder.load(tmp_path, head=head)
    assert returned.newly_initialized == [] and returned.config == model.config
    assert same(returned.state_dict(), model.state_dict())


@pytest.mark.parametrize("name", ENCODERS | DECODERS)
def test_a_switched_classifier_is_one_of_transformers(folders, tmp_path, name):
    model = model_folder.load(folders / name, head="sequence_classification", labels=LABELS)
    with torch.no_grad():
        model.score.weight.mul_(20)
    model_folder.save(model, tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == dict(enumerate(LABELS))
    case = (ENCODERS | DECODERS)[name]
    ids, mask = battery.batch(case, "right")
    with torch.no_grad():
        ours = model(ids, segments=mask)[0]
        torch.testing.assert_close(ours, theirs(input_ids=ids, attention_mask=mask).logits, atol=1e-5, rtol=1e-5)
    assert ours.std() > 0.01


@pytest.mark.parametrize("name", ENCODERS | DECODERS)
def test_what_the_head_does_not_replace_is_read_strictly(folders, tmp_path, name):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text((folders / name / "config.json").read_text())
    tensors = load_file(folders / name / model_folder.WEIGHTS)
    lost = next(key for key in tensors if "1." in key and key.endswith("weight"))
    del tensors[lost]
    tensors["strange.weight"] = torch.zeros(2)
    save_file(tensors, folder / model_folder.WEIGHTS)
    with pytest.raises(InputError) as caught:
        model_folder.load(folder, head="sequence_classification", labels=LABELS)
    assert sorted(caught.value.problems) == sorted([f"{lost}: missing", "strange.weight: unexpected"])


@pytest.mark.parametrize("name", ENCODERS | DECODERS)
def test_labels_of_another_number_or_name(folders, tmp_path, name):
    model_folder.save(model_folder.load(folders / name, head="sequence_classification", labels=LABELS), tmp_path)
    before = model_folder.load(tmp_path)
    renamed = model_folder.load(tmp_path, labels=["a", "b", "c"])
    assert renamed.newly_initialized == [] and renamed.config.labels == ("a", "b", "c")
    assert same(renamed.state_dict(), before.state_dict())
    more = model_folder.load(tmp_path, labels=["a", "b", "c", "d"])
    assert more.score.weight.shape[0] == 4
    assert set(more.newly_initialized) == {key for key in head_tensors(more) if "score" in key}
    if more.pooler is not None:
        assert torch.equal(more.pooler.dense.weight, before.pooler.dense.weight)


def test_a_head_that_is_not_there_is_named_with_the_others(folders):
    with pytest.raises(
        InputError, match=r"head: 'value' is not a head of bert; must be one of masked, causal, pretraining"
    ):
        model_folder.load(folders / "bert", head="value")
    for head, labels, told in (
        ("sequence_classification", [], "at least one name"),
        ("sequence_classification", "yes", "must be a list"),
        ("sequence_classification", ["a", "b", "a"], "a more than once"),
        ("question_answering", ["a", "b"], "the head question_answering has none"),
        (None, ["a", "b"], "the head masked has none"),
    ):
        with pytest.raises(InputError, match=told):
            model_folder.load(folders / "bert", head=head, labels=labels)
    with pytest.raises(InputError, match='problem_type: "multi"; must be one of single_label, multi_label, regression'):
        model_folder.load(folders / "bert", head="sequence_classification", labels=LABELS, problem_type="multi")


@pytest.mark.parametrize("problem_type", ["multi_label", "regression"])
def test_what_labels_are_is_written_and_read(folders, tmp_path, problem_type):
    model = model_folder.load(
        folders / "distilbert", head="sequence_classification", labels=LABELS, problem_type=problem_type
    )
    model_folder.save(model, tmp_path)
    assert model_folder.load(tmp_path).config.problem_type == model.config.problem_type == problem_type
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids, mask = battery.batch(ENCODERS["distilbert"], "right")
    wanted = torch.rand(3, 3, generator=torch.Generator().manual_seed(0)).round()
    expected = theirs(input_ids=ids, attention_mask=mask, labels=wanted).loss
    torch.testing.assert_close(model(ids, wanted, segments=mask)[1].mean(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in DECODERS if "value" in families()[name].heads])
def test_a_reward_model_scores_its_last_token_as_transformers_does(folders, tmp_path, name):
    model = model_folder.load(folders / name, head="value", seed=3)
    assert model.newly_initialized == ["score.weight"] and model.config.num_labels == 1
    with torch.no_grad():
        model.score.weight.mul_(30)
    model_folder.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification") and len(config["id2label"]) == 1
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids, mask = battery.batch(DECODERS[name], "right")
    last = mask.sum(1) - 1
    with torch.no_grad():
        values = model(ids, segments=mask)[0]
        scores = theirs(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert values.shape == ids.shape and scores.std() > 0.01
    torch.testing.assert_close(values[torch.arange(3), last], scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model_folder.load(tmp_path, head="value")(ids, segments=mask)[0], values)
    torch.testing.assert_close(model_folder.load(tmp_path)(ids, segments=mask)[0][:, 0], scores, atol=1e-5, rtol=1e-5)


def test_values_learn_where_they_are_known(folders):
    model = model_folder.load(folders / "llama", head="value", seed=3)
    ids, mask = battery.batch(DECODERS["llama"], "right")
    wanted = torch.full(ids.shape, float("nan"))
    wanted[0, -1], wanted[2, 5] = 1.5, -2.0
    values, loss = model(ids, wanted, segments=mask)
    assert (loss != 0).sum() == 2
    torch.testing.assert_close(loss[0, -1], (values[0, -1] - 1.5) ** 2)
    loss.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_spans_outside_the_text_count_nothing():
    """As in transformers: the mean over the starts, and over the ends, that are inside."""
    logits = torch.randn(4, 9, 2, generator=torch.Generator().manual_seed(0))
    spans = torch.tensor([[1, 3], [2, 40], [9, 12], [0, 8]])
    start, end = (
        F.cross_entropy(logits[..., part], spans[:, part].clamp(0, 9), ignore_index=9, reduction="none")
        for part in (0, 1)
    )
    torch.testing.assert_close(heads.span_loss(logits, spans), (start + end) / 2)
    assert heads.span_loss(logits, spans)[2] == 0


def test_ragged_labels_of_a_text_count_nothing():
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    loss = heads.label_loss(logits, torch.tensor([4, -100, 0]), "single_label")
    torch.testing.assert_close(loss[[0, 2]], F.cross_entropy(logits[[0, 2]], torch.tensor([4, 0]), reduction="none"))
    assert loss[1] == 0
    assert torch.equal(loss, heads.label_loss(logits, torch.tensor([4, -100, 0], dtype=torch.int32), "single_label"))


WRONG = {
    "a token past the labels": ("token_classification", lambda ids: torch.full(ids.shape, 3), r"3 at \[0, 0\], 57"),
    "a negative token": ("token_classification", lambda ids: torch.full(ids.shape, -1), "must be 0 to 2, or -100"),
    "tokens of another length": ("token_classification", lambda ids: ids[:, 1:] % 3, r"\(3, 18\).*shape \(3, 19\)"),
    "a text past the labels": ("sequence_classification", lambda ids: torch.tensor([0, 7, 1]), r"7 at \[1\]"),
    "a label for each token": ("sequence_classification", lambda ids: ids % 3, "one label for each text"),
    "numbers for classes": ("sequence_classification", lambda ids: torch.rand(3), "float32.*whole numbers"),
    "a span of one end": ("question_answering", lambda ids: torch.tensor([1, 2, 3]), "first and last token"),
    "spans of fractions": ("question_answering", lambda ids: torch.rand(3, 2), "whole numbers"),
    "no tensor": ("sequence_classification", lambda ids: [0, 1, 2], "labels: list"),
    "one half of pretraining": ("pretraining", lambda ids: ids, "this head needs a pair"),
    "a third sentence": ("pretraining", lambda ids: (ids, torch.tensor([0, 1, 2])), "must be 0 to 1"),
    "a word past the vocabulary": ("masked", lambda ids: ids + 97, "must be 0 to 96"),
    "what has no labels": ("embedding", lambda ids: ids, "no labels"),
}  # fmt: skip


@pytest.mark.parametrize(("head", "labels", "told"), WRONG.values(), ids=WRONG)
def test_wrong_labels_are_named_before_a_kernel_fails(folders, head, labels, told):
    model = model_folder.load(folders / "bert", head=head, labels=LABELS if head.endswith("classification") else None)
    ids, mask = battery.batch(ENCODERS["bert"], "none")
    with pytest.raises(InputError, match=told):
        model(ids, labels(ids), segments=mask)


@pytest.mark.parametrize(
    ("problem_type", "labels", "told"),
    [
        ("multi_label", torch.tensor([[0.0, 1.0], [2.0, 0.0]]), "0 or 1 for each"),
        ("multi_label", torch.tensor([0.0, 1.0]), r"shape \(2,\)"),
        ("regression", torch.zeros(2, 3), r"shape \(2, 3\)"),
        ("regression", torch.zeros(2), r"shape \(2, 2\)"),
    ],
)
def test_wrong_numbers_are_named(problem_type, labels, told):
    with pytest.raises(InputError, match=told):
        heads.label_loss(torch.zeros(2, 2), labels, problem_type)


def test_wrong_types_of_tokens_are_named(folders):
    ids = battery.batch(ENCODERS["bert"], "none")[0]
    bert = model_folder.load(folders / "bert", head="none")
    distilbert = model_folder.load(folders / "distilbert", head="none")
    assert not torch.equal(bert(ids, token_types=torch.ones_like(ids))[0], bert(ids)[0])
    assert torch.equal(distilbert(ids, token_types=torch.zeros_like(ids))[0], distilbert(ids)[0])
    for model, types, told in (
        (bert, torch.full_like(ids, 2), "token_types: 2; must be 0 to 1"),
        (distilbert, torch.ones_like(ids), "this model has no token types"),
        (bert, torch.zeros(3, 4, dtype=torch.long), r"shape \(3, 4\); must be \(3, 19\)"),
    ):
        with pytest.raises(InputError, match=told):
            model(ids, token_types=types)


@pytest.mark.parametrize("name", ENCODERS)
def test_positions_past_the_model_are_named(folders, name):
    model = model_folder.load(folders / name, head="none")
    limit, ids = model.config.max_position_embeddings, torch.full((1, 3), 5)
    assert torch.isfinite(model(ids, positions=torch.tensor([[0, 1, limit - 1]]))[0]).all()
    for place in (limit, -5):
        with pytest.raises(InputError, match=f"positions: {place}; must be 0 to {limit - 1}"):
            model(ids, positions=torch.tensor([[0, 1, place]]))


def test_wrong_choices_and_values_are_named(folders):
    model = model_folder.load(folders / "bert", head="multiple_choice")
    ids = torch.randint(3, 97, (2, 3, 7), generator=torch.Generator().manual_seed(0))
    assert model(ids, torch.tensor([2, 0]))[1].shape == (2,)
    with pytest.raises(InputError, match="must be 0 to 2"):
        model(ids, torch.tensor([3, 0]))
    with pytest.raises(InputError, match=r"must be \(B, choices, T\)"):
        model(ids[0])
    values = model_folder.load(folders / "llama", head="value")
    with pytest.raises(InputError, match="a value for each token"):
        values(ids[:, 0], torch.zeros(2))


@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_leaks_from_padding_or_another_segment(folders, name):
    model = model_folder.load(folders / name, head="none")
    ids, mask = battery.batch(ENCODERS[name], "right")
    padded = model(ids, segments=mask)[0]
    changed = model(torch.where(mask.bool(), ids, 50), segments=mask)[0]
    torch.testing.assert_close(padded[mask.bool()], changed[mask.bool()], atol=1e-6, rtol=1e-6)
    packed = torch.cat((ids[0, :8], ids[2, :11]))[None]
    segments = torch.tensor([[1] * 8 + [2] * 11])
    apart = torch.cat((model(ids[:1, :8])[0], model(ids[2:, :11])[0]), dim=1)
    torch.testing.assert_close(model(packed, segments=segments)[0], apart, atol=1e-5, rtol=1e-5)


def test_roberta_counts_the_tokens_that_are_no_padding(folders):
    """Without a mask too, and where a padding token stands in the text, transformers' positions are ours."""
    theirs, model = battery.theirs(ENCODERS["roberta"]), model_folder.load(folders / "roberta")
    ids = battery.batch(ENCODERS["roberta"], "none")[0]
    ids[0, 4], ids[1, :3], ids[2, -2:] = 1, 1, 1
    with torch.no_grad():
        torch.testing.assert_close(model(ids)[0], theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"39 tokens.*the model reads at most 38"):
        model(torch.full((1, 39), 5))


def test_an_old_checkpoint_of_pretraining_loads_as_its_config_says(folders, tmp_path):
    """bert-base-uncased: norms called gamma and beta, a pooler and a head of next sentences that its config lacks."""
    tensors = load_file(folders / "bert" / model_folder.WEIGHTS)
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    more = {"bert.pooler.dense.weight": (48, 48), "bert.pooler.dense.bias": (48,),
            "cls.seq_relationship.weight": (2, 48),
            "cls.seq_relationship.bias": (2,), "bert.embeddings.position_ids": (1, 40)}  # fmt: skip
    tensors |= {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in more.items()}
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    save_file(tensors, tmp_path / model_folder.WEIGHTS)
    (tmp_path / "config.json").write_text((folders / "bert" / "config.json").read_text())
    assert same(model_folder.load(tmp_path).state_dict(), model_folder.load(folders / "bert").state_dict())
    whole = model_folder.load(tmp_path, head="pretraining")
    assert whole.newly_initialized == [] and torch.equal(whole.pooler.dense.weight, tensors["bert.pooler.dense.weight"])
    assert model_folder.load(tmp_path, head="none").pooler is not None


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_body_without_pooler_stays_without(folders, tmp_path, name):
    stem = {"bert": "Bert", "roberta": "Roberta"}[name]
    theirs = getattr(transformers, f"{stem}Model")(
        battery.theirs(ENCODERS[name]).config, add_pooling_layer=False
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model = model_folder.load(tmp_path / "theirs")
    assert model.pooler is None and model.newly_initialized == []
    assert model.num_parameters() == theirs.num_parameters()
    ids, mask = battery.batch(ENCODERS[name], "right")
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
        battery.compare(ENCODERS[name], model(ids, segments=mask)[0], expected, mask)
    model_folder.save(model, tmp_path / "ours")
    back = load_file(tmp_path / "ours" / model_folder.WEIGHTS)
    assert same(back, load_file(tmp_path / "theirs" / model_folder.WEIGHTS))
    assert isinstance(model_folder.load(tmp_path / "ours"), Model)


def test_a_mean_in_bfloat16_counts_every_token(folders):
    config = model_folder.load(folders / "bert", head="embedding").config
    ids = torch.zeros(1, 1001, dtype=torch.long)
    hidden = torch.ones(1, 1001, 8)
    assert torch.equal(heads.pool(hidden.bfloat16(), config, ids, None), torch.ones(1, 8, dtype=torch.bfloat16))
    hidden[0, 1:] = 0
    torch.testing.assert_close(
        heads.pool(hidden.bfloat16(), config, ids, None), torch.full((1, 8), 1 / 1001).bfloat16()
    )
