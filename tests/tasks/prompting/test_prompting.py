"""Templates, shots, the context guard, previews and answers, on tiny models of every kind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_models import make_folder

from quatrain.core.errors import InputError
from quatrain.data.records import Row
from quatrain.generation.decoding import Decoding
from quatrain.generation.engine import Completion, Engine
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.tasks.arithmetic.task import Arithmetic
from quatrain.tasks.prompting.prompt import PromptScore, load_prompt, make_prompt, save_prompt, with_settings
from quatrain.tasks.prompting.prompter import Prompter
from quatrain.tasks.prompting.selection import Pool, embedder, ranking, same
from quatrain.tasks.prompting.template import Template, fill, load_templates, template_names
from quatrain.tasks.prompting.texts import TextLabels
from quatrain.tasks.seq2seq import TextToText
from quatrain.tokenizers.tokenizer import Tokenizer

SHORT = Decoding(max_new_tokens=8)


def labelled(*pairs: tuple[str, int]) -> list[Row]:
    return [Row(f"row {number}", {"text": text, "label": label}) for number, (text, label) in enumerate(pairs, 1)]


REVIEWS = labelled(
    ("a fine film", 1), ("dull and long", 0), ("great fun", 1), ("a bad script", 0), ("very good", 1), ("too loud", 0),
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load(make_folder(tmp_path_factory.mktemp("models") / "tiny", context=400))


@pytest.fixture(scope="module")
def plain_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A model that only continues texts: its tokenizer has no chat template."""
    folder = make_folder(tmp_path_factory.mktemp("models") / "plain", context=400, chat_template=None)
    return Engine.load(folder)


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    from quatrain.models.transformer.settings import ModelSettings

    tokenizer = Tokenizer.train(["".join(map(chr, range(32, 127))) + "\n"] * 3, kind="char", eos="<|endoftext|>")
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = ModelSettings(family="bart", intermediate_size=48, max_position_embeddings=160, **sizes)
    config = settings.config(tokenizer.vocab_size, eos_token_id=tokenizer.eos_id, bos_token_id=tokenizer.bos_id)
    folder = tmp_path_factory.mktemp("models") / "bart"
    tokenizer.save(folder)
    model_folder.save(Model(config).initialize(0), folder)
    return Engine.load(folder)


def reviews(engine: Engine, **settings: Any) -> Prompter:
    prompt = make_prompt("sentiment", "review-sentiment", decoding=SHORT, **settings)
    return Prompter(engine, TextLabels(None), prompt, REVIEWS)


# Templates


def test_the_shipped_templates_fill_from_the_examples_that_they_are_for(engine):
    dialogue = Row("1", {"source": "#Person1#: Hi.", "target": "They greet."})
    examples = {
        "dialogue-summary": (TextToText(None), dialogue), "sentiment": (TextLabels(None), REVIEWS[0]),
        "arithmetic": (Arithmetic(), Arithmetic().splits["train"][0]), "plain": (TextLabels(None), REVIEWS[0]),
        "sql": (TextToText(None), dialogue),
    }  # fmt: skip
    assert set(examples) == set(template_names())
    for name, (task, example) in examples.items():
        for template in load_templates(name).template:
            prompter = Prompter(engine, task, make_prompt(name, template.name))
            text = prompter.preview(example).text
            assert task.question(example).split("+")[0] in text and "{" not in text, (name, template.name)


def test_the_dialogue_templates_of_flan_are_there():
    named = {template.name: template for template in load_templates("dialogue-summary").template}
    assert named["flan-1"].prompt == "{dialogue}\n\nBriefly summarize that dialogue."
    assert sum("Apache-2.0" in template.source for template in named.values()) == 7


def test_fields_and_braces():
    assert fill('{{"a": {a}}}', {"a": 1}) == '{"a": 1}'
    assert fill("{a} {b} {}", {"a": "{b}", "b": 2}) == "{b} 2 {}"
    with pytest.raises(InputError, match=r"the example has no other.*It has: a"):
        fill("{a} {other}", {"a": 1})


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"prompt": "no field"}, "must have a field"), ({"extract": "("}, "no regular expression"),
        ({"extract": "(a)(b)"}, "at most one group"), ({"stop": [""]}, "empty string"), ({"kind": 1}, "unknown"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_used(tmp_path, change, fault):
    import tomli_w

    path = tmp_path / "mine.toml"
    path.write_text(tomli_w.dumps({"template": [{"name": "a", "prompt": "{input}"} | change]}))
    with pytest.raises(InputError, match=fault):
        load_templates(path)


def test_unknown_names_are_told():
    with pytest.raises(InputError, match=r"no such file of templates. Shipped: arithmetic"):
        load_templates("nothing")
    with pytest.raises(InputError, match=r"did you mean flan-1"):
        make_prompt("dialogue-summary", "flan1")


# Selection


def pool(embed: Any = None) -> Pool:
    questions = [str(row.value["text"]) for row in REVIEWS]
    return Pool(questions, [str(row.value["label"]) for row in REVIEWS], 3, embed)


def letters(texts: Any) -> Any:
    """Vectors that count letters."""
    return np.array([[text.count(chr(97 + place)) for place in range(26)] for text in texts], dtype=np.float32)


@pytest.mark.parametrize("selection", ["random", "balanced", "similar", "bm25"])
def test_a_question_is_never_its_own_shot_and_the_same_draw_gives_the_same_shots(selection):
    if selection == "bm25":
        pytest.importorskip("bm25s")
    first, second = pool(letters), pool(letters)
    ranks = ranking(selection, first), ranking(selection, second)
    for question in (*first.questions, "GREAT   fun", "something else"):
        shots = first.choose(ranks[0], question, 4)
        assert shots == second.choose(ranks[1], question, 4) and len(set(shots)) == 4
        assert all(same(first.questions[shot]) != same(question) for shot in shots)
    assert len(first.choose(ranks[0], "a fine film", 6)) == 5, "the question itself is one of the six"


def test_a_text_is_a_shot_once():
    twice = Pool(["a", "A ", "b"], ["1", "1", "2"])
    assert sorted(same(twice.questions[each]) for each in twice.choose(ranking("random", twice), "c", 3)) == ["a", "b"]


@pytest.mark.parametrize("count", [2, 4, 6])
def test_balanced_shots_have_as_many_of_each_answer(count):
    drawn = pool()
    rank = ranking("balanced", drawn)
    for question in ("other", *(drawn.questions if count < 6 else ())):
        answers = Counter(drawn.answers[shot] for shot in drawn.choose(rank, question, count))
        assert answers == {"0": count // 2, "1": count // 2}, "the turn of a question's own answer is not lost"


def test_free_texts_cannot_be_balanced():
    texts = [f"text {number}" for number in range(150)]
    with pytest.raises(InputError, match="150 different answers"):
        ranking("balanced", Pool(texts, texts))


def test_the_most_similar_shot_stands_next_to_the_question():
    near = pool(letters)
    assert near.questions[near.choose(ranking("similar", near), "great gnu", 2)[-1]] == "great fun"
    pytest.importorskip("bm25s")
    assert near.questions[near.choose(ranking("bm25", near), "the script", 2)[-1]] == "a bad script"


def test_an_embedding_folder_gives_the_vectors(tmp_path, engine):
    from quatrain.models.transformer.settings import ModelSettings

    tokenizer = engine.tokenizer
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = ModelSettings(family="bert", intermediate_size=48, max_position_embeddings=64, **sizes)
    model = Model(settings.config(tokenizer.vocab_size, head="embedding", pad_token_id=0)).initialize(0)
    tokenizer.save(tmp_path / "embed")
    model_folder.save(model, tmp_path / "embed")
    prompter = reviews(engine, shots=2, selection="similar", embedder=str(tmp_path / "embed"))
    shots = prompter.build(REVIEWS[2]).shots
    vectors = embedder(str(tmp_path / "embed"))([str(row.value["text"]) for row in REVIEWS])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    nearest = [number for number in np.argsort(-(unit @ unit[2])).tolist() if number != 2]
    assert list(shots) == nearest[:2][::-1]
    with pytest.raises(InputError, match="give a folder of sentence embeddings"):
        embedder(str(make_folder(tmp_path / "causal")))


def test_similar_needs_vectors_and_bm25_says_how_it_is_installed(monkeypatch):
    import builtins

    with pytest.raises(InputError, match="needs embedder"):
        make_prompt("sentiment", "plain", shots=1, selection="similar")
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "bm25s":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'quatrain\[rag\]'"):
        ranking("bm25", pool())


def test_shots_that_the_pool_does_not_have(engine):
    prompt = make_prompt("sentiment", "plain", shots=7)
    with pytest.raises(InputError, match="shots: 7; the pool has 6 examples"):
        Prompter(engine, TextLabels(None), prompt, REVIEWS)
    with pytest.raises(InputError, match="no examples to draw from"):
        Prompter(engine, TextLabels(None), prompt)


# What the model reads


def test_a_chat_model_reads_shots_as_turns_through_the_chat_template(engine):
    template = Template(name="t", prompt="Q: {input}", instruction="Be brief.", answer="A: {output}")
    prompt = with_settings(make_prompt("sentiment", "plain", shots=1), template=template.model_dump())
    built = Prompter(engine, TextLabels(None), prompt, REVIEWS).build(REVIEWS[0])
    roles = [message["role"] for message in built.content]
    assert roles == ["system", "user", "assistant", "user"]
    assert built.content[0]["content"] == "Be brief." and built.content[2]["content"].startswith("A: ")
    assert built.content[3]["content"] == "Q: a fine film"


def test_a_model_that_continues_texts_reads_one_text(plain_engine):
    prompter = reviews(plain_engine, shots=2, selection="balanced")
    built = prompter.build(REVIEWS[0])
    assert isinstance(built.content, str) and built.content.endswith("\n\nReview: a fine film\nSentiment:")
    assert built.lead == " " and built.content.count("Sentiment: ") == 2
    assert {"positive", "negative"} == {line[11:] for line in built.content.split("\n") if line[:11] == "Sentiment: "}


@pytest.mark.parametrize("kind", ["engine", "plain_engine", "bart"])
def test_the_preview_is_what_the_engine_gets(kind, request, monkeypatch):
    chosen: Engine = request.getfixturevalue(kind)
    prompter = reviews(chosen, shots=2)
    preview = prompter.preview(REVIEWS[1])
    given: list[list[int]] = []
    generate = chosen.generate
    monkeypatch.setattr(chosen, "generate", lambda prompts, params: given.extend(prompts) or generate(prompts, params))
    prompter.answer([REVIEWS[1]])
    assert given == [preview.ids] and preview.tokens == len(preview.ids or ())
    assert sum(tokens for _, tokens in preview.parts) == preview.tokens and len(preview.parts) == 3
    assert ("<|im_start|>user" in preview.text) == (kind == "engine")
    assert "Review: dull and long" in preview.text


# The guard


def test_the_guard_keeps_what_fits_exactly_and_drops_one_token_earlier(engine):
    whole = reviews(engine, shots=3).build(REVIEWS[0])
    assert whole.tokens is not None and whole.limit == 400 and len(whole.shots) == 3
    most = 400 - whole.tokens
    fitting = reviews(engine, shots=3)
    fitting.prompt = with_settings(fitting.prompt, decoding=Decoding(max_new_tokens=most))
    assert fitting.build(REVIEWS[0]).dropped == 0 and fitting.build(REVIEWS[0]).fits
    fitting.prompt = with_settings(fitting.prompt, decoding=Decoding(max_new_tokens=most + 1))
    built = fitting.build(REVIEWS[0])
    assert built.dropped == 1 and built.shots == whole.shots[1:], "the shot nearest to the question stays"
    assert any("1 shots of 1 prompts were dropped" in note for note in fitting.answer([REVIEWS[0]]).notes)
    fitting.prompt = with_settings(fitting.prompt, too_long="refuse")
    with pytest.raises(InputError, match=rf"1 of 1 prompts do not fit.*\n.*{whole.tokens} tokens and {most + 1} new"):
        fitting.answer([REVIEWS[0]])


@given(shots=st.integers(0, 5), new=st.integers(1, 399), length=st.integers(1, 420))
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_guard_drops_no_shot_too_many_and_cuts_nothing(engine, shots, new, length):
    prompter = reviews(engine, shots=shots)
    prompter.prompt = with_settings(prompter.prompt, decoding=Decoding(max_new_tokens=new))
    (row,) = labelled(("x" * length, 1))
    built = prompter.build(row)
    assert built.tokens == len(prompter.reader.ids(built.content) or ()) and built.limit == 400
    assert built.fits == (built.tokens + new <= 400) and len(built.shots) + built.dropped == shots
    assert built.content[-1]["content"] == f"Review: {'x' * length}"  # type: ignore[index]
    assert built.fits or not built.shots
    if built.dropped:
        prompter.prompt = with_settings(prompter.prompt, too_long="refuse")
        whole = prompter._choose("x" * length)
        one_more = prompter._content(row, prompter.fields(row), whole[-len(built.shots) - 1 :])[0]
        assert len(prompter.reader.ids(one_more) or ()) + new > 400


def test_a_question_that_does_not_fit_is_not_cut(engine, bart):
    long = labelled(("x" * 500, 1))
    for chosen in (engine, bart):
        answers = reviews(chosen, shots=1).answer([*long, REVIEWS[0]])
        assert answers.texts[0] == "" and answers.answers[1].completions
        assert any("do not fit into the context even without shots" in note for note in answers.notes)


def test_an_encoders_context_is_its_own(bart):
    prompter = reviews(bart, shots=6)
    built = prompter.build(REVIEWS[0])
    assert built.dropped and built.tokens is not None and built.tokens <= 160 < built.tokens + 60
    prompter.prompt = with_settings(prompter.prompt, decoding=Decoding(max_new_tokens=150))
    assert prompter.build(REVIEWS[0]).shots == built.shots


# Answers


def said(*texts: str) -> list[Completion]:
    return [Completion(text, [1], "stop", [-1.0]) for text in texts]


def test_the_vote_takes_the_most_frequent_answer_that_was_found(engine):
    sums = Arithmetic()
    prompt = make_prompt("arithmetic", "steps", samples=5, decoding=Decoding(temperature=0.7))
    prompter = Prompter(engine, sums, prompt)
    first, *others = said("The answer is 7.", "no idea", "So the answer is 12", "THE ANSWER IS: 12.", "The answer is 7")
    voted = prompter._voted([first, *others])
    assert voted.text == "7" and voted.votes == {"7": 2, "12": 2} and voted.found
    voted = prompter._voted([*said("no idea"), *others])
    assert voted.text == "12"
    nothing = prompter._voted(said("hm", "well"))
    assert nothing.text == "hm" and not nothing.found
    with pytest.raises(InputError, match="samples at temperature 0 are equal"):
        make_prompt("arithmetic", "steps", samples=5)


def test_samples_reach_the_vote_and_are_repeatable(engine):
    prompt = make_prompt("arithmetic", "plain", samples=4, decoding=Decoding(temperature=1.0, max_new_tokens=4))
    task = Arithmetic()
    examples = task.held_out["sums"][:3]
    first, second = (Prompter(engine, task, prompt).answer(examples) for _ in range(2))
    assert first.texts == second.texts and all(len(each.completions) == 4 for each in first.answers)


def test_an_answer_is_read_as_the_label_whose_word_comes_first(engine):
    prompter = reviews(engine)
    assert prompter.read("Positive, not negative") == "1" and prompter.read("It is negative.") == "0"
    assert prompter.read("positively") is None and prompter.read("") is None


def test_the_likeliest_label_is_that_of_the_scores(engine, plain_engine, bart):
    for chosen in (engine, plain_engine, bart):
        prompter = reviews(chosen, decide="likelihood", shots=2)
        texts = prompter.answer(REVIEWS).texts
        for row, text in zip(REVIEWS, texts, strict=True):
            built = prompter.build(row)
            content = built.content if isinstance(built.content, str) else prompter.reader.ids(built.content)
            words = [f"{built.lead}{word}" for word in ("negative", "positive")]
            totals = [score.total for score in chosen.score([content] * 2, words)]  # type: ignore[list-item]
            assert text == str(int(totals[1] > totals[0]))
    with pytest.raises(InputError, match="needs labels"):
        make_prompt("arithmetic", "plain", decide="likelihood")


def test_a_calibrated_answer_is_what_the_question_adds(engine):
    for shots in (0, 2):
        plain, calibrated = (reviews(engine, decide=how, shots=shots) for how in ("likelihood", "calibrated"))
        built = calibrated.build(REVIEWS[0])
        assert built.content == plain.build(REVIEWS[0]).content
        assert built.empty[-1]["content"] == "Review: N/A" and built.empty[:-1] == built.content[:-1]  # type: ignore[index]
        texts = []
        for row in REVIEWS:
            each = calibrated.build(row)
            ids = [engine.render(content) for content in (each.content, each.empty)]  # type: ignore[arg-type]
            own, prior = ([score.total for score in engine.score([each] * 2, ["negative", "positive"])] for each in ids)
            texts.append(str(int(own[1] - prior[1] > own[0] - prior[0])))
        assert calibrated.answer(REVIEWS).texts == texts


def test_a_style_that_the_model_does_not_have(plain_engine):
    with pytest.raises(InputError, match="no chat template"):
        reviews(plain_engine, style="chat")


# Behind an address


def test_an_endpoint_answers_as_the_engine_does(engine, tmp_path):
    pytest.importorskip("fastapi")
    from serving_setup import running

    from quatrain.generation.endpoint import Endpoint

    folder = make_folder(tmp_path / "tiny", context=400)
    with running([str(folder)]) as server:
        endpoint = Endpoint.of(f"{server.address}/v1#tiny")
        for settings in ({"shots": 2}, {"shots": 3, "style": "text"}, {"style": "text", "decide": "likelihood"}):
            own, remote = (reviews(each, **settings) for each in (engine, endpoint))  # type: ignore[arg-type]
            assert remote.answer(REVIEWS).texts == own.answer(REVIEWS).texts
            assert remote.build(REVIEWS[0]) == own.build(REVIEWS[0]), "the guard counts the same tokens"
            assert remote.preview(REVIEWS[0]).parts == own.preview(REVIEWS[0]).parts
        long = reviews(endpoint, shots=1).answer(labelled(("x" * 500, 1)))  # type: ignore[arg-type]
        assert long.texts == [""] and any("even without shots" in note for note in long.notes)


# Files


def test_a_prompts_file_keeps_its_scores(tmp_path):
    path = tmp_path / "prompts" / "best.toml"
    prompt = make_prompt("dialogue-summary", "flan-1", shots=1, selection="bm25", decoding=Decoding(max_new_tokens=50))
    figures: dict[str, Any] = {"set": "test", "metric": "rouge1", "value": 0.3, "low": 0.2, "high": 0.4, "count": 9}
    score = PromptScore(date="2026-11-29", model="runs/a/model", prompt=prompt.hash, **figures)
    save_prompt(prompt, path, (score,))
    save_prompt(prompt, path, (score,))
    kept = load_prompt(Path(path))
    assert kept.prompt == prompt and kept.score == (score, score)
    with pytest.raises(InputError, match="holds another prompt"):
        save_prompt(with_settings(prompt, shots=2), path)
    with pytest.raises(InputError, match="no such file"):
        load_prompt(tmp_path / "none.toml")
    path.write_text("[prompt]\nshots = -1\n")
    with pytest.raises(InputError, match="shots"):
        load_prompt(path)


# Comparisons


def test_a_comparison_is_continued_and_its_best_prompt_is_the_highest(engine, tmp_path):
    from quatrain.evaluation.prompting import KeptResults, compare, grid, search

    task = Arithmetic()
    examples, pool = task.held_out["sums"][:6], task.splits["train"][:50]
    prompts = grid("arithmetic", ["plain", "question-answer"], [0, 1], ["random", "balanced"], [SHORT], style="text")
    assert len(prompts) == 6, "without shots there is nothing to select"
    kept = KeptResults(tmp_path)
    with pytest.raises(InputError, match="different answers"):
        compare(engine, task, "sums", [with_settings(prompts[2], shots=1)], examples, task.splits["train"], kept=kept)
    chosen = [prompt for prompt in prompts if prompt.selection == "random"]
    asked: list[int] = []
    first = compare(engine, task, "sums", chosen, examples, pool, kept=kept, progress=asked.append)
    assert asked == sorted(asked) and asked[-1] == 24, "progress counts all prompts of the comparison"
    again = compare(None, task, "sums", chosen, examples, pool, kept=kept, progress=asked.append)  # type: ignore[arg-type]
    assert again == first, "nothing is asked twice"
    assert first.best.main == max(result.main for result in first.results)
    found, scored = search(engine, task, chosen, task.splits["development"][:5], {"sums": examples}, pool)
    assert found.results[0].set == "development" and len(scored["sums"].results) == 1
    assert scored["sums"].results[0].prompt == found.best.prompt
    assert all(result.low - 1e-9 <= result.main <= result.high + 1e-9 for result in first.results)
    with pytest.raises(InputError, match="no example to ask about"):
        compare(engine, task, "sums", chosen, [])
    with pytest.raises(InputError, match="no prompt to compare"):
        compare(engine, task, "sums", [], examples)


def test_summaries_are_measured_by_rouge_beside_the_lead(engine):
    pytest.importorskip("rouge_score")
    from quatrain.evaluation.metrics.texts import rouge
    from quatrain.evaluation.prompting import compare

    task = TextToText(None)
    rows = [
        Row(str(n), {"source": f"#Person1#: Hello {n}.\n#Person2#: Hi.", "target": f"They greet {n}."})
        for n in range(4)
    ]
    prompt = make_prompt("dialogue-summary", "flan-1", decoding=SHORT)
    comparison = compare(engine, task, "test", [prompt], rows)
    (result,) = comparison.results
    references = [[row.value["target"]] for row in rows]
    assert result.scores["rouge1"] == pytest.approx(rouge(result.texts, references)["rouge1"])
    assert comparison.baseline["rougeL"] == pytest.approx(rouge(task.baseline(rows), references)["rougeL"])
