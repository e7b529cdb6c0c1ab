"""Every family that says tokens says those of transformers, greedily and by beams, in batches of ragged prompts."""

import copy

import battery
import pytest
import torch

from quatrain.generation.engine import Engine, SamplingParams

SPEAKERS = [
    case
    for case in battery.all_cases()
    if case.head is None and case.model.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "MTModel"))
]
NEW = 8


def said_by_them(case, text, ends, beams):
    """The new ids of one text, read alone, so that their padding is none of what is compared."""
    # A dynamic base changes with every token, so that the cached keys are another thing: there the caches are compared.
    cached = (case.settings.get("rope_parameters") or {}).get("rope_type") == "dynamic"
    theirs, ids = battery.made_anew(case) if cached else copy.deepcopy(battery.theirs(case)), torch.tensor([text])
    theirs.generation_config.eos_token_id = ends or None
    if case.counts_tokens:  # generate numbers the positions from 0, where the model itself begins behind the padding
        plain = theirs.prepare_inputs_for_generation
        theirs.prepare_inputs_for_generation = lambda *args, **kwargs: {
            name: value for name, value in plain(*args, **kwargs).items() if name != "position_ids"
        }
    # Without a cache: with one, theirs errs where depths differ, for windows of one and for factors that change once.
    options = {"max_new_tokens": NEW, "num_beams": beams, "do_sample": False, "pad_token_id": 0, "use_cache": cached}
    with torch.no_grad():
        made = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
    made = made[1 if case.seq2seq else len(text) :]
    end = next((place + 1 for place, token in enumerate(made) if token in ends), len(made))
    return made[:end]


@pytest.mark.parametrize("case", SPEAKERS, ids=str)
def test_greedy_and_beam_ids(case):
    model = battery.loaded(case)
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, battery.VOCABULARY, (n,), generator=generator).tolist() for n in (11, 3, 1, 7)]
    free = Engine(model, end_ids=[]).generate(texts, SamplingParams(NEW))
    ends = sorted({free[0].ids[4], free[1].ids[2]})
    assert [each.ids for each in free] == [said_by_them(case, text, [], 1) for text in texts]
    ended = [next((ids[: k + 1] for k, token in enumerate(ids) if token in ends), ids) for ids in (e.ids for e in free)]
    assert [each.ids for each in Engine(model, end_ids=ends).generate(texts, SamplingParams(NEW))] == ended
    for found, prompts in ((ends, texts), ([], texts[:2])):
        ours = Engine(model, end_ids=found).generate(prompts, SamplingParams(NEW, num_beams=3))
        assert [each.ids for each in ours] == [said_by_them(case, text, found, 3) for text in prompts]


def test_every_family_with_a_causal_head_is_there():
    from quatrain.models.families import families

    speaking = {name for name in battery.text_families() if {"causal", "seq2seq"} & set(families()[name].heads)}
    seen = {battery.theirs(case).config.model_type for case in SPEAKERS}
    assert speaking <= seen, f"no case speaks for {sorted(speaking - seen)}"
