"""A trained reward model as a reward function: `model:FOLDER` in reward_funcs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rlhf.batch import to_device
from rlhf.data import collate
from rlhf.data.records import Record
from rlhf.data.tokenise import Tokeniser
from rlhf.models.load import load_reward_model
from rlhf.stages.work import Run


def model_rewards(run: Run) -> dict[str, Callable[[str], Callable[..., Any]]]:
    """The special form that `rewards.functions.resolve` does not know: a folder of a reward model."""

    def load(folder: str) -> Callable[..., Any]:
        model, tokenizer = load_reward_model(folder, device=run.accelerator.device)
        tokeniser = Tokeniser(tokenizer)
        size = run.config.train.per_device_eval_batch_size

        def reward_model(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
            """Scores of prompt and completion as the reward model was trained to read them."""
            records = [Record(str(i), "", str(i), "prompt", prompt=p) for i, p in enumerate(prompts)]
            heads = tokeniser.prompts(records)
            texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
            bodies = [[*ids, tokeniser.eos] for ids in tokeniser.encode(texts)]
            scores: list[float] = []
            with torch.no_grad():
                for j in range(0, len(heads), size):
                    tokens = collate.completions(heads[j : j + size], bodies[j : j + size], tokenizer.pad_token_id)
                    output = model(to_device(tokens, run.accelerator.device), need=frozenset({"scores"}))
                    scores += output.scores_B.tolist()
            return scores

        return reward_model

    return {"model": load}
