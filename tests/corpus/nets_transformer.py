"""Transformers in plain torch: a ViT with torchvision's forward, a BERT-like encoder, a GPT-2-like decoder.

Each writes its attention and its GELU the way its origin does, since that is what a fusion pass has to recognise:
`nn.MultiheadAttention` (packed projection, scaled_dot_product_attention) in the ViT, matrix products with an additive
mask in BERT, a causal `where` and the written-out tanh GELU in GPT-2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class VitBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.dim() == 3, f"expected (batch, tokens, dim), got {x.shape}")
        y = self.norm1(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        y = y + x
        return y + self.mlp(self.norm2(y))


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2020: [N,3,size,size] to logits [N,classes]."""

    def __init__(
        self, size: int, patch: int, depth: int, heads: int, dim: int, hidden: int, classes: int = 1000
    ) -> None:
        super().__init__()
        self.size, self.patch, self.dim = size, patch, dim
        self.project = nn.Conv2d(3, dim, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.empty(1, (size // patch) ** 2 + 1, dim).normal_(std=0.02))
        self.blocks = nn.Sequential(*[VitBlock(dim, heads, hidden) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        torch._assert(h == self.size, f"expected height {self.size}, got {h}")
        torch._assert(w == self.size, f"expected width {self.size}, got {w}")
        x = self.project(x).reshape(n, self.dim, (h // self.patch) * (w // self.patch)).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.position))
        return self.head(x[:, 0])


class BertBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.expand, self.project = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        head = dim // self.heads

        def split(t: Tensor) -> Tensor:
            return t.view(batch, tokens, self.heads, head).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        a = torch.softmax(q @ k.transpose(-1, -2) / head**0.5 + mask, -1) @ v
        x = self.norm1(x + self.out(a.transpose(1, 2).reshape(batch, tokens, dim)))
        return self.norm2(x + self.project(functional.gelu(self.expand(x))))


class Bert(nn.Module):
    """Post-norm encoder and classifier: ids and mask [N,T] (int64; 1 = attend) to logits [N,2]."""

    def __init__(self, depth: int, dim: int, heads: int, hidden: int, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(positions, dim)
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(BertBlock(dim, heads, hidden) for _ in range(depth))
        self.pool, self.classify = nn.Linear(dim, dim), nn.Linear(dim, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))[None])
        additive = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        for block in self.blocks:
            x = block(x, additive)
        return self.classify(torch.tanh(self.pool(x[:, 0])))


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh approximation (Hendrycks & Gimpel 2016), written out as GPT-2 does."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class GptBlock(nn.Module):
    """Pre-norm block with a packed projection; `sdpa` uses torch's fused attention instead of the written-out one."""

    allowed: Tensor

    def __init__(self, dim: int, heads: int, positions: int, sdpa: bool) -> None:
        super().__init__()
        self.dim, self.heads, self.sdpa = dim, heads, sdpa
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.expand, self.project = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        triangle = torch.tril(torch.ones(positions, positions, dtype=torch.bool))
        self.register_buffer("allowed", triangle.view(1, 1, positions, positions), persistent=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.sdpa:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        tokens = q.shape[2]
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        least = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
        scores = torch.where(self.allowed[:, :, :tokens, :tokens], scores, least)
        return torch.matmul(functional.softmax(scores, dim=-1), v)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            t.view(batch, tokens, self.heads, self.dim // self.heads).permute(0, 2, 1, 3)
            for t in self.qkv(self.norm1(x)).split(self.dim, dim=2)
        )
        x = x + self.out(self.attend(q, k, v).permute(0, 2, 1, 3).contiguous().view(batch, tokens, self.dim))
        return x + self.project(gelu_tanh(self.expand(self.norm2(x))))


class Gpt(nn.Module):
    """Radford et al. 2019: ids [N,T] (int64) to logits [N,T,vocabulary]; the head is the tied token embedding."""

    def __init__(self, depth: int, dim: int, heads: int, vocabulary: int, positions: int, sdpa: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(positions, dim)
        self.blocks = nn.ModuleList(GptBlock(dim, heads, positions, sdpa) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)
