"""Labelling sessions: what is recorded, resumed, undone and read back; agreement of raters."""

import json
from collections import Counter

import pytest

from quatrain.alignment.labelling import Session, agreement, append_choice, read_choices
from quatrain.core.errors import InputError
from quatrain.data.documents import detect, read_preferences, read_ratings


def prompts(count):
    return [[{"role": "user", "content": f"question {number}"}] for number in range(count)]


class Model:
    """Two fixed answers to each prompt; counts how often it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompt, number):
        self.asked.append(number)
        return f"good {number}", f"bad {number}"


def session(folder, count=6, rater="anna", model=None, **more):
    return Session(folder / "choices.jsonl", prompts(count), model or Model(), rater=rater, model="m", **more)


def letter(shown, answer="good"):
    return "a" if shown.answers[0].startswith(answer) else "b"


def test_each_choice_is_written_at_once_and_read_as_preferences(tmp_path):
    own = session(tmp_path)
    choices = ["good", "good", "tie", "both_bad", "skip", "bad"]
    for number, choice in enumerate(choices):
        shown = own.next()
        assert shown.number == number and own.next() is shown
        own.choose(letter(shown, choice) if choice in ("good", "bad") else choice)
        rows = [json.loads(line) for line in (tmp_path / "choices.jsonl").read_text().splitlines()]
        assert len(rows) == number + 1 and rows[-1]["rater"] == "anna" and rows[-1]["model"] == "m"
    assert own.next() is None and own.remaining == 0
    assert detect(tmp_path / "choices.jsonl") == "preference"
    pairs = [(each.chosen[0]["content"], each.rejected[0]["content"]) for each in read_preferences(own.path)]
    assert pairs == [("good 0", "bad 0"), ("good 1", "bad 1"), ("bad 5", "good 5")]
    ratings = Counter(each.label for each in read_ratings(own.path))
    assert ratings == {True: 3, False: 5}
    assert sum(own.done.values()) == 6 and own.done["tie"] == own.done["skip"] == 1


def test_a_killed_session_resumes_and_a_torn_line_is_dropped(tmp_path):
    model = Model()
    own = session(tmp_path, model=model)
    own.next()
    own.choose("a")
    own.next()
    own.choose("tie")
    with open(tmp_path / "choices.jsonl", "a") as file:
        file.write('{"id": "half')
    again = session(tmp_path, model=model)
    assert again.next().number == 2 and again.remaining == 4
    again.choose("b")
    assert [row["choice"] for row in read_choices(again.path)] == ["a", "tie", "b"]
    assert model.asked == [0, 1, 2], "answers are drawn when they are needed, and only then"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\r\n"])
def test_answers_with_separators_of_lines_are_read_again(tmp_path, separator):
    def answers(prompt, number):
        return f"first{separator}line {number}", f"other{separator}line"

    own = session(tmp_path, model=answers)
    own.next()
    row = own.choose("a")
    assert session(tmp_path, model=answers).next().number == 1
    (preference,) = read_preferences(own.path)
    assert preference.chosen[0]["content"] == row["answers"][0]
    assert own.undo() == row


def test_empty_prompts_keep_their_place_and_are_not_asked(tmp_path):
    own = Session(tmp_path / "choices.jsonl", [[], *prompts(1), []], Model())
    assert own.remaining == 1 and own.next().number == 1
    own.choose("tie")
    assert own.remaining == 0 and own.next() is None


def test_undo_shows_the_same_pair_again(tmp_path):
    own = session(tmp_path)
    assert own.undo() is None
    first = own.next()
    own.choose("a")
    second = own.next()
    own.choose("b")
    assert own.undo()["choice"] == "b"
    assert own.next().answers == second.answers and len(read_choices(own.path)) == 1
    own.choose("tie")
    again = session(tmp_path)
    again.undo(), again.undo()
    assert again.next().answers == first.answers and read_choices(again.path) == []
    other = session(tmp_path, rater="ben")
    other.next()
    other.choose("a")
    assert again.undo() is None and len(read_choices(again.path)) == 1, "another rater's choice stays"


def test_the_order_is_drawn_and_owned(tmp_path):
    def orders(seed, rater="anna"):
        own = session(tmp_path / f"{seed}{rater}", 40, seed=seed, rater=rater)
        (tmp_path / f"{seed}{rater}").mkdir(exist_ok=True)
        result = []
        while (shown := own.next()) is not None:
            result.append(shown.answers[0].startswith("good"))
            own.choose("skip")
        (tmp_path / f"{seed}{rater}" / "choices.jsonl").unlink()
        return result

    first = orders(0)
    assert 8 < sum(first) < 32 and first == orders(0)
    assert first != orders(1) and first != orders(0, "ben")


def test_a_second_rater_sees_the_same_answers(tmp_path):
    class Changing(Model):
        def __call__(self, prompt, number):
            self.asked.append(number)
            return f"good {number} {len(self.asked)}", f"bad {number}"

    model = Changing()
    anna = session(tmp_path, 4, model=model)
    for choice in ("good", "good", "bad", "tie"):
        shown = anna.next()
        anna.choose(letter(shown, choice) if choice != "tie" else choice)
    ben = session(tmp_path, 4, rater="ben", model=model)
    for choice in ("good", "bad", "bad", "tie"):
        shown = ben.next()
        ben.choose(letter(shown, choice) if choice != "tie" else choice)
    assert model.asked == [0, 1, 2, 3]
    (found,) = ben.agreements()
    assert (found.first, found.second, found.count, found.raw) == ("anna", "ben", 4, 0.75)
    assert -1 < found.kappa < 1


def rows(*choices, rater):
    return [
        {"prompt": [{"role": "user", "content": str(number)}], "answers": ["x", "y"], "choice": choice, "rater": rater}
        for number, choice in enumerate(choices)
    ]


def test_kappa_by_hand():
    first = rows(*"aaabbbtttt".replace("t", "a"), rater="1")
    second = rows(*"aabbbaaaaa", rater="2")
    (found,) = agreement(first + second)
    # 8 of 10 equal; the first chose a 7 times, the second 7 times: chance is 0.7 * 0.7 + 0.3 * 0.3 = 0.58.
    assert found.raw == 0.8 and found.kappa == pytest.approx((0.8 - 0.58) / 0.42)
    sklearn = pytest.importorskip("sklearn.metrics")
    assert found.kappa == pytest.approx(sklearn.cohen_kappa_score(list("aaabbbaaaa"), list("aabbbaaaaa")))
    assert agreement(rows("a", "a", rater="1") + rows("a", "a", rater="2"))[0].kappa is None
    assert agreement(rows("a", rater="1") + rows("skip", rater="2")) == []
    swapped = [{**row, "answers": row["answers"][::-1], "choice": "b"} for row in rows("a", rater="2")]
    assert agreement(rows("a", rater="1") + swapped)[0].raw == 1.0, "the same answer, shown in the other order"


def test_identical_answers_are_passed_over(tmp_path):
    own = Session(tmp_path / "c.jsonl", prompts(3), lambda prompt, number: ("same", "same" if number else "other"))
    own.next()
    own.choose("a")
    assert own.next() is None and own.identical == 2 and own.remaining == 0
    own.undo()
    assert own.remaining == 1 and own.next().number == 0
    own.choose("b")
    assert own.next() is None and own.identical == 2


def test_changed_prompts_are_asked_again(tmp_path):
    own = session(tmp_path, 2)
    own.next()
    own.choose("a")
    changed = Session(own.path, [[{"role": "user", "content": "new"}], prompts(2)[1]], Model(), rater="anna")
    assert changed.next().number == 0 and changed.remaining == 2


def test_bad_input(tmp_path):
    own = session(tmp_path, 1)
    with pytest.raises(InputError, match="must be one of a, b, tie, both_bad, skip"):
        own.choose("left")
    own.choose("a")
    with pytest.raises(InputError, match="labelled already"):
        own.choose("a")
    own.add_prompt(prompts(2)[1])
    assert own.next().number == 1
    other = tmp_path / "other.jsonl"
    append_choice(other, {"prompt": [], "answers": ["a"], "choice": "a"})
    with pytest.raises(InputError, match=r"other.jsonl:1 is not a choice"):
        Session(other, prompts(1), Model())
