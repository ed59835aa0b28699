"""A trained reward model as a reward function: `model:FOLDER` in reward_funcs, `model:FOLDER#PART` for a part of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rewards.errors import ConfigError
from rlhf.data.records import Record, Text
from rlhf.models.heads import RewardModel
from rlhf.models.load import load_reward_model
from rlhf.ops.scores import disagreement
from rlhf.stages.constraint import tokenizer_digest
from rlhf.stages.reward_heads import TextScorer
from rlhf.stages.work import Run

DISAGREEMENT = "disagreement"


class Scoring:
    """One reward model, however many of its numbers are asked for; texts asked about twice in a row are read once."""

    def __init__(self, folder: str, run: Run) -> None:
        device = run.accelerator.device
        self.folder = folder
        self.model, tokenizer = load_reward_model(folder, device=device)
        size = run.config.train.per_device_eval_batch_size
        self.scorer = TextScorer(self.model, tokenizer, size=size, device=device)
        self.hash = self.identity(self.model, tokenizer_digest(tokenizer))
        self._last: tuple[list[tuple[Any, Text]], dict[str, list[float]]] | None = None

    @staticmethod
    def identity(model: RewardModel, tokenizer: str) -> str:
        """Hash of what a score depends on."""
        return hashlib.sha256(f"{model.identity()} {tokenizer}".encode()).hexdigest()

    @property
    def parts(self) -> list[str]:
        """What can be asked for beside the score."""
        own = [DISAGREEMENT] if self.model.spec.members > 1 else []
        return [*self.model.spec.attributes, *own]

    def read(self, prompts: Sequence[Any], completions: Sequence[Any]) -> dict[str, list[float]]:
        """The reported score, under an empty name, and every part of it, one number a text."""
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        asked = list(zip(prompts, texts, strict=True))
        if self._last is None or self._last[0] != asked:
            records = [
                Record(str(i), "", f"text {i}", "demonstration", prompt=p, completion=t)
                for i, (p, t) in enumerate(asked)
            ]
            scores_B, members_BK, values_BA = self.scorer.heads(self.scorer.tokens(records))
            found = {"": scores_B.tolist(), DISAGREEMENT: disagreement(members_BK.double()).tolist()}
            for a, name in enumerate(self.model.spec.attributes):
                assert values_BA is not None
                found[name] = values_BA[:, a].tolist()
            self._last = (asked, found)
        return self._last[1]


def identified(function: Callable[..., Any], identity: str) -> Callable[..., Any]:
    """The function with an identity of its own, which ledgers show instead of the hash of its source."""
    function.scorer_id = identity  # type: ignore[attr-defined]
    return function


def model_rewards(run: Run) -> dict[str, Callable[[str], Callable[..., Any]]]:
    """The special form that `rewards.functions.resolve` does not know: a folder of a reward model.

    `FOLDER#NAME` is an attribute of it on its scale, or the `disagreement` of its ensemble: a component to observe.
    """
    opened: dict[str, Scoring] = {}

    def load(place: str) -> Callable[..., Any]:
        folder, part = (place, "") if Path(place).is_dir() or "#" not in place else place.rsplit("#", 1)
        scoring = opened.get(folder) or opened.setdefault(folder, Scoring(folder, run))
        if part and part not in scoring.parts:
            known = ", ".join(scoring.parts) or "nothing beside its score"
            raise ConfigError(f"model:{place}: the model has no `{part}`; it gives {known}")

        def reward_model(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
            """Scores of prompt and completion as the reward model was trained to read them."""
            return scoring.read(prompts, completions)[part]

        if part:
            reward_model.__name__ = part
        return identified(reward_model, f"{scoring.hash}#{part}" if part else scoring.hash)

    return {"model": load}
