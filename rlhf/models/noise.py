"""NEFTune: noise on the embeddings of the texts that a policy is trained on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rlhf.batch import TokenBatch


class EmbeddingNoise:
    """Adds (alpha / sqrt(L d)) * uniform(-1, 1) to each embedding, L its text's length, d the embedding's width.

    Only in training mode, and only inside `of`. The noise of a text is drawn from a seed that names the run's seed,
    the step and the row: it does not depend on how a step is cut or padded, and a resumed run draws the same again
    without a state to keep. A row that a step holds twice has the same noise twice.

    Source: Jain et al. 2023 (2310.05914), algorithm 1.
    Departures: none from the paper. transformers and TRL take for L the width of the padded batch (of a flat batch,
    the tokens of all its texts together), so that there the noise of a text depends on the texts beside it.
    """

    def __init__(self, embeddings: nn.Module, alpha: float, seed: int) -> None:
        self.alpha, self.seed = alpha, seed
        self._now: tuple[TokenBatch, int] | None = None
        self._handle = embeddings.register_forward_hook(self._hook)

    def remove(self) -> None:
        """The embeddings are as they were."""
        self._handle.remove()

    @contextmanager
    def of(self, tokens: TokenBatch, step: int) -> Iterator[None]:
        """Inside, a forward pass over `tokens` in training mode is noisy."""
        self._now = (tokens, step)
        try:
            yield
        finally:
            self._now = None

    def _hook(self, module: nn.Module, args: Sequence[Any], output: Tensor) -> Tensor | None:
        if not module.training or self._now is None:
            return None
        tokens, step = self._now
        noise_NH = self._noise(tokens, step, int(output.shape[-1])).to(output)
        given, flat_N = args[0], tokens.ids_BT[tokens.attention_BT]
        if given.shape == tokens.ids_BT.shape and output.shape[:-1] == given.shape and len(flat_N) != given.numel():
            return output + torch.zeros_like(output).masked_scatter(tokens.attention_BT.unsqueeze(-1), noise_NH)
        # A flat batch may be filled up at its end, where nobody reads: see `Layout.of`.
        filling = given.numel() - len(flat_N)
        if filling < 0 or not torch.equal(given.flatten()[: len(flat_N)], flat_N):
            raise ValueError("the embedded tokens are not those of the batch, row after row: their noise is not known")
        return output + pad(noise_NH, (0, 0, 0, filling)).view(output.shape)

    def _noise(self, tokens: TokenBatch, step: int, width: int) -> Tensor:
        """The noise of all real tokens, row after row; float32, from the CPU's generator on every device."""
        lengths = tokens.attention_BT.sum(dim=1).tolist()
        parts = []
        for row, length in zip(tokens.rows, lengths, strict=True):
            digest = hashlib.sha256(f"{self.seed}:neftune:{step}:{row}".encode("utf-8", "surrogatepass")).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            scale = self.alpha / math.sqrt(length * width)
            parts.append(torch.empty(length, width).uniform_(-scale, scale, generator=generator))
        return torch.cat(parts)
