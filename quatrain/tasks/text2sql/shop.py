"""A made-up shop as an SQLite database: the playground of the quickstart.

Six tables of realistic size with declared foreign keys: cities, categories, customers, products, orders, order lines.
One seed gives one content, row by row.
"""

from __future__ import annotations

import datetime
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

from quatrain.core.errors import InputError
from quatrain.tasks.text2sql import shop_names as names

STATEMENTS = (
    """CREATE TABLE cities (
  city_id INTEGER PRIMARY KEY, name TEXT NOT NULL, country TEXT NOT NULL, population INTEGER NOT NULL
)""",
    """CREATE TABLE categories (
  category_id INTEGER PRIMARY KEY, name TEXT NOT NULL, department TEXT NOT NULL
)""",
    """CREATE TABLE customers (
  customer_id INTEGER PRIMARY KEY, name TEXT NOT NULL, email TEXT, segment TEXT NOT NULL, credit_limit INTEGER NOT NULL,
  join_date DATE NOT NULL, city_id INTEGER NOT NULL REFERENCES cities(city_id)
)""",
    """CREATE TABLE products (
  product_id INTEGER PRIMARY KEY, name TEXT NOT NULL, brand TEXT NOT NULL, price REAL NOT NULL, stock INTEGER NOT NULL,
  rating REAL, category_id INTEGER NOT NULL REFERENCES categories(category_id)
)""",
    """CREATE TABLE orders (
  order_id INTEGER PRIMARY KEY, order_date DATE NOT NULL, status TEXT NOT NULL, payment TEXT NOT NULL,
  shipping_cost REAL NOT NULL, customer_id INTEGER NOT NULL REFERENCES customers(customer_id)
)""",
    """CREATE TABLE order_lines (
  line_id INTEGER PRIMARY KEY, order_id INTEGER NOT NULL REFERENCES orders(order_id),
  product_id INTEGER NOT NULL REFERENCES products(product_id), quantity INTEGER NOT NULL, unit_price REAL NOT NULL
)""",
)
#: One row of a table, in the order of its columns.
Row = tuple[object, ...]
FIRST_DAY = datetime.date(2019, 1, 7)
LAST_DAY = datetime.date(2025, 6, 30)


def create_shop(
    path: str | Path, seed: int = 0, *, customers: int = 800, products: int = 300, orders: int = 4000
) -> Path:
    """Write the shop to `path`, replacing what is there only when it is complete; returns the path.

    The same seed and sizes give the same rows. Raises InputError when the folder cannot be written or a size is out of
    range.
    """
    path = Path(path)
    problems = [
        f"{thing}: {value}; allowed are {least} to {most}; choose one of these"
        for thing, value, least, most in (
            ("customers", customers, 1, 5000),
            ("products", products, 1, 3000),
            ("orders", orders, 1, 1_000_000),
        )
        if not least <= value <= most
    ]
    if problems:
        raise InputError("The shop cannot be made", problems)
    rng = random.Random(f"shop {seed}")
    rows = _rows(rng, customers, products, orders)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot write {path}", [f"folder: {path.parent}; {error.strerror}; choose another"]
        ) from error
    try:
        _write(temporary, rows)
        os.replace(temporary, path)
    except (OSError, sqlite3.Error) as error:
        raise InputError(
            f"Cannot write {path}", [f"database: {path}; {error}; free some space or choose another"]
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _write(path: Path, rows: dict[str, list[Row]]) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN")
        for statement in STATEMENTS:
            connection.execute(statement)
        for table, cells in rows.items():
            connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(cells[0]))})", cells)
        connection.commit()
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _rows(rng: random.Random, customers: int, products: int, orders: int) -> dict[str, list[Row]]:
    """The rows of every table, in the order of the foreign keys."""
    cities: list[Row] = [(number, *city) for number, city in enumerate(names.CITIES, 1)]
    categories: list[Row] = [(number, *category) for number, category in enumerate(names.CATEGORIES, 1)]
    people = _customers(rng, customers, len(cities))
    goods = _products(rng, products)
    sales, lines = _orders(rng, orders, people, goods)
    return {
        "cities": cities, "categories": categories, "customers": people, "products": goods, "orders": sales,
        "order_lines": lines,
    }  # fmt: skip


def _customers(rng: random.Random, count: int, cities: int) -> list[Row]:
    full = [f"{first} {last}" for first in names.FIRST_NAMES for last in names.LAST_NAMES]
    weights = [1 / (place + 3) for place in range(cities)]
    rng.shuffle(weights)
    rows: list[Row] = []
    for number, name in enumerate(rng.sample(full, count), 1):
        email = None
        if rng.random() < 0.9:
            first, last = name.lower().replace("'", "").replace(" ", ".", 1).split(".", 1)
            email = f"{first}.{last.replace(' ', '')}@example.com"
        credit = int(rng.betavariate(1.3, 4) * 5000)
        segment = rng.choices(names.SEGMENTS, (70, 18, 8, 4))[0]
        city = rng.choices(range(1, cities + 1), weights)[0]
        rows.append((number, name, email, segment, credit, _day(rng, FIRST_DAY, LAST_DAY), city))
    return rows


def _products(rng: random.Random, count: int) -> list[Row]:
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < count:
        category = rng.randrange(len(names.CATEGORIES))
        low, high, goods = names.GOODS[names.CATEGORIES[category][0]]
        words = [rng.choice(names.STYLES), rng.choice(names.MATERIALS), rng.choice(goods)]
        drop = rng.random()
        name = " ".join(words[:1] + words[2:] if drop < 0.35 else words[1:] if drop < 0.75 else words)
        if rng.random() < 0.12:
            name += f", {rng.choice(names.COLOURS)}"
        if name in seen:
            continue
        seen.add(name)
        price = low + (high - low) * rng.betavariate(1.2, 3)
        price = int(price) + rng.choice((0.0, 0.5, 0.9, 0.95, 0.99, round(rng.random(), 2)))
        rating = None if rng.random() < 0.08 else round(rng.betavariate(6, 2) * 4 + 1, 1)
        brand = names.BRANDS[min(int(rng.expovariate(0.12)), len(names.BRANDS) - 1)]
        stock = 0 if rng.random() < 0.06 else int(rng.betavariate(1.2, 3) * 600)
        rows.append((len(rows) + 1, name, brand, round(price, 2), stock, rating, category + 1))
    return rows


def _orders(rng: random.Random, count: int, people: list[Row], goods: list[Row]) -> tuple[list[Row], list[Row]]:
    # Some customers and products are never ordered, so that "without any orders" has an answer.
    buyers = rng.sample(people, max(1, int(len(people) * 0.94)))
    buying = [rng.paretovariate(1.6) for _ in buyers]
    shelf = rng.sample(goods, max(1, int(len(goods) * 0.97)))
    selling = [rng.paretovariate(1.4) for _ in shelf]
    drafts = []
    for buyer in rng.choices(buyers, buying, k=count):
        joined = datetime.date.fromisoformat(str(buyer[5]))
        drafts.append((_day(rng, joined, LAST_DAY), buyer[0]))
    drafts.sort(key=lambda draft: draft[0])
    sales: list[Row] = []
    lines: list[Row] = []
    for number, (day, customer) in enumerate(drafts, 1):
        recent = day >= "2025-06-01"
        status = rng.choices(names.STATUSES, (20, 40, 35, 4, 1) if recent else (82, 3, 1, 8, 6))[0]
        shipping = rng.choice((0.0, 4.9, 4.9, 6.5, 9.9, 14.5, round(rng.uniform(2, 30), 2)))
        sales.append((number, day, status, rng.choices(names.PAYMENTS, (60, 20, 14, 6))[0], shipping, customer))
        for product in {
            row[0]: row for row in rng.choices(shelf, selling, k=rng.choice((1, 1, 2, 2, 3, 4, 5)))
        }.values():
            price = float(str(product[3]))
            paid = round(price * rng.choice((0.8, 0.9, 0.95)), 2) if rng.random() < 0.2 else price
            quantity = min(1 + int(rng.expovariate(0.45)), 24)
            lines.append((len(lines) + 1, number, product[0], quantity, paid))
    return sales, lines


def _day(rng: random.Random, first: datetime.date, last: datetime.date) -> str:
    return (first + datetime.timedelta(days=rng.randrange((last - first).days + 1))).isoformat()
