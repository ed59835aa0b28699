"""Keys that people bring from TRL and that do not exist here, or not in this stage: why, and what to use instead."""

from __future__ import annotations

from rewards.config_types import paths
from rlhf.config import STAGES


def known_elsewhere(stage: str) -> dict[str, str]:
    """{leaf: message} for a stage: keys of other stages, and keys of TRL that are not implemented."""
    messages: dict[str, str] = {}
    here = {path.rpartition(".")[2] for path in paths(STAGES[stage])}
    for path in {p: None for other in STAGES.values() for p in paths(other)}:
        leaf = path.rpartition(".")[2]
        if leaf not in here:
            homes = [name for name, model in STAGES.items() if path in paths(model)]
            messages.setdefault(leaf, f"`{leaf}` does not apply to {stage}; it is a key of {', '.join(homes)}")
    return messages
