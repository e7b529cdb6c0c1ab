"""Frames of the families that order, group and relate rows; `frames` explains the slots and joins them to its own."""

from __future__ import annotations

MORE_FRAMES: dict[str, str] = {
    "same as": """
        Which {many} have the same {col} as {v}?
        List the {many} with the same {col} as the {one} {v}.
        Show all {many} that have the same {col} as {v}.
        Find the {many} whose {col} is the same as that of {v}.
        Give me the {many} with the {col} of the {one} {v}.
        Which {many} share their {col} with {v}?
        What are the {many} with the same {col} as {v}?
        Show me the {many} that share the {col} of the {one} {v}.
        ---
        Find all {many} that share their {col} with the {one} {v}.
        I want to see the {many} that have the same {col} as {v}.
        List the {many} whose {col} is that of {v}.
        """,
    "sorted": """
        List the {np} ordered by {col} {direction}.
        Show the {np} sorted by {col} {direction}.
        Give me all {np} by {col} {direction}.
        Sort the {np} by {col} {direction}.
        Order the {np} by their {col} {direction}.
        Show me all {np} sorted by their {col} {direction}.
        I want to see the {np} ordered by {col} {direction}.
        List all {np} by their {col} {direction}.
        Please list the {np} sorted by {col} {direction}.
        ---
        I would like the {np} sorted by {col} {direction}.
        Can you order the {np} by {col} {direction}?
        Which {np} are there, ordered by their {col} {direction}?
        """,
    "top": """
        Which {n} {many} have the {most} {cols}?
        Show the {n} {many} with the {most} {cols}.
        List the {n} {many} with the {most} {col}.
        Give me the {n} {many} that have the {most} {cols}.
        What are the {n} {many} with the {most} {cols}?
        Find the {n} {many} with the {most} {cols}.
        Name the {n} {many} with the {most} {col}.
        I want to see the {n} {many} with the {most} {cols}.
        Tell me which {n} {many} have the {most} {cols}.
        ---
        Can you show me the {n} {many} that have the {most} {cols}?
        By {col}, what are the {n} {most} {many}?
        Which are the {n} {many} with the {most} {col}?
        """,
    "top where": """
        Among the {np}, which {n} have the {most} {cols}?
        Show the {n} with the {most} {cols} among the {np}.
        Of the {np}, list the {n} with the {most} {col}.
        Give me the {n} of the {np} that have the {most} {cols}.
        Which {n} of the {np} have the {most} {cols}?
        Find the {n} with the {most} {cols} of all {np}.
        From the {np}, show me the {n} with the {most} {cols}.
        For the {np}, what are the {n} with the {most} {col}?
        ---
        Of the {np}, which {n} have the {most} {cols}?
        Tell me the {n} with the {most} {col} among the {np}.
        Among the {np}, find the {n} that have the {most} {cols}.
        """,
    "most": """
        Which {one} has the {most} {col}?
        What is the {one} with the {most} {col}?
        Show the {one} with the {most} {col}.
        Find the {one} that has the {most} {col}.
        Give me the {one} with the {most} {col}.
        Tell me which {one} has the {most} {col}.
        Name the {one} with the {most} {col}.
        I want to know which {one} has the {most} {col}.
        Among all {many}, which one has the {most} {col}?
        ---
        Of all {many}, which has the {most} {col}?
        Can you tell me the {one} that has the {most} {col}?
        Which of the {many} is the one with the {most} {col}?
        """,
    "most where": """
        Which of the {np} has the {most} {col}?
        Among the {np}, which one has the {most} {col}?
        Of the {np}, show the one with the {most} {col}.
        Find the one with the {most} {col} among the {np}.
        Give me the one of the {np} that has the {most} {col}.
        For the {np}, which one has the {most} {col}?
        Tell me which of the {np} has the {most} {col}.
        Show me the one with the {most} {col} of all {np}.
        ---
        Of the {np}, which one has the {most} {col}?
        Among the {np}, find the one that has the {most} {col}.
        I want to know which of the {np} has the {most} {col}.
        """,
    "above average": """
        Which {many} have {a_col} {side} the average?
        List the {many} with {a_col} {side} average.
        Show all {many} whose {col} {be} {side} the average.
        Find the {many} with {a_col} {side} the mean.
        Give me the {many} whose {col} {be} {side} average.
        What are the {many} with {a_col} {side} the average {col}?
        Which {many} are {side} the average in {col}?
        I want to see the {many} whose {col} {be} {side} the mean {col}.
        ---
        Show me all {many} with {a_col} {side} the average {col}.
        Tell me which {many} have {a_col} that is {side} average.
        For which {many} {be} the {col} {side} the average?
        """,
    "count per group": """
        How many {np} are there for each {group}?
        How many {np} are there per {group}?
        Count the {np} for each {group}.
        Show the number of {np} per {group}.
        Give me the number of {np} for each {group}.
        For each {group}, how many {np} are there?
        What is the number of {np} by {group}?
        Count the {np} per {group}.
        List every {group} with its number of {np}.
        For every {group}, show the number of {np}.
        ---
        For each {group}, count the {np}.
        Tell me how many {np} there are for every {group}.
        Show how many {np} each {group} has.
        """,
    "average per group": """
        What {be} the average {col} of the {np} for each {group}?
        What {be} the average {col} of the {np} per {group}?
        Show the average {col} of the {np} by {group}.
        Give me the mean {col} of the {np} for each {group}.
        For each {group}, what {be} the average {col} of the {np}?
        Calculate the average {col} of the {np} per {group}.
        Find the mean {col} of the {np} by {group}.
        List every {group} with the average {col} of its {np}.
        For every {group}, show the average {col} of the {np}.
        ---
        For each {group}, calculate the mean {col} of the {np}.
        Tell me the average {col} of the {np} for every {group}.
        How high {be} the average {col} of the {np} per {group}?
        """,
    "sum per group": """
        What {be} the total {col} of the {np} for each {group}?
        What {be} the total {col} of the {np} per {group}?
        Show the sum of the {cols} of the {np} by {group}.
        Give me the total {col} of the {np} for each {group}.
        For each {group}, what {be} the total {col} of the {np}?
        Add up the {cols} of the {np} per {group}.
        Find the total {col} of the {np} by {group}.
        List every {group} with the total {col} of its {np}.
        For every {group}, show the sum of the {cols} of the {np}.
        ---
        For each {group}, add up the {cols} of the {np}.
        Tell me the total {col} of the {np} for every {group}.
        How high {be} the total {col} of the {np} per {group}?
        """,
    "maximum per group": """
        What {be} the highest {col} of the {np} for each {group}?
        What {be} the maximum {col} of the {np} per {group}?
        Show the highest {col} of the {np} by {group}.
        Give me the largest {col} of the {np} for each {group}.
        For each {group}, what {be} the maximum {col} of the {np}?
        Find the highest {col} of the {np} per {group}.
        List every {group} with the highest {col} of its {np}.
        For every {group}, show the maximum {col} of the {np}.
        ---
        For each {group}, find the largest {col} of the {np}.
        Tell me the maximum {col} of the {np} for every {group}.
        How high {be} the highest {col} of the {np} per {group}?
        """,
    "most rows": """
        Which {group} has the {number} {many}?
        What is the {group} with the {number} {many}?
        Show the {group} with the {number} {many}.
        Find the {group} that has the {number} {many}.
        Give me the {group} with the {number} {many}.
        Tell me which {group} has the {number} {many}.
        For which {group} are there the {number} {many}?
        I want to know the {group} with the {number} {many}.
        ---
        Can you find the {group} with the {number} {many}?
        Of which {group} are there the {number} {many}?
        Name the {group} that has the {number} {many}.
        """,
    "top rows": """
        Which {n} {groups} have the {number} {many}?
        What are the {n} {groups} with the {number} {many}?
        Show the {n} {groups} with the {number} {many}.
        Find the {n} {groups} that have the {number} {many}.
        Give me the {n} {groups} with the {number} {many}.
        Tell me which {n} {groups} have the {number} {many}.
        List the {n} {groups} with the {number} {many}.
        I want to see the {n} {groups} with the {number} {many}.
        ---
        Name the {n} {groups} that have the {number} {many}.
        Can you show me the {n} {groups} with the {number} {many}?
        For which {n} {groups} are there the {number} {many}?
        """,
    "best average": """
        Which {group} has the {most} average {col} of {many}?
        What is the {group} with the {most} average {col} of its {many}?
        For which {group} {be} the average {col} of the {many} {most}?
        Show the {group} whose {many} have the {most} average {col}.
        Find the {group} with the {most} mean {col} of the {many}.
        Which {group} has {many} with the {most} average {col}?
        Tell me the {group} whose {many} have the {most} mean {col}.
        Give me the {group} with the {most} average {col} of {many}.
        ---
        Find the {group} whose {many} have the {most} average {col}.
        On average, the {many} of which {group} have the {most} {col}?
        Which is the {group} with the {most} average {col} of its {many}?
        """,
    "best sum": """
        Which {group} has the {most} total {col} of {many}?
        What is the {group} with the {most} total {col} of its {many}?
        For which {group} {be} the total {col} of the {many} {most}?
        Show the {group} whose {many} have the {most} total {col}.
        Find the {group} with the {most} sum of the {cols} of its {many}.
        Which {group} has {many} with the {most} total {col}?
        Tell me the {group} whose {many} have the {most} total {col}.
        Give me the {group} with the {most} total {col} of {many}.
        ---
        Find the {group} whose {many} have the {most} total {col}.
        In total, the {many} of which {group} have the {most} {col}?
        Which is the {group} with the {most} total {col} of its {many}?
        """,
    "having count": """
        Which {groups} have {amount} {many}?
        List the {groups} with {amount} {many}.
        Show all {groups} that have {amount} {many}.
        What are the {groups} with {amount} {many}?
        Find the {groups} with {amount} {many}.
        Give me every {group} that has {amount} {many}.
        For which {groups} are there {amount} {many}?
        I want to see the {groups} with {amount} {many}.
        Tell me which {groups} have {amount} {many}.
        ---
        Show me every {group} with {amount} {many}.
        Can you find the {groups} that have {amount} {many}?
        Of which {groups} do we have {amount} {many}?
        """,
    "having average": """
        Which {groups} have an average {col} of {many} {side} {v}?
        List the {groups} whose {many} have an average {col} {side} {v}.
        For which {groups} {be} the average {col} of the {many} {side} {v}?
        Show the {groups} where the mean {col} of the {many} {be} {side} {v}.
        Find the {groups} whose {many} have a mean {col} {side} {v}.
        Give me every {group} with an average {col} of its {many} {side} {v}.
        What are the {groups} with an average {col} of {many} {side} {v}?
        Tell me for which {groups} the average {col} of the {many} {be} {side} {v}.
        ---
        Find the {groups} where the average {col} of the {many} {be} {side} {v}.
        Show me every {group} whose {many} have an average {col} {side} {v}.
        On average, the {many} of which {groups} have a {col} {side} {v}?
        """,
    "count per year": """
        How many {np} are there for each year of the {date}?
        How many {np} are there per year of the {date}?
        Count the {np} by the year of their {date}.
        Show the number of {np} for each year of the {date}.
        For each year of the {date}, how many {np} are there?
        Give me the number of {np} per year of the {date}.
        What is the number of {np} by year of the {date}?
        List every year of the {date} with its number of {np}.
        ---
        For each year of the {date}, count the {np}.
        Tell me how many {np} there are for every year of the {date}.
        Show how many {np} each year of the {date} has.
        """,
    "sum per year": """
        What {be} the total {col} of the {np} for each year of the {date}?
        What {be} the total {col} of the {np} per year of the {date}?
        Add up the {cols} of the {np} by the year of their {date}.
        Show the total {col} of the {np} for each year of the {date}.
        For each year of the {date}, what {be} the total {col} of the {np}?
        Give me the sum of the {cols} of the {np} per year of the {date}.
        Find the total {col} of the {np} by year of the {date}.
        List every year of the {date} with the total {col} of its {np}.
        ---
        For each year of the {date}, add up the {cols} of the {np}.
        Tell me the total {col} of the {np} for every year of the {date}.
        How high {be} the total {col} of the {np} per year of the {date}?
        """,
    "count per month": """
        How many {np} are there for each month of the {date} in {year}?
        How many {np} are there per month of the {date} in {year}?
        Count the {np} by the month of their {date} in {year}.
        Show the number of {np} for each month of the {date} in {year}.
        For each month of the {date} in {year}, how many {np} are there?
        Give me the number of {np} per month of the {date} in {year}.
        In {year}, how many {np} are there for each month of the {date}?
        List every month of the {date} in {year} with its number of {np}.
        ---
        For each month of the {date} in {year}, count the {np}.
        Tell me how many {np} there are for every month of the {date} in {year}.
        In {year}, count the {np} by the month of their {date}.
        """,
    "without": """
        Which {many} have no {children}?
        List the {many} without any {children}.
        Show all {many} without {children}.
        Find the {many} that have no {children}.
        Give me the {many} that do not have any {children}.
        What are the {many} without any {children}?
        I want to see the {many} with no {children}.
        Which {many} do not have any {children}?
        For which {many} are there no {children}?
        ---
        Tell me which {many} have no {children}.
        Show me the {many} for which there are no {children}.
        Are there {many} without any {children}?
        """,
    "count without": """
        How many {many} have no {children}?
        How many {many} are there without any {children}?
        Count the {many} without {children}.
        What is the number of {many} that have no {children}?
        Give me the number of {many} without any {children}.
        Show the number of {many} with no {children}.
        I want to know how many {many} do not have any {children}.
        Tell me the number of {many} that have no {children}.
        ---
        Count the {many} that do not have any {children}.
        Can you count the {many} with no {children}?
        For how many {many} are there no {children}?
        """,
    "with any": """
        Which {many} have any {children}?
        List the {many} with at least one {child}.
        Show all {many} that have {children}.
        Find the {many} with any {children}.
        Give me the {many} that have at least one {child}.
        What are the {many} with any {children}?
        Which {many} have at least one {child}?
        For which {many} are there any {children}?
        I want to see the {many} that have any {children}.
        Are there {many} with {children}? List them.
        ---
        Tell me which {many} have at least one {child}.
        Show me the {many} for which there are {children}.
        Find all {many} that do have any {children}.
        """,
    "with any where": """
        Which {many} have any {children}?
        List the {many} with any {children}.
        Show all {many} that have {children}.
        Find the {many} with {children}.
        Give me the {many} that have any {children}.
        What are the {many} with any {children}?
        For which {many} are there any {children}?
        I want to see the {many} that have {children}.
        Are there {many} with {children}? List them.
        ---
        Tell me which {many} have {children}.
        Show me the {many} for which there are {children}.
        Find all {many} that do have any {children}.
        """,
}
