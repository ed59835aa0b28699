"""`rewards why`, as it is typed."""

import time

import pytest

from rewards import Ledger, cli
from rewards.commands import replay, why
from tests.rewards.ledger_rows import scratch
from tests.rewards.simulated import fill, grpo_rows
from tests.rewards.typed import document, printed, refused

RUN = "demo/grpo"
KEYS = {"run", "a", "b", "mean_a", "mean_b", "change", "parts", "by_category", "credit_a", "credit_b", "sums_to", "why"}


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    """The command line with these two commands, whatever else it has."""

    def parser():
        made = cli.Parser(prog="rewards")
        added = made.add_subparsers(required=True, metavar="COMMAND", parser_class=cli.Parser)
        why.register(added)
        replay.register(added)
        return made

    monkeypatch.setattr(cli, "build_parser", parser)


@pytest.fixture(scope="module")
def path():
    with scratch() as folder:
        root = folder / "ledger"
        with Ledger.open(root, create=True) as ledger:
            fill(ledger, grpo_rows(sessions=3000))
            with ledger.writer("demo/other") as writer:
                for step, rows in grpo_rows(seed=2, sessions=320):
                    writer.append(step, rows)
        yield root


def test_two_windows_are_decomposed_exactly(path, capsys):
    found = document(capsys, "why", path, "first", "last", "--run", RUN, "--json")
    assert set(found) >= KEYS
    assert (found["run"], found["a"]["last"], found["b"]["first"], found["b"]["last"]) == (RUN, 1000, 2001, 3000)
    assert found["sums_to"] == pytest.approx(found["change"], abs=1e-12)
    kinds = {part["kind"] for part in found["parts"]}
    assert kinds == {"component", "mixture"}
    assert all(part["low"] <= part["value"] <= part["high"] and part["mde"] > 0 for part in found["parts"])
    assert [found[f"credit_{end}"]["sums_to"] for end in "ab"] == pytest.approx([1, 1], abs=1e-9)
    ranges = document(capsys, "why", path, "1-1,000", "2001-3000", "--json")  # the newest online run with sessions
    other = document(capsys, "why", path, "1-160", "161-320", "--run", "demo/other", "--json")
    assert ranges["run"] in (RUN, "demo/other") and other["run"] == "demo/other"


def test_two_runs_are_compared_by_name_or_window_by_window(path, capsys):
    whole = document(capsys, "why", path, RUN, "demo/other", "--json")
    assert whole["run"] == [RUN, "demo/other"]
    assert (whole["a"]["sessions"], whole["b"]["sessions"]) == (3000, 320)
    ends = document(capsys, "why", path, "last", "all", "--run", RUN, "--run-b", "demo/other", "--json")
    assert (ends["a"]["first"], ends["b"]["last"]) == (2001, 320)


def test_people_get_a_table_that_adds_up_and_one_sentence(path, capsys):
    said = printed(capsys, "why", path, "first", "last", "--run", RUN)
    assert "A: demo/grpo, sessions 1 to 1,000 (1,000 scored, 125 groups)" in said
    assert "The mean baseline reward went from" in said and "gradient credit" in said
    assert any(line.startswith("sum") for line in said.splitlines())
    assert any(line.startswith("unsolicited") and "component" in line for line in said.splitlines())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["1-10", "2-5000", "--run", RUN], "the sessions of `demo/grpo` are 1 to 3,000"),
        (["5-1", "1-10", "--run", RUN], "window 5-1"),
        (["demo/grpoo", "1-10"], "neither a window"),
        ([RUN, "1-10"], "give two runs, or two windows"),
        ([RUN, "demo/other", "--run", RUN], "leave --run and --run-b out"),
        (["first", "last", "--run", "nope"], "no run `nope`"),
        (["first", "last", "--run", "demo/sft"], "no session yet"),
        (["0-10", "11-20", "--run", RUN], "1 to 3,000"),
        (["5-3", "last", "--run", RUN], "lower session first"),
        (["first", "last", "--run", RUN, "--run-b", "nope"], "no run `nope`"),
        ([f"1-{'9' * 50}", "last", "--run", RUN], "not a whole number"),
    ],
)
def test_what_cannot_be_meant_is_one_line(path, argv, words, capsys):
    assert words in refused(capsys, "why", path, *argv)


@pytest.mark.slow
def test_a_run_of_the_size_of_the_audit_takes_less_than_two_seconds(capsys):
    with scratch() as folder:
        with Ledger.open(folder / "ledger", create=True) as ledger:
            with ledger.writer(RUN) as writer:
                for step, rows in grpo_rows(sessions=12_847):
                    writer.append(step, rows)
            ledger.seal()
        start = time.process_time()
        found = document(capsys, "why", folder / "ledger", "1-6423", "6424-12847", "--json")
        assert time.process_time() - start < 2
        assert found["sums_to"] == pytest.approx(found["change"], abs=1e-12)


def test_a_credit_that_rounds_to_nothing_has_no_sign(capsys):
    credit = {
        "components": [{"name": "x", "credit": -1e-17, "low": -1e-17, "high": 0.0}],
        "why": None,
        "left_out": None,
    }
    why._print_credits({"credit_a": credit, "credit_b": credit})
    assert "-0.0%" not in capsys.readouterr().out
