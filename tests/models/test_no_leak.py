"""No attention leaks: a token's logits follow from those that it may see, to the last bit, and from each of them.

Random configurations over all named choices and random layouts of padding and packed segments. One token is changed; an
oracle of its own says, layer by layer, whom that can reach: there logits change, and nowhere else.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.models.transformer.config import CHOICES, ModelConfig, RotaryScaling
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.stack import Model

VOCABULARY, PADDING, END = 23, 0, 2
SCALINGS = [None, RotaryScaling("linear", (("factor", 4.0),)), RotaryScaling("dynamic", (("factor", 2.0),))]
SETTINGS = settings(max_examples=60, deadline=None)


NAMED = ("position", "norm", "norm_position", "residual", "feed_forward", "activation", "attention_bias",
         "attention_scale_by_layer", "query_key_norm", "pooling", "padding_positions", "padding_embedding")  # fmt: skip


@st.composite
def configurations(draw, architecture, heads):
    """A random valid configuration: what no stack has together is not drawn."""
    both, choices = architecture == "encoder-decoder", {name: CHOICES[name] for name in NAMED}
    if architecture != "encoder":
        choices["padding_positions"] = ("counted",)
        choices["position"] = tuple(name for name in CHOICES["position"] if name != "disentangled")
    if both:
        choices["residual"] = ("sequential",)
    choice = {name: draw(st.sampled_from(allowed)) for name, allowed in choices.items()}
    if choice["feed_forward"] == "none":
        choice["residual"] = "sequential"
    if choice["residual"] != "sequential":
        choice["norm_position"] = "pre"
    groups = draw(st.integers(1, 3))
    layers, window = draw(st.integers(1, 3)), draw(st.sampled_from([None, 1, 2, 3, 5, 40]))
    kinds = ["full"] if window is None else ["full", "sliding"]
    more = {"num_encoder_layers": draw(st.integers(1, 2)), "encoder_attention_heads": draw(st.sampled_from([0, 1, 2])),
            "decoder_start_token_id": 1} if both else {}  # fmt: skip
    return ModelConfig(
        family="any", vocab_size=VOCABULARY, hidden_size=12, intermediate_size=draw(st.integers(5, 20)),
        num_hidden_layers=layers, num_key_value_heads=groups, num_attention_heads=groups * draw(st.integers(1, 2)),
        head_dim=draw(st.sampled_from([4, 8] if choice["position"] == "rotary" else [3, 4, 8])),
        max_position_embeddings=16, architecture=architecture, head=draw(st.sampled_from(heads)), **more, **choice,
        position_offset=draw(st.sampled_from([0, 2])), rotary_dim=draw(st.sampled_from([0, 2])),
        rope_scaling=draw(st.sampled_from(SCALINGS)), local_rope_theta=draw(st.sampled_from([None, 100.0])),
        relative_buckets=draw(st.sampled_from([4, 8])), relative_max_distance=draw(st.sampled_from([6, 12])),
        embedding_size=0 if both else draw(st.sampled_from([0, 6])), embedding_scale=draw(st.sampled_from([1.0, 3.0])),
        embedding_norm=draw(st.booleans()), final_norm=draw(st.booleans()),
        first_norm=choice["norm_position"] == "post" or draw(st.booleans()),
        attention_scale=draw(st.sampled_from([None, 0.4])), attention_softcap=draw(st.sampled_from([None, 3.0])),
        logit_softcap=draw(st.sampled_from([None, 9.0])), feed_forward_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()), sliding_window=window,
        layer_types=draw(st.lists(st.sampled_from(kinds), min_size=layers, max_size=layers)),
        type_vocab_size=draw(st.sampled_from([0, 2])), labels=("no", "yes"), eos_token_id=END, pad_token_id=PADDING,
    )  # fmt: skip


@st.composite
def layouts(draw, length, row_ids=None):
    """Segments (2, length) of runs: padding on either side and between, packed texts; each row has text."""
    rows = []
    for row in range(2):
        allowed = [1, 2, 3] if row_ids is None else row_ids[row]
        runs, last = [], None
        for name in draw(st.lists(st.sampled_from([0, *allowed]), min_size=1, max_size=5)):
            if name != last and (name == 0 or name not in runs):
                runs.append(name)
                last = name
        if not any(runs):
            runs.append(allowed[0])
        lengths = draw(st.lists(st.integers(1, 5), min_size=len(runs), max_size=len(runs)))
        slots = [name for name, count in zip(runs, lengths, strict=True) for _ in range(count)]
        text = [name for name in slots if name] or [allowed[0]]
        slots = (slots + [0 if draw(st.booleans()) else text[-1]] * length)[:length]
        if slots[-1] == text[-1] and 0 in slots[slots.index(text[-1]) :]:
            slots = [slot if slot != text[-1] else 0 for slot in slots]  # a text is one run
        rows.append(slots if any(slots) else [text[-1]] * length)
    return torch.tensor(rows)


def random_model(config, seed, dtype=torch.float64):
    """A model in which every weight matters."""
    generator = torch.Generator().manual_seed(seed)
    model = Model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.4 * noise if parameter.dim() > 1 else parameter + 0.2 * noise)
    return model.to(dtype)


def random_ids(segments, seed):
    """Tokens (2, T), other ones than padding's also where there is padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, segments.shape, generator=generator)


def changed(ids, row, slot):
    """The ids with another token in one slot."""
    other = ids.clone()
    other[row, slot] = 3 + (int(ids[row, slot]) - 3 + 7) % (VOCABULARY - 3)
    return other


def sees(config, kind, names, causal):
    """Whether each slot of a row of segments may look at each other one in a layer of a kind: T x T, as defined."""
    matrix = torch.zeros(len(names), len(names), dtype=torch.bool)
    for query, own in enumerate(names):
        for key, other in enumerate(names):
            near = kind == "full" or (
                query - key < config.sliding_window if causal else abs(query - key) <= config.sliding_window // 2
            )
            matrix[query, key] = own == other and near and (key <= query or not causal)
    return matrix


def reach(config, names, slot):
    """Which slots of a row one slot's token can change."""
    reached = torch.arange(len(names)) == slot
    for kind in config.layer_types:
        reached = reached | (sees(config, kind, names, config.is_causal) & reached).any(-1)
    return reached


def compare(before, after, segments, row, reached):
    """Equal to the last bit outside of what is reached, different everywhere in it; padding is no one's."""
    text = segments != 0
    assert before[text].isfinite().all()
    same = (before == after).flatten(2).all(-1) if before.dim() > 2 else before == after
    expected = torch.ones_like(text)
    expected[row] = ~reached
    assert torch.equal(same[text], expected[text]), (same, expected)


def run(model, ids, segments):
    with torch.no_grad():
        return model(ids, segments=segments)[0]


DRAWN = {"seed": st.integers(0, 10_000), "length": st.integers(2, 14), "data": st.data()}


def one_slot(data, length):
    return data.draw(st.integers(0, 1)), data.draw(st.integers(0, length - 1))


@given(config=configurations("decoder", ("causal", "token_classification", "value", "none")), **DRAWN)
@SETTINGS
def test_decoders(config, seed, length, data):
    """From the future, from padding, from other texts and other rows nothing comes; from all else something does."""
    segments = data.draw(layouts(length))
    model, ids, (row, slot) = random_model(config, seed), random_ids(segments, seed), one_slot(data, length)
    other = changed(ids, row, slot)
    reached = reach(config, segments[row].tolist(), slot)
    compare(run(model, ids, segments), run(model, other, segments), segments, row, reached)
    whole = torch.ones_like(segments)
    reached = reach(config, whole[row].tolist(), slot)
    compare(run(model, ids, None), run(model, other, None), whole, row, reached)


@given(config=configurations("encoder", ("masked", "token_classification", "none")), **DRAWN)
@SETTINGS
def test_encoders(config, seed, length, data):
    segments = data.draw(layouts(length))
    model, ids, (row, slot) = random_model(config, seed), random_ids(segments, seed), one_slot(data, length)
    reached = reach(config, segments[row].tolist(), slot)
    compare(run(model, ids, segments), run(model, changed(ids, row, slot), segments), segments, row, reached)


@given(config=configurations("decoder", ("causal", "value")), **DRAWN)
@SETTINGS
def test_decoders_in_training(config, seed, length, data):
    """The passes that are written by hand keep nothing else in, and no gradient flows where nothing is seen."""
    segments = data.draw(layouts(length))
    model, ids = random_model(config, seed, torch.float32).train(), random_ids(segments, seed)
    row, slot = one_slot(data, length)
    before, after = (model(read, segments=segments)[0] for read in (ids, changed(ids, row, slot)))
    text, reached = segments != 0, reach(config, segments[row].tolist(), slot)
    free = text.clone()
    free[row] &= ~reached
    assert torch.equal(before[free], after[free]) and before[text].isfinite().all()
    if text[row, slot]:
        embedded = []
        handle = model.embed_tokens.register_forward_hook(lambda _, __, out: embedded.append(out) or out.retain_grad())
        model(ids, segments=segments)[0][row, slot].sum().backward()
        handle.remove()
        sources = torch.tensor([bool(reach(config, segments[row].tolist(), key)[slot]) for key in range(length)])
        gradient = embedded[0].grad
        assert not gradient[1 - row].any() and torch.equal(gradient[row].any(-1) & sources, gradient[row].any(-1))


@given(config=configurations("decoder", ("causal",)), portions=st.lists(st.integers(1, 5), min_size=1), **DRAWN)
@SETTINGS
def test_cached_decoders(config, portions, seed, length, data):
    """As read at once, in any portions."""
    segments = data.draw(layouts(length))
    model, ids, (row, slot) = random_model(config, seed), random_ids(segments, seed), one_slot(data, length)

    def decode(read):
        cache, parts, start = KVCache(config, 2, length, dtype=torch.float64), [], 0
        for count in [*portions, *[1] * length]:
            end = min(start + count, length)
            if start < end:
                part = model(read[:, start:end], segments=segments[:, start:end], cache=cache)[0]
                parts.append(part)
            start = end
        return torch.cat(parts, 1)

    with torch.inference_mode():
        before, after = decode(ids), decode(changed(ids, row, slot))
        at_once = model(ids, segments=segments)[0]
    reached = reach(config, segments[row].tolist(), slot)
    compare(before, after, segments, row, reached)
    text = segments != 0
    torch.testing.assert_close(before[text], at_once[text], atol=1e-9, rtol=1e-9)


POOLED = ("sequence_classification", "embedding")


@given(config=st.one_of(configurations("decoder", POOLED), configurations("encoder", POOLED)), **DRAWN)
@SETTINGS
def test_pooled_heads(config, seed, length, data):
    """What is said of a text does not follow from what its padding or another row holds."""
    segments = data.draw(layouts(length)).clamp(max=1)
    model, ids, (row, slot) = random_model(config, seed), random_ids(segments, seed), one_slot(data, length)
    for one in range(2):
        ids[one, segments[one].nonzero()[-1]] = END
    other = changed(ids, row, slot)
    if segments[row, slot] == 0:
        other[row, slot] = END
    other[row, segments[row].nonzero()[-1]] = END
    before, after = run(model, ids, segments), run(model, other, segments)
    assert before.isfinite().all() and torch.equal(before[1 - row], after[1 - row])
    assert segments[row, slot] or torch.equal(before[row], after[row])


def encoder_reach(config, names, slot):
    return reach(config.encoder, names, slot)


def crossed_reach(config, own, theirs, slot):
    """Which slots of a decoder's row (segments `own`, or None) one encoded token can change (segments `theirs`)."""
    states = encoder_reach(config, theirs, slot)
    length = len(own[1])
    direct = torch.zeros(length, dtype=torch.bool)
    for query in range(length):
        for key, segment in enumerate(theirs):
            meant = segment != 0 if own[0] is None else segment == own[0][query]
            direct[query] |= bool(meant and states[key])
    reached = torch.zeros(length, dtype=torch.bool)
    for kind in config.layer_types:
        reached = reached | (sees(config, kind, own[1], True) & reached).any(-1) | direct
    return reached


@given(
    config=configurations("encoder-decoder", ("seq2seq",)),
    encoded_length=st.integers(2, 12),
    packed=st.booleans(),
    cached=st.booleans(),
    **DRAWN,
)
@SETTINGS
def test_encoder_decoders(config, encoded_length, packed, cached, seed, length, data):
    """Of the encoded text, its padding and other texts packed with it are not seen, all else is; with a cache too."""
    encoder_segments = data.draw(layouts(encoded_length))
    segments = data.draw(layouts(length)) if packed else None
    names = torch.ones(2, length, dtype=torch.long) if segments is None else segments
    model = random_model(config, seed)
    encoded, ids = random_ids(encoder_segments, seed), random_ids(names, seed + 1)

    def read(text, said):
        if not cached:
            return model(text, segments=encoder_segments, decoder_input_ids=said, decoder_segments=segments)[0]
        cache, parts = KVCache(config, 2, length, dtype=torch.float64), []
        for start in range(0, length, 3):
            here = slice(start, start + 3)
            more = {"segments": encoder_segments} if start == 0 else {}
            part = model(
                text if start == 0 else None, decoder_input_ids=said[:, here], cache=cache,
                decoder_segments=None if segments is None else segments[:, here], **more)[0]  # fmt: skip
            parts.append(part)
        return torch.cat(parts, 1)

    row, slot = one_slot(data, length)
    place = data.draw(st.integers(0, encoded_length - 1))
    with torch.inference_mode():
        before = read(encoded, ids)
        said, heard = read(encoded, changed(ids, row, slot)), read(changed(encoded, row, place), ids)
    compare(before, said, names, row, reach(config, names[row].tolist(), slot))
    own = (None if segments is None else segments[row].tolist(), names[row].tolist())
    theirs = encoder_segments[row].tolist()
    reached = crossed_reach(config, own, theirs, place) if theirs[place] else torch.zeros(length, dtype=torch.bool)
    compare(before, heard, names, row, reached)


@pytest.mark.parametrize(
    ("architecture", "choices", "named"),
    [
        ("decoder", {"residual": "parallel", "norm_position": "sandwich"}, "norm_position"),
        ("decoder", {"residual": "parallel_shared", "norm_position": "post"}, "norm_position"),
        ("encoder-decoder", {"residual": "parallel"}, "residual"),
        ("encoder-decoder", {"embedding_size": 6}, "embedding_size"),
        ("encoder", {"norm_position": "post", "first_norm": False}, "first_norm"),
        ("decoder", {"padding_positions": "skipped"}, "padding_positions"),
        ("decoder", {"position": "disentangled"}, "position"),
        ("encoder", {"residual": "parallel", "feed_forward": "none"}, "residual"),
    ],
)
def test_choices_that_no_stack_has_together_are_refused(architecture, choices, named):
    """None of them is left out in silence."""
    with pytest.raises(InputError) as caught:
        ModelConfig(
            family="any", vocab_size=23, hidden_size=12, intermediate_size=7, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16, num_encoder_layers=1,
            architecture=architecture, head="none", **choices,
        )  # fmt: skip
    assert [problem.split(":")[0] for problem in caught.value.problems] == [named]
