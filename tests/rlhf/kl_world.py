"""Every text of three tokens over a vocabulary of four: a policy, a reference and an older policy with free logits.

The policy has logits of its own for each of its 21 prefixes, so that nothing is approximated: expectations are sums
over the 64 texts, and the truth is the gradient of an exact divergence.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.reference.divergence import divergence, kl_penalty, reward_penalty

V, T = 4, 3
TEXTS = torch.tensor(list(itertools.product(range(V), repeat=T)))
PREFIXES = [text for n in range(T) for text in itertools.product(range(V), repeat=n)]
# Row of each text's prefix before each of its tokens; position 0 is a start token that nothing predicts.
ROWS = torch.tensor([[PREFIXES.index(tuple(text[:t])) for t in range(T)] for text in TEXTS.tolist()])
# Which texts begin with which prefix.
STARTS = torch.tensor([[tuple(text[: len(p)]) == p for text in TEXTS.tolist()] for p in PREFIXES], dtype=torch.float64)
MASK = torch.tensor([[False] + [True] * T] * len(TEXTS))
EXACT = 1e-10
ALPHA = 0.3


@dataclass(frozen=True)
class Form:
    """A form of penalty; divergence and alpha matter to estimator `full`."""

    estimator: str
    place: str
    level: str
    ratio: str = "none"
    divergence: str = "reverse"

    def __str__(self) -> str:
        parts = [self.estimator, self.place, self.level, self.ratio]
        return "-".join(parts if self.divergence == "reverse" else [*parts, self.divergence])


def forms() -> list[Form]:
    """All combinations that have an arithmetic; a ratio does nothing in the reward and is left out there."""
    in_the_loss = itertools.product(("k1", "k2", "k3", "full"), ("token", "sequence"), ("none", "live", "detached"))
    found = [Form(estimator, "loss", level, ratio) for estimator, level, ratio in in_the_loss]
    return found + [Form(k, "reward", level) for k in ("k1", "k2", "k3") for level in ("token", "sequence")]


class World:
    """Policy, reference and behaviour policy in one table of logits each."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits, self.reference, self.old = (
            scale * torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64) for _ in range(3)
        )
        self.logits.requires_grad_()

    def logps(self, table: Tensor) -> Tensor:
        """Shapes: (64, 4), index 0 uncounted and of absurd value."""
        logps = table.log_softmax(-1)[ROWS, TEXTS]
        return torch.cat([torch.full((len(TEXTS), 1), -1e6, dtype=torch.float64), logps], dim=1)

    def counted(self, table: Tensor) -> Tensor:
        """Logits of the counted tokens of all texts, in row order. Shapes: (192, 4)."""
        return table[ROWS].reshape(-1, V)

    def probability(self, table: Tensor) -> Tensor:
        """Of each text under a table of logits."""
        return self.logps(table)[:, 1:].sum(1).exp()

    def gradient(self, value: Tensor) -> Tensor:
        """By the policy's logits."""
        (gradient,) = torch.autograd.grad(value, self.logits, retain_graph=True)
        return gradient

    def sequence_kl(self, *, forward: bool = False, to: Tensor | None = None) -> Tensor:
        """KL(pi || other) over whole texts, or KL(other || pi); other: the reference, unless given."""
        other = self.reference if to is None else to
        tables = (other, self.logits) if forward else (self.logits, other)
        logp, logq = (self.logps(table)[:, 1:].sum(1) for table in tables)
        return (logp.exp() * (logp - logq)).sum()

    def at_prefixes(self, name: str) -> Tensor:
        """The divergence of the next token's distributions after each prefix, from its definition."""
        p, q = self.logits.softmax(-1), self.reference.softmax(-1)
        m = (p + q) / 2
        if name == "alpha":
            return (1 - (p**ALPHA * q ** (1 - ALPHA)).sum(-1)) / (ALPHA * (1 - ALPHA))
        if name == "js":
            return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2
        return (p * (p / q).log()).sum(-1) if name == "reverse" else (q * (q / p).log()).sum(-1)

    def along(self, name: str = "reverse", visitor: Tensor | None = None, *, through_visits: bool = False) -> Tensor:
        """The divergence at each prefix, weighted by how often the visitor (the policy, unless given) gets there.

        through_visits: the policy's own visits have a gradient too.
        """
        reach = STARTS @ self.probability(self.logits if visitor is None else visitor)
        return ((reach if through_visits else reach.detach()) * self.at_prefixes(name)).sum()

    def visited(self, *, forward: bool = False) -> Tensor:
        """KL at the prefixes that the policy visits; what gets it there has no gradient."""
        return self.along("forward" if forward else "reverse")

    def full_BT(self, name: str = "reverse") -> Tensor:
        """The divergence over the vocabulary at each counted token, by the code under test."""
        measure = divergence(name, ALPHA if name == "alpha" else None)
        return measure(self.counted(self.logits), self.counted(self.reference), MASK)

    def penalty(self, form: Form, *, off_policy: bool = False) -> Tensor:
        """What the code under test gives for all texts. Shapes: (64,) or (64, 4)."""
        logps, ref_logps = self.logps(self.logits), self.logps(self.reference)
        old = self.logps(self.old) if off_policy else None
        if form.place == "reward":
            found = reward_penalty(form, logps if old is None else old, ref_logps, MASK)
            assert not found.requires_grad
        else:
            full = self.full_BT(form.divergence) if form.estimator == "full" else None
            found = kl_penalty(form, logps, ref_logps, MASK, old, full_BT=full)
        assert found.shape == (MASK.shape if form.level == "token" else MASK.shape[:1])
        return found

    def expected(self, form: Form, *, off_policy: bool = False) -> Tensor:
        """The loss term in expectation over texts drawn from pi, or from the old policy.

        In the reward: minus the policy-gradient surrogate of the penalty, whose ratio is the token's or the text's.
        """
        sampler = self.old if off_policy else self.logits.detach()
        penalty = self.penalty(form, off_policy=off_policy)
        if form.place == "reward":
            log_ratio = (self.logps(self.logits) - self.logps(sampler))[:, 1:]
            ratio = log_ratio.sum(1).exp() if form.level == "sequence" else log_ratio.exp()
            penalty = ratio * (penalty if form.level == "sequence" else penalty[:, 1:])
        summed = penalty if penalty.dim() == 1 else penalty.sum(1)
        return (self.probability(sampler) * summed).sum()


def error(world: World, form: Form, truth: Tensor, *, off_policy: bool = False) -> float:
    """Largest difference of the two gradients."""
    estimate = world.gradient(world.expected(form, off_policy=off_policy))
    return float((estimate - world.gradient(truth)).abs().max())


def relative(estimate: Tensor, truth: Tensor) -> float:
    """Length of the difference of two gradients, in lengths of the true one."""
    return float((estimate - truth).norm() / truth.norm())
