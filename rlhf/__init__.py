"""Reinforcement and preference tuning in which every reward can be accounted for."""
