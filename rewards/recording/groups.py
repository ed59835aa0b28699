"""Which completions answer one prompt together, under names that all ranks give them alike."""

from collections.abc import Sequence
from itertools import pairwise

from rewards.recording.attempts import Attempts


class Groups:
    """Counts the groups of a step on through its batches."""

    def __init__(self) -> None:
        self._label, self._before = "", 0

    def of(
        self, label: str, prompts: Sequence[str], size: int | None, attempts: Attempts
    ) -> tuple[list[str], int | None]:
        """One group id a completion, and the size of the groups where it is known.

        label: of the step; ids begin with it. size: completions of a prompt, which a trainer puts side by side over
        all ranks, each rank having as many as the others. Where that is not so, equal prompts side by side are a group.
        """
        if label != self._label:
            self._label, self._before = label, 0
        n, rank, world = len(prompts), attempts.rank, attempts.world
        if size is not None and n * world % size == 0:
            numbers = [(rank * n + i) // size for i in range(n)]
            if all(a[0] != b[0] or a[1] == b[1] for a, b in pairwise(zip(numbers, prompts, strict=True))):
                ids = [f"{label}-{self._before + number}" for number in numbers]
                self._before += n * world // size
                return ids, size
        numbers = [0]
        for one, other in pairwise(prompts):
            numbers.append(numbers[-1] + (one != other))
        mine = f"{rank}." if world > 1 else ""
        ids = [f"{label}-{mine}{self._before + number}" for number in numbers]
        self._before += numbers[-1] + 1
        return ids, None
