"""Replay: recorded sessions scored again under another schedule, other weights or another normalisation.

What every reward function said is on record, so the signal that another schedule would have made of it can be computed
exactly. What the policy would have answered under that schedule is not, and nothing here guesses it.
"""

from rewards.replay.document import LIMIT, replay
from rewards.replay.pairs import PAIRED, replay_pairs
from rewards.replay.plan import Plan, Record, make_plan, read_answers, read_run
from rewards.replay.schedule import ScheduleFile, read_schedule

__all__ = [
    "LIMIT",
    "PAIRED",
    "Plan",
    "Record",
    "ScheduleFile",
    "make_plan",
    "read_answers",
    "read_run",
    "read_schedule",
    "replay",
    "replay_pairs",
]
