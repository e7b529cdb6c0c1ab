"""Maps of vectors in two dimensions: PCA (Pearson 1901), t-SNE (van der Maaten & Hinton 2008), UMAP (McInnes et al.
2018, arXiv 1802.03426).

Distances in a t-SNE or UMAP map mean little beyond who is whose neighbour; the axes of PCA are directions of the space.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.evaluation.inspection.tokens import Token, token
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

MOST_POINTS = 5000
COMPONENTS = 50
"""t-SNE and UMAP start from so many principal components."""


@dataclass(frozen=True)
class EmbeddingMap:
    """Points of a map: names, kinds (for their colour) and coordinates (N, 2).

    `explained` are the shares of the variance along the two axes of PCA, empty for other methods.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    points: Tensor
    method: str
    explained: tuple[float, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        points = [
            {"name": name, "kind": kind, "x": x, "y": y}
            for name, kind, (x, y) in zip(self.names, self.kinds, self.points.tolist(), strict=True)
        ]
        return {"method": self.method, "explained": list(self.explained), "points": points}


def pca(vectors: Tensor, components: int = 2) -> tuple[Tensor, Tensor]:
    """The principal components (N, K) of vectors (N, C), and the share of the variance of each (K).

    The largest entry of each direction is positive, as in scikit-learn, so that a map does not flip between runs.
    Raises InputError for fewer than two vectors.
    """
    if len(vectors) < 2:
        raise InputError(f"{len(vectors)} vectors have no directions; give at least 2.")
    centred = vectors.double() - vectors.double().mean(0)
    _, scales, directions = torch.linalg.svd(centred, full_matrices=False)
    signs = torch.sign(directions.gather(1, directions.abs().argmax(1, keepdim=True)))
    directions = directions * torch.where(signs == 0, 1.0, signs)
    variances = scales.square()
    shares = variances / variances.sum().clamp(min=1e-300)
    projected = centred @ directions[:components].T
    missing = components - projected.shape[1]
    if missing > 0:  # A line or a point has fewer directions than the map.
        projected = torch.nn.functional.pad(projected, (0, missing))
        shares = torch.nn.functional.pad(shares, (0, missing))
    return projected, shares[:components]


def _tsne(vectors: Tensor, seed: int) -> Tensor:
    with require("t-SNE", "scikit-learn", "classic", "; pca needs nothing."):
        from sklearn.manifold import TSNE
    perplexity = min(30.0, max(1.0, (len(vectors) - 1) / 3))
    reducer = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed)
    return torch.from_numpy(reducer.fit_transform(vectors.float().numpy())).double()


def _umap(vectors: Tensor, seed: int) -> Tensor:
    with require("UMAP", "umap-learn", "umap", "; pca and tsne do not."):
        from umap import UMAP
    reducer = UMAP(n_components=2, n_neighbors=min(15, len(vectors) - 1), random_state=seed)
    return torch.from_numpy(reducer.fit_transform(vectors.float().numpy())).double()


METHODS: dict[str, Callable[[Tensor, int], Tensor] | None] = {"pca": None, "tsne": _tsne, "umap": _umap}


def embedding_map(
    vectors: Tensor, names: Sequence[str], kinds: Sequence[str] | None = None, *, method: str = "pca", seed: int = 0
) -> EmbeddingMap:
    """A map of vectors (N, C): "pca", or "tsne" or "umap" of their first 50 principal components.

    `kinds` group the points. Raises InputError for too few or too many vectors, and for a library that is missing.
    """
    if method not in METHODS:
        raise InputError(f"method: {method!r}; must be one of {', '.join(METHODS)}")
    if not 3 <= len(vectors) <= MOST_POINTS:
        raise InputError(f"{len(vectors):,} vectors; a map has from 3 to {MOST_POINTS:,} points.")
    if len(names) != len(vectors) or (kinds is not None and len(kinds) != len(vectors)):
        raise InputError(f"names and kinds: must have one entry for each of the {len(vectors):,} vectors")
    vectors = vectors.detach().cpu()
    if not bool(torch.isfinite(vectors.float()).all()):
        raise InputError("The vectors contain NaN or inf: the model's weights are broken. Fetch or train it again.")
    reduce = METHODS[method]
    shown = tuple(kinds) if kinds is not None else ("",) * len(vectors)
    if reduce is None:
        points, shares = pca(vectors)
        return EmbeddingMap(tuple(names), shown, points, method, tuple(shares.tolist()))
    reduced, _ = pca(vectors, min(COMPONENTS, *vectors.shape))
    return EmbeddingMap(tuple(names), shown, reduce(reduced, seed), method)


def vocabulary_tokens(tokenizer: Tokenizer, count: int = 1000) -> list[Token]:
    """The first `count` tokens of the vocabulary that are written in letters, digits or marks; special ones excluded.

    Those of trained vocabularies are in the order of their frequency or of their merges.
    """
    found: list[Token] = []
    for each in range(tokenizer.vocab_size):
        if len(found) == count:
            break
        if each in tokenizer.special_ids or tokenizer.id_to_token(each) is None:
            continue
        known = token(tokenizer, each, len(found))
        if known.text.strip() and not known.text.startswith("<0x"):
            found.append(known)
    return found


@torch.no_grad()
def token_map(model: Model, chosen: Sequence[Token], *, method: str = "pca", seed: int = 0) -> EmbeddingMap:
    """The map of the input embeddings of tokens, coloured by what they are made of."""
    ids = torch.tensor([each.id for each in chosen], dtype=torch.long, device=model.device)
    names, kinds = [each.shown for each in chosen], [token_kind(each.text) for each in chosen]
    return embedding_map(model.embed(ids).float(), names, kinds, method=method, seed=seed)


def token_kind(text: str) -> str:
    """What a token is made of: "word" (after a space), "part of a word", "number", "mark" or "other letters"."""
    bare = text.strip()
    if bare.isdigit():
        return "number"
    if not any(character.isalpha() for character in bare):
        return "mark"
    if not all(unicodedata.name(c, "").startswith("LATIN") for c in bare if c.isalpha()):
        return "other letters"
    return "word" if text[:1].isspace() else "part of a word"


@torch.no_grad()
def text_vectors(model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """One vector (N, C) for each text: a sentence embedding, or the mean of a model's last hidden states.

    A text is cut at the model's context. Raises InputError for an empty text.
    """
    limit = model.config.context_length if model.config.has_position_limit else None
    rows = []
    for number, text in enumerate(texts, 1):
        ids = tokenizer.encode(text, special_tokens=True)[:limit]
        if not ids:
            raise InputError(f"text {number} is empty; give at least one character")
        batch = torch.tensor([ids], device=model.device)
        if model.config.head == "embedding":
            rows.append(model(batch)[0][0].float().cpu())
        elif model.encoder is not None:
            rows.append(model.encode(batch)[0].mean(0).float().cpu())
        else:
            rows.append(model.hidden_states(batch)[0].mean(0).float().cpu())
    return torch.stack(rows)
