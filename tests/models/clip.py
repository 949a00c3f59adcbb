"""A tiny random CLIP with the attributes of open_clip's."""

import torch
from torch import nn


class TinyClip(nn.Module):
    def __init__(self, width=6, embed=4):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.visual = nn.Module()
            self.visual.proj = nn.Parameter(torch.randn(width, embed))
            self.visual.class_embedding = nn.Parameter(torch.randn(width))
            self.visual.conv1 = nn.Conv2d(3, width, 2, bias=False)
            self.letters = nn.EmbeddingBag(128, embed)

    def encode_text(self, tokens):
        return self.letters(tokens)


def tokenize(texts):
    tokens = torch.zeros(len(texts), 40, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor([min(ord(c), 127) for c in text])
    return tokens
