"""Reward models: a policy with a scalar head that reads the last real token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.models.policy import LANGUAGE, Policy
from rlhf.ops.logprobs import PolicyOutput

HEAD_WEIGHTS, HEAD_CONFIG = "value_head.safetensors", "value_head.json"
_FORMAT = 1


class RewardModel(Policy):
    """A causal LM that scores a text: a linear map of the backbone's last hidden state at the row's last real token.

    The language-model head is kept, so that a reward model can be regularised by what it would say. `offset` is
    subtracted from every score (0 until `set_offset`).
    Units: score units, arbitrary up to the offset.
    Departures: the head starts as in TRL's classifier, normal with the model's own initializer_range (0.02 where it
    declares none) and without a bias, but from its own generator; it is never below float32.

    A language-model head with weights of its own is frozen unless `trains_language_head`: a loss on scores alone gives
    it no gradient, which distributed training takes for an error.
    """

    def __init__(self, model: nn.Module, *, seed: int, trains_language_head: bool = False) -> None:
        super().__init__(model)
        language_head = self._core().get_output_embeddings()
        if not trains_language_head and language_head is not None:
            own = language_head.weight is not self._core().get_input_embeddings().weight
            language_head.requires_grad_(not own and language_head.weight.requires_grad)
        hidden, std = self.config.get_text_config().hidden_size, getattr(self.config, "initializer_range", None)
        dtype = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        weight = torch.empty(hidden, dtype=dtype)
        weight.normal_(0.0, 0.02 if std is None else std, generator=torch.Generator().manual_seed(seed))
        self.head_weight = nn.Parameter(weight.to(self.device))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64, device=self.device))
        self.offset: Tensor

    def forward(
        self, tokens: TokenBatch, need: frozenset[str] = frozenset({"scores"}), temperature: float = 1.0
    ) -> PolicyOutput:
        """What `need` names of: scores, and a policy's logps, logits, entropy from the kept language-model head.

        Shapes: scores_B in the head's dtype, and as `Policy.forward`. The language-model head is not run for scores.
        """
        self._check(need, LANGUAGE | {"scores"})
        language = need - {"scores"}
        encoded = self._encode(tokens, language=bool(language))
        output = self._language(encoded, language, temperature) if language else PolicyOutput()
        return output._replace(scores_B=self._score(encoded.last())) if "scores" in need else output

    def _score(self, states_BH: Tensor) -> Tensor:
        # Products and a sum, not a linear layer: autocast would round a linear layer's result to bfloat16.
        scores_B = (states_BH.to(self.head_weight.dtype) * self.head_weight).sum(dim=-1)
        return scores_B - self.offset.to(scores_B.dtype)

    def set_offset(self, offset: float) -> None:
        """From now on subtract this from what the head gives (not added to an earlier offset)."""
        self.offset.fill_(offset)

    def save(self, folder: Path | str, tokenizer: Any = None) -> None:
        """As `Policy.save`, with the head beside it in value_head.safetensors and value_head.json.

        The folder still is an ordinary causal LM or adapter to every other reader.
        """
        super().save(folder, tokenizer)
        folder = Path(folder)
        save_file(
            {"weight": self.head_weight.detach().cpu().contiguous(), "offset": self.offset.detach().cpu()},
            folder / HEAD_WEIGHTS,
        )
        described = {"format": _FORMAT, "hidden_size": self.head_weight.numel(), "reads": "last real token"}
        (folder / HEAD_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    def load_weights(self, folder: Path | str) -> None:
        """As `Policy.load_weights`, and the head."""
        folder = Path(folder)
        if not (folder / HEAD_WEIGHTS).is_file() or not (folder / HEAD_CONFIG).is_file():
            raise ConfigError(f"{folder}: no reward model is saved here (there is no {HEAD_WEIGHTS} and {HEAD_CONFIG})")
        described = json.loads((folder / HEAD_CONFIG).read_text(encoding="utf-8"))
        if described.get("format") != _FORMAT:
            raise ConfigError(
                f"{folder / HEAD_CONFIG}: format {described.get('format')} is unknown, expected {_FORMAT}"
            )
        head = load_file(folder / HEAD_WEIGHTS)
        if head["weight"].shape != self.head_weight.shape:
            raise ConfigError(
                f"{folder}: the head reads {head['weight'].numel()} numbers, the model gives {self.head_weight.numel()}"
            )
        super().load_weights(folder)
        with torch.no_grad():
            self.head_weight.copy_(head["weight"])
            self.offset.copy_(head["offset"])
