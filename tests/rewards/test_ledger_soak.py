"""Two processes that write and one that reads, at the same time: no lock reaches anybody, no row is lost."""

import json
import multiprocessing

import pytest

from rewards import Ledger, LedgerError
from tests.rewards import soak_child
from tests.rewards.ledger_rows import scratch
from tests.rewards.soak_child import ROWS


def soak(seconds: float) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.rewards.soak_child"])
    with scratch() as folder:
        root = folder / "ledger"
        with Ledger.open(root, create=True) as ledger:
            ledger.writer("r").close()  # writer 0 claims the attempt for the others
        children = [
            context.Process(target=soak_child.write, args=(root, "r", writer, seconds, folder / f"writer{writer}"))
            for writer in (1, 2)
        ]
        children.append(context.Process(target=soak_child.read, args=(root, "r", seconds, folder / "reader")))
        for child in children:
            child.start()
        for child in children:
            child.join(seconds + 120)
        said = {name: json.loads((folder / name).read_text()) for name in ("writer1", "writer2", "reader")}
        assert [report["wrong"] for report in said.values()] == [[], [], []]
        assert said["reader"]["looks"] > 0
        with Ledger.open(root) as ledger:
            table = ledger.sessions("r")
            for writer in (1, 2):
                mine = [r for r in table["row_id"].to_pylist() if r.startswith(f"{writer}-")]
                assert len(mine) == len(set(mine)) == ROWS * said[f"writer{writer}"]["steps"]
            assert ledger.verify().ok
            with pytest.raises(LedgerError, match="writer 1 of attempt 1 of run `r` is taken"):
                ledger.writer("r", writer=1, attempt=1)


def test_two_writers_and_a_reader_do_not_get_in_each_others_way() -> None:
    soak(3)


@pytest.mark.slow
def test_two_writers_and_a_reader_for_a_minute() -> None:
    soak(60)
