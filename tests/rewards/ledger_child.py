"""A process that trains into a ledger until it is killed. Prints a line for every step that is durable."""

import sys

from rewards import Ledger
from tests.rewards.ledger_rows import row


def main(path: str, position: str, pace: str) -> None:
    import json
    import time

    ledger = Ledger.open(path, create=True)
    resume = json.loads(position)
    writer = ledger.writer("r", resume=resume)
    step = resume["step"] if resume else 0
    while True:
        step += 1
        rows = [row(i, prompt=f"step {step}", advantage=step) for i in range(8)]
        ticket = writer.append(step, rows)
        event = writer.event("step_stats", {"loss": step}, step=step)
        if step % 3 == 0:
            print("position", json.dumps(writer.checkpoint(step)), flush=True)
        ticket.wait()
        event.wait()
        print("durable", writer.attempt, step, flush=True)
        time.sleep(float(pace))


if __name__ == "__main__":
    main(*sys.argv[1:])
