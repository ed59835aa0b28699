"""The end of a reward model's training: its identity, probes of exploits, calibration of its probabilities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rewards.scorers import scorer_id
from rlhf.config import RewardConfig
from rlhf.data.records import Record, plain, prompt_of
from rlhf.data.tokenise import Tokens
from rlhf.evaluation import sycophancy
from rlhf.evaluation.answers import sample_seed
from rlhf.evaluation.calibration import calibrate
from rlhf.evaluation.conformal import conformal
from rlhf.evaluation.probes import PROBES, Attempt, attempts, figures
from rlhf.models.heads import RewardModel
from rlhf.reference.policy import quiet
from rlhf.stages.constraint import tokenizer_digest
from rlhf.stages.model_reward import Scoring, identified
from rlhf.stages.offline import prompt_id
from rlhf.stages.reward_heads import HEADS, TextScorer, component
from rlhf.stages.work import Run

PROBED_ROWS = 200
RELIABILITY = "reliability.png"
Floats = NDArray[np.float64]
_log = logging.getLogger(__name__)


class Closing:
    """What is found out about the finished model on held-out rows.

    Every rank scores every text, so that ranks that share a model make the same passes; the main rank records.
    """

    def __init__(self, run: Run, model: RewardModel) -> None:
        self.run, self.model = run, model
        self.config: RewardConfig = run.config  # type: ignore[assignment]
        train = self.config.train
        self.scorer = TextScorer(
            model, run.tokenizer, size=train.per_device_eval_batch_size, device=run.accelerator.device
        )

    def identity(self) -> dict[str, Any]:
        """The model's hash, and the identity that ledgers show of it as a reward function without kwargs."""
        found = Scoring.identity(self.model, tokenizer_digest(self.run.tokenizer))
        return {"identity": found, "scorer_id": scorer_id(identified(lambda **_: [], found), {})}

    def raw_heads(self, sequences: Sequence[Tokens]) -> Tensor:
        """What the heads give, with no offset. Shapes: (B, K, A), of a process (X, K, 1), X all steps in order."""
        found = []
        with quiet(self.model):
            for tokens in self.scorer.batches(sequences):
                found.append(self.model(tokens, need=HEADS).heads)
        return torch.cat(found)

    # --- calibration ---

    def calibrate(self, step: int, z: Sequence[float], y: Sequence[float], records: Sequence[Record]) -> dict[str, Any]:
        """Fits the temperature of margins z with outcomes y, which is saved with the model, and judges the margins.

        Judged are their probabilities, and from which margin on the model may decide with one set in ten wrong.
        records: the row behind each margin; the two halves share no prompt.
        """
        if not z:
            return {}
        noise = self.config.train.label_noise
        keys = [prompt_id(plain(prompt_of(record))) for record in records]
        margins, outcomes = np.asarray(z, dtype=np.float64), np.asarray(y, dtype=np.float64)
        found = calibrate(margins, outcomes, keys, noise)
        self.model.set_temperature(found["metrics"]["temperature"])
        sets = conformal(margins, outcomes, keys, [record.category for record in records])
        found["metrics"] |= sets["metrics"]
        payload = {"suite": "reward_calibration", "when": "after", **found, "by_category": sets["by_category"]}
        self.run.recorder.evaluation(payload, step)
        if self.run.accelerator.is_main_process:
            draw_reliability(found, self.run.output_dir / RELIABILITY)
        return {"calibration": found}

    # --- probes ---

    def probe(
        self, step: int, records: Sequence[Record], spread: float, pairs: Sequence[Record] = ()
    ) -> dict[str, Any]:
        """Tries the exploits on held-out answers.

        records: prompts with completions; the first PROBED_ROWS of them are tried. spread: standard deviation of the
        held-out scores. pairs: the rows as pairs, where the stage has such, for stated opinions.
        """
        wanted = self.config.evaluation.probes
        names = [*PROBES, sycophancy.NAME] if wanted is True else list(wanted or [])
        if not names or not records:
            return {}
        metrics: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        for name in names:
            if name in PROBES:
                self._exploit(name, step, records[:PROBED_ROWS], spread, metrics, rows)
            elif pairs:
                self._opinions(step, pairs[:PROBED_ROWS], spread, metrics, rows)
        if not metrics:
            return {}
        if self.run.accelerator.is_main_process:
            self.run.recorder.evaluation_rows(step, rows)
        n = max(figure["n"] for figure in metrics.values())
        found = {"suite": "reward_probes", "when": "after", "n": n, "spread": spread, "metrics": metrics}
        self.run.recorder.evaluation({**found, "by_category": {}}, step)
        paid = [name for name in names if metrics.get(f"{name}_shift", {}).get("found")]
        exploits = [name for name in paid if name != sycophancy.NAME]
        if exploits:
            self.run.say([f"the model scores held-out answers higher for: {', '.join(exploits)} (reward_probes)"])
        if sycophancy.NAME in paid:
            self.run.say(["the model scores an answer higher when the user says that it is right (reward_probes)"])
        return {"probes": metrics}

    def _exploit(
        self,
        name: str,
        step: int,
        chosen: Sequence[Record],
        spread: float,
        metrics: dict[str, Any],
        rows: list[dict[str, Any]],
    ) -> None:
        tried = attempts(name, chosen)
        befores, afters = self.scorer.tokens([a.before for a in tried]), self.scorer.tokens([a.after for a in tried])
        kept = [(a, b, c) for a, b, c in zip(tried, befores, afters, strict=True) if self._fits(b, c)]
        self._tell_left_out(name, len(chosen) - len(kept), len(chosen))
        if not kept:
            metrics[f"{name}_wins"] = {"value": None, "low": None, "high": None, "n": 0}
            return
        before = self.scorer.scores([tokens for _, tokens, _ in kept])
        after = self.scorer.scores([tokens for _, _, tokens in kept])
        metrics |= {f"{name}_{key}": value for key, value in figures(before, after, spread).items()}
        rows += [self._row(step, a, b, c) for (a, _, _), b, c in zip(kept, before, after, strict=True)]

    def _opinions(
        self,
        step: int,
        pairs: Sequence[Record],
        spread: float,
        metrics: dict[str, Any],
        rows: list[dict[str, Any]],
    ) -> None:
        name = sycophancy.NAME
        tried = [(o, self.scorer.tokens(o.texts())) for o in sycophancy.opinions(pairs)]
        kept = [(o, tokens) for o, tokens in tried if self._fits(*tokens)]
        self._tell_left_out(name, len(pairs) - len(kept), len(pairs))
        if not kept:
            metrics[f"{name}_wins"] = {"value": None, "low": None, "high": None, "n": 0}
            return
        scores = np.reshape(self.scorer.scores([text for _, tokens in kept for text in tokens]), (-1, 4))
        z = np.stack([scores[:, 0] - scores[:, 1], scores[:, 2] - scores[:, 3]], axis=1).tolist()
        found = sycophancy.opinion_figures([a for a, _ in z], [b for _, b in z], spread)
        metrics |= {f"{name}_{key}": value for key, value in found.items()}
        rows += [self._opinion_row(step, o, *margins) for (o, _), margins in zip(kept, z, strict=True)]

    def _fits(self, *texts: Tokens) -> bool:
        """Whether nothing has to be cut: a text that is cut does not hold what was added to it."""
        limit = self.config.train.max_length
        return limit is None or max(len(tokens.ids) for tokens in texts) <= limit

    def _tell_left_out(self, name: str, left_out: int, of: int) -> None:
        if left_out:
            self.run.say([f"probe {name}: {left_out} of {of} rows cannot be tried, or are too short or too long"])

    def _opinion_row(self, step: int, opinion: sycophancy.Opinion, with_it: float, against_it: float) -> dict[str, Any]:
        """A session of two texts under the opinion for the better one; the reward is the margin's move towards it."""
        record, moved = opinion.record, with_it - against_it
        parts = [component("opinion_for_chosen", with_it), component("opinion_for_rejected", against_it)]
        texts = {"prompt": plain(opinion.for_chosen), "response": plain(record.chosen or "")}
        texts["rejected"] = plain(record.rejected or "")
        return self._session(step, record, sycophancy.NAME) | {
            "baseline_reward": moved,
            "adjusted_reward": moved,
            "components": parts,
            **texts,
        }

    def _row(self, step: int, attempt: Attempt, before: float, after: float) -> dict[str, Any]:
        """A session of two texts: the changed answer against the answer."""
        record = attempt.record
        return self._session(step, record, attempt.probe) | {
            "baseline_reward": after - before,
            "adjusted_reward": after - before,
            "components": [component("changed", after), component("unchanged", before)],
            "prompt": plain(prompt_of(record)),
            "response": plain(attempt.after.completion or ""),
            "rejected": plain(record.completion or ""),
        }

    def _session(self, step: int, record: Record, probe: str) -> dict[str, Any]:
        """What every row of a probe says of where it comes from."""
        return {
            "pipeline": self.run.stage,
            "split": "eval",
            "arm": f"probe {probe}",
            "dataset_id": record.dataset_id,
            "row_id": record.row_id,
            "prompt_id": prompt_id(plain(prompt_of(record))),
            "group_id": f"probe-{probe}-{record.row_id}",
            "policy_version": step,
            "category": record.category,
        }


def as_answers(records: Sequence[Record]) -> list[Record]:
    """Held-out rows as prompts with completions; of a pair one side, which one being the row's own draw.

    An exploit pays most where it lifts an answer that is not the better one; one side only keeps texts independent.
    """
    found = []
    for record in records:
        if record.kind == "pair":
            side = record.chosen if sample_seed(0, "probed side", record.row_id) % 2 else record.rejected
            record = replace(record, kind="demonstration", completion=side, chosen=None, rejected=None)
        found.append(record)
    return found


def draw_reliability(found: dict[str, Any], path: Path) -> None:
    """The reliability diagram, where matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _log.info("no %s: matplotlib is not installed (extra `analysis`)", path.name)
        return
    bins = found["reliability"]
    claimed, share = [b["claimed"] for b in bins], [b["found"] for b in bins]
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    errors = [[s - b["low"] for s, b in zip(share, bins, strict=True)]]
    errors += [[b["high"] - s for s, b in zip(share, bins, strict=True)]]
    axes.errorbar(claimed, share, yerr=np.clip(errors, 0, None), fmt="o", markersize=3, linewidth=1)
    axes.set(xlabel="claimed probability", ylabel="share that came true", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"{sum(b['n'] for b in bins)} held-out outcomes, before the temperature", fontsize=9)
    figure.savefig(path, dpi=120)
