"""Online RL with group-relative advantages: a session is a completion, its baseline reward b, its adjusted reward a."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rewards.errors import ConfigError
from rlhf.batch import RolloutBatch, TokenBatch, to_device
from rlhf.config import GRPOConfig
from rlhf.config.kl import KLSettings, resolve
from rlhf.data import tokenise
from rlhf.objectives.policy_gradient import OBJECTIVES, denominator, token_weights
from rlhf.ops.masked import sequence_mean, sequence_sum
from rlhf.reference.divergence import kl_penalty, log_ratio_to_reference, reward_penalty
from rlhf.reference.policy import FrozenCopy, Reference, quiet
from rlhf.stages.constraint import open_reference, tokenizer_digest
from rlhf.stages.offline import step_stats
from rlhf.stages.rollout import Rollout, Sampler
from rlhf.stages.rollout_batches import blank, pack, token_batch, trainable, unpack
from rlhf.stages.sampled import SampledEvaluation
from rlhf.stages.work import Run
from rlhf.train.loop import StepStats, Sum
from rlhf.train.metrics import Tally, tally


class GRPO:
    """Samples groups of completions, scores them, and takes `num_iterations` optimizer steps on each set."""

    def __init__(self, run: Run) -> None:
        config: GRPOConfig = run.config  # type: ignore[assignment]
        self.run, self.config = run, config
        self.module = run.policy
        # Dropout would make the policy that is trained another one than the policy that sampled.
        run.switch_dropout_off()
        samples, report = tokenise.prepare_prompts(
            run.inputs.train, run.tokenizer, max_prompt_length=self._prompt_limit()
        )
        run.say(report.lines())
        self._check_batch()
        self.sampler = Sampler(run, self.module, samples)
        if self.sampler.mixture.left_out:
            run.say(
                [f"{self.sampler.mixture.left_out:,} prompts take no part: data.mixture does not name their category"]
            )
        self.beta = config.reference.beta
        kl = config.reference.kl
        self.kl: KLSettings = resolve(kl.preset, estimator=kl.estimator, place=kl.place, level=kl.level, ratio=kl.ratio)
        if self.beta > 0:
            run.say([f"beta = {self.beta:g} {self.kl.beta_unit}"])
        self.reference: Reference | None = None
        if self.beta > 0 or config.reference.source not in (None, "none"):
            self.reference = open_reference(run, config.reference, self.module)
        self.sampled = SampledEvaluation(run, self.module)
        self.rollout: Rollout | None = None
        self.current: list[RolloutBatch] = []
        self.measured: dict[int, dict[str, float]] = {}
        self.step_now = 0
        if config.train.eval_strategy != "no" and not self.sampled.samples:
            raise ConfigError(
                f"train.eval_strategy is `{config.train.eval_strategy}`, and there is nothing to answer: set "
                "evaluation.prompts, or eval_strategy=no"
            )
        self.total_steps = self._rollouts(len(samples)) * config.train.num_iterations
        if config.train.max_sessions is None and config.train.max_steps > 0:
            self.total_steps = config.train.max_steps  # the last rollouts may be used for fewer steps than the others
        self.steps_per_epoch = max(1, len(samples) // self.sampler.groups) * config.train.num_iterations

    def _prompt_limit(self) -> int | None:
        limit = self.config.train.max_length
        return None if limit is None else limit - self.config.train.max_completion_length

    def _check_batch(self) -> None:
        train, world = self.config.train, self.run.accelerator.num_processes
        if self.run.global_batch % train.num_generations:
            raise ConfigError(
                f"a step has {self.run.global_batch} completions (per_device_train_batch_size x "
                f"gradient_accumulation_steps x ranks), which num_generations {train.num_generations} does not divide"
            )
        if self.run.global_batch // train.num_generations < world:
            raise ConfigError(
                f"a step has fewer groups of {train.num_generations} than ranks ({world}); enlarge the batch"
            )

    def _rollouts(self, prompts: int) -> int:
        train = self.config.train
        if train.max_sessions is not None:
            count = math.ceil(train.max_sessions / self.run.global_batch)
            if len(self.sampler.group_sizes(count - 1)) < self.run.accelerator.num_processes:
                raise ConfigError("train.max_sessions leaves the last step with fewer groups than ranks")
            return count
        if train.max_steps > 0:
            return math.ceil(train.max_steps / train.num_iterations)
        return max(1, math.ceil(train.num_train_epochs * prompts / self.sampler.groups))

    # --- the loop's contract -------------------------------------------------------------------------------------

    def batches(self, step: int) -> list[RolloutBatch]:
        """This rank's micro-batches; sampled anew every num_iterations steps."""
        self.step_now = step
        inner = (step - 1) % self.config.train.num_iterations
        if inner == 0:
            self.rollout, self.current, self.measured = None, [], {}
            self._roll_out(step, (step - 1) // self.config.train.num_iterations)
        return self.current

    def _roll_out(self, step: int, rollout: int) -> None:
        answers, groups = self.sampler.sample(step, rollout)
        size = self.config.train.per_device_train_batch_size
        drop = self.config.train.mask_truncated_completions
        chunks = [range(j, min(j + size, len(answers))) for j in range(0, len(answers), size)]
        tokens = [token_batch(self.run, [answers[i] for i in chunk], drop) for chunk in chunks]
        references = [self._no_grad_reference(batch) for batch in tokens]
        needs_old = self.config.train.num_iterations > 1 or (self.beta > 0 and self.kl.place == "reward")
        olds = [self._no_grad_logps(batch) if needs_old else None for batch in tokens]
        penalty = self._penalties(tokens, olds, references, len(answers))
        self.rollout = self.sampler.score(step, answers, groups, penalty)
        advantage = torch.from_numpy(self.rollout.signal.advantage)
        for chunk, batch, ref, old in zip(chunks, tokens, references, olds, strict=True):
            places = [self.rollout.index[i] for i in chunk]
            # A session without a reward has no advantage and takes no part.
            keep = [k for k, place in enumerate(places) if not torch.isnan(advantage[place])]
            if keep:
                advantages_B = advantage[[places[k] for k in keep]]
                taken = old if self.config.train.num_iterations > 1 else None
                index = tuple(chunk[k] for k in keep)
                self.current.append(trainable(batch, keep, advantages_B, ref, taken, index))
        if not self.current and self.run.accelerator.num_processes > 1:
            # No session of this rank has a reward, but the others wait for its gradient: a row of which nothing counts.
            taken = olds[0] if self.config.train.num_iterations > 1 else None
            self.current.append(blank(tokens[0], references[0], taken))

    def _no_grad_logps(self, tokens: TokenBatch) -> Tensor:
        with quiet(self.module):
            output = self.module(
                to_device(tokens, self.run.accelerator.device), temperature=self.config.train.temperature
            )
        return output.logps_BT.cpu()

    def _no_grad_reference(self, tokens: TokenBatch) -> Tensor | None:
        if self.reference is None:
            return None
        return self.reference.logps(
            to_device(tokens, self.run.accelerator.device), temperature=self.config.train.temperature
        ).cpu()

    def _penalties(
        self, tokens: list[TokenBatch], olds: list[Tensor | None], references: list[Tensor | None], count: int
    ) -> list[float]:
        if not (self.beta > 0 and self.kl.place == "reward"):
            return [0.0] * count
        found: list[float] = []
        for batch, old, ref in zip(tokens, olds, references, strict=True):
            assert old is not None and ref is not None
            penalty = reward_penalty(self.kl, old, ref, batch.mask_BT)
            per_row_B = penalty if self.kl.level == "sequence" else sequence_sum(penalty, batch.mask_BT)
            found += (self.beta * per_row_B.double()).tolist()
        return found

    def prepare(self, batches: list[RolloutBatch]) -> None:
        """Nothing couples the batch: advantages are known already."""

    def weights(self, batch: RolloutBatch) -> dict[str, float]:
        """Denominator shares of the surrogate and of the KL penalty."""
        train, mask_BT = self.config.train, batch.tokens.mask_BT
        share = denominator(train.loss_type, mask_BT, train.max_completion_length) if batch.index else 0.0
        parts = {"policy": share}
        if self._kl_in_loss:
            parts["kl"] = share if self.kl.level == "token" else float(len(batch.index))
        return parts

    @property
    def _kl_in_loss(self) -> bool:
        return self.beta > 0 and self.kl.place == "loss"

    def step(
        self, model: torch.nn.Module, batch: RolloutBatch, context: None
    ) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """Clipped surrogate and KL penalty."""
        train, tokens = self.config.train, batch.tokens
        full = self._kl_in_loss and self.kl.estimator == "full"
        need = frozenset({"logps", "entropy", "logits"} if full else {"logps", "entropy"})
        output = model(tokens, need=need, temperature=train.temperature)
        mask_BT = tokens.mask_BT
        surrogate = OBJECTIVES[train.loss_type](
            output.logps_BT,
            batch.advantages_B,
            mask_BT,
            batch.old_logps_BT,
            epsilon=train.epsilon,
            epsilon_high=train.epsilon_high,
        )
        weights_BT = token_weights(train.loss_type, mask_BT, surrogate.loss_BT.dtype)
        sums = {"policy": Sum((weights_BT * surrogate.loss_BT).sum())}
        if self._kl_in_loss:
            penalty = kl_penalty(
                self.kl,
                output.logps_BT,
                batch.ref_logps_BT,
                mask_BT,
                batch.old_logps_BT,
                policy_logits_BTV=output.logits_BTV / train.temperature if full else None,
                ref_logits_BTV=self.reference.logits(tokens) / train.temperature if full else None,  # type: ignore[union-attr]
            )
            total = (weights_BT * penalty).sum() if self.kl.level == "token" else penalty.sum()
            sums["kl"] = Sum(total, self.beta)
        metrics = self._measure(batch, output)
        if batch.old_logps_BT is not None:
            metrics["clip_ratio/low"] = tally(surrogate.low_BT, mask_BT)
            metrics["clip_ratio/high"] = tally(surrogate.high_BT, mask_BT)
        return sums, metrics

    def _measure(self, batch: RolloutBatch, output: Any) -> dict[str, Tally]:
        """Figures of this forward pass, and each session's own on the pass that is on-policy."""
        mask_BT = batch.tokens.mask_BT
        logps_BT = output.logps_BT.detach()
        metrics = {"entropy": tally(output.entropy_BT, mask_BT)}
        r_BT = None
        if batch.ref_logps_BT is not None:
            r_BT = log_ratio_to_reference(logps_BT, batch.ref_logps_BT, mask_BT)
            metrics["kl"] = tally(torch.expm1(r_BT) - r_BT, mask_BT)
        if (self.step_now - 1) % self.config.train.num_iterations:
            return metrics
        # A completion that was cut and masked has no counted token: nothing was measured of it.
        counted = [k for k in range(len(batch.index)) if bool(mask_BT[k].any())]
        if not counted:
            return metrics
        own_BT = mask_BT[counted]
        figures: dict[str, list[float]] = {
            "logp_nats": sequence_sum(logps_BT[counted], own_BT).tolist(),
            "entropy_nats": sequence_mean(output.entropy_BT.detach()[counted], own_BT).tolist(),
        }
        if r_BT is not None:
            figures["kl_nats"] = sequence_sum(-r_BT[counted], own_BT).tolist()
            figures["kl_k3_nats"] = sequence_sum(torch.expm1(r_BT) - r_BT, mask_BT)[counted].tolist()
        for j, k in enumerate(counted):
            self.measured[batch.index[k]] = {
                **{name: values[j] for name, values in figures.items()},
                "sampler_mismatch_max_nats": self._mismatch(logps_BT[k][mask_BT[k]], batch.index[k]),
            }
        return metrics

    def _mismatch(self, logps_X: Tensor, place: int) -> float:
        """Largest gap between what the sampler and this pass gave the tokens of a completion. Units: nats."""
        assert self.rollout is not None
        sampled_X = torch.tensor(self.rollout.answers[place].sampler_logps, dtype=torch.float64)
        return float((logps_X.double().cpu() - sampled_X).abs().max())

    def rows(self, batches: list[RolloutBatch]) -> list[str]:
        """Row ids of these micro-batches."""
        return [row for batch in batches for row in batch.tokens.rows]

    # --- what is recorded ----------------------------------------------------------------------------------------

    def after_step(self, stats: StepStats) -> None:
        """Records the sessions once, after the on-policy pass, and the step's figures."""
        inner = (stats.step - 1) % self.config.train.num_iterations
        payload = step_stats(stats)
        if inner == 0 and self.rollout is not None:
            self._write_sessions(stats.step)
            recorder = self.run.recorder
            for entry in self.sampler.mixture.entries_at(stats.step):
                change = {"category": entry.category, "weight": entry.weight, "from_step": entry.from_step}
                recorder.event("mixture_changed", change, step=stats.step)
            recorder.events(self.rollout.signal.events, step=stats.step)
            for kind, event in self.rollout.signal.events:
                if kind == "recalibration":
                    change_pct = f"{event['old_pct']:.1f} % -> {event['new_pct']:.1f} %"
                    self.run.say([f"step {stats.step}: {event['reason']}: {event['category']} {change_pct}"])
            payload |= self.rollout.figures()
        self.run.recorder.event("step_stats", payload | {"beta": self.beta}, step=stats.step)
        shown = ("reward", "reward_std", "completions/mean_length")
        stats.metrics = {**{name: payload[name] for name in shown if payload.get(name) is not None}, **stats.metrics}

    def _write_sessions(self, step: int) -> None:
        assert self.rollout is not None
        identity = self.reference.identity[:16] if self.reference is not None else None
        rows = [
            {
                **columns,
                "policy_version": step - 1,
                "reference_id": identity,
                "schedule_version": str(columns["schedule_version"]),
                **self.measured.get(i, {}),
            }
            for i, columns in enumerate(self.rollout.columns)
        ]
        self.run.recorder.rows(step, rows)
        self.rollout.columns = []

    def abandon(self) -> None:
        """Records the sessions of a step that did not come to its end."""
        if self.rollout is not None and self.rollout.columns:
            self._write_sessions(self.step_now)
        elif self.rollout is None:
            self.sampler.record_unjudged(self.step_now)

    def state_dict(self) -> dict[str, Any]:
        """Schedule, triggers and trajectory; and the rollouts where a step in the middle of them was saved."""
        state: dict[str, Any] = {"signal": self.sampler.signal.state_dict()}
        if self.step_now % self.config.train.num_iterations:
            state["current"] = [pack(batch) for batch in self.current]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.sampler.signal.load_state_dict(state["signal"])
        self.current = [unpack(batch) for batch in state.get("current", [])]

    def identity(self) -> dict[str, Any]:
        """What must not change under a resumed run."""
        found = {"data set": self.run.inputs.digest, "tokenizer": tokenizer_digest(self.run.tokenizer)}
        return found if self.reference is None else {**found, "reference": self.reference.identity}

    def begin(self) -> None:
        """Registers the scorers, measures the pivots on the policy as it starts, answers the held-out prompts."""
        for payload in self.sampler.composer.registrations():
            self.run.recorder.event("scorer_registered", payload, step=0)
        # At the start the policy is the reference, unless that is another model.
        other = self.reference.policy if isinstance(self.reference, FrozenCopy) else self.module
        for pivot in self.sampler.measure_pivots(other):  # type: ignore[arg-type]
            self.run.say(
                [f"pivot of {pivot.category}/{pivot.component or 'reward'}: {pivot.value:.4g} (n = {pivot.n})"]
            )
        self.sampled.before()

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out answers; each figure's mean."""
        found = self.sampled.during(step)["metrics"]
        return {f"eval_{name}": figure["value"] for name, figure in found.items()}

    def finish(self, step: int) -> dict[str, Any]:
        """Held-out answers at the end."""
        return self.sampled.after(step)
