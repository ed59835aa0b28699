"""The commands of `rewards`, one module each.

A module has `register(commands)`, which adds its parser, and `run(args)`, which opens what it needs, does the work and
returns the exit code. What it needs of the ledger is imported inside `run`, so that `--help` costs nothing.
"""
