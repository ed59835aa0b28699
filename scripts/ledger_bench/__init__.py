"""The parts of `scripts/bench_ledger.py`."""
