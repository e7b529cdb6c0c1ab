"""What is hidden, and how much: statistics of the papers, invariants of every row, the same draws from one seed."""

import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import objective_setup as setup
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, TokenExample, windows
from quatrain.data.records import Row
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import objectives as o
from quatrain.training.objectives.base import generators
from quatrain.training.objectives.corruption import shifted_right
from quatrain.training.objectives.pairs import FOLLOWS, RANDOM, sentence_pairs, split_sentences
from quatrain.training.objectives.spans import counts, lengths, noise_mask
from quatrain.training.objectives.words import WordBoundaries

DATA = Path(os.environ.get("QUATRAIN_DATA") or "absent")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="QUATRAIN_DATA names no folder of shared data")
WORDPIECE, SENTINELS, BYTES = setup.wordpiece(), setup.with_sentinels(), setup.byte_level()


def rows(tokenizer, most=60):
    """Rows of any ids of a tokenizer, special ones among them."""
    return st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=most)


seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(rows(WORDPIECE), seeds, st.booleans())
def test_masks_hide_what_the_labels_say_and_nothing_special(row, seed, whole):
    objective = o.Masked(WORDPIECE, whole_word_masking=whole)
    batch = objective.collate([row], seed=seed)
    before, after = [WORDPIECE.bos_id], [WORDPIECE.eos_id]
    original = torch.tensor([*before, *row, *after])
    ids, labels = batch.input_ids[0, : len(original)], batch.labels[0, : len(original)]
    hidden = labels != IGNORE_INDEX
    assert torch.equal(ids[~hidden], original[~hidden]) and torch.equal(labels[hidden], original[hidden])
    special = torch.tensor([token in WORDPIECE.special_ids for token in original.tolist()])
    assert not (hidden & special).any()
    assert (batch.labels[0, len(original) :] == IGNORE_INDEX).all()
    changed = ids[ids != original]
    assert all(token == WORDPIECE.mask_id or token not in WORDPIECE.special_ids for token in changed.tolist())
    free = int((~special).sum())
    count = min(free, max(1, round(0.15 * free)))
    assert int(hidden.sum()) == count if not whole else (hidden.sum() >= 1) == (free >= 1)


@settings(deadline=None)
@given(rows(WORDPIECE, most=80), seeds)
def test_whole_words_are_hidden_whole(row, seed):
    objective = o.Masked(WORDPIECE, whole_word_masking=True)
    _, labels = objective.hide(row, np.random.default_rng(seed))
    spans = objective.words.spans(row)
    assert [place for start, end in spans for place in range(start, end)] == list(range(len(row)))
    hidden = [span for span in spans if labels[span[0]] != IGNORE_INDEX]
    for start, end in spans:
        assert len({label != IGNORE_INDEX for label in labels[start:end]}) == 1
    free = sum(token not in WORDPIECE.special_ids for token in row)
    # No more than asked for, but where the first word alone is.
    assert sum(end - start for start, end in hidden) <= max(1, round(0.15 * free)) or len(hidden) == 1


@pytest.mark.parametrize(
    ("tokenizer", "text", "words"),
    [
        (WORDPIECE, "walking, walker!", ["walking", ",", "walker", "!"]),
        (BYTES, "walking, walker 1859b", ["walking", ",", " walker", " 1859", "b"]),
        (SENTINELS, "walking, walker", ["walking", ",", "walker"]),
    ],
)
def test_words_of_every_kind_of_tokenizer(tokenizer, text, words):
    ids = tokenizer.encode(text)
    spans = WordBoundaries(tokenizer).spans(ids)
    assert [tokenizer.decode(ids[start:end]).strip() for start, end in spans] == [word.strip() for word in words]


def test_four_in_five_become_the_mask():
    """The shares of many draws, each within five deviations."""
    objective = o.Masked(WORDPIECE)
    row = [token for token in WORDPIECE.encode(" ".join(setup.TEXTS)) if token not in WORDPIECE.special_ids][:100]
    fates, places, others = Counter(), np.zeros(len(row)), Counter()
    draws = 2000
    for seed in range(draws):
        ids, labels = objective.hide(row, np.random.default_rng(seed))
        chosen = labels != IGNORE_INDEX
        assert chosen.sum() == 15
        places += chosen
        for token, label in zip(ids[chosen].tolist(), labels[chosen].tolist(), strict=True):
            fates["mask" if token == objective.mask_id else "same" if token == label else "other"] += 1
            if token not in (objective.mask_id, label):
                others[token] += 1
    total = 15 * draws
    for fate, chance in (("mask", 0.8), ("same", 0.1), ("other", 0.1)):
        # A random token is now and then the one that was there.
        slack = 0.1 / len(objective.choices) * 2
        assert abs(fates[fate] / total - chance) < 5 * math.sqrt(chance * (1 - chance) / total) + slack, fate
    assert np.abs(places / draws - 0.15).max() < 5 * math.sqrt(0.15 * 0.85 / draws)
    assert len(others) == len(objective.choices)


def test_masks_are_dynamic_and_follow_from_the_seed_of_each_example():
    objective = o.Masked(WORDPIECE, max_length=40)
    examples, _ = objective.prepare([{"text": text} for text in setup.TEXTS])
    own = [(5, 2, number) for number in range(len(examples))]
    batch = objective.collate(examples, seed=own)
    again = objective.collate(examples, seed=own)
    assert torch.equal(batch.input_ids, again.input_ids) and torch.equal(batch.labels, again.labels)
    other_epoch = objective.collate(examples, seed=[(5, 3, number) for number in range(len(examples))])
    assert not torch.equal(batch.labels, other_epoch.labels)
    # The draws of an example owe nothing to those beside it.
    alone = objective.collate(examples[2:3], seed=own[2:3])
    length = alone.input_ids.shape[1]
    assert torch.equal(alone.input_ids[0], batch.input_ids[2, :length])
    assert torch.equal(objective.collate(examples, seed=9).labels, o.collate(objective, examples, 9).labels)
    torch.manual_seed(0)
    np.random.seed(0)
    state = torch.get_rng_state()
    objective.collate(examples, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [[1, 2], -1, [(1, -2)] * 3, ["x"] * 3])
def test_wrong_seeds_are_told(seed):
    with pytest.raises(InputError, match="seed"):
        generators(seed, 3)


@settings(deadline=None)
@given(st.integers(2, 400), st.floats(0.05, 0.6), st.floats(1, 8), seeds)
def test_noise_has_exactly_the_counts_of_t5(length, noise, mean_span_length, seed):
    mask = noise_mask(length, np.random.default_rng(seed), noise, mean_span_length)
    hidden, spans = counts(length, noise, mean_span_length)
    assert mask.sum() == hidden == min(max(round(length * noise), 1), length - 1)
    assert not mask[0] and mask[-1]
    assert (
        (np.diff(mask.astype(int)) == 1).sum()
        == spans
        == min(max(round(hidden / mean_span_length), 1), length - hidden)
    )


def reference_noise_mask(length, generator, noise=0.15, mean_span_length=3.0):
    """random_spans_noise_mask as text-to-text-transfer-transformer writes it, in NumPy."""
    hidden = min(max(int(np.round(length * noise)), 1), length - 1)
    spans = max(int(np.round(hidden / mean_span_length)), 1)

    def segmentation(items, segments):
        first = np.arange(items - 1) < segments - 1
        generator.shuffle(first)
        segment = np.cumsum(np.pad(first, [[1, 0]]))
        return np.unique(segment, return_counts=True)[1]

    noise_lengths, other_lengths = segmentation(hidden, spans), segmentation(length - hidden, spans)
    interleaved = np.reshape(np.stack([other_lengths, noise_lengths], axis=1), [spans * 2])
    starts = np.zeros(length, dtype=np.int8)
    starts[np.cumsum(interleaved)[:-1]] = 1
    return np.equal(np.cumsum(starts) % 2, 1)


def test_noise_is_distributed_as_in_t5():
    """Where tokens are hidden, and how long spans are, over many draws of both."""
    draws, length = 4000, 60
    ours, theirs = np.random.default_rng(0), np.random.default_rng(1)
    found = [(noise_mask(length, ours), reference_noise_mask(length, theirs)) for _ in range(draws)]
    places = [np.mean([pair[side] for pair in found], axis=0) for side in (0, 1)]
    assert np.abs(places[0] - places[1]).max() < 6 * math.sqrt(0.5 / draws)

    def first_span(mask):
        start = int(np.argmax(mask))
        return int(np.argmin(np.append(mask[start:], False)))

    spans = [Counter(first_span(pair[side]) for pair in found) for side in (0, 1)]
    assert max(abs(spans[0][size] - spans[1][size]) for size in range(10)) < 6 * math.sqrt(draws / 2)
    assert spans[0].keys() == spans[1].keys()


def test_lengths_are_those_of_t5():
    assert lengths(512) == (568, 114)
    assert lengths(1024, 0.15, 3.0) == (1137, 229)
    for source in range(8, 200):
        row, target = lengths(source)
        objective = o.SpanCorruption(SENTINELS, max_length=source)
        made = objective.pair(list(range(300, 301)) * row, np.random.default_rng(0))
        assert (len(made[0]), len(made[1])) <= (source, target) and len(made[0]) > source - 2


def restored(objective, source, target):
    """The original row: each sentinel of the source replaced by its span in the target."""
    spans, span = {}, []
    for token in target[:-1]:
        if token in objective.sentinels:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    return [each for token in source[:-1] for each in spans.get(token, [token])]


@settings(deadline=None)
@given(rows(SENTINELS), seeds)
def test_source_and_target_give_back_the_row(row, seed):
    row = [token for token in row if token not in SENTINELS.special_ids] or [300]
    objective = o.SpanCorruption(SENTINELS)
    source, target = objective.pair(row, np.random.default_rng(seed))
    assert restored(objective, source, target) == row
    said = [token for token in target if token in objective.sentinels]
    assert said == objective.sentinels[: len(said)] == [token for token in source if token in objective.sentinels]
    assert source[-1] == target[-1] == SENTINELS.eos_id
    batch = objective.collate([row], seed=seed)
    assert batch.labels[0, -1] in (IGNORE_INDEX, SENTINELS.eos_id)


@settings(deadline=None)
@given(rows(SENTINELS), seeds)
def test_special_tokens_within_a_row_stay(row, seed):
    """An end token between two documents of a window is never hidden; everything else comes back."""
    ends = [token if token not in SENTINELS.special_ids else SENTINELS.eos_id for token in row]
    objective = o.SpanCorruption(SENTINELS)
    source, target = objective.pair(ends, np.random.default_rng(seed))
    assert source[:-1].count(SENTINELS.eos_id) == ends.count(SENTINELS.eos_id)
    assert SENTINELS.eos_id not in target[:-1]
    assert restored(objective, source, target) == ends
    free = [token for token in ends if token != SENTINELS.eos_id]
    assert bool(target[:-1]) == bool(free)


def test_sentinels_are_taken_by_name_and_may_run_out():
    objective = o.SpanCorruption(SENTINELS)
    assert [SENTINELS.id_to_token(each) for each in objective.sentinels[:3]] == [
        "<extra_id_0>", "<extra_id_1>", "<extra_id_2>"
    ]  # fmt: skip
    assert len(objective.sentinels) == 100
    with pytest.raises(InputError, match="more than the tokenizer's 2 sentinels"):
        o.SpanCorruption(setup.with_sentinels(2)).pair([300] * 200, np.random.default_rng(0))


@settings(deadline=None)
@given(rows(BYTES, most=120), seeds)
def test_denoising_keeps_order_and_content(row, seed):
    objective = o.Denoising(BYTES)
    row = [token for token in row if token != objective.mask_id] or [300]
    generator = np.random.default_rng(seed)
    moved = objective.permuted(row, generator)
    assert sorted(moved) == sorted(row)
    found = objective.infilled(moved, generator)
    kept = [token for token in found if token != objective.mask_id]
    rest = iter(moved)
    assert all(token in rest for token in kept)
    special = [token for token in moved if token in BYTES.special_ids]
    assert [token for token in kept if token in BYTES.special_ids] == special
    assert len(found) <= len(row) + len(special)
    if not special:
        assert len(row) - len(kept) == (min(round(0.3 * len(row)), len(row) - 1) if len(row) > 1 else 0)
    batch = objective.collate([row], seed=seed)
    assert [token for token in batch.labels[0].tolist() if token != IGNORE_INDEX] == [BYTES.bos_id, *row, BYTES.eos_id]


def test_denoising_draws_poisson_spans():
    """Lengths of spans over many rows: mean and the share of each length, masks of length 0 among them."""
    objective = o.Denoising(BYTES)
    spans, inserted, hidden, draws = Counter(), 0, 0, 600
    generator = np.random.default_rng(0)
    for _ in range(draws):
        mask, more = objective._spans(1000, generator)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
        spans.update((edges[1::2] - edges[::2]).tolist())
        inserted, hidden = inserted + more, hidden + int(mask.sum())
    assert hidden == draws * 300
    total = sum(spans.values()) + inserted
    for size in range(8):
        chance = math.exp(-3) * 3**size / math.factorial(size)
        share = (inserted if size == 0 else spans[size]) / total
        # The last span of a row is cut to fit.
        assert abs(share - chance) < 5 * math.sqrt(chance / total) + 0.01, size


def test_sentences_change_places():
    objective = o.Denoising(BYTES)
    text = "One is here. Two is there! Three went away? Four stays. Five sleeps."
    ids = BYTES.encode(text)
    sentences = [BYTES.decode(ids[start:end]).strip() for start, end in objective.words.sentences(ids)]
    assert sentences == [*split_sentences(text)] and len(sentences) == 5
    orders = {tuple(objective.permuted(ids, np.random.default_rng(seed))) for seed in range(60)}
    assert len(orders) > 40 and all(sorted(order) == sorted(ids) for order in orders)
    assert o.Denoising(BYTES, permute=0).permuted(ids, np.random.default_rng(0)) == ids


def test_a_stream_of_windows_is_read_by_each():
    tokens = np.array(WORDPIECE.encode(" ".join(setup.TEXTS)), dtype=np.uint16)
    batch = windows(tokens, [0, 7, 20], 16)
    made = o.Masked(WORDPIECE, max_length=18).collate(batch, seed=1)
    assert made.input_ids.shape == (3, 18) and made.segments is None
    assert (made.input_ids[:, 0] == WORDPIECE.bos_id).all() and (made.input_ids[:, -1] == WORDPIECE.eos_id).all()
    whole = torch.where(made.labels == IGNORE_INDEX, made.input_ids, made.labels)
    assert torch.equal(whole[:, 1:-1], batch.input_ids)
    with pytest.raises(InputError, match=r"row 1: 16 tokens; must be at most 15") as caught:
        o.Masked(WORDPIECE, max_length=17).collate(batch, seed=1)
    assert len(caught.value.problems) == 3 and "2 of them reserved for special tokens" in str(caught.value)
    assert o.Masked(WORDPIECE).collate([TokenExample([30, 31, 32], [True] * 3)], seed=0).num_labels == 1


def test_long_texts_become_rows_and_nothing_is_lost():
    text = " ".join(setup.TEXTS)
    for objective in (o.Masked(WORDPIECE, max_length=20), o.SpanCorruption(SENTINELS, max_length=20),
                      o.Denoising(BYTES, max_length=20)):  # fmt: skip
        examples, notes = objective.prepare([{"text": text}, {"text": setup.TEXTS[0]}])
        ids = objective.tokenizer.encode(text) + objective.tokenizer.encode(setup.TEXTS[0])
        assert [token for example in examples for token in example.ids] == ids
        assert notes == [] and max(map(len, examples)) == objective.row_length
        batch = objective.collate(examples, seed=0)
        assert batch.input_ids.shape[1] <= 20


def test_pairs_of_sentences_are_those_of_bert():
    documents = [{"sentences": [f"{name} walks {number} times ." for number in range(80)]} for name in "abcdefgh"]
    found, notes = sentence_pairs(WORDPIECE, documents, max_length=60, seed=1)
    assert notes[0].startswith(f"{len(found)} pairs from 8 documents")
    sep, cls = WORDPIECE.eos_id, WORDPIECE.bos_id
    names = {WORDPIECE.encode(name)[0]: name for name in "abcdefgh"}
    labels = Counter()
    for pair in found:
        ids, types = pair.ids, pair.token_types
        assert ids[0] == cls and ids[-1] == sep and ids.count(sep) == 2 and len(ids) <= 60
        middle = ids.index(sep)
        assert types == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
        first = {names[token] for token in ids[:middle] if token in names}
        second = {names[token] for token in ids[middle:] if token in names}
        if first and second:
            assert (first == second) == (pair.label == FOLLOWS)
        labels[pair.label] += 1
    assert abs(labels[RANDOM] / len(found) - 0.5) < 0.15
    again, _ = sentence_pairs(WORDPIECE, documents, max_length=60, seed=1)
    other, _ = sentence_pairs(WORDPIECE, documents, max_length=60, seed=2)
    assert again == found and other != found
    alike = WORDPIECE.encode_pair("the dog", "a fox")
    made = sentence_pairs(WORDPIECE, [{"sentences": ["the dog", "a fox"]}] * 2, max_length=60)[0]
    assert any((pair.ids, pair.token_types) == (alike.ids, alike.token_types) for pair in made)


def test_pretraining_batches_hold_two_kinds_of_labels():
    objective = o.Masked(WORDPIECE, next_sentence_prediction=True, max_length=32)
    examples, _ = objective.prepare([{"sentences": setup.TEXTS[:3]}, {"text": " ".join(setup.TEXTS[3:])}], seed=4)
    batch = objective.collate(examples, seed=0)
    masked, follows = batch.to("cpu").labels
    assert masked.shape == batch.input_ids.shape == batch.token_types.shape and follows.shape == (len(examples),)
    assert batch.num_labels == int((masked != IGNORE_INDEX).sum())
    assert ((masked != IGNORE_INDEX).sum(1) >= 1).all()


FAULTS = {
    "no mask": (lambda: o.Masked(SENTINELS), "this tokenizer has no mask token"),
    "no sentinel": (lambda: o.SpanCorruption(WORDPIECE), "no sentinel <extra_id_0> token"),
    "share": (lambda: o.Masked(WORDPIECE, mask_ratio=0), "mask_ratio: 0; must be above 0 and at most 1"),
    "shares": (lambda: o.Masked(WORDPIECE, mask=0.8, random=0.3), r"mask \+ random: 0.8 \+ 0.3; must be at most 1"),
    "span": (lambda: o.SpanCorruption(SENTINELS, mean_span_length=0), "mean_span_length: 0; must be at least 1"),
    "all": (lambda: o.SpanCorruption(SENTINELS, mask_ratio=1.0), "must be above 0 and at most 0.9"),
    "permute": (lambda: o.Denoising(BYTES, permute=-1), "permute: -1; must be at least 0"),
    "length": (lambda: o.Masked(WORDPIECE, max_length=2), "max_length: 2; must be a whole number of at least 4"),
    "pairs": (lambda: o.Masked(WORDPIECE, next_sentence_prediction=True), "max_length: missing"),
    "one document": (lambda: sentence_pairs(WORDPIECE, [{"text": "a b. c d."}], max_length=20), "at least 2 documents"),
    "no batch": (lambda: o.Masked(WORDPIECE).collate([]), "at least one example"),
    "empty row": (lambda: o.Masked(WORDPIECE).collate([[]]), "row 1: 0 tokens; must be at least 1"),
    "plain text": (lambda: o.Masked(WORDPIECE).collate(["the fox"]), "must be a record with `text`"),
    "no text": (
        lambda: o.Denoising(BYTES).prepare([{"text": "x"}, {"txt": "y"}, {"text": 3}, "z", {"text": " "}]),
        "example 2: text: missing; the fields of this record are: txt\n.*example 3: text: 3; must be text\n.*"
        "example 4: \"z\"; must be a record.*\n.*example 5: text: is empty",
    ),
    "a place": (lambda: o.Masked(WORDPIECE).prepare([Row("a.jsonl:7", {"text": None})]), "a.jsonl:7: text: missing"),
    "nothing": (lambda: o.Masked(WORDPIECE).prepare([]), "no example to learn from: the data has no record"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_told(fault):
    act, told = FAULTS[fault]
    with pytest.raises(InputError, match=told):
        act()


def test_decoders_read_the_labels_one_later():
    labels = torch.tensor([[5, 6, 1, IGNORE_INDEX], [7, 1, IGNORE_INDEX, IGNORE_INDEX]])
    assert shifted_right(labels, 2, 0).tolist() == [[2, 5, 6, 1], [2, 7, 1, 0]]


@needs_data
@settings(deadline=None)
@given(st.data())
def test_t5_tokenizer_of_the_files_round_trips(data):
    """T5's own vocabulary: sentinels descend from its last id, real text comes back."""
    pytest.importorskip("sentencepiece")
    tokenizer = _t5()
    objective = o.SpanCorruption(tokenizer)
    assert objective.sentinels[:3] == [32099, 32098, 32097]
    text = data.draw(st.sampled_from(setup.TEXTS))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(restored(objective, *objective.pair(ids, np.random.default_rng(len(text))))) == text


_kept = {}


def _t5():
    if not _kept:
        import tempfile

        folder = Path(tempfile.mkdtemp())
        (folder / "spiece.model").write_bytes((DATA / "tokenizers" / "t5_spm.model").read_bytes())
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
        _kept["t5"] = Tokenizer.load(folder)
    return _kept["t5"]
