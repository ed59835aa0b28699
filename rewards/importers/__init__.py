"""Runs from files: CSV, JSON lines and Parquet in the ledger's column names, and the logs of other trainers.

A column that a file does not give is null. Those that every row must have get a default where no column gives them:
`pipeline` "import", `split` "train", `prompt_id` the `row_id`, else the session's number. `session` numbers the
training rows 1, 2, 3, ... without gaps and repeats, in whatever order they stand; without it they are numbered in the
order of the rows. `step` must not go backwards in the order of the sessions; without it every session is a step of its
own (an evaluation row then belongs to the step of the session before it). An empty CSV cell is null, "" is empty text;
NaN is a value, not a missing one. `run_id`, `attempt`, `writer` and `seq` of an exported ledger are given anew.
"""

from rewards.importers.detect import FORMATS
from rewards.importers.fields import Options, read_pairs
from rewards.importers.run import import_run
from rewards.importers.work import Request

__all__ = ["FORMATS", "Options", "Request", "import_run", "read_pairs"]
