"""Folders become engines: with a tokenizer or without, with generation settings; chats go through the one renderer."""

import json

import pytest
import torch
from tiny_models import llama

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.peft_files import save_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.chat import render
from quatrain.tokenizers.tokenizer import Tokenizer

TEXT = "Ångström ☃ said: how many 👩‍👩‍👧 are there? Seven, naïve one."


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([TEXT] * 3, kind="bpe", vocab_size=275, chat_template="chatml")


@pytest.fixture(scope="module")
def learned(tokenizer):
    """A model that knows one text and one conversation by heart."""
    config = llama(vocab_size=tokenizer.vocab_size, hidden_size=64, max_position_embeddings=128)
    model = Model(config).initialize(0)
    messages = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "Seven, naïve ☃."}]
    texts = [torch.tensor([tokenizer.encode(TEXT)]), torch.tensor([render(tokenizer, messages).ids])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(model(ids[:, :-1], ids[:, 1:])[1].mean() for ids in texts).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def folder(learned, tokenizer, tmp_path):
    model_folder.save(learned, tmp_path)
    tokenizer.save(tmp_path)
    return tmp_path


def test_engine_of_a_folder_speaks_and_chats(folder):
    engine = Engine.load(folder)
    (done,) = engine.generate(["Ångström"], SamplingParams(90, stop="one"))
    assert done.text == TEXT.removeprefix("Ångström").removesuffix("one.") and done.finish_reason == "stop"
    messages = [{"role": "user", "content": "how many?"}]
    (answer,) = engine.chat([messages], SamplingParams(60))
    assert (answer.text, answer.finish_reason) == ("Seven, naïve ☃.", "stop")
    assert answer.ids[-1] == engine.tokenizer.token_to_id("<|im_end|>")
    pieces = list(engine.stream_chat(messages, SamplingParams(60)))
    assert "".join(pieces) == answer.text and len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)


def test_characters_of_several_tokens_are_streamed_whole(folder):
    engine = Engine.load(folder)
    pieces = list(engine.stream("Ångström", SamplingParams(90)))
    assert not any("\ufffd" in piece for piece in pieces)
    assert "👩‍👩‍👧" in "".join(pieces)
    assert any(len(engine.tokenizer.encode(piece)) > 1 for piece in pieces)


def test_end_ids_come_from_model_tokenizer_and_generation_config(folder, tokenizer):
    assert set(Engine.load(folder).end_ids) == tokenizer.stop_ids
    path = folder / "generation_config.json"
    for value, more in (([7, 9], {7, 9}), (7, {7}), (None, set())):
        path.write_text(json.dumps({"eos_token_id": value}))
        assert set(Engine.load(folder).end_ids) == tokenizer.stop_ids | more
    path.write_text("{")
    with pytest.raises(InputError, match="generation_config"):
        Engine.load(folder)


def test_an_adapter_has_the_settings_of_its_base(folder, tmp_path):
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 3, "suppress_tokens": [9]}))
    model = load_model(folder)[0]
    apply_adapter(model, AdapterSettings(rank=2, alpha=4.0, target_modules=("q_proj",)))
    save_adapter(model, tmp_path / "adapter", base_model=str(folder))
    engine = Engine.load(tmp_path / "adapter")
    assert (engine.rules.suppress_tokens, engine.recommended.num_beams) == ((9,), 3)


def test_folder_without_tokenizer(learned, tmp_path):
    model_folder.save(learned, tmp_path)
    model, tokenizer = load_model(tmp_path)
    assert tokenizer is None
    assert Engine(model).generate([[5, 6]], SamplingParams(3))[0].text == ""


def test_chat_needs_a_template(learned):
    plain = Tokenizer.train([TEXT] * 3, kind="bpe", vocab_size=275)
    with pytest.raises(InputError, match="no chat template"):
        Engine(learned, plain).chat([[{"role": "user", "content": "hi"}]])
