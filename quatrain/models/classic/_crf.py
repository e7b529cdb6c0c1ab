"""A linear-chain conditional random field (Lafferty et al. 2001) over the emissions of a tagger (Lample et al. 2016,
arXiv 1603.01360).

The score of a sequence of tags is the sum of the emission of each tag and of the transition between neighbours. The
loss is log Z - score, where Z sums over all sequences: the forward algorithm does it in O(T L²).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quatrain.models.classic._network import Network
from quatrain.models.transformer import heads


class CRF(nn.Module):
    """Transitions between L tags, and scores of the first and the last tag.

    Emissions are (B, T, L); lengths (B,) are the numbers of tags of the rows, each at least 1.
    """

    def __init__(self, num_labels: int):
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(num_labels, num_labels))
        """The score of tag j behind tag i, at [i, j]."""
        self.start = nn.Parameter(torch.zeros(num_labels))
        self.end = nn.Parameter(torch.zeros(num_labels))

    def score(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """The score (B,) of tags (B, T); what stands behind a row's length does not count."""
        inside = torch.arange(tags.shape[1], device=tags.device) < lengths[:, None]
        tags = tags.clamp(min=0)
        own = emissions.gather(2, tags[..., None])[..., 0]
        steps = self.transitions[tags[:, :-1], tags[:, 1:]]
        last = tags.gather(1, lengths[:, None] - 1)[:, 0]
        total = (own * inside).sum(1) + (steps * inside[:, 1:]).sum(1)
        return total + self.start[tags[:, 0]] + self.end[last]

    def forward_scores(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """log of the summed exp(score) of all sequences whose tag at a place is j: alpha (B, T, L), prefixes alone."""
        alpha = self.start + emissions[:, 0]
        scores = [alpha]
        for step in range(1, emissions.shape[1]):
            new = torch.logsumexp(alpha[:, :, None] + self.transitions, dim=1) + emissions[:, step]
            alpha = torch.where((step < lengths)[:, None], new, alpha)
            scores.append(alpha)
        return torch.stack(scores, dim=1)

    def log_partition(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """log Z (B,): the log of the summed exp(score) of all sequences of tags."""
        return torch.logsumexp(self.forward_scores(emissions, lengths)[:, -1] + self.end, dim=1)

    def loss(self, emissions: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        """The negative log-likelihood (B,) of tags (B, T)."""
        return self.log_partition(emissions, lengths) - self.score(emissions, tags, lengths)

    def marginals(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The probability (B, T, L) of each tag at each place, by the forward-backward algorithm."""
        alpha = self.forward_scores(emissions, lengths)
        beta = self.end.expand(emissions.shape[0], -1)
        later = [beta]
        for step in range(emissions.shape[1] - 1, 0, -1):
            new = torch.logsumexp(self.transitions + (emissions[:, step] + beta)[:, None], dim=2)
            beta = torch.where((step < lengths)[:, None], new, beta)
            later.append(beta)
        return (alpha + torch.stack(later[::-1], dim=1)).softmax(-1)

    def viterbi(self, emissions: Tensor, lengths: Tensor) -> list[list[int]]:
        """The sequence of tags with the highest score of each row."""
        best = self.start + emissions[:, 0]
        pointers = []
        for step in range(1, emissions.shape[1]):
            scores, before = (best[:, :, None] + self.transitions).max(1)
            best = torch.where((step < lengths)[:, None], scores + emissions[:, step], best)
            pointers.append(before)
        paths = []
        for row, length in enumerate(lengths.tolist()):
            tag = int((best[row] + self.end).argmax())
            path = [tag]
            for before in reversed(pointers[: length - 1]):
                tag = int(before[row, tag])
                path.append(tag)
            paths.append(path[::-1])
        return paths


class CRFTags(Network):
    """The tags of a model's emissions: each alone, or with `crf` the whole sequence of a row's labelled places."""

    def add_crf(self) -> None:
        """Adds the field if the configuration has one."""
        wanted = self.config.crf and self.config.head == "token_classification"
        self.crf = CRF(self.config.num_labels) if wanted else None

    def head(self, hidden: Tensor, labels: Any = None, segments: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Emissions (B, T, L), and the loss (B, T): with a field that of a row stands at its first label."""
        if self.crf is None or labels is None or self.score is None:
            return super().head(hidden, labels, segments)
        emissions = self.score(hidden)
        heads.check_token_labels(labels, emissions.shape)
        places = labels != heads.IGNORE_INDEX
        loss = torch.zeros(labels.shape, device=emissions.device)
        rows = places.any(1).nonzero()[:, 0]
        if len(rows):
            packed, tags, lengths = gathered(emissions[rows].float(), places[rows], labels[rows])
            first = places[rows].long().argmax(1)
            loss = loss.index_put((rows, first), self.crf.loss(packed, tags, lengths))
        return emissions, loss

    @torch.no_grad()
    def tag(self, emissions: Tensor, places: Tensor) -> tuple[list[list[int]], list[list[float]]]:
        """The label of each marked place (B, T) of each row, and its probability."""
        if self.crf is None:
            shares = emissions.float().softmax(-1)
            best = shares.max(-1)
            return (
                [row[own].tolist() for row, own in zip(best.indices, places, strict=True)],
                [row[own].tolist() for row, own in zip(best.values, places, strict=True)],
            )
        labels: list[list[int]] = [[] for _ in range(len(places))]
        shares_of: list[list[float]] = [[] for _ in range(len(places))]
        rows = places.any(1).nonzero()[:, 0]
        if len(rows):
            packed, _, lengths = gathered(emissions[rows].float(), places[rows])
            marginals = self.crf.marginals(packed, lengths)
            for place, (row, path) in enumerate(zip(rows.tolist(), self.crf.viterbi(packed, lengths), strict=True)):
                labels[row] = path
                shares_of[row] = [float(marginals[place, step, label]) for step, label in enumerate(path)]
        return labels, shares_of


def gathered(emissions: Tensor, places: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The emissions (B, W, L) and labels (B, W) at the marked places (B, T), moved to the front; and their numbers."""
    lengths = places.sum(1)
    width = int(lengths.max())
    order = torch.argsort((~places).long(), dim=1, stable=True)[:, :width]
    packed = emissions.gather(1, order[..., None].expand(-1, -1, emissions.shape[2]))
    tags = torch.zeros_like(order) if labels is None else labels.gather(1, order)
    return packed, tags, lengths
