"""Several runs one after the other in one start of the processes: `many_runs.py LINES.json`, a list of command lines.

Every rank writes the exit codes beside it.
"""

import json
import os
import sys
from pathlib import Path

from rlhf.cli import main

if __name__ == "__main__":
    path = Path(sys.argv[1])
    codes = [main(argv) for argv in json.loads(path.read_text())]
    path.with_name(f"codes-{os.environ['RANK']}.json").write_text(json.dumps(codes))
