"""Forks: a run's checkpoint before an event, continued in paired arms that differ in that event alone."""

ARMS = ("with", "without", "sham", "null", "control")
NULL_ARMS = ("null", "control")
