"""The sentences of the questions: for every family of shapes the frames of training and the held-out ones.

Slots: `{np}` a plural noun with its conditions ("products whose price is above 20"), `{col}` and `{cols}` a column's
label for one and several, `{be}` "is" or "are" as the label asks, `{one}` and `{many}` a table's, `{v}` a value, `{n}`
a small number; a family may use others of its own. Held-out frames are other sentences for the same, made of words
that training frames of some family use; no stage ever renders one.
"""

from __future__ import annotations

from dataclasses import dataclass

from quatrain.applications.text2sql.frames_more import MORE_FRAMES


@dataclass(frozen=True, slots=True)
class Family:
    """The frames of one kind of question."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


def _family(text: str) -> Family:
    train, _, held_out = text.partition("---")
    return Family(*(tuple(line.strip() for line in part.strip().splitlines()) for part in (train, held_out)))


FAMILIES: dict[str, Family] = {
    name: _family(text)
    for name, text in {
        "list": """
            List the {np}.
            Show me the {np}.
            Show all {np}.
            Which {np} are there?
            Which {np} do we have?
            Give me all {np}.
            Find the {np}.
            I want a list of the {np}.
            I would like to see the {np}.
            Please list all {np}.
            What are the {np}?
            Can you show me the {np}?
            ---
            Tell me which {np} there are.
            I want to see a list of all {np}.
            Can you find all {np}?
            """,
        "column": """
            What are the {cols} of the {np}?
            Show the {cols} of the {np}.
            List the {col} of all {np}.
            Give me the {cols} of the {np}.
            What {cols} do the {np} have?
            Find the {col} of the {np}.
            Show me the {col} for all {np}.
            For the {np}, what are the {cols}?
            I want to see the {cols} of the {np}.
            Tell me the {col} of all {np}.
            ---
            For all {np}, list the {col}.
            Which {cols} do the {np} have?
            I would like a list with the {col} of the {np}.
            """,
        "two columns": """
            What are the {col} and the {col2} of the {np}?
            Show the {cols} and {cols2} of the {np}.
            List the {col} and {col2} of all {np}.
            Give me the {col} and the {col2} for all {np}.
            Find the {col} and {col2} of the {np}.
            Show me the {cols} of the {np} together with the {cols2}.
            For all {np}, what are the {col} and the {col2}?
            I want to see the {col} and {col2} of the {np}.
            ---
            For the {np}, list the {col} and the {col2}.
            List the {cols} of all {np} together with the {cols2}.
            Tell me the {col} and the {col2} of all {np}.
            """,
        "lookup": """
            What {be} the {col} of the {one} {v}?
            What {be} the {col} of the {one} called {v}?
            Show the {col} of the {one} {v}.
            Give me the {col} of the {one} named {v}.
            For the {one} {v}, what {be} the {col}?
            Tell me the {col} of the {one} {v}.
            I need the {col} of the {one} {v}.
            What {col} does the {one} {v} have?
            Find the {col} for the {one} {v}.
            Can you tell me the {col} of the {one} called {v}?
            ---
            Which {col} does the {one} called {v} have?
            For the {one} named {v}, find the {col}.
            I want to know the {col} of the {one} {v}.
            """,
        "lookup key": """
            What {be} the {col} of {one} {v}?
            What {be} the {col} of the {one} with the {key} {v}?
            Show the {col} of {one} number {v}.
            Give me the {col} of {one} {v}.
            For {one} {v}, what {be} the {col}?
            Tell me the {col} of {one} number {v}.
            I need the {col} of the {one} with the {key} {v}.
            What {col} does {one} {v} have?
            Find the {col} for {one} {v}.
            ---
            Which {col} does {one} number {v} have?
            I want to know the {col} of {one} {v}.
            For {one} number {v}, show the {col}.
            """,
        "distinct": """
            What are the different {cols} of the {np}?
            Which different {cols} do the {np} have?
            List the different {cols} of the {np}.
            Show all distinct {cols} of the {np}.
            Give me the distinct {cols} of the {np}.
            Show me every different {col} of the {np}.
            Which different {cols} are there among the {np}?
            List each {col} of the {np} only once.
            ---
            What different {cols} are there for the {np}?
            Show each {col} of the {np} only once.
            Find the distinct {cols} among the {np}.
            """,
        "count": """
            How many {np} are there?
            How many {np} do we have?
            Count the {np}.
            What is the number of {np}?
            Give me the number of {np}.
            Show the number of {np}.
            I want to know how many {np} there are.
            Tell me the number of {np}.
            Find the number of all {np}.
            Can you count the {np}?
            How many {np} can you find?
            ---
            Tell me how many {np} we have.
            What is the count of all {np}?
            I need to know the number of {np}.
            """,
        "count distinct": """
            How many different {cols} do the {np} have?
            How many distinct {cols} are there among the {np}?
            Count the different {cols} of the {np}.
            What is the number of different {cols} of the {np}?
            Give me the number of distinct {cols} of the {np}.
            Tell me how many different {cols} the {np} have.
            Show the number of distinct {cols} among the {np}.
            Count the distinct {cols} of all {np}.
            ---
            How many different {cols} can you find among the {np}?
            I want to know the number of different {cols} of the {np}.
            What is the count of distinct {cols} of the {np}?
            """,
        "average": """
            What {be} the average {col} of the {np}?
            What {be} the average {col} of all {np}?
            Show the average {col} of the {np}.
            Give me the average {col} for the {np}.
            Find the mean {col} of the {np}.
            Calculate the average {col} of all {np}.
            I want to know the average {col} of the {np}.
            Tell me the mean {col} of all {np}.
            For the {np}, what {be} the average {col}?
            How high {be} the average {col} of the {np}?
            What {col} do the {np} have on average?
            ---
            On average, what {be} the {col} of the {np}?
            For all {np}, calculate the mean {col}.
            Can you tell me the average {col} of the {np}?
            """,
        "sum": """
            What {be} the total {col} of the {np}?
            What is the sum of the {cols} of the {np}?
            Show the total {col} of the {np}.
            Give me the total {col} of all {np}.
            Find the sum of the {cols} of all {np}.
            Calculate the total {col} of the {np}.
            I want to know the total {col} of the {np}.
            Add up the {cols} of the {np}.
            For the {np}, what {be} the total {col}?
            How high {be} the total {col} of the {np}?
            What {col} do the {np} have in total?
            ---
            In total, what {be} the {col} of the {np}?
            Tell me the sum of the {cols} of all {np}.
            Can you add up the {cols} of all {np}?
            """,
        "maximum": """
            What {be} the highest {col} of the {np}?
            What {be} the maximum {col} of the {np}?
            What {be} the largest {col} among the {np}?
            Show the maximum {col} of all {np}.
            Give me the highest {col} of the {np}.
            Find the greatest {col} of the {np}.
            I want to know the highest {col} among the {np}.
            For the {np}, what {be} the maximum {col}?
            How high {be} the highest {col} of the {np}?
            ---
            Among the {np}, what {be} the highest {col}?
            Tell me the largest {col} of all {np}.
            For all {np}, find the maximum {col}.
            """,
        "minimum": """
            What {be} the lowest {col} of the {np}?
            What {be} the minimum {col} of the {np}?
            What {be} the smallest {col} among the {np}?
            Show the minimum {col} of all {np}.
            Give me the lowest {col} of the {np}.
            Find the least {col} of the {np}.
            I want to know the lowest {col} among the {np}.
            For the {np}, what {be} the minimum {col}?
            How low {be} the lowest {col} of the {np}?
            ---
            Among the {np}, what {be} the lowest {col}?
            Tell me the smallest {col} of all {np}.
            For all {np}, find the minimum {col}.
            """,
        "range": """
            What are the lowest and the highest {col} of the {np}?
            Show the minimum and maximum {col} of the {np}.
            Give me the smallest and the largest {col} of all {np}.
            Find the lowest and highest {col} among the {np}.
            Between which {cols} do the {np} lie?
            What is the range of the {cols} of the {np}?
            For the {np}, what are the minimum and the maximum {col}?
            I want to know the lowest and the highest {col} of the {np}.
            ---
            Tell me the smallest and the largest {col} of the {np}.
            For all {np}, show the lowest and the highest {col}.
            How low and how high are the {cols} of the {np}?
            """,
        "first date": """
            What {be} the earliest {col} of the {np}?
            What {be} the first {col} of the {np}?
            Show the earliest {col} of all {np}.
            Give me the first {col} among the {np}.
            Find the earliest {col} of the {np}.
            I want to know the earliest {col} of the {np}.
            For the {np}, what {be} the first {col}?
            When is the earliest {col} of the {np}?
            ---
            Among the {np}, what {be} the earliest {col}?
            Tell me the first {col} of all {np}.
            For all {np}, find the earliest {col}.
            """,
        "last date": """
            What {be} the latest {col} of the {np}?
            What {be} the last {col} of the {np}?
            Show the latest {col} of all {np}.
            Give me the last {col} among the {np}.
            Find the latest {col} of the {np}.
            I want to know the latest {col} of the {np}.
            For the {np}, what {be} the last {col}?
            When is the latest {col} of the {np}?
            ---
            Among the {np}, what {be} the latest {col}?
            Tell me the last {col} of all {np}.
            For all {np}, find the latest {col}.
            """,
        **MORE_FRAMES,
    }.items()
}
