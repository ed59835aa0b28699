"""`rewards replay`, as it is typed."""

import time

import pytest

from rewards import Ledger
from tests.rewards.ledger_rows import scratch
from tests.rewards.simulated import fill, grpo_rows
from tests.rewards.test_replay import CASES, pair_rows, record, section, sessions
from tests.rewards.test_why_command import commands  # noqa: F401 - an autouse fixture
from tests.rewards.typed import document, printed, refused

KEYS = {"run", "sessions", "groups", "changed", "rank_flips", "sign_changes", "leverage", "spill", "shares"}
KEYS |= {"verdict", "why"}
SCHEDULE = """\
reward:
  differentials:
    - {category: self, component: task, differential: 1.5}
"""


@pytest.fixture(scope="module")
def path():
    with scratch() as folder:
        with Ledger.open(folder / "ledger", create=True) as ledger:
            record(ledger, "real", section(**CASES["components"][1]), "group", sessions(1))
            fill(ledger, grpo_rows(sessions=800))
            with ledger.writer("pairs") as writer:
                writer.append(1, pair_rows())
            with ledger.writer("sft") as writer:
                writer.append(1, [{**row, "pipeline": "sft"} for row in pair_rows(4)])
        yield folder / "ledger"


@pytest.fixture
def schedule(tmp_path):
    file = tmp_path / "new.yaml"
    file.write_text(SCHEDULE)
    return file


def test_a_schedule_from_a_file(path, schedule, capsys):
    found = document(capsys, "replay", path, "--schedule", schedule, "--run", "real", "--json")
    assert set(found) >= KEYS and found["groups"] == 120
    assert found["changed"]["schedule"] == [["self", "task", 1.5]]
    assert found["leverage"]["self"]["after"]["estimate"] > found["leverage"]["self"]["before"]["estimate"]
    assert "exact for the signal that was given; silent on what the model would have become" in found["verdict"]


def test_weights_and_a_normalisation_without_a_file_keep_the_recorded_differentials(path, capsys):
    argv = ("replay", path, "--weights", "style=2", "length=0", "--scale-rewards", "none", "--run", "real", "--json")
    found = document(capsys, *argv)
    assert found["changed"]["schedule"] is None
    assert found["changed"]["weights"] == {
        "style": {"before": 0.3, "after": 2.0}, "length": {"before": -0.37, "after": 0.0}
    }  # fmt: skip
    assert found["changed"]["scale_rewards"] == {"before": "group", "after": "none"}
    assert found["rank_flips"]["flipped"] > 0


def test_a_run_that_was_not_recorded_by_this_framework_is_replayed_with_what_it_has(path, capsys):
    found = document(capsys, "replay", path, "--weights", "unsolicited=-2", "--run", "demo/grpo", "--json")
    assert found["recorded"]["scale_rewards"] == "none" and found["recorded"]["advantage_reproduced"] == 1.0
    assert found["changed"]["weights"] == {"unsolicited": {"before": -0.5, "after": -2.0}}


def test_people_get_tables_and_the_sentence(path, schedule, capsys):
    said = printed(capsys, "replay", path, "--schedule", schedule, "--run", "real")
    assert "real: " in said and "leverage after" in said and "pairs that change their order" in said
    assert said.rstrip().endswith("This is exact for the signal that was given; silent on what the model would have "
                                  "become.")  # fmt: skip


def test_pairs_have_margins(path, tmp_path, capsys):
    file = tmp_path / "new.yaml"
    file.write_text("differentials: [{category: b, differential: 1.0}]\n")
    found = document(capsys, "replay", path, "--schedule", file, "--run", "pairs", "--json")
    assert set(found) >= KEYS and found["leverage"] is None
    assert "The mean adjusted margin of 40 sessions" in found["verdict"]
    assert "mean adjusted" in printed(capsys, "replay", path, "--schedule", file, "--run", "pairs")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--run", "real"], "nothing to replay"),
        (["--run", "real", "--weights", "style"], "write it as --weights NAME=0.5"),
        (["--run", "real", "--weights", "stil=1"], "did you mean `style`?"),
        (["--run", "real", "--weights", "style=nan"], "no finite number"),
        (["--run", "real", "--weights", "style=1e308"], "nothing can be computed"),
        (["--run", "nope", "--scale-rewards", "none"], "no run `nope`"),
        (["--run", "real", "--scale-rewards", "grup"], "invalid choice"),
        (["--run", "pairs", "--weights", "a=1"], "online RL only"),
        (["--run", "sft", "--scale-rewards", "none"], "nothing to replay"),
        (["--run", "demo/sft", "--scale-rewards", "none"], "no session yet"),
        (["--run", "real", "--schedule", "/nowhere.yaml"], "/nowhere.yaml: no such file"),
    ],
)
def test_what_cannot_be_meant_is_one_line(path, argv, words, capsys):
    assert words in refused(capsys, "replay", path, *argv)


def test_an_unknown_key_is_refused_with_file_line_and_nearest_name(path, tmp_path, capsys):
    file = tmp_path / "new.yaml"
    file.write_text("reward:\n  differentails: []\n")
    said = refused(capsys, "replay", path, "--schedule", file, "--run", "real")
    assert f"{file}:2: unknown key `reward.differentails`; did you mean `reward.differentials`?" in said


@pytest.mark.slow
def test_a_run_of_the_size_of_the_audit_takes_less_than_two_seconds(tmp_path, capsys):
    file = tmp_path / "new.yaml"
    file.write_text("differentials: [{category: self, component: task, differential: 1.0, pivot: 0.5}]\n")
    with scratch() as folder:
        with Ledger.open(folder / "ledger", create=True) as ledger:
            with ledger.writer("demo/grpo") as writer:
                for step, rows in grpo_rows(sessions=12_847):
                    writer.append(step, rows)
            ledger.seal()
        start = time.process_time()
        document(capsys, "replay", folder / "ledger", "--schedule", file, "--json")
        assert time.process_time() - start < 2
