"""What the benchmark against TRL computes from what it measures, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rlhf.stages.tiny_runs import ROOT, environment

sys.path.insert(0, str(ROOT / "scripts"))

from peer_bench.cases import as_rows, digest, in_order, read_pairs
from peer_bench.measure import WARM_UP, Runs

from rlhf.data.mixture import EpochOrder


def test_the_rate_leaves_the_first_steps_out_and_the_reference_pass_is_charged_to_one_epoch() -> None:
    assert WARM_UP == 2
    slow = {"ends": [100.0, 101.0, 103.0, 105.0], "peak_bytes": 5, "reference_seconds": 2.0}
    fast = {"ends": [0.0, 1.0, 2.0, 3.0], "peak_bytes": 7, "reference_seconds": 1.0}
    runs = Runs([50, 50, 80, 120], [slow, fast, fast])
    # 200 tokens in the last two steps: 4 s, 2 s, 2 s.
    assert runs.rates == [50.0, 100.0, 100.0]
    assert runs.rate == 100.0
    later = Runs([50, 50, 80, 120], [slow, fast], warm_up=3)
    assert later.rates == [60.0, 120.0] and later.rates_after(WARM_UP) == [50.0, 100.0]
    assert sorted(later.step_seconds) == [1, 2]
    assert sorted(runs.step_seconds) == [1, 1, 1, 1, 2, 2]
    assert runs.peak == 7
    # One pass over all 300 tokens took a second in the median: 1 / (1 / 100 + 1 / 300) tokens a second.
    assert runs.first_epoch_rate == pytest.approx(75.0)


def test_a_prompt_ends_where_the_last_shared_turn_begins(tmp_path: Path) -> None:
    head = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    rows = [
        {"chosen": head + " yes, one", "rejected": head + " yes, two"},
        {"chosen": head + " same", "rejected": head + " same"},
        {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = read_pairs(path)
    assert pairs == [{"prompt": head, "chosen": " yes, one", "rejected": " yes, two"}]
    assert as_rows("sft", pairs, 5) == [{"prompt": head, "completion": " yes, one"}]


def test_the_peer_reads_its_rows_in_the_order_in_which_our_steps_take_them() -> None:
    rows = [{"prompt": str(i)} for i in range(12)]
    order = EpochOrder(12, 4, 7)
    taken = [rows[i] for step in (1, 2) for i in order.indices(step)]
    assert in_order(rows, 4, 2) == taken != rows[:8]


def test_a_mask_is_part_of_what_must_agree() -> None:
    one, other = [[([1, 2, 3], [False, True, True])]], [[([1, 2, 3], [False, False, True])]]
    assert digest(one, masks=True) != digest(other, masks=True)
    assert digest(one, masks=False) == digest(other, masks=False)


def test_data_that_is_not_there_is_one_line_and_exit_2() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "bench_peers.py"), "dpo", "--data", "/nowhere/pairs.jsonl"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: /nowhere/pairs.jsonl: there is no such file") and done.stderr.count("\n") == 1
