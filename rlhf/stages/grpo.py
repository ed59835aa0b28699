"""Online RL with group-relative advantages: a session is a completion, its baseline reward b, its adjusted reward a."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rewards.errors import ConfigError
from rlhf.batch import RolloutBatch, TokenBatch, to_device
from rlhf.config import GRPOConfig
from rlhf.data import tokenise
from rlhf.objectives.policy_gradient import OBJECTIVES, denominator, token_weights
from rlhf.ops.compared import Beside
from rlhf.ops.masked import sequence_sum
from rlhf.reference.divergence import divergence, kl_penalty, reward_penalty
from rlhf.reference.policy import FrozenCopy, Reference, quiet
from rlhf.stages.coefficient import Coefficient
from rlhf.stages.constraint import open_reference, tokenizer_digest
from rlhf.stages.grpo_measures import Measures
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
        self.coefficient = Coefficient(config.reference)
        self.kl = self.coefficient.kl
        run.say(self.coefficient.lines())
        self.reference: Reference | None = None
        if self.coefficient.penalised or config.reference.source not in (None, "none"):
            self.reference = open_reference(run, config.reference, self.module)
        self.sampled = SampledEvaluation(run, self.module)
        self.rollout: Rollout | None = None
        self.current: list[RolloutBatch] = []
        self.measures = Measures(self.kl, own_texts=config.train.top_p == 1)
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
        if self._inner(step) == 0:
            self.rollout, self.current = None, []
            self.measures.sessions = {}
            self.coefficient.start_rollout()
            self._roll_out(step, (step - 1) // self.config.train.num_iterations)
        return self.current

    def _roll_out(self, step: int, rollout: int) -> None:
        answers, groups = self.sampler.sample(step, rollout)
        size = self.config.train.per_device_train_batch_size
        drop = self.config.train.mask_truncated_completions
        chunks = [range(j, min(j + size, len(answers))) for j in range(0, len(answers), size)]
        tokens = [token_batch(self.run, [answers[i] for i in chunk], drop) for chunk in chunks]
        references = [self._no_grad_reference(batch) for batch in tokens]
        needs_old = self.config.train.num_iterations > 1 or self.coefficient.in_reward
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
        if not self.coefficient.in_reward:
            return [0.0] * count
        found: list[float] = []
        for batch, old, ref in zip(tokens, olds, references, strict=True):
            assert old is not None and ref is not None
            penalty = reward_penalty(self.kl, old, ref, batch.mask_BT)
            per_row_B = penalty if self.kl.level == "sequence" else sequence_sum(penalty, batch.mask_BT)
            found += (self.coefficient.beta * per_row_B.double()).tolist()
        return found

    def prepare(self, batches: list[RolloutBatch]) -> None:
        """Nothing couples the batch: advantages are known already."""

    def weights(self, batch: RolloutBatch) -> dict[str, float]:
        """Denominator shares of the surrogate and of the KL penalty."""
        train, mask_BT = self.config.train, batch.tokens.mask_BT
        share = denominator(train.loss_type, mask_BT, train.max_completion_length) if batch.index else 0.0
        parts = {"policy": share}
        if self.coefficient.in_loss:
            parts["kl"] = share if self.kl.level == "token" else float(len(batch.index))
        return parts

    def step(
        self, model: torch.nn.Module, batch: RolloutBatch, context: None
    ) -> tuple[dict[str, Sum], dict[str, Tally]]:
        """Clipped surrogate and KL penalty."""
        train, tokens = self.config.train, batch.tokens
        mask_BT = tokens.mask_BT
        # Before the policy's pass, whose weights a reference may borrow for its own.
        beside: Beside | None = None
        if self.reference is not None and self.coefficient.full:
            measure = divergence(self.kl.divergence, self.kl.alpha)
            beside = Beside(self.reference.distributions(tokens), measure)
        need = {"logps", "entropy"} | ({"divergence"} if beside is not None else set())
        output = model(tokens, need=frozenset(need), temperature=train.temperature, beside=beside)
        full_BT: Tensor | None = output.divergence_BT
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
        if self.coefficient.in_loss:
            penalty = kl_penalty(
                self.kl, output.logps_BT, batch.ref_logps_BT, mask_BT, batch.old_logps_BT, full_BT=full_BT
            )
            total = (weights_BT * penalty).sum() if self.kl.level == "token" else penalty.sum()
            sums["kl"] = Sum(total, self.coefficient.beta)
        metrics = self.measures.of_pass(batch, output)
        if self._inner(self.step_now) == 0:
            assert self.rollout is not None
            metrics |= self.measures.of_policy(batch, output, full_BT, self.rollout.answers)
        if batch.old_logps_BT is not None:
            metrics["clip_ratio/low"] = tally(surrogate.low_BT, mask_BT)
            metrics["clip_ratio/high"] = tally(surrogate.high_BT, mask_BT)
        return sums, metrics

    def _inner(self, step: int) -> int:
        """How many steps the rollout of this one has been used for already."""
        return (step - 1) % self.config.train.num_iterations

    def rows(self, batches: list[RolloutBatch]) -> list[str]:
        """Row ids of these micro-batches."""
        return [row for batch in batches for row in batch.tokens.rows]

    # --- what is recorded ----------------------------------------------------------------------------------------

    def after_step(self, stats: StepStats) -> None:
        """Records the sessions once, after the on-policy pass, and the step's figures."""
        payload = step_stats(stats) | {"beta": self.coefficient.beta}
        if self._inner(stats.step) == 0 and self.rollout is not None:
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
            payload |= self.coefficient.moved(stats.metrics)
        self.run.recorder.event("step_stats", payload, step=stats.step)
        shown = ("reward", "reward_std", "completions/mean_length", *(["beta"] if "beta_next" in payload else []))
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
                **self.measures.sessions.get(i, {}),
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
        """Schedule, triggers, trajectory and controller; and the rollouts where a step in their middle was saved."""
        state: dict[str, Any] = {
            "signal": self.sampler.signal.state_dict(),
            "coefficient": self.coefficient.state_dict(),
        }
        if self.step_now % self.config.train.num_iterations:
            state["current"] = [pack(batch) for batch in self.current]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self.sampler.signal.load_state_dict(state["signal"])
        self.coefficient.load_state_dict(state["coefficient"])
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
