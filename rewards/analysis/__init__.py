"""What a ledger says about a run: intervals, convergence, behaviour, recalibrations and the summary tables."""
