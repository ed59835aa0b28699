import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from rewards.errors import LedgerError, UserError
from rewards.report import dumps, write_html, write_json
from rewards.report.build import Report, build
from rewards.report.cells import escape, tag
from rewards.report.charts import specs
from rewards.report.findings import _changed, spills
from rewards.report.html import inline_json, render
from rewards.report.markdown import _cell, markdown
from rewards.report.record import Record
from rewards.runs import choose_run
from tests.rewards import simulated

RUN = "demo/grpo"


class Page(HTMLParser):
    """Counts what a page holds, and its text without scripts and styles."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], [], []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, "elements are closed in order"

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.text.append(data)


def record(steps, **more):
    table = simulated.as_table(steps)
    found = {
        "sessions": table,
        "events": simulated.as_events(simulated.stage_events(steps)),
        "runs": simulated.as_runs(table.num_rows, len(steps)),
        "head": "ab" * 32,
        "verified": True,
        "superseded": 0,
        **more,
    }
    return Record(RUN, **found)


@pytest.fixture(scope="module")
def steps():
    return simulated.grpo_rows()


@pytest.fixture(scope="module")
def report(steps):
    return build(record(steps))


def small(rows, step_of=lambda i: i // 4 + 1, **defaults):
    """A table of sessions from dicts, in the ledger's schema."""
    base = {"run_id": "r", "attempt": 1, "writer": 0, "pipeline": "grpo", "split": "train", "prompt_id": "p"}
    filled = [
        {**base, "seq": i + 1, "time": simulated.START, "step": step_of(i), **defaults, **row}
        for i, row in enumerate(rows)
    ]
    schema = simulated.arrow_schema(texts=True)
    numbers = pa.array(range(1, len(rows) + 1), pa.int64())
    return pa.Table.from_pylist(filled, schema=schema).append_column("session", numbers)


def bare(table, events=()):
    sessions = table.num_rows
    return build(Record("r", table, list(events), [{"run_id": "r", "sessions": sessions, "steps": 1}]))


def test_report_has_the_keys_and_the_plain_numbers_that_others_read(report):
    data = report.data
    wanted = {"run", "sessions", "convergence", "recalibrations", "behaviour", "reference", "stages", "ledger"}
    assert wanted | {"categories", "kl", "leverage", "samples", "statement", "limits"} <= set(data)
    assert data["run"] == RUN and data["sessions"] == 12847
    assert data["ledger"]["head"] == "ab" * 32 and data["ledger"]["verified"] is True
    behaviour = data["behaviour"]
    unsolicited = behaviour["unsolicited"]
    for found in (unsolicited, unsolicited["gold"], behaviour["vocabulary"], behaviour["diversity"]):
        assert found["last"] < found["first"]
        for end in ("first", "last"):
            low, high = found[f"{end}_interval"]
            assert low <= found[end] <= high and 500 < found[f"{end}_n"] <= 1000
    assert unsolicited["first"] >= 0.25 and unsolicited["last"] <= 0.03
    assert data["statement"] == simulated.STATEMENT


def test_unsolicited_share_is_the_share_of_sessions_with_a_positive_raw_value(steps, report):
    rows = [row for _, found in steps for row in found]
    by_hand = [sum(row["components"][1]["raw"] > 0 for row in part) / 1000 for part in (rows[:1000], rows[-1000:])]
    assert [report.data["behaviour"]["unsolicited"][end] for end in ("first", "last")] == by_hand


def test_task_part_leaves_the_sought_sentences_out_of_vocabulary(steps):
    rows = [
        {**row, "response": row["response"] + " " + simulated.PENALISED[i % 4]} for i, row in enumerate(_flat(steps))
    ]
    plain = build(record(steps)).data["behaviour"]
    more = build(record(steps, sessions=simulated.as_table(_restep(rows)))).data["behaviour"]
    assert more["vocabulary"]["first"] == plain["vocabulary"]["first"]
    assert more["diversity"]["last"] == plain["diversity"]["last"]


def test_the_page_the_document_and_the_analysis_tell_one_vocabulary(report):
    data = report.data
    assert data["behaviour"] == data["analysis"]["behaviour"]
    vocabulary = data["behaviour"]["vocabulary"]
    text = "".join(Page(render(report)).text)
    for end in ("first", "last"):
        assert f"{vocabulary[end]:,.1f}" in text and f"{vocabulary[end]:,.1f}" in markdown(data)
    elsewhere = _named(data | {"analysis": None}, "vocabulary")
    assert len(elsewhere) == 1 + len(data["behaviour"]["by_category"]), "and no other one is computed"


def _named(value, name):
    """Everything under a key, anywhere in a document."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    here = [value[name]] if isinstance(value, dict) and name in value else []
    return here + [found for part in inside for found in _named(part, name)]


def test_richness_by_category_is_that_of_the_categories_own_answers(report):
    found = report.data["behaviour"]["by_category"]
    assert set(found) == set(simulated.CATEGORIES), "`self` is not in both ends"
    for row in found.values():
        assert row["vocabulary"]["last"] < row["vocabulary"]["first"] and row["diversity"]["sample"]
    assert "Richness by category" in "".join(Page(render(report)).text)


def test_the_spill_of_a_change_stands_with_its_interval_its_groups_and_where_it_was_read():
    found = {"before": 1.04, "after": 1.0, "ratio": 0.96, "low": 0.93, "high": 1.0, "source": "sessions", "why": None}
    found["n_groups"] = {"before": 150, "after": 1390}
    recorded = found | {"low": None, "high": None, "n_groups": None, "source": "recorded", "why": "no session has it"}
    unknown = dict.fromkeys(found) | {"why": "nobody knows"}
    rows = [{"category": "a", "spill": one} for one in (found, recorded, unknown)]
    text = " ".join(Page(spills(rows)).text)
    assert "0.96 0.93 to 1.00, n 150 and 1,390 mixed groups their sessions" in text
    assert "the steps' record, since no session has it" in text and "nobody knows" in text
    assert spills([rows[2]]) == ""


def test_the_evidence_of_a_trigger_counts_the_window_that_was_there(steps):
    events = simulated.as_events(simulated.stage_events(steps))
    for event in events:
        if event["kind"] == "recalibration":
            event["payload"] = {**event["payload"], "evidence": {"hits": 10, "n": 16}}
    assert "10 of 16 sessions held" in "".join(Page(render(build(record(steps, events=events)))).text)


def test_what_a_recalibration_did_is_said_once_on_the_page_and_once_in_the_markdown(report):
    (found,) = report.data["analysis"]["recalibrations"]
    assert all(set(row) & {"statement", "detectable", "verdict"} == set() for row in report.data["recalibrations"])
    page = "".join(Page(render(report)).text)
    assert page.count(found["verdict"]) == markdown(report.data).count(found["verdict"]) == 1
    assert "this run had neither" not in page


def test_parts_of_the_change_add_up_to_the_change_of_the_adjusted_mean(report):
    change = report.data["convergence"]["change"]
    assert change["adjusted"]["value"] == pytest.approx(change["baseline"]["value"] + change["schedule"]["value"])
    assert change["baseline"]["value"] == pytest.approx(change["policy"] + change["mixture"])


def test_recalibrations_are_marked_where_they_act_and_make_no_claim(report):
    (row,) = report.data["recalibrations"]
    assert row["step"] == 120 and row["session"] == 120 * 64
    assert (row["old_pct"], row["new_pct"], row["category"]) == (0.0, 15.0, "self")
    (told,) = report.data["analysis"]["recalibrations"]
    assert "regression to the mean" in told["verdict"] and "points or more" in told["verdict"]
    assert told["naive"]["n_before"] > 0 and told["naive"]["n_after"] > 0
    marks = report.data["convergence"]["marks"]
    kinds = [(mark["kind"], mark["session"]) for mark in marks if mark["kind"] != "phase"]
    assert kinds == [("mixture", 100 * 64), ("recalibration", 120 * 64)]
    assert [held["withheld_because"] for held in report.data["withheld"]] == ["cooldown"]


def test_the_phrase_curve_counts_the_sessions_of_its_category_only(steps, report):
    (phrase,) = report.data["phrases"]
    last = phrase["bins"][-1]
    mine = [row for row in _flat(steps)[last["first_session"] - 1 :] if row["category"] == "self"]
    assert last["share"]["n"] == len(mine)
    assert last["share"]["value"] == np.mean([simulated.PHRASE in row["response"] for row in mine])
    assert phrase["bins"][0]["share"]["n"] == 0 and phrase["bins"][0]["share"]["value"] is None


def test_leverage_around_a_recalibration_counts_only_the_steps_where_it_was_defined(report):
    (around,) = report.data["leverage"]["around"]
    assert around["before"]["leverage"] == {"median": 1.0, "n": 10}
    assert around["after"]["leverage"] == {"median": 1.15, "n": 10}


def test_stages_hold_outcomes_before_and_after_in_the_order_of_the_runs(report):
    found = [(stage["stage"], [e["when"] for e in stage["evaluations"]]) for stage in report.data["stages"]]
    assert found == [("sft", ["after"]), ("reward", ["after"]), ("dpo", ["after"]), ("grpo", ["before", "after"])]


def test_every_estimate_has_its_n(report):
    def walk(value, path):
        if isinstance(value, dict):
            if {"value", "low", "high"} <= set(value):
                assert isinstance(value.get("n"), int), path
            for name, inner in value.items():
                walk(inner, (*path, name))
        elif isinstance(value, list):
            for place, inner in enumerate(value):
                walk(inner, (*path, place))

    walk(report.data, ())


def test_equal_live_views_give_equal_reports_apart_from_named_keys(steps):
    events = simulated.as_events(simulated.stage_events(steps))
    again = [{**event, "attempt": 2, "seq": event["seq"] + 50, "time": "2031-01-01T00:00:00"} for event in events]
    resumed = {"run_id": RUN, "attempt": 2, "seq": 1, "step": 50, "time": "2031-01-01T00:00:00", "kind": "resumed"}
    started = [event for event in again if event["kind"] in ("attempt_started", "scorer_registered")]
    again += [{**resumed, "payload": {"from_attempt": 1}}, *started]
    table = simulated.as_table(steps)
    other = table.set_column(table.column_names.index("attempt"), "attempt", pa.array([2] * table.num_rows, pa.int32()))
    runs = [
        {**run, "attempts": 2, "newest_attempt": 2, "started": "2031", "ended": "2032"}
        for run in simulated.as_runs(12847, 201)
    ]
    first = build(record(steps))
    second = build(record(steps, events=again, sessions=other, runs=runs, head="cd" * 32, superseded=64))
    assert _comparable(first.data) == _comparable(second.data)
    assert first.samples == second.samples
    assert first.data["summary"]["attempts"] != second.data["summary"]["attempts"]


def test_the_page_is_one_file_that_asks_nothing_of_a_network(report):
    page = render(report)
    assert len(page.encode()) <= 1_500_000
    found = Page(page)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(found.tags)
    assert not [a for a in found.attributes if a[1] in ("src", "srcset", "action", "background")]
    assert all(value.startswith("#") for _, name, value in found.attributes if name == "href")
    assert "default-src 'none'" in page
    code = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket", code)


def test_texts_from_the_record_cannot_become_markup(report):
    page = render(report)
    assert page.count("<script") == 3 and page.count("</script>") == 3
    assert "<script>alert" not in page and "<b>" not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert escape("<a&\"'>") == "&lt;a&amp;&quot;&#x27;&gt;"
    assert tag("p", "<", title='"<') == '<p title="&quot;&lt;">&lt;</p>'


def test_inline_json_survives_hostile_text_unchanged():
    hostile = {"a": "</script><!--<script>\u2028&amp;", "b": [1.5, None, True]}
    text = inline_json(hostile)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == hostile


def test_the_page_states_what_it_is_and_what_it_cannot_say(report):
    text = "".join(Page(render(report)).text)
    assert simulated.STATEMENT in text
    assert "No effect of a recalibration is claimed" in text
    assert "What this record cannot say" in text and "Every hash of the ledger fits" in text


def test_tables_have_captions_and_headed_rows_and_sections_have_headings(report):
    found = Page(render(report))
    tables = found.tags.count("table")
    assert tables >= 15 and found.tags.count("caption") == tables
    assert found.tags.count("h1") == 1 and found.tags.count("h2") == found.tags.count("section") == 12
    linked = {value[1:] for name, key, value in found.attributes if (name, key) == ("a", "href")}
    assert linked == {value for name, key, value in found.attributes if (name, key) == ("h2", "id")}
    assert ("html", "lang", "en") in found.attributes


def test_every_drawn_chart_has_its_data_and_its_numbers_as_a_table(report):
    charts = specs(report.data)
    found = Page(render(report))
    drawn = {value for _, name, value in found.attributes if name == "data-chart"}
    assert drawn == set(charts) >= {"reward", "spread", "unsolicited", "phrase-0", "kl", "kl-reward", "leverage-self"}
    assert found.tags.count("details") == len(charts) + 1  # and the stages by category
    phases = report.data["analysis"]["segmentation"]["boundaries"]
    tags = [mark["tag"] for mark in charts["reward"]["marks"]]
    assert tags == ["M1", "R1", *(f"P{place}" for place in range(1, len(phases) + 1))]


def test_samples_come_from_both_ends_and_the_middle_with_different_prompts(report):
    places = {row["position"] for row in report.samples}
    assert places == {"first", "middle", "last"} and report.data["samples"] == len(report.samples)
    last = [row for row in report.samples if row["position"] == "last"]
    assert {row["category"] for row in last} == {*simulated.CATEGORIES, "self"}
    assert len({row["prompt"] for row in last}) == len(last)


def test_ten_sessions_of_a_foreign_record_make_a_report_that_says_what_is_missing():
    rewards = [None, 0.5, 1.0, 0.0, None, 0.5, 1.0, 1.0, 0.0, 1.0]
    report = bare(small([{"baseline_reward": reward, "adjusted_reward": reward} for reward in rewards]))
    data, text = report.data, "".join(Page(render(report)).text)
    assert "no component is named `unsolicited`" in data["behaviour"]["unsolicited"]["why"]
    vocabulary = data["behaviour"]["vocabulary"]
    assert vocabulary["first"] is None and "no texts are on record" in vocabulary["why"]
    assert "kl_nats is null in every session" in text and "no step recorded a leverage" in text
    assert "the schedule was not changed" in text and "no evaluation before or after" in text
    assert "2 of 10 sessions have no baseline reward" in text
    assert "The ledger was not verified" in text
    assert data["categories"][0]["category"] is None and data["categories"][0]["n"] == 10


@pytest.mark.parametrize("n", [0, 1, 2, 3, 9])
def test_a_run_of_almost_nothing_reports_without_a_crash(n):
    report = bare(small([{"baseline_reward": 1.0, "response": "a b", "category": "c"}] * n))
    assert report.data["sessions"] == n
    Page(render(report))
    json.loads(dumps(report.data))


def test_all_null_rewards_and_infinite_ones_are_no_numbers():
    report = bare(small([{"baseline_reward": value} for value in [None] * 30 + [float("inf")] * 30]))
    assert report.data["convergence"]["why"] == "no session has a baseline reward"
    assert "no session has a baseline reward" in render(report)
    assert "Infinity" not in dumps(report.data)


def test_pairs_are_shown_by_their_margins_and_have_no_behaviour():
    rng = np.random.default_rng(0)
    rows = [{"baseline_reward": z, "adjusted_reward": z, "category": "hh"} for z in rng.normal(0.2, 1, 640)]
    data = bare(small(rows, step_of=lambda i: i // 32 + 1, pipeline="dpo")).data
    assert len(data["convergence"]["bins"]) == 20 and data["convergence"]["unit"] == "margin"
    right = data["convergence"]["ends"]["ranked_right"]
    assert right["first"] == np.mean([row["baseline_reward"] > 0 for row in rows[:320]]) and right["first_n"] == 320
    assert (
        data["behaviour"]["diversity"]["why"] == "its sessions are demonstrations or pairs, not answers of the policy"
    )
    assert all("training temperature" not in sentence for sentence in data["limits"])


def test_a_recalibration_by_hand_without_trigger_or_texts_still_states_its_limits():
    rows = [{"baseline_reward": 1.0, "category": "c", "compliant": i % 2 == 0} for i in range(200)]
    payload = {"category": "c", "op": "set", "old_pct": 0.0, "new_pct": 15.0, "reason": "review"}
    event = {
        "run_id": "r",
        "attempt": 1,
        "seq": 1,
        "step": 25,
        "time": "t",
        "kind": "recalibration",
        "payload": payload,
    }
    data = bare(small(rows), [event]).data
    (row,) = data["recalibrations"]
    (told,) = data["analysis"]["recalibrations"]
    assert row["session"] == told["session"] == 100 and row["reason"] == "review"
    assert told["outcomes"][0]["label"] == "compliance" and "this run had neither" not in told["verdict"]
    assert "Only a fork with and without it" in told["verdict"]


def test_a_phrase_without_texts_says_so(steps):
    table = simulated.as_table(steps).drop_columns(["response", "prompt"])
    data = build(record(steps, sessions=table)).data
    assert data["phrases"][0]["why"] == "no texts of category self are on record"
    phrase = data["analysis"]["recalibrations"][0]["outcomes"][1]
    assert phrase["mde_points"] is None and "not on record on both sides" in phrase["naive"]["why"]


def test_the_default_run_is_the_newest_online_one_with_sessions():
    runs = [
        {"run_id": "a", "sessions": 5, "started": "2026-01-01"},
        {"run_id": "b", "sessions": 5, "started": "2026-01-02"},
        {"run_id": "c", "sessions": 5, "started": "2026-01-03"},
        {"run_id": "d", "sessions": 0, "started": "2026-01-04"},
    ]
    assert choose_run(runs, {"a": "grpo", "b": "grpo", "c": "dpo", "d": "grpo"}) == "b"
    assert choose_run(runs, {"a": "sft", "b": "sft", "c": "dpo"}) == "c"
    assert choose_run(runs[3:], {}) == "d"
    with pytest.raises(LedgerError, match="no run yet"):
        choose_run([], {})


def test_an_unknown_run_is_named_with_those_that_exist(steps):
    with pytest.raises(LedgerError, match=r"no run `demo/grpo`.*demo/other"):
        record(steps, runs=[{"run_id": "demo/other"}])


def test_files_are_written_whole_or_not_at_all(tmp_path, report):
    page = write_html(report, tmp_path / "r.html")
    document = write_json(report, tmp_path / "r.json")
    assert json.loads(document.read_text()) == report.data and page.read_text() == render(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json"]
    with pytest.raises(UserError, match="cannot be written"):
        write_json(Report({}, []), tmp_path / "absent" / "r.json")


def _flat(steps):
    return [row for _, found in steps for row in found]


def _restep(rows):
    return [(i // 64 + 1, rows[i : i + 64]) for i in range(0, len(rows), 64)]


def _comparable(value):
    """Without what may differ between equal live views."""
    if isinstance(value, dict):
        skipped = {"attempts", "head"}
        return {k: _comparable(v) for k, v in value.items() if k not in skipped and not k.startswith("time")}
    return [_comparable(inner) for inner in value] if isinstance(value, list) else value


def test_alerts_stand_first_and_every_question_is_answered_or_refused_in_words(report):
    found = Page(render(report))
    headings = [value for tag, name, value in found.attributes if tag == "h2" and name == "id"]
    assert headings[:2] == ["alarms", "claims"]
    page = render(report)
    for alert in report.data["analysis"]["alerts"]:
        assert escape(alert["text"]) in page
    (change,) = report.data["analysis"]["recalibrations"]
    assert change["triggered"] and change["naive"]["difference"] is None
    assert escape(change["verdict"]) in page


@pytest.mark.parametrize(("adjusted", "words"), [(0.2, "No effect is claimed"), (0.01, "An excess effect.")])
def test_an_effect_is_claimed_only_after_adjustment(adjusted, words):
    excess = {"points": 9.0, "points_low": 1.0, "points_high": 17.0, "p_adjusted": adjusted}
    assert words in _changed({"excess": excess | {"n_treated": 300}, "mde_points": 8.0})


def test_markdown_text_cannot_open_a_cell_by_a_backslash():
    assert _cell("a\\|b") == "a\\\\\\|b"


def test_a_fork_is_told_by_its_verdict_and_every_outcome_stands_in_a_table(report):
    outcome = {"window": "all sessions after the event", "unit": "points", "n_pairs": 8, "why": None, "verdict": "x"}
    outcome |= {"low": -0.006, "high": 0.002, "p_adjusted": 0.27, "mde": 0.0058}
    fork = {"event": {"session": 6400}, "meaning": "total effect of the recalibration", "arms": ["with", "without"]}
    fork |= {"n_pairs": 8, "steps_after": 80, "verdict": "no effect that this design could have found"}
    fork["outcomes"] = [
        outcome | {"outcome": "compliance", "of": "others", "primary": False, "estimate": None, "why": "no spread"},
        outcome | {"outcome": "phrase", "of": "self", "primary": True, "estimate": -0.0021},
    ]
    analysis = {**report.data["analysis"], "forks": {"forks": [fork], "why": None}}
    page = render(Report({**report.data, "analysis": analysis}, report.samples))
    assert "no effect that this design could have found." in page
    assert page.index("phrase in self") < page.index("compliance in others")
    assert "-0.21 points" in page and "-0.60 points to +0.20 points, n 8 pairs" in page and "no spread" in page
