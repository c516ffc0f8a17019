"""Mixtures of experts as they are written for export: gates over all, over the k largest, weights stacked or apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HIDDEN, EXPERTS = 20, 12, 5


class Mixture(nn.Module):
    """Embeds tokens, routes each, classifies. What a mixture does with its gates is up to those that derive."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, 6)
        self.route = nn.Linear(WIDTH, EXPERTS, bias=bias)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.mixed(x, self.route(x)))

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        raise AttributeError("a mixture says how")


class Stacked(Mixture):
    """The weights of all experts are one tensor, with biases, and all run."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__(bias)
        self.up, self.down = (nn.Parameter(torch.randn(EXPERTS, a, b) * 0.2)
                              for a, b in ((WIDTH, HIDDEN), (HIDDEN, WIDTH)))  # fmt: skip
        self.b1 = nn.Parameter(torch.randn(EXPERTS, 1, 1, HIDDEN))
        self.b2 = nn.Parameter(torch.randn(EXPERTS, 1, 1, WIDTH))

    def gates(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        hidden = F.relu(torch.einsum("btd,edh->ebth", x, self.up) + self.b1)
        each = torch.einsum("ebth,ehd->ebtd", hidden, self.down) + self.b2
        return torch.einsum("bte,ebtd->btd", self.gates(logits), each)


class Scattered(Stacked):
    """Of the two largest gates, scattered back among zeros."""

    def gates(self, logits: Tensor) -> Tensor:
        found, at = logits.softmax(-1).topk(2, -1)
        return torch.zeros_like(logits).scatter(-1, at, found / found.sum(-1, keepdim=True))


class OneHot(Stacked):
    """Of the two largest logits, weighed among themselves, as rows of ones and zeros."""

    def gates(self, logits: Tensor) -> Tensor:
        found, at = logits.topk(2, -1)
        return (F.one_hot(at, EXPERTS).to(found.dtype) * found.softmax(-1)[..., None]).sum(-2)


class Gathered(Stacked):
    """The weights of the chosen ones are looked up for each token."""

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        found, at = logits.softmax(-1).topk(2, -1)
        hidden = F.relu(torch.einsum("btd,btkdh->btkh", x, self.up[at]))
        return torch.einsum("btk,btkh,btkhd->btd", found, hidden, self.down[at])


class Branches(Mixture):
    """Every expert is a branch of its own, times its slice of the gates."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__(bias)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)) for _ in range(EXPERTS)
        )

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        gates = logits.softmax(-1)
        total = self.experts[0](x) * gates[..., 0:1]
        for e in range(1, EXPERTS):
            total = total + gates[..., e : e + 1] * self.experts[e](x)
        return total


class Picked(Branches):
    """The same with gates picked by a number."""

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        gates = logits.softmax(-1)
        total = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            total = total + gates[..., e].unsqueeze(-1) * expert(x)
        return total


class Chosen(Branches):
    """As Mixtral is written for export: each expert counts where it is among the two that were chosen."""

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        found, at = logits.softmax(-1).topk(2, -1)
        total = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            total = total + (found * (at == e)).sum(-1, keepdim=True) * expert(x)
        return total
