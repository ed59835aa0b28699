"""Recording from other people's trainers: wrapped reward functions and a trainer callback that fill a ledger.

Imports neither torch nor transformers nor TRL: what a trainer is gets read from the objects that it hands over.
"""

from rewards.recording.recorder import Recorder, recorded

__all__ = ["Recorder", "recorded"]
