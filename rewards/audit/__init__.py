"""The record of an audit as a known answer: a simulated ledger whose true figures and causes are documented.

Nothing in it was trained. The figures are those that the audit reported; the causes are chosen here, and one of them is
that no recalibration has any effect. An analysis that reports one is wrong, and can be shown to be.
"""

from rewards.audit.record import RUN, STATEMENT, write_record

__all__ = ["RUN", "STATEMENT", "write_record"]
