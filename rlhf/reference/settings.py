"""The settings of the KL penalty under the name of the room that applies them; they live beside the configuration."""

from rlhf.config.kl import DEMONSTRATIONS, PRESETS, KLSettings, refuse, resolve

__all__ = ["DEMONSTRATIONS", "PRESETS", "KLSettings", "refuse", "resolve"]
