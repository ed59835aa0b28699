"""`rewards redact` and `rewards seal`: a text is gone, that it is gone is on record, and all still verifies."""

import io

import pytest

from rewards import Ledger
from rewards.cli import main
from tests.rewards.ledger_rows import rows, scratch
from tests.rewards.typed import document, printed, refused

SECRET = "my name is Ada Lovelace"
WHY = ("--reason", "a name", "--by", "ana")


@pytest.fixture
def path():
    """Two sessions with the same prompt, an eval row with its own, a row without a text, one superseded."""
    with scratch() as folder:
        with Ledger.open(folder / "ledger", create=True) as ledger:
            with ledger.writer("r") as writer:
                writer.append(1, rows(0, 2, prompt=SECRET, rejected="no")).wait()
                writer.append(1, rows(7, 1, split="eval", prompt=f"eval: {SECRET}")).wait()
                writer.append(1, rows(2, 1, response=None)).wait()
                position = writer.checkpoint(1)
                writer.append(2, rows(3, 1, prompt=f"superseded: {SECRET}")).wait()
            with ledger.writer("r", resume=position):
                pass
        yield folder / "ledger"


def stored(path, text):
    """Whether any file of the ledger, or what a reader makes of it, still holds a text."""
    with Ledger.open(path) as ledger:
        shown = str(ledger.sessions("r", live=False, texts=True).to_pylist())
    return text in shown or any(text.encode() in file.read_bytes() for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("sealed", [False, True])
def test_a_redacted_text_is_null_everywhere_and_the_ledger_still_verifies(path, capsys, sealed):
    if sealed:
        assert main(["seal", str(path)]) == 0
    anchor = document(capsys, "head", path, "--json")["head"]
    event = document(capsys, "redact", path, "--session", 1, "--column", "prompt", *WHY, "--yes", "--json")
    assert (event["kind"], event["run_id"]) == ("text_redacted", "r")
    assert event["payload"] == {
        "attempt": 1, "writer": 0, "seq": 1, "columns": ["prompt"], "reason": "a name", "by": "ana",
    }  # fmt: skip
    known = document(capsys, "show", path, "--session", 1, "--json")
    assert (known["prompt"], known["response"], known["rejected"]) == (None, "answer 0", "no")
    assert [(r["columns"], r["reason"], r["by"]) for r in known["redactions"]] == [(["prompt"], "a name", "ana")]
    query = "select seq, prompt from texts where attempt = 1 and seq <= 2 order by seq"
    assert document(capsys, "sql", path, query, "--json") == [{"seq": 1, "prompt": None}, {"seq": 2, "prompt": SECRET}]
    assert main(["verify", str(path), "--anchor", anchor]) == 0
    said = printed(capsys, "show", path, "--session", 1)
    assert "prompt\n(taken out on " in said and "by ana: a name)" in said and SECRET not in said


def test_a_report_shows_that_a_text_was_taken_out_and_what_its_figures_leave_out(path, tmp_path, capsys):
    said = "Texts of 1 row of this run were taken out"
    assert not any(said in limit for limit in document(capsys, "report", path, "--json")["limits"])
    assert main(["redact", str(path), "--session", "1", "--column", "prompt", *WHY, "--yes"]) == 0
    assert any(said in limit for limit in document(capsys, "report", path, "--json")["limits"])
    assert main(["report", str(path), "--out", str(tmp_path / "r.html")]) == 0
    page = (tmp_path / "r.html").read_text()
    assert page.count(">taken out</span>") == 1 and said in page


def test_all_texts_of_a_row_go_without_a_column_and_nothing_of_them_stays_on_disk(path, capsys):
    assert main(["redact", str(path), "--session", "2", *WHY, "--yes"]) == 0
    assert main(["redact", str(path), "--session", "1", *WHY, "--yes"]) == 0
    for key in ("1/0/3", "1/0/5"):  # the eval row and the superseded one
        assert main(["redact", str(path), "--row", key, *WHY, "--yes"]) == 0
    assert main(["seal", str(path)]) == 0
    assert not stored(path, SECRET)
    assert main(["verify", str(path)]) == 0
    assert document(capsys, "show", path, "--row", "1/0/5", "--json")["prompt"] is None


def test_rows_that_hold_the_same_text_are_counted_so_that_nobody_thinks_it_is_gone(path, capsys):
    assert main(["redact", str(path), "--session", "1", "--column", "prompt", *WHY, "--yes"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("taken out: prompt of session 1, row 1/0/1 of run r")
    assert "the same prompt text stands in 1 other row" in said.err
    assert main(["redact", str(path), "--session", "2", "--column", "prompt", *WHY, "--yes"]) == 0
    assert "the same" not in capsys.readouterr().err


def test_what_is_not_there_is_refused_and_nothing_is_recorded(path, capsys):
    before = document(capsys, "head", path, "--json")
    at = ("redact", path, *WHY, "--yes")
    assert "has no prompt" in refused(capsys, *at, "--session", 3, "--column", "prompt")
    assert "has no text" in refused(capsys, *at, "--session", 3)
    assert "its sessions are 1 to 3" in refused(capsys, *at, "--session", 4)
    assert "has no row 1/0/9" in refused(capsys, *at, "--row", "1/0/9")
    assert "is no text of a session" in refused(capsys, *at, "--session", 1, "--column", "category")
    assert "required" in refused(capsys, *at)
    assert "not allowed with" in refused(capsys, *at, "--session", 1, "--row", "1/0/1")
    assert "--by is empty" in refused(capsys, "redact", path, "--session", 1, "--reason", "x", "--by", " ", "--yes")
    assert document(capsys, "head", path, "--json") == before


def test_a_text_is_taken_out_once(path, capsys):
    argv = ("redact", path, "--session", 1, "--column", "prompt", *WHY, "--yes")
    document(capsys, *argv, "--json")
    assert "its prompt was taken out before (event" in refused(capsys, *argv)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("answer", "code"), [("yes\n", 0), ("y\n", 2), ("no\n", 2), ("", 2)])
def test_a_person_at_a_terminal_is_asked(path, capsys, monkeypatch, answer, code):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert main(["redact", str(path), "--session", "1", *WHY]) == code
    assert "prompt, response, rejected of session 1" in capsys.readouterr().err
    assert document(capsys, "show", path, "--session", 1, "--json")["prompt"] == (None if code == 0 else SECRET)


def test_nobody_to_ask_is_no_consent(path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    assert "say --yes" in refused(capsys, "redact", path, "--session", 1, *WHY)
    assert stored(path, SECRET)


# -- sealing -----------------------------------------------------------------------------------------------------------


def test_a_seal_says_what_moved_and_a_second_one_that_nothing_was_hot(path, capsys):
    hot = document(capsys, "show", path, "--json")["sizes"]["hot_rows"]
    done = document(capsys, "seal", path, "--json")
    assert done["rows"] == hot
    sizes = document(capsys, "show", path, "--json")["sizes"]
    assert (sizes["hot_rows"], sizes["sealed_rows"]) == (0, 5)
    assert "nothing was hot" in printed(capsys, "seal", path, "--no-vacuum")
    assert main(["verify", str(path)]) == 0


def test_sealing_changes_neither_the_head_nor_what_a_query_finds(path, capsys):
    queries = (
        "select * from live order by session",
        "select * from texts order by seq",
        "select * from sessions order by seq",
    )
    before = [document(capsys, "sql", path, query, "--json") for query in queries]
    head = document(capsys, "head", path, "--json")
    assert main(["seal", str(path)]) == 0
    assert [document(capsys, "sql", path, query, "--json") for query in queries] == before
    assert document(capsys, "head", path, "--json") == head
