"""Policies, reward models, the built-in tiny model, loading and sampling."""
