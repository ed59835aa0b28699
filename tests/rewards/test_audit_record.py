"""The simulated record of the audit: every figure, measured back from the ledger it was written into."""

import time
from itertools import pairwise

import numpy as np
import pytest

from rewards import Ledger
from rewards.analysis import behaviour_section, overoptimization, phases, plateau, recalibration_effect, transition
from rewards.analysis.behaviour import words
from rewards.analysis.columns import component, component_roles, floats, strings
from rewards.analysis.data import RunData
from rewards.analysis.recalibration_verdicts import supported
from rewards.annotations import read_notes
from rewards.audit import RUN, STATEMENT, write_record
from rewards.audit.answers import PHRASE, VOCABULARY
from rewards.audit.outcomes import GOLD_ALPHA, GOLD_BETA
from rewards.audit.plan import make_plan
from rewards.audit.record import simulate
from rewards.errors import UserError
from rewards.report import build_report
from tests.rewards.ledger_rows import scratch
from tests.rewards.typed import document, printed, refused

SESSIONS = 12_847


@pytest.fixture(scope="module")
def ledger():
    with scratch() as folder:
        began = time.process_time()
        write_record(folder / "ledger")
        assert time.process_time() - began < 10, "seconds of one core to simulate and write the record"
        yield Ledger.open(folder / "ledger")


@pytest.fixture
def folder():
    with scratch() as path:
        yield path


@pytest.fixture(scope="module")
def table(ledger):
    return ledger.sessions(RUN, texts=True)


@pytest.fixture(scope="module")
def compliant(table):
    return floats(table, "compliant")


def events(ledger, kind):
    return ledger.events(RUN, kind=kind)


def test_the_record_has_the_audits_sessions_and_its_chain_verifies(ledger, table):
    assert table.num_rows == SESSIONS
    assert table["session"].to_pylist() == list(range(1, SESSIONS + 1))
    verified = ledger.verify()
    assert verified.ok, verified.first_bad
    (run,) = ledger.runs()
    assert (run["run_id"], run["sessions"], run["status"]) == (RUN, SESSIONS, "done")


def test_the_record_says_of_itself_that_it_is_simulated(ledger):
    started = events(ledger, "attempt_started")[0]["payload"]
    assert started["simulated"] is True
    assert started["statement"] == STATEMENT
    assert STATEMENT.startswith("Simulated record") and "no recalibration has any effect" in STATEMENT


def test_session_4803_is_non_compliant_at_0_30_and_session_4812_compliant_at_0_85(table, compliant):
    baseline = floats(table, "baseline_reward")
    assert (baseline[4802], compliant[4802]) == (0.30, 0.0)
    assert (baseline[4811], compliant[4811]) == (0.85, 1.0)


def test_the_three_recalibrations_stand_at_the_audits_sessions_with_their_claims(ledger, table):
    steps = np.asarray(table["step"])
    found = []
    for event in events(ledger, "recalibration"):
        payload = event["payload"]
        session = int(np.searchsorted(steps, event["step"], side="right"))
        claim = payload.get("claim") or {}
        found.append(
            (
                session,
                payload["category"],
                payload["old_pct"],
                payload["new_pct"],
                claim.get("points"),
                claim.get("sessions"),
            )
        )
    assert found == [
        (2500, "category-2", 12.0, 15.0, -8, 500),
        (4200, "category-3", 20.0, 25.0, -11, 400),
        (4891, "category-4", 0.0, 15.0, None, None),
    ]


def test_the_schedule_acts_from_the_session_after_each_recalibration(table):
    names, pct = np.array(strings(table, "category")), floats(table, "differential_pct")
    for category, at, old, new in (
        ("category-2", 2500, 12, 15),
        ("category-3", 4200, 20, 25),
        ("category-4", 4891, 0, 15),
    ):
        mine = names == category
        number = np.arange(1, SESSIONS + 1)
        assert set(pct[mine & (number <= at)]) == {old}
        assert set(pct[mine & (number > at)]) == {new}


def test_the_trigger_fired_on_the_seventh_recurrence_in_twenty_sessions_and_never_before(ledger, table):
    (evaluated,) = events(ledger, "trigger_evaluated")
    evidence = evaluated["payload"]["evidence"]
    assert (evidence["hits"], evidence["n"], evaluated["payload"]["applied"]) == (7, 20, True)
    assert evaluated["payload"]["gamma"]["estimate"] < 0, "else widening would reinforce the phrase"
    names, texts = strings(table, "category"), strings(table, "response")
    mine = [i for i, name in enumerate(names) if name == "category-4"]
    hits = np.array([PHRASE in texts[i] for i in mine])
    sums = np.convolve(hits, np.ones(20), "full")[: len(hits)]
    fired = mine.index(4890)
    assert sums[fired] == 7 and hits[fired]
    assert sums[:fired].max() < 7
    assert evidence["first_session"] == mine[fired - 19] + 1


def test_the_phrase_is_absent_from_the_next_300_sessions_and_comes_back(table):
    hits = np.array([PHRASE in text for text in strings(table, "response")])
    assert not hits[4891 : 4891 + 300].any()
    assert hits[5191:].sum() >= 10


def test_the_naive_differences_are_the_claimed_8_and_11_points_to_the_nearest_session(table, compliant):
    names = np.array(strings(table, "category"))
    for category, at, sessions, points in (("category-2", 2500, 500, -8), ("category-3", 4200, 400, -11)):
        mine = names == category
        sides = slice(at - sessions, at), slice(at, at + sessions)
        before, after = (1 - compliant[side][mine[side]].mean() for side in sides)
        assert 100 * (after - before) == pytest.approx(points, abs=100 / mine[sides[1]].sum())


@pytest.mark.parametrize(("at", "ratio"), [(3800, 3.0), (5200, 5.0)])
def test_the_ratio_of_high_to_low_is_3_by_3800_and_5_by_5200(compliant, at, ratio):
    share = compliant[at - 500 : at].mean()
    assert share / (1 - share) == pytest.approx(ratio, rel=0.01)


def test_compliance_ends_at_0_97_beside_a_collapsed_diversity(table, compliant):
    assert compliant[-1000:].mean() == pytest.approx(0.97)
    assert floats(table, "trajectory_index")[-64:].mean() == pytest.approx(0.97, abs=0.02)
    answers = strings(table, "response")[-500:]
    assert len(set(answers)) / 500 < 0.2


def test_the_vocabulary_falls_from_847_to_214_unique_tokens_counted_as_the_record_did(table):
    texts = strings(table, "response")
    counts = [len({token for text in window for token in words(text)}) for window in (texts[:500], texts[-500:])]
    assert counts == [847, 214]


def test_part_of_the_vocabularys_fall_is_shorter_answers(table):
    lengths = floats(table, "response_tokens")
    assert lengths[:500].mean() > 2 * lengths[-500:].mean()
    texts = strings(table, "response")
    assert lengths[7] == len(words(texts[7])) and lengths[-1] == len(words(texts[-1]))


def test_diversity_falls_from_0_73_to_0_19_and_unsolicited_content_from_34_percent_to_none(table):
    texts = strings(table, "response")
    assert [len(set(window)) / 500 for window in (texts[:500], texts[-500:])] == [0.73, 0.19]
    extra = component(table, "unsolicited")
    assert extra[:500].mean() == pytest.approx(0.34)
    assert extra[-2000:].sum() == 0


def test_the_unsolicited_component_is_what_the_texts_hold(ledger, table):
    payloads = [event["payload"] for event in events(ledger, "scorer_registered")]
    phrases = next(payload["phrases"] for payload in payloads if payload["name"] == "unsolicited")
    held = [any(phrase in text for phrase in phrases) for text in strings(table, "response")]
    assert component(table, "unsolicited").tolist() == [float(one) for one in held]


def test_the_spread_is_wide_until_2500_narrows_on_a_line_of_its_logarithm_and_is_narrow_from_8000(table):
    baseline = floats(table, "baseline_reward")
    logs = [np.log(baseline[a:b].std()) for a, b in pairwise([0, 1250, 2500])]
    assert np.ptp(logs) < 0.05 and np.mean(logs) == pytest.approx(np.log(0.4), abs=0.03)
    tops, late = range(2500, 8000, 500), [np.log(baseline[a : a + 800].std()) for a in range(8000, 12_000, 800)]
    falling = [np.log(baseline[a : a + 500].std()) for a in tops]
    assert np.corrcoef(list(tops), falling)[0, 1] < -0.99
    assert np.ptp(late) < 0.15 and np.mean(late) == pytest.approx(np.log(0.082), abs=0.05)


def test_the_mean_is_level_rises_on_a_line_and_is_level_again(table):
    baseline = floats(table, "baseline_reward")
    means = [baseline[a:b].mean() for a, b in pairwise([0, 1250, 2500, 5250, 8000, 10_500, SESSIONS])]
    assert means == pytest.approx([0.56, 0.56, 0.635, 0.785, 0.86, 0.86], abs=0.02)


def test_most_of_the_change_of_style_falls_into_500_sessions_of_the_transition(table):
    style = component(table, "style")
    smooth = np.convolve(style, np.ones(100) / 100, "valid")  # sessions t .. t + 99
    total = abs(smooth[-1] - smooth[0])
    change = abs(smooth[500:] - smooth[:-500])
    assert change.max() / total > 0.75
    assert 10_000 <= np.argmax(change) <= 11_000
    baseline = np.convolve(floats(table, "baseline_reward"), np.ones(500) / 500, "valid")
    assert abs(baseline[500:] - baseline[:-500]).max() / abs(baseline[-1] - baseline[0]) < 0.5, "the reward shows none"


def test_gold_peaks_and_falls_while_the_proxy_rises_and_follows_gaos_curve(table):
    gold, baseline, kl = component(table, "gold"), floats(table, "baseline_reward"), floats(table, "kl_nats")
    peak = slice(5500, 7500)
    assert gold[peak].mean() - gold[-1000:].mean() > 0.2
    assert baseline[-1000:].mean() > baseline[peak].mean()
    d = np.sqrt(kl)
    fit, *_ = np.linalg.lstsq(np.column_stack([d, -d * np.log(d)]), gold, rcond=None)
    assert fit == pytest.approx([GOLD_ALPHA, GOLD_BETA], rel=0.1)  # d from one session is noisy, which biases a little
    assert kl[:500].mean() < 0.5 < 30 < kl[-500:].mean()
    assert component_roles(table) == {
        "gold": "gold",
        "style": "observed",
        "task": "optimised",
        "unsolicited": "optimised",
    }


def test_entropy_falls(table):
    entropy = floats(table, "entropy_nats")
    means = [part.mean() for part in np.array_split(entropy, 8)]
    assert means == sorted(means, reverse=True) and means[-1] < 0.5


def test_the_cut_off_note_stays_to_the_letter_beside_the_review_that_closed_it_and_the_dissent(ledger):
    notes = {note["label"]: note for note in read_notes(ledger, RUN)}
    note = notes["transition"]
    assert note["note"] == "the speed of transition seems--"
    assert note["sessions_now"] == [10_000, 11_000]
    assert [review["label"] for review in note["reviews"]] == ["standard", "disagree"]
    assert note["state"] == "disputed"
    assert notes["non-compliant"]["session_now"] == 4803
    assert notes["compliant"]["session_now"] == 4812


def test_the_rewards_obey_the_documented_identities(table):
    baseline, adjusted = floats(table, "baseline_reward"), floats(table, "adjusted_reward")
    parts = sum(component(table, name) * component(table, name, "weight") for name in ("task", "unsolicited"))
    assert parts == pytest.approx(baseline, abs=1e-12)
    d, pivot = floats(table, "differential_pct") / 100, floats(table, "pivot")
    assert np.array_equal(np.isnan(pivot), d == 0)
    assert np.where(d == 0, baseline, pivot + (1 + d) * (baseline - pivot)) == pytest.approx(adjusted, abs=1e-12)
    groups = np.unique(np.array(strings(table, "group_id")), return_inverse=True)[1]
    means = np.bincount(groups, adjusted) / np.bincount(groups)
    assert floats(table, "advantage") == pytest.approx(adjusted - means[groups], abs=1e-6)
    assert set(floats(table, "group_size")) <= {3.0, 4.0, 8.0}
    assert floats(table, "advantage")[d == 0] == pytest.approx(floats(table, "advantage_unadjusted")[d == 0], abs=1e-6)


def test_a_step_has_64_sessions_and_ends_with_a_recalibration(table):
    counts = np.bincount(np.asarray(table["step"]))[1:]
    assert np.median(counts) == 64 and counts.min() >= 32 and counts.max() < 96
    ends = np.cumsum(counts)
    assert {2500, 4200, 4891} <= set(ends.tolist())


def test_equal_seeds_give_equal_records_and_others_differ(folder):
    tables, notes = [], []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_record(folder / name, seed=seed, sessions=700)
        with Ledger.open(folder / name) as ledger:
            tables.append(ledger.sessions(RUN, texts=True))
            notes.append([(e["kind"], e["step"], e["payload"]) for e in ledger.events(RUN)])
    assert tables[0].equals(tables[1]) and notes[0] == notes[1]
    assert not tables[0].equals(tables[2])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_narrow_figures_hold_at_any_seed(seed):
    record = simulate(seed)
    texts = strings(record.table, "response")
    assert [len({t for text in window for t in words(text)}) for window in (texts[:500], texts[-500:])] == [847, 214]
    assert [len(set(window)) / 500 for window in (texts[:500], texts[-500:])] == [0.73, 0.19]
    assert floats(record.table, "compliant")[-1000:].mean() == pytest.approx(0.97)


def test_the_vocabulary_has_no_word_twice_and_each_is_one_token():
    assert len(set(VOCABULARY)) == len(VOCABULARY) >= 847
    assert all(words(word) == [word] for word in VOCABULARY)


def test_groups_and_steps_of_another_length_are_whole():
    for sessions in (640, 1000, 3001):
        plan = make_plan(sessions)
        assert len(plan.step) == plan.sizes.sum() == sessions
        assert np.all(np.diff(plan.step) >= 0) and np.all(np.diff(plan.step) <= 1)
        assert len(set(zip(plan.step.tolist(), plan.group.tolist(), strict=True))) == len(plan.sizes)
        assert np.bincount(plan.group).tolist() == plan.sizes.tolist()
        assert len(set(plan.changed_steps)) == 3


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    with pytest.raises(UserError, match="not empty"):
        write_record(tmp_path / "mine", sessions=700)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="640"):
        write_record(tmp_path / "other", sessions=100)
    with pytest.raises(UserError, match="seed -1"):
        write_record(tmp_path / "other", seed=-1)
    assert not (tmp_path / "other").exists()


def test_the_report_of_the_record_says_that_it_is_simulated(ledger):
    data = build_report(ledger, RUN).data
    assert data["statement"] == STATEMENT and data["ledger"]["verified"]
    assert len(data["recalibrations"]) == 3


# -- the known answers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(table, ledger):
    return RunData.of_table(table, ledger.events(RUN), RUN)


def test_the_analysis_finds_the_three_phases(data):
    found = phases.section(data)
    assert found["shape"] == "ramp"
    assert [row["session"] for row in found["boundaries"]] == pytest.approx([2500, 8000], abs=400)
    reached = {row["ratio"]: row["session"] for row in found["high_to_low"]["reached"]}
    assert reached[3] == pytest.approx(3800, abs=400) and reached[5] == pytest.approx(5200, abs=500)
    flat = plateau.section(data)
    assert flat["converged"] and flat["collapsed"]


def test_the_analysis_claims_no_effect_of_a_recalibration_and_says_what_would_be_needed(data):
    effects = recalibration_effect.section(data)
    assert [found["session"] for found in effects] == [2500, 4200, 4891]
    assert not any(supported(outcome) for found in effects for outcome in found["outcomes"])
    for found, points in zip(effects[:2], (8, 11), strict=True):
        assert "this run cannot support it" in found["verdict"] and "no effect claimed" in found["verdict"]
        assert found["claim"]["category_sessions_needed"] > 200 > found["naive"]["n_after"]
        assert found["mde_points"] > 2 * points
    assert "regression to the mean" in effects[2]["outcomes"][0]["naive"]["refused"]


def test_no_recalibration_of_the_record_moved_its_controls_and_the_first_differential_of_its_category_is_compared(data):
    effects = recalibration_effect.section(data)
    for found in effects:
        shown = found["spill"]
        assert shown["source"] == "sessions" and 0.95 < shown["low"] < 1 < shown["high"] < 1.05
        assert found["spill_refused"] is False and found["excess"]["p_adjusted"] > 0.05
    last = effects[2]
    assert last["leverage"]["before"]["spill"]["n"] == 0 and last["leverage"]["after"]["spill"]["median"] > 1.05
    assert last["controls"] == ["category-1", "category-2", "category-5", "category-6"]
    assert "no effect claimed" in last["verdict"] and last["comparisons"] == 3


def test_the_analysis_flags_the_transition_of_style_and_of_nothing_else(data):
    alarms = [row for row in transition.section(data) if row["alarm"]]
    assert [row["outcome"] for row in alarms] == ["component style"]
    assert 10_000 <= alarms[0]["at_session"] <= 11_000


def test_the_analysis_sees_gold_fall_while_the_proxy_rises(data):
    found = overoptimization.section(data)
    assert found["proxy_gold"]["alarm"]
    peaks = [fit["peak_kl_nats"] for fit in found["fits"] if fit["of"] == "gold" and fit["peak_kl_nats"]]
    assert len(peaks) == 1 and peaks[0]["low"] < 2.6**2 < peaks[0]["high"], "exp(alpha / beta - 1) = 2.6"


def test_the_analysis_does_not_let_a_collapsed_diversity_pass_beside_good_compliance(data):
    found = behaviour_section.section(data)
    assert found["collapse"]["alarm"]
    assert found["vocabulary"]["last"] < 0.35 * found["vocabulary"]["first"]
    assert found["diversity"]["last"] < 0.5 * found["diversity"]["first"]


def test_the_command_writes_the_record_and_says_that_it_is_simulated(folder, capsys):
    shown = document(capsys, "simulate", folder / "a", "--sessions", "700", "--seed", "4", "--json")
    assert (shown["simulated"], shown["sessions"], shown["seed"], shown["run"]) == (True, 700, 4, RUN)
    with Ledger.open(folder / "a") as ledger:
        assert ledger.head() == shown["head"]
    said = printed(capsys, "simulate", folder / "b", "--sessions", "700", "--seed", "4")
    assert "Simulated record: no model was trained." in said
    assert "not empty" in refused(capsys, "simulate", folder / "b")
