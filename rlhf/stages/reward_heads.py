"""What the reward-model stages share: the kind of head, each head's bootstrap of the rows, scores of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf.batch import TokenBatch, to_device
from rlhf.config import RewardTrainSection
from rlhf.data import collate
from rlhf.data.encode import Tokeniser
from rlhf.data.records import Record
from rlhf.data.scoring import scored_texts
from rlhf.data.tokenise import Tokens
from rlhf.evaluation.answers import sample_seed
from rlhf.models.head_spec import HeadSpec
from rlhf.models.heads import RewardModel, RewardOutput
from rlhf.ops.scores import disagreement
from rlhf.reference.policy import quiet
from rlhf.stages.work import Run

HEADS = frozenset({"heads"})


def head_spec(train: RewardTrainSection) -> HeadSpec:
    """The heads that a configuration asks for."""
    scored = train.takes == "scored"
    process = train.loss_type == "process"
    weights = train.attribute_weights or {train.attributes[0]: 1.0}
    return HeadSpec(
        kind=train.loss_type,
        members=train.ensemble_size,
        attributes=tuple(train.attributes) if scored else (),
        weights=tuple(weights.get(name, 0.0) for name in train.attributes) if scored else (),
        scale=train.score_scale,
        aggregation=train.step_aggregation if process else None,
        separator=train.step_separator if process else None,
        std_coefficient=train.ensemble_std_coefficient,
    )


def open_model(run: Run, train: RewardTrainSection) -> RewardModel:
    """The starting policy with its heads."""
    model = RewardModel(
        run.policy.model,
        seed=train.seed,
        spec=head_spec(train),
        trains_language_head=train.rm_regularizer is not None,
    )
    return model.to(run.accelerator.device)


class Bootstrap:
    """How often each row counts for each head of an ensemble: Poisson with mean 1, from the seed and the row alone.

    The same row has the same counts in every epoch and however a batch is cut. One head takes all rows once.
    Source: Oza and Russell 2001, the bootstrap of rows that come one after the other.
    """

    def __init__(self, seed: int, members: int) -> None:
        self.seed, self.members = seed, members
        self._drawn: dict[str, list[float]] = {}

    def __call__(self, row_ids: Sequence[str]) -> Tensor:
        """Shapes: returns counts_BK, float64."""
        if self.members == 1:
            return torch.ones(len(row_ids), 1, dtype=torch.float64)
        for row_id in row_ids:
            if row_id not in self._drawn:
                generator = np.random.default_rng(sample_seed(self.seed, "bootstrap", row_id))
                self._drawn[row_id] = generator.poisson(1.0, self.members).astype(float).tolist()
        return torch.tensor([self._drawn[row_id] for row_id in row_ids], dtype=torch.float64)


def component(name: str, raw: float | None, role: str = "observed") -> dict[str, Any]:
    """What a row says beside its reward: an observed number of the model, or a label (`gold`) of the data set."""
    status = "na" if raw is None else "ok"
    return {"name": name, "raw": raw, "value": raw, "weight": 0.0, "role": role, "status": status}


def doubt(scores_BK: Tensor) -> list[list[dict[str, Any]]]:
    """The component `disagreement` of each row: the standard deviation over the heads; none for a single head."""
    if scores_BK.shape[1] == 1:
        return [[] for _ in range(len(scores_BK))]
    return [[component("disagreement", value)] for value in disagreement(scores_BK.detach().double()).tolist()]


class TextScorer:
    """Scores texts with a reward model, as it was trained to read them."""

    def __init__(self, model: RewardModel, tokenizer: Any, *, size: int, device: torch.device) -> None:
        self.model, self.size, self.device = model, size, device
        self.pad = tokenizer.pad_token_id
        self.tokeniser = Tokeniser(tokenizer)

    def tokens(self, records: Sequence[Record]) -> list[Tokens]:
        """Prompts with completions, tokenised; nothing is cut."""
        return scored_texts(self.tokeniser, records, self.model.spec.separator)

    def batches(self, sequences: Sequence[Tokens]) -> Iterator[TokenBatch]:
        """The sequences in micro-batches."""
        for j in range(0, len(sequences), self.size):
            yield to_device(collate.token_batch(sequences[j : j + self.size], self.pad), self.device)

    def heads(self, sequences: Sequence[Tokens]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Reported scores, each member's, and each attribute's on its scale.

        Shapes: scores_B, members_BK, values_BA (mean over the members; null for heads without attributes).
        """
        scores, members, values = [], [], []
        spec = self.model.spec
        with quiet(self.model):
            for tokens in self.batches(sequences):
                output: RewardOutput = self.model(tokens, need=frozenset({"scores", "heads"}))
                assert output.scores_B is not None and output.heads is not None
                scores.append(output.scores_B)
                members.append(spec.members_scores(output.heads, output.thresholds_KAC, tokens.mask_BT))
                if spec.attributes:
                    values.append(spec.values(output.heads, output.thresholds_KAC).mean(dim=1))
        return torch.cat(scores), torch.cat(members), torch.cat(values) if values else None

    def scores(self, sequences: Sequence[Tokens]) -> list[float]:
        """Reported scores."""
        return [float(score) for score in self.heads(sequences)[0].tolist()] if sequences else []
