"""Slots of the KV cache: texts of any lengths, extended, cut, copied and moved in any order, are read as alone."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import bloom, gpt2, llama, mamba2, qwen3_5, random_model, xlstm

from quatrain.core.errors import InputError
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.kv_cache import KVCache

LIMIT = 40
CONFIGS = {
    "llama": llama(),
    "gpt2": gpt2(),
    "bloom": bloom(),
    "sliding": llama(family="mistral", sliding_window=4, layer_types=("sliding", "sliding")),
    "mamba2": mamba2(),
    "xlstm": xlstm(),
    "qwen3_5": qwen3_5(),
    "mixed": llama(family="mistral", num_hidden_layers=3, sliding_window=6, layer_types=("sliding", "full", "sliding")),
}
SEQ2SEQ = ModelConfig(
    family="t5", vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_encoder_layers=2,
    num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64, architecture="encoder-decoder",
    head="seq2seq", position="relative", decoder_start_token_id=0,
)  # fmt: skip


@functools.cache
def model_of(name):
    scale = 0.1 if name == "qwen3_5" else 0.2  # Its triangular systems amplify rounding errors.
    return random_model(SEQ2SEQ if name == "t5" else CONFIGS[name], scale=scale)


class Texts:
    """What every slot should hold, beside the cache."""

    def __init__(self, name, draw):
        self.model, self.draw = model_of(name), draw
        self.cache = KVCache(self.model.config, 1, 1)
        self.ids: list[list[int]] = [[]]

    def extend(self):
        first = self.draw(st.integers(0, len(self.ids) - 1))
        count = self.draw(st.integers(1, len(self.ids) - first))
        rows = range(first, first + count)
        new = [self.draw(st.lists(st.integers(3, 59), min_size=1, max_size=9)) for _ in rows]
        new = [ids[: max(LIMIT - len(self.ids[slot]), 0)] or [] for slot, ids in zip(rows, new, strict=True)]
        if not all(new):
            return
        width = max(map(len, new))
        padding = [width - len(ids) for ids in new]
        batch = torch.tensor([ids + [59] * empty for ids, empty in zip(new, padding, strict=True)])
        # xLSTM's norm of each head divides small sums, which amplifies their rounding.
        tolerance = 5e-5 if self.model.config.family == "xlstm" else 1e-5
        with torch.inference_mode():
            found = self.model(batch, cache=self.cache.rows(first, count, padding=padding))[0]
            for row, slot in enumerate(rows):
                self.ids[slot] = self.ids[slot] + new[row]
                expected = self.model(torch.tensor([self.ids[slot]]))[0][0, -len(new[row]) :]
                torch.testing.assert_close(found[row, : len(new[row])], expected, atol=tolerance, rtol=tolerance)

    def truncate(self):
        slot = self.draw(st.integers(0, len(self.ids) - 1))
        length = self.draw(st.integers(0, len(self.ids[slot])))
        if self.cache.can_truncate(slot, length):
            self.cache.truncate(slot, length)
            self.ids[slot] = self.ids[slot][:length]

    def copy(self):
        source, target = self.draw(st.integers(0, len(self.ids) - 1)), self.draw(st.integers(0, len(self.ids) - 1))
        length = self.draw(st.integers(0, len(self.ids[source])))
        if source != target and self.cache.can_truncate(source, length):
            self.cache.copy(source, target, length)
            self.ids[target] = self.ids[source][:length]

    def swap(self):
        one, other = self.draw(st.integers(0, len(self.ids) - 1)), self.draw(st.integers(0, len(self.ids) - 1))
        self.cache.swap(one, other)
        self.ids[one], self.ids[other] = self.ids[other], self.ids[one]

    def reserve(self):
        self.cache.reserve(slots=len(self.ids) + self.draw(st.integers(0, 2)))
        self.ids += [[] for _ in range(self.cache.slots - len(self.ids))]

    def release(self):
        count = self.draw(st.integers(1, len(self.ids)))
        self.cache.release(count)
        self.ids = self.ids[:count]

    def clear(self):
        slot = self.draw(st.integers(0, len(self.ids) - 1))
        self.cache.clear(slot)
        self.ids[slot] = []

    def select(self):
        rows = self.draw(st.lists(st.integers(0, len(self.ids) - 1), min_size=1, max_size=4))
        self.cache.select(torch.tensor(rows))
        self.ids = [self.ids[row] for row in rows]


@pytest.mark.parametrize("name", CONFIGS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_slots_hold_their_own_texts(name, data):
    texts = Texts(name, data.draw)
    texts.reserve()
    steps = ["extend", "extend", "extend", "truncate", "copy", "swap", "reserve", "release", "clear", "select"]
    for step in data.draw(st.lists(st.sampled_from(steps), min_size=6, max_size=14)):
        getattr(texts, step)()
        assert texts.cache.lengths == [len(ids) for ids in texts.ids]


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_slots_hold_their_own_encoded_texts(data):
    model = model_of("t5")
    cache = KVCache(model.config, 4, 2)
    read: list[list[int]] = [[], [], [], []]
    encoded: list[list[int]] = [[], [], [], []]
    for _ in range(data.draw(st.integers(3, 8))):
        first = data.draw(st.integers(0, 3))
        rows = range(first, first + data.draw(st.integers(1, 4 - first)))
        segments = text = None
        if not all(encoded[slot] for slot in rows) or data.draw(st.booleans()):
            for slot in rows:
                cache.truncate(slot, 0)
                read[slot], encoded[slot] = [], data.draw(st.lists(st.integers(3, 59), min_size=1, max_size=6))
            width = max(len(encoded[slot]) for slot in rows)
            text = torch.tensor([encoded[slot] + [0] * (width - len(encoded[slot])) for slot in rows])
            segments = torch.tensor([[1] * len(encoded[slot]) + [0] * (width - len(encoded[slot])) for slot in rows])
            segments = segments if data.draw(st.booleans()) or not bool(segments.all()) else None
        elif data.draw(st.booleans()) and first:
            cache.swap(first, first - 1)
            for lists in (read, encoded):
                lists[first], lists[first - 1] = lists[first - 1], lists[first]
            continue
        new = torch.randint(3, 59, (len(rows), 2), generator=torch.Generator().manual_seed(first))
        view = cache.rows(first, len(rows))
        with torch.inference_mode():
            found = model(text, segments=segments, decoder_input_ids=new, cache=view)[0]
            for row, slot in enumerate(rows):
                read[slot] = read[slot] + new[row].tolist()
                expected = model(torch.tensor([encoded[slot]]), decoder_input_ids=torch.tensor([read[slot]]))[0]
                torch.testing.assert_close(found[row], expected[0, -2:], atol=1e-5, rtol=1e-5)


def test_a_padded_batch_needs_texts_of_equal_lengths():
    model = model_of("llama")
    cache = KVCache(model.config, 2, 8)
    with torch.inference_mode():
        model(torch.tensor([[5, 6]]), cache=cache.rows(0, 1))
        with pytest.raises(InputError, match="different lengths"):
            model(torch.tensor([[5], [6]]), segments=torch.tensor([[1], [0]]), cache=cache)


def test_a_state_does_not_go_back():
    model = model_of("mamba2")
    cache = KVCache(model.config, 2, 8)
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]), cache=cache.rows(0, 1))
    assert cache.can_truncate(0, 3) and cache.can_truncate(0, 0) and not cache.can_truncate(0, 2)
    for refused in (lambda: cache.truncate(0, 2), lambda: cache.copy(0, 1, 1)):
        with pytest.raises(InputError, match="cannot go back"):
            refused()
    assert cache.lengths == [3, 0]


def test_released_slots_free_their_memory():
    cache = KVCache(CONFIGS["mixed"], 3, 20)
    before = cache.nbytes
    cache.lengths[0] = 4
    cache.release(1)
    assert cache.nbytes < before / 10 and cache.max_length == 4
    cache.release(0)
    assert cache.nbytes == 0
    cache.reserve(slots=2, length=9)
    assert cache.slots == 2 and cache.keys[1].shape[2] == 9
