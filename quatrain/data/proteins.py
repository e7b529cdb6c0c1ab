"""Generated families of protein sequences with planted co-evolution, and the statistics that find contacts in them.

A family has a fold: stretches of residues that touch in pairs, as strands do in a sheet. Its sequences descend from one
ancestor along a tree, and evolve under a Potts model (Weigt et al. 2009): residues that touch prefer opposite charges,
and small next to large; each place has preferences of its own. Two places that touch therefore change together. So do
places with a common neighbour, and so does everything that the tree hands down: which is why contacts are hard to see.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quatrain.core.errors import InputError

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
CHARGE = {"D": -1.0, "E": -1.0, "K": 1.0, "R": 1.0, "H": 0.4}
VOLUME = dict(zip(RESIDUES, (88.6, 108.5, 111.1, 138.4, 189.9, 60.1, 153.2, 166.7, 168.6, 166.7, 162.9, 114.1, 112.7,
                             143.8, 173.4, 89.0, 116.1, 140.0, 227.8, 193.6), strict=True))  # fmt: skip
"""Volumes of residues in cubic angstroms (Zamyatnin 1972)."""
HYDROPATHY = dict(zip(RESIDUES, (1.8, 2.5, -3.5, -3.5, 2.8, -0.4, -3.2, 4.5, -3.9, 3.8, 1.9, -3.5, -1.6, -3.5, -4.5,
                                 -0.8, -0.7, 4.2, -0.9, -1.3), strict=True))  # fmt: skip
"""Kyte and Doolittle 1982."""
SEPARATION = 6
"""Residues nearer than this along the sequence do not count as contacts."""
SWEEPS = 40
"""Sweeps of Gibbs sampling to the ancestor."""


@dataclass(frozen=True)
class Family:
    """An alignment (S, L) of residue numbers, whose first row is the protein itself, and its contacts (L, L)."""

    alignment: np.ndarray
    contacts: np.ndarray

    def __len__(self) -> int:
        return int(self.alignment.shape[1])

    @property
    def sequences(self) -> list[str]:
        """The sequences as texts."""
        return ["".join(RESIDUES[number] for number in row) for row in self.alignment]


def properties() -> np.ndarray:
    """Charge, volume and hydropathy (20, 3) of each residue, the last two with mean 0 and deviation 1."""
    volume, hydropathy = (np.array([table[each] for each in RESIDUES]) for table in (VOLUME, HYDROPATHY))
    charge = np.array([CHARGE.get(each, 0.0) for each in RESIDUES])
    return np.stack([charge, *((each - each.mean()) / each.std() for each in (volume, hydropathy))], axis=1)


COUPLING = np.diag([-2.2, -0.9, 0.7])
"""How much touching residues like equal charges, volumes and hydropathies: opposite charges attract."""


def fold(length: int, random: np.random.Generator) -> np.ndarray:
    """A contact map (length, length): pairs of strands, some of them parallel, and a few lone contacts."""
    contacts = np.zeros((length, length), dtype=bool)
    degree = np.zeros(length, dtype=int)

    def touch(one: int, other: int) -> None:
        if abs(one - other) >= SEPARATION and max(degree[one], degree[other]) < 3 and not contacts[one, other]:
            contacts[one, other] = contacts[other, one] = True
            degree[[one, other]] += 1

    for _ in range(max(2, length // 5)):
        size = int(random.integers(4, 8))
        first = int(random.integers(0, length - 2 * size - 3))
        second = int(random.integers(first + size + 3, length - size + 1))
        parallel = random.random() < 0.35
        for step in range(size):
            touch(first + step, second + (step if parallel else size - 1 - step))
    for _ in range(length // 16):
        touch(*(int(place) for place in random.integers(0, length, 2)))
    return contacts


def generate(
    count: int, *, seed: int, length: int = 40, depth: int = 32, batch: int = 64, mutations: float = 1.0
) -> list[Family]:
    """`count` families of `depth` sequences of `length` residues, each batch drawn from (seed, number).

    `mutations` is the number of Gibbs sweeps on each branch of the tree. Raises InputError for proteins that are too
    short for a fold.
    """
    if length < 24 or depth < 2 or count < 1:
        raise InputError(
            f"families: {count} of {depth} sequences of {length} residues; must be at least one of 2 sequences of 24."
        )
    families: list[Family] = []
    for number in range(-(-count // batch)):
        random = np.random.default_rng((seed, number))
        size = min(batch, count - len(families))
        contacts = np.stack([fold(length, random) for _ in range(size)])
        families += [Family(*pair) for pair in zip(_evolve(contacts, depth, mutations, random), contacts, strict=True)]
    return families


def _evolve(contacts: np.ndarray, depth: int, mutations: float, random: np.random.Generator) -> np.ndarray:
    """Alignments (F, depth, L) of families with these contacts (F, L, L)."""
    count, length = contacts.shape[:2]
    vectors = properties()
    fields = random.normal(0, 0.5, (count, length, len(RESIDUES)))
    # A place is buried or exposed; buried ones prefer residues that avoid water.
    fields += random.normal(0, 0.6, (count, length, 1)) * vectors[:, 2]
    neighbours = contacts.astype(np.float64)

    def sweep(rows: np.ndarray, share: float = 1.0) -> None:
        """Draws each place of rows (F, N, L) anew, or a share of the places, given all others."""
        for place in random.permutation(length)[: max(1, round(share * length))]:
            around = np.einsum("fl,fnlc->fnc", neighbours[:, place], vectors[rows])
            energy = fields[:, None, place] + around @ COUPLING @ vectors.T
            noise = random.gumbel(size=energy.shape)
            rows[:, :, place] = (energy + noise).argmax(-1)

    rows = random.integers(0, len(RESIDUES), (count, 1, length))
    for _ in range(SWEEPS):
        sweep(rows)
    while rows.shape[1] < depth:
        rows = np.repeat(rows, 2, axis=1)
        for _ in range(max(1, int(mutations))):
            sweep(rows, min(1.0, mutations))
    return rows[:, :depth]


def mutual_information(alignment: np.ndarray, pseudocount: float = 0.5) -> np.ndarray:
    """Mutual information (L, L) in nats of each two columns, with APC (Dunn et al. 2008): the product of the columns'
    means over the mean of all is subtracted, which takes away what the tree and a column's entropy give every pair.
    """
    kinds, (depth, length) = len(RESIDUES), alignment.shape
    one_hot = np.eye(kinds)[alignment].reshape(depth, length * kinds)
    joint = (one_hot.T @ one_hot).reshape(length, kinds, length, kinds).transpose(0, 2, 1, 3)
    joint = (joint + pseudocount / kinds) / (depth + pseudocount * kinds)
    rows, columns = joint.sum(3, keepdims=True), joint.sum(2, keepdims=True)
    information = (joint * np.log(joint / (rows * columns))).sum((2, 3))
    np.fill_diagonal(information, 0.0)
    mean = information.sum(0) / (length - 1)
    corrected = information - np.outer(mean, mean) / max(mean.mean(), 1e-12)
    np.fill_diagonal(corrected, 0.0)
    return np.asarray(corrected)


def precision(scores: np.ndarray, contacts: np.ndarray, share: float = 1.0) -> float:
    """The share of contacts among the `share` · L best-scored pairs that are at least `SEPARATION` apart."""
    length = len(contacts)
    rows, columns = np.triu_indices(length, SEPARATION)
    best = np.argsort(-scores[rows, columns], kind="stable")[: max(1, round(share * length))]
    return float(contacts[rows[best], columns[best]].mean())
