"""Notes and reviews: kept to the letter, beside each other, on the row they were made on."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rewards import Ledger, LedgerError
from rewards.annotations import annotate, read_notes, review
from rewards.cli import main
from tests.rewards.ledger_rows import rows, scratch
from tests.rewards.typed import document, printed, refused

RUN = "demo/grpo"
NOTE = ("--annotator", "ana", "--label", "too-fast")


@pytest.fixture
def path():
    with scratch() as folder:
        with Ledger.open(folder / "ledger", create=True) as ledger, ledger.writer(RUN) as writer:
            for step in (1, 2, 3):
                writer.append(step=step, rows=rows(step * 4, 4)).wait()
                if step == 2:
                    writer.append(step=step, rows=rows(0, 2, split="eval")).wait()
        yield folder / "ledger"


@pytest.fixture
def number(path, capsys):
    """The number of a note on session 5."""
    return int(printed(capsys, "annotate", path, "--session", 5, *NOTE, "--note", "the speed of transition seems--"))


def noted(path):
    with Ledger.open(path) as ledger:
        return read_notes(ledger)


# -- the note ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "the speed of transition seems--",
        "--",
        "-",
        "",
        " two  spaces ",
        "-maybe",
        "--note",
        "--session 4",
        "ends\r\n\n",
        "é\t\x1b[2J",
    ],
)
def test_a_note_is_kept_to_the_letter_however_it_is_given(path, text, capsys, monkeypatch):
    if text != "-":
        for given in (("--note", text), (f"--note={text}",)):
            assert document(capsys, "annotate", path, "--step", 2, *given, *NOTE, "--json")["payload"]["note"] == text
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii"))
    assert document(capsys, "annotate", path, "--step", 2, *NOTE, "--note", "-", "--json")["payload"]["note"] == text
    assert {note["note"] for note in noted(path)} == {text}
    with Ledger.open(path) as ledger:
        assert ledger.verify().ok


def test_the_event_says_who_what_and_which_row(path, capsys):
    event = document(capsys, "annotate", path, "--session", 5, *NOTE, "--confidence", ".8", "--json")
    assert (event["kind"], event["run_id"], event["step"]) == ("annotation", RUN, 2)
    assert event["payload"] == {
        "annotator": "ana",
        "label": "too-fast",
        "note": None,
        "confidence": 0.8,
        "supersedes": None,
        "session": 5,
        "row": {"attempt": 1, "writer": 0, "seq": 5},
    }
    event = document(capsys, "annotate", path, "--first", 2, "--last", 9, *NOTE, "--json")
    assert event["payload"]["sessions"] == [2, 9] and event["step"] == 3
    assert event["payload"]["rows"] == [{"attempt": 1, "writer": 0, "seq": 2}, {"attempt": 1, "writer": 0, "seq": 11}]
    event = document(capsys, "annotate", path, "--step", 3, *NOTE, "--json")
    assert (event["payload"]["step"], event["payload"]["attempt"], event["step"]) == (3, 1, 3)


def test_the_number_stands_alone_on_stdout_and_names_the_event(path, number):
    with Ledger.open(path) as ledger:
        (event,) = ledger.events(RUN, "annotation")
    assert event["seq"] == number and event["attempt"] is None


def test_a_place_that_the_run_does_not_have_is_refused_with_what_it_has(path, capsys):
    before = noted(path)
    assert "its sessions are 1 to 12" in refused(capsys, "annotate", path, "--session", 13, *NOTE)
    assert "its sessions are 1 to 12" in refused(capsys, "annotate", path, "--session", 0, *NOTE)
    assert "its sessions are 1 to 12" in refused(capsys, "annotate", path, "--session", 10**30, *NOTE)
    assert "no session 13" in refused(capsys, "annotate", path, "--first", 3, "--last", 13, *NOTE)
    assert "first comes after the last" in refused(capsys, "annotate", path, "--first", 3, "--last", 2, *NOTE)
    assert "its steps go up to 3" in refused(capsys, "annotate", path, "--step", 4, *NOTE)
    assert "no run `x`" in refused(capsys, "annotate", path, "--run", "x", "--step", 1, *NOTE)
    assert "one of them" in refused(capsys, "annotate", path, *NOTE)
    assert "one of them" in refused(capsys, "annotate", path, "--session", 1, "--step", 1, *NOTE)
    assert "go together" in refused(capsys, "annotate", path, "--first", 1, *NOTE)
    assert "from 0 to 1" in refused(capsys, "annotate", path, "--step", 1, *NOTE, "--confidence", "80")
    assert "from 0 to 1" in refused(capsys, "annotate", path, "--step", 1, *NOTE, "--confidence", "nan")
    assert "give a name" in refused(capsys, "annotate", path, "--step", 1, "--annotator", " ", "--label", "x")
    assert noted(path) == before == []


def test_a_note_on_a_run_without_sessions_says_that_it_has_none_yet(tmp_path, capsys):
    with Ledger.open(tmp_path / "l", create=True) as ledger, ledger.writer("r"):
        pass
    assert "it has none yet" in refused(capsys, "annotate", tmp_path / "l", "--session", 1, *NOTE)
    assert "recorded none yet" in refused(capsys, "annotate", tmp_path / "l", "--step", 1, *NOTE)


def test_bytes_that_are_no_text_are_refused(path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    assert "no UTF-8" in refused(capsys, "annotate", path, "--step", 1, *NOTE, "--note", "-")


# -- superseding -------------------------------------------------------------------------------------------------------


def test_a_superseded_note_stays_listed_and_marked(path, number, capsys):
    newer = int(printed(capsys, "annotate", path, "--session", 5, *NOTE, "--note", "too fast", "--supersedes", number))
    first, second = document(capsys, "annotations", path, "--json")["annotations"]
    assert (first["number"], first["state"], first["superseded_by"]) == (
        number,
        "superseded",
        [{"number": newer, "annotator": "ana"}],
    )
    assert first["note"] == "the speed of transition seems--"
    assert (second["supersedes"], second["state"]) == (number, "unreviewed")
    listed = printed(capsys, "annotations", path)
    assert f"[superseded by {newer}]" in listed and f"(supersedes {number})" in listed and "seems--\n" in listed
    assert [note["number"] for note in document(capsys, "annotations", path, "--open", "--json")["annotations"]] == [
        newer
    ]


def test_nobody_closes_another_persons_note(path, number, capsys):
    with Ledger.open(path) as ledger:
        review(ledger, number, annotator="ben", verdict="disagree")
    over = ("--annotator", "cem", "--label", "standard", "--supersedes", number)
    newer = int(printed(capsys, "annotate", path, "--session", 5, *over))
    first, second = document(capsys, "annotations", path, "--open", "--json")["annotations"]
    assert (first["number"], first["state"], second["state"]) == (number, "disputed", "unreviewed")
    assert f"[disputed; cem would supersede it by {newer}]" in printed(capsys, "annotations", path)


def test_only_a_note_of_the_same_run_can_be_superseded(path, number, capsys):
    with Ledger.open(path) as ledger, ledger.writer("other") as writer:
        writer.append(1, rows(0, 1)).wait()
    on_other = ("annotate", path, "--run", "other", "--session", 1, *NOTE)
    assert f"a note on run `{RUN}`" in refused(capsys, *on_other, "--supersedes", number)
    assert "is no annotation" in refused(capsys, *on_other, "--supersedes", 1)
    assert "is no annotation" in refused(capsys, *on_other, "--supersedes", 999)


# -- reviews -----------------------------------------------------------------------------------------------------------


def test_reviews_that_disagree_stand_beside_the_note_and_each_other(path, number, capsys):
    for who, verdict, why in (("ben", "disagree", "--"), ("cem", "agree", "seen it"), ("dee", "unclear", None)):
        said = () if why is None else ("--note", why)
        assert main(["review", str(path), str(number), "--annotator", who, "--verdict", verdict, *said]) == 0
    (note,) = document(capsys, "annotations", path, "--json")["annotations"]
    assert (note["note"], note["label"], note["state"]) == ("the speed of transition seems--", "too-fast", "disputed")
    assert [(r["annotator"], r["label"], r["note"]) for r in note["reviews"]] == [
        ("ben", "disagree", "--"),
        ("cem", "agree", "seen it"),
        ("dee", "unclear", None),
    ]
    listed = printed(capsys, "annotations", path)
    for words in ("seems--", "ben: disagree", "cem: agree", "dee: unclear", "[disputed]"):
        assert words in listed


@pytest.mark.parametrize(
    ("reviews", "state"),
    [
        ([], "unreviewed"),
        ([("ana", "agree")], "unreviewed"),  # one's own word is shown and settles nothing
        ([("ben", "agree")], "agreed"),
        ([("ben", "agree"), ("cem", "disagree")], "disputed"),
        ([("ben", "disagree"), ("cem", "agree"), ("dee", "agree")], "disputed"),  # no majority closes a note
        ([("ben", "disagree"), ("ben", "agree")], "agreed"),  # whoever disagreed may come round
        ([("ben", "agree"), ("ben", "disagree")], "disputed"),
        ([("ben", "agree"), ("cem", "unclear")], "unsettled"),
        ([("ben", "standard")], "unsettled"),  # a word of one's own closes nothing
    ],
)
def test_what_the_reviews_come_to(path, number, reviews, state):
    with Ledger.open(path) as ledger:
        for who, verdict in reviews:
            review(ledger, number, annotator=who, verdict=verdict)
        (note,) = read_notes(ledger)
    assert note["state"] == state and len(note["reviews"]) == len(reviews)


def test_reviewing_oneself_is_shown(path, number, capsys):
    assert main(["review", str(path), str(number), "--annotator", "ana", "--verdict", "agree"]) == 0
    (note,) = document(capsys, "annotations", path, "--open", "--json")["annotations"]
    assert [r["of_own_note"] for r in note["reviews"]] == [True]
    assert "reviewing their own note" in printed(capsys, "annotations", path)


def test_a_review_is_of_a_note(path, number, capsys):
    reviewed = int(printed(capsys, "review", path, number, "--annotator", "ben", "--label", "known"))
    assert "is no annotation" in refused(capsys, "review", path, 1, "--annotator", "ben", "--verdict", "agree")
    line = refused(capsys, "review", path, reviewed, "--annotator", "cem", "--verdict", "agree")
    assert f"event {reviewed} is a review of event {number}" in line
    assert "invalid choice" in refused(capsys, "review", path, number, "--annotator", "ben", "--verdict", "yes")
    assert "required" in refused(capsys, "review", path, number, "--annotator", "ben")


def test_a_review_whose_note_is_not_here_is_listed_all_the_same(path, number, capsys):
    with Ledger.open(path) as ledger:
        ledger.note("review", {"annotator": "ben", "label": "disagree", "reviews": 999, "note": "gone?"}, RUN)
        ledger.note("review", {"annotator": "cem", "label": "closed"}, RUN)
    assert [note["kind"] for note in noted(path)] == ["annotation", "review", "review"]
    listed = printed(capsys, "annotations", path)
    assert "ben: disagree (review of a note that is not in this ledger)" in listed and "gone?" in listed


def test_notes_from_elsewhere_are_listed_as_far_as_they_say(path, capsys):
    with Ledger.open(path) as ledger:
        ledger.note("annotation", {"annotator": "old", "label": "standard", "session": 7}, RUN)
        ledger.note("annotation", {"annotator": 3, "label": None, "sessions": [1, 4], "row": "?", "note": ["a"]}, RUN)
        ledger.note("review", {"annotator": ["x"], "label": {"a": 1}, "reviews": ledger.events(RUN)[-1]["seq"]}, RUN)
        ledger.note("annotation", {"annotator": "old", "label": "whole run", "confidence": float("nan")}, RUN)
    assert len(document(capsys, "annotations", path, "--json")["annotations"]) == 3
    listed = printed(capsys, "annotations", path)
    assert f"old on {RUN}, session 7: standard" in listed and f"old on {RUN}: whole run" in listed


# -- resumes -----------------------------------------------------------------------------------------------------------


def test_a_note_stays_with_its_row_when_a_resume_gives_the_number_to_another(tmp_path, capsys):
    with Ledger.open(tmp_path / "l", create=True) as ledger:
        with ledger.writer("r") as writer:
            writer.append(1, rows(0, 2)).wait()
            position = writer.checkpoint(1)
            writer.append(2, rows(2, 2)).wait()
        for session in (2, 3):
            annotate(ledger, "r", {"session": session}, annotator="ana", label="odd")
        annotate(ledger, "r", {"sessions": [1, 4]}, annotator="ana", label="odd")
        with ledger.writer("r", resume=position) as writer:
            writer.append(2, rows(9, 2)).wait()
        kept, moved, span = read_notes(ledger)
        assert (kept["session"], kept["session_now"]) == (2, 2)
        assert (moved["session"], moved["session_now"]) == (3, None)
        assert (span["sessions"], span["sessions_now"]) == ([1, 4], [1, None])
    assert "session 3 (then; superseded by a resume)" in printed(capsys, "annotations", tmp_path / "l")
    assert document(capsys, "show", tmp_path / "l", "--session", 2, "--json")["annotations"][0]["label"] == "odd"
    assert document(capsys, "show", tmp_path / "l", "--session", 3, "--json")["annotations"] == []
    known = document(capsys, "show", tmp_path / "l", "--row", "1/0/3", "--json")
    assert known["live"] is False and [note["session"] for note in known["annotations"]] == [3]


def test_rows_of_a_slower_writer_move_the_number_and_the_note_follows(tmp_path, capsys):
    with Ledger.open(tmp_path / "l", create=True) as ledger:
        first = ledger.writer("r")
        second = ledger.writer("r", writer=1, attempt=1)
        first.append(1, rows(0, 2)).wait()
        first.append(2, rows(2, 2)).wait()
        annotate(ledger, "r", {"session": 3}, annotator="ana", label="odd")
        second.append(1, rows(4, 2)).wait()
        (note,) = read_notes(ledger)
        assert (note["session"], note["session_now"]) == (3, 5)
    assert "session 3 (then; 5 now)" in printed(capsys, "annotations", tmp_path / "l")
    assert len(document(capsys, "show", tmp_path / "l", "--session", 5, "--json")["annotations"]) == 1


def test_a_note_on_a_commit_of_both_splits_keeps_the_number_of_its_row(tmp_path):
    with Ledger.open(tmp_path / "l", create=True) as ledger:
        first, second = ledger.writer("r"), ledger.writer("r", writer=1, attempt=1)
        first.append(1, [row for i in range(3) for row in (*rows(i, 1, split="eval"), *rows(i, 1))]).wait()
        for session in (1, 2, 3):
            annotate(ledger, "r", {"session": session}, annotator="ana", label="odd")
        assert [note["session_now"] for note in read_notes(ledger)] == [1, 2, 3]
        second.append(0, rows(7, 2)).wait()
        assert [note["session_now"] for note in read_notes(ledger)] == [3, 4, 5]
        numbers = {row["seq"]: row["session"] for row in ledger.sessions("r").to_pylist() if row["writer"] == 0}
        assert [numbers[note["row"]["seq"]] for note in read_notes(ledger)] == [3, 4, 5]


# -- lists -------------------------------------------------------------------------------------------------------------


def test_an_empty_list_says_so_and_is_valid_json(path, capsys):
    assert document(capsys, "annotations", path, "--json") == {"annotations": []}
    assert main(["annotations", str(path)]) == 0
    assert capsys.readouterr().err == "no note on record\n"
    assert "no run `x`" in refused(capsys, "annotations", path, "--run", "x")


def test_what_a_terminal_would_obey_is_shown_and_not_sent(path, capsys):
    assert main(["annotate", str(path), "--step", "1", *NOTE, "--note", "red \x1b[31m\x07"]) == 0
    listed = printed(capsys, "annotations", path)
    assert "\x1b" not in listed and "\x07" not in listed and "red \\x1b[31m\\x07" in listed


def test_the_python_calls_refuse_what_the_command_refuses(path):
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerError, match="say what the note is about"):
            annotate(ledger, RUN, {"session": 1, "step": 1}, annotator="ana", label="odd")
        with pytest.raises(LedgerError, match="no run `x`"):
            annotate(ledger, "x", {"session": 1}, annotator="ana", label="odd")


# -- beside training ---------------------------------------------------------------------------------------------------

_TRAINS = """
import sys, time
from rewards import Ledger
from tests.rewards.ledger_rows import rows
path, number, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with Ledger.open(path) as ledger, ledger.writer("busy", writer=number, attempt=1 if number else None) as writer:
    print("ready", flush=True)
    sys.stdin.readline()
    step, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        step += 1
        writer.append(step, rows(step, 8, prompt="p"))
        writer.event("step_stats", {"loss": step}, step=step).wait()
    print(step * 8, flush=True)
"""


def _training(path, number, seconds):
    command = [sys.executable, "-c", _TRAINS, str(path), str(number), str(seconds)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    assert process.stdout.readline() == "ready\n"
    return process


def _annotating(path, name, processes, said, failures):
    try:
        with Ledger.open(path) as ledger:
            while any(process.poll() is None for process in processes):
                about = {"step": 1} if ledger.runs()[1]["sessions"] else {"step": 0}
                try:
                    event = annotate(ledger, "busy", about, annotator=name, label="seen", note=f"{len(said)}--")
                except LedgerError as error:
                    if "recorded none yet" not in str(error):
                        raise
                    continue
                said.append((event["seq"], f"{len(said)}--"))
                review(ledger, event["seq"], annotator=f"not {name}", verdict="disagree")
    except BaseException as error:
        failures.append(error)


@pytest.mark.parametrize("seconds", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_people_annotate_while_two_writers_train_and_nothing_of_anybody_is_lost(path, seconds):
    processes = []
    try:
        processes = [_training(path, number, seconds) for number in (0, 1)]
        failures, said = [], {name: [] for name in ("ana", "ben", "cem")}
        threads = [
            threading.Thread(target=_annotating, args=(path, name, processes, done, failures))
            for name, done in said.items()
        ]
        for thread in threads:
            thread.start()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        recorded = sum(int(process.communicate()[0]) for process in processes)
        for thread in threads:
            thread.join()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert failures == [] and all(said.values())
    with Ledger.open(path) as ledger:
        notes = read_notes(ledger, "busy")
        for name, done in said.items():
            assert [(note["number"], note["note"]) for note in notes if note["annotator"] == name] == done
        assert all(note["state"] == "disputed" and len(note["reviews"]) == 1 for note in notes)
        assert ledger.sessions("busy").num_rows == recorded
        assert ledger.verify().ok
