"""Reward models: a policy with scalar heads that read the last real token, or the last token of each step."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rewards.errors import ConfigError
from rlhf.batch import TokenBatch
from rlhf.models.head_spec import HeadSpec
from rlhf.models.policy import Policy
from rlhf.ops.compared import Beside, Distributions
from rlhf.ops.logprobs import PolicyOutput
from rlhf.ops.scores import conservative, ordered, unordered
from rlhf.ops.shards import full

HEAD_WEIGHTS, HEAD_CONFIG = "value_head.safetensors", "value_head.json"
SCALAR = frozenset({"scores", "heads"})
LANGUAGE = frozenset({"logps", "divergence", "distributions"})
_FORMAT = 2


class RewardOutput(NamedTuple):
    """What a reward model's forward pass returns; only what was asked for is there.

    Shapes: logps_BT, divergence_BT, distributions as in `PolicyOutput`; scores_B, the reported score; heads (B, K, A),
    of a process (X, K, 1): what each head gives, with no offset; thresholds_KAC of an ordinal head.
    """

    logps_BT: Tensor | None = None
    divergence_BT: Tensor | None = None
    distributions: Distributions | None = None
    scores_B: Tensor | None = None
    heads: Tensor | None = None
    thresholds_KAC: Tensor | None = None


class RewardModel(Policy):
    """A causal LM that scores a text: linear maps of the backbone's last hidden states at the row's last real token.

    The language-model head is kept, so that a reward model can be regularised by what it would say. `offset` is
    subtracted from every score (0 until `set_offset`). `temperature` is what margins are to be divided by for their
    probabilities to be right, as measured; it is saved and reported, and no score is divided by it.
    Shapes: head_weight holds the maps of K members with A outputs one after the other: (K A H).
    Units: score units, arbitrary up to the offset, or those of the spec's declared scale.
    Departures: a head starts as in TRL's classifier, normal with the model's own initializer_range (0.02 where it
    declares none) and without a bias, but from its own generator; it is never below float32. An ensemble's members
    share one backbone, which makes them agree more than models of their own would.

    A language-model head with weights of its own is frozen unless `trains_language_head`: a loss on scores alone gives
    it no gradient, which distributed training takes for an error.
    """

    def __init__(
        self, model: nn.Module, *, seed: int, spec: HeadSpec | None = None, trains_language_head: bool = False
    ) -> None:
        super().__init__(model)
        self.spec = spec or HeadSpec()
        language_head = self._core().get_output_embeddings()
        if not trains_language_head and language_head is not None:
            own = language_head.weight is not self._core().get_input_embeddings().weight
            language_head.requires_grad_(not own and language_head.weight.requires_grad)
        hidden, std = self.config.get_text_config().hidden_size, getattr(self.config, "initializer_range", None)
        dtype = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        # One dimension each: like biases and norms, heads and thresholds are nothing that weight decay should shrink.
        weight = torch.empty(self.spec.members * self.spec.outputs * hidden, dtype=dtype)
        weight.normal_(0.0, 0.02 if std is None else std, generator=torch.Generator().manual_seed(seed))
        self.head_weight = nn.Parameter(weight.to(self.device))
        self.raw_thresholds: nn.Parameter | None = None
        if self.spec.thresholds:
            self.raw_thresholds = nn.Parameter(self._even_thresholds(dtype).flatten())
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64, device=self.device))
        self.offset: Tensor
        self.register_buffer("fitted", torch.zeros(4, dtype=torch.float64, device=self.device))
        self.fitted: Tensor

    def forward(
        self,
        tokens: TokenBatch,
        need: frozenset[str] = frozenset({"scores"}),
        temperature: float = 1.0,
        beside: Beside | None = None,
    ) -> RewardOutput:
        """What `need` names of: scores, heads, and from the kept language-model head logps, divergence, distributions.

        A process head reads the tokens of `tokens.mask_BT`, the steps' last ones. One pass of the backbone gives all;
        the language-model head is not run for scores.
        """
        self._check(need, LANGUAGE | SCALAR)
        language = need & LANGUAGE
        scored = bool(need & SCALAR)
        encoded = self._encode(tokens, language=bool(language), last=scored and self.spec.kind != "process")
        said = self._language(encoded, language, temperature, beside) if language else PolicyOutput()
        output = RewardOutput(said.logps_BT, said.divergence_BT, said.distributions)
        if not scored:
            return output
        states = encoded.at(tokens.mask_BT) if self.spec.kind == "process" else encoded.last()
        heads, thresholds_KAC = self._heads(states), self.thresholds()
        if "scores" in need:
            output = output._replace(scores_B=self.score(heads, thresholds_KAC, tokens.mask_BT))
        return output._replace(heads=heads, thresholds_KAC=thresholds_KAC) if "heads" in need else output

    def _heads(self, states_XH: Tensor) -> Tensor:
        # Products and a sum, not a linear layer: autocast would round a linear layer's result to bfloat16.
        weight_KAH = self._apart(self.head_weight)
        return (states_XH.to(weight_KAH.dtype)[:, None, None] * weight_KAH).sum(dim=-1)

    def score(self, heads: Tensor, thresholds_KAC: Tensor | None, mask_BT: Tensor) -> Tensor:
        """The reported score of what the heads gave. Shapes: returns scores_B."""
        scores_BK = self.spec.members_scores(heads, thresholds_KAC, mask_BT)
        scores_B = conservative(scores_BK, self.spec.std_coefficient)
        return scores_B - self.offset.to(scores_B.dtype)

    def thresholds(self) -> Tensor | None:
        """An ordinal head's ascending thresholds. Shapes: thresholds_KAC."""
        return None if self.raw_thresholds is None else ordered(self._apart(self.raw_thresholds))

    def _apart(self, raw: Tensor) -> Tensor:
        return raw.view(self.spec.members, self.spec.outputs, -1)

    def whole_thresholds(self) -> Tensor:
        """The thresholds outside a pass, without gradient; where they are cut over ranks, every rank must ask."""
        assert self.raw_thresholds is not None
        return ordered(self._apart(full(self.raw_thresholds.detach())))

    def set_thresholds(self, thresholds_AC: Tensor) -> None:
        """Where the thresholds of every member start. Raises: ValueError when they do not ascend."""
        assert self.raw_thresholds is not None
        with torch.no_grad():
            raw_AC = unordered(thresholds_AC).to(self.raw_thresholds)
            self.raw_thresholds.copy_(raw_AC.repeat(self.spec.members, 1, 1).flatten())

    def _even_thresholds(self, dtype: torch.dtype) -> Tensor:
        count = self.spec.thresholds
        even_C = torch.logit(torch.arange(1, count + 1, dtype=dtype) / (count + 1))
        return unordered(even_C).repeat(self.spec.members, self.spec.outputs, 1).to(self.device)

    def set_offset(self, offset: float) -> None:
        """From now on subtract this from what the head gives (not added to an earlier offset)."""
        self.offset.fill_(offset)

    @property
    def temperature(self) -> dict[str, Any] | None:
        """The fitted temperature with its interval and the rows behind it; null where none was fitted."""
        value, low, high, n = self.fitted.tolist()
        return {"value": value, "low": low or None, "high": high or None, "n": int(n)} if value else None

    def set_temperature(self, found: dict[str, Any] | None) -> None:
        """What `calibration.fit_temperature` gave; one without a value leaves none."""
        if found is None or found["value"] is None:
            self.fitted.zero_()
        else:
            numbers = [found["value"], found["low"] or 0.0, found["high"] or 0.0, found["n"]]
            self.fitted.copy_(torch.tensor(numbers, dtype=torch.float64))

    def identity(self) -> str:
        """SHA-256 of everything that a score depends on but the tokenizer: weights, heads, offset, kind of head.

        The same for a model in memory and for one read back from the folder that it was saved to. Where it is cut over
        ranks, every rank must ask.
        """
        digest = hashlib.sha256(json.dumps(self.spec.as_dict(), sort_keys=True).encode())
        # The language-model head scores nothing, but a tied one is the embedding.
        language_head = self._core().get_output_embeddings()
        own = None if language_head is None else getattr(language_head, "weight", None)
        tied = own is self._core().get_input_embeddings().weight
        for name, tensor in [*self.named_parameters(), ("offset", self.offset)]:
            if tensor is own and not tied:
                continue
            whole = full(tensor.detach())
            digest.update(f"{name} {tuple(whole.shape)}\n".encode())
            digest.update(whole.cpu().float().contiguous().numpy().data)
        return digest.hexdigest()

    def save(self, folder: Path | str, tokenizer: Any = None) -> None:
        """As `Policy.save`, with the heads beside it in value_head.safetensors and value_head.json.

        The folder still is an ordinary causal LM or adapter to every other reader.
        """
        super().save(folder, tokenizer)
        folder = Path(folder)
        weight_KAH = self._apart(self.head_weight.detach().cpu())
        tensors = {"weight": weight_KAH.contiguous(), "offset": self.offset.detach().cpu()}
        if self.raw_thresholds is not None:
            tensors["raw_thresholds"] = self._apart(self.raw_thresholds.detach().cpu()).contiguous()
        save_file(tensors, folder / HEAD_WEIGHTS)
        described = {
            "format": _FORMAT,
            "hidden_size": weight_KAH.shape[-1],
            "reads": self.spec.reads,
            **self.spec.as_dict(),
            "temperature": self.temperature,
        }
        (folder / HEAD_CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    def load_weights(self, folder: Path | str) -> None:
        """As `Policy.load_weights`, and the heads.

        Raises: ConfigError when the folder holds no reward model, or one with other heads.
        """
        folder = Path(folder)
        spec, described = read_head(folder)
        difference = self.spec.differs(spec)
        if difference is not None:
            raise ConfigError(f"{folder}: its head has {difference}")
        head = load_file(folder / HEAD_WEIGHTS)
        hidden = self.head_weight.numel() // (self.spec.members * self.spec.outputs)
        if head["weight"].shape[-1] != hidden:
            raise ConfigError(f"{folder}: the head reads {head['weight'].shape[-1]} numbers, the model gives {hidden}")
        super().load_weights(folder)
        with torch.no_grad():
            self.head_weight.copy_(head["weight"].flatten())
            self.offset.copy_(head["offset"])
            if self.raw_thresholds is not None:
                self.raw_thresholds.copy_(head["raw_thresholds"].flatten())
        self.set_temperature(described.get("temperature"))


def read_head(folder: Path | str) -> tuple[HeadSpec, dict[str, Any]]:
    """The kind of head that a folder holds, and all that stands in its value_head.json.

    Raises: ConfigError when there is none, or one of a format that is not known.
    """
    folder = Path(folder)
    if not (folder / HEAD_WEIGHTS).is_file() or not (folder / HEAD_CONFIG).is_file():
        raise ConfigError(f"{folder}: no reward model is saved here (there is no {HEAD_WEIGHTS} and {HEAD_CONFIG})")
    described: dict[str, Any] = json.loads((folder / HEAD_CONFIG).read_text(encoding="utf-8"))
    if described.get("format") == 1:  # one head that reads the last token, and nothing else to say
        return HeadSpec(), described
    if described.get("format") != _FORMAT:
        raise ConfigError(
            f"{folder / HEAD_CONFIG}: format {described.get('format')} is unknown, expected {_FORMAT} or 1"
        )
    return HeadSpec.from_dict(described, folder / HEAD_CONFIG), described
