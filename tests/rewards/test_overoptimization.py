import json

import numpy as np
import pytest

from rewards.analysis import gao, overoptimization
from rewards.analysis.data import RunData
from rewards.analysis.gold import scorer_versions
from tests.rewards.gold_runs import (
    FALL,
    RISE,
    bent,
    climb,
    entries,
    pair_run,
    part,
    registered,
    run,
)


def test_a_gold_reward_that_bends_over_has_its_peak_declared_and_the_rising_proxy_has_none():
    rng = np.random.default_rng(1)
    kl, d = climb(6400, rng)
    gold, proxy = 0.3 + bent(d) + 0.3 * rng.standard_normal(6400), d + 0.3 * rng.standard_normal(6400)
    data = run(6400, kl, proxy, [part("task", proxy), part("judge", gold, "gold")])
    fits = {fit["of"]: fit for fit in overoptimization.section(data)["fits"]}
    true = np.exp(1.0 / 0.8 - 1) ** 2
    peak = fits["judge"]["peak_kl_nats"]
    assert peak["low"] < true < peak["high"] and peak["estimate"] == pytest.approx(true, rel=0.15)
    assert fits["judge"]["offset"] == pytest.approx(0.3, abs=0.1) and fits["judge"]["n"] == 6400
    assert fits["judge"]["past_peak"] == pytest.approx(1 - true / 6, abs=0.05)
    assert len(fits["judge"]["points"]) <= 60 and "peaks at" in fits["judge"]["verdict"]
    assert fits["baseline_reward"]["peak_kl_nats"] is None
    assert "No peak of `baseline_reward`" in fits["baseline_reward"]["verdict"]


def test_the_points_are_the_means_of_whole_steps():
    rng = np.random.default_rng(2)
    kl, d = climb(640, rng)
    data = run(640, kl, d)
    (fit,) = overoptimization.section(data)["fits"]
    first = fit["points"][0]
    assert (first["first_session"], first["last_session"], first["n"]) == (1, 64, 64)
    assert first["kl_nats"] == pytest.approx(kl[:64].mean()) and first["reward"] == pytest.approx(d[:64].mean())


def test_a_change_of_schedule_scorer_or_reference_starts_another_fit():
    rng = np.random.default_rng(3)
    kl, d = climb(3200, rng)
    half = ["a"] * 1600 + ["b"] * 1600
    for column in ("schedule_version", "reference_id"):
        data = run(3200, kl, d, **{column: half})
        fits = overoptimization.section(data)["fits"]
        assert [fit["sessions"] for fit in fits] == [[1, 1600], [1601, 3200]]
        assert {name for fit in fits for name in fit["version"].values()} == {"a", "b", None}
    events = [registered("task"), registered("task", "v2", step=25)]
    data = run(3200, kl, d, [part("task", d)], events=events)
    fits = overoptimization.section(data)["fits"]
    assert [fit["version"]["scorer"] for fit in fits] == ["task=v1", "task=v2"]
    assert fits[1]["sessions"] == [1601, 3200]  # from the step after the registration


def test_one_curve_over_two_schedules_shows_a_peak_that_neither_has():
    rng = np.random.default_rng(4)
    kl, d = climb(6400, rng)
    late = np.arange(6400) >= 3200
    reward = d - 1.2 * late + 0.2 * rng.standard_normal(6400)  # the new schedule takes 1.2 off
    means = [values.reshape(50, 128).mean(axis=1) for values in (kl, reward)]
    naive = gao.fit(np.sqrt(means[0]), means[1])
    assert naive.refusal() is None and 1 < naive.peak_kl()["estimate"] < 6
    fits = overoptimization.section(run(6400, kl, reward, schedule_version=["b" if x else "a" for x in late]))["fits"]
    assert len(fits) == 2 and all(fit["peak_kl_nats"] is None for fit in fits)


def test_a_registration_counts_from_the_step_after_and_a_repeated_one_changes_nothing():
    resumed = {"run_id": "r", "attempt": 2, "step": None, "kind": "resumed", "payload": {"resume_step": 20}}
    events = [registered("a", step=None), registered("b", step=None), resumed, registered("a", step=None, attempt=2)]
    data = run(3200, events=events)
    assert scorer_versions(data, ["a", "b"]) == [(0, "a=v1, b=v1")]
    changed = run(3200, events=[*events, registered("b", "v2", step=None, attempt=2)])
    assert scorer_versions(changed, ["a", "b"]) == [(0, "a=v1, b=v1"), (1280, "a=v1, b=v2")]
    assert scorer_versions(changed, ["c"]) == [(0, None)]


def test_a_version_with_too_few_points_is_refused_and_hundreds_of_versions_are_counted():
    rng = np.random.default_rng(5)
    kl, d = climb(3200, rng)
    fits = overoptimization.section(run(3200, kl, d, schedule_version=[f"v{i // 100:02d}" for i in range(3200)]))[
        "fits"
    ]
    assert len(fits) == overoptimization.MOST_VERSIONS and fits[-1]["versions_left_out"] == 32 - len(fits)
    assert all("at least 8 points" in fit["refused"] for fit in fits)


def test_gold_that_falls_from_the_start_is_said_to_fall_over_the_whole_record():
    rng = np.random.default_rng(17)
    kl, d = climb(6400, rng)
    kl, d = kl + 6, np.sqrt(kl + 6)
    reward = bent(d, alpha=0.2, beta=0.9) + 0.05 * rng.standard_normal(6400)
    (fit,) = overoptimization.section(run(6400, kl, reward))["fits"]
    assert fit["peak_kl_nats"]["estimate"] < 6 and "falls over the whole record" in fit["verdict"]


def test_a_run_without_kl_or_gold_says_so_and_the_rest_still_works():
    rng = np.random.default_rng(16)
    reward, length = rng.standard_normal(1600), 50 + rng.standard_normal(1600)
    bare = overoptimization.section(run(1600, None, reward, response_tokens=length))
    assert bare["fits"] == [] and "no KL" in bare["why"] and "gold" in bare["why"]
    assert bare["proxy_gold"]["alarm"] is None and "gold" in bare["proxy_gold"]["why"]
    assert bare["length"]["correlation"]["estimate"] is not None
    kl, d = climb(1600, rng)
    assert len(overoptimization.section(run(1600, kl, d))["fits"]) == 1
    no_length = overoptimization.section(run(1600, kl, d))["length"]
    assert no_length["why"] == "no response lengths are on record"


@pytest.mark.parametrize("sessions", [0, 1, 2, 10, 100])
@pytest.mark.parametrize("fill", [np.nan, 0.0, 1.0])
def test_short_constant_and_null_runs_never_crash_and_give_no_number_that_json_lacks(sessions, fill):
    values = np.full(sessions, fill)
    parts = [part("task", values), part("judge", values, "gold")] if sessions else ()
    steps = np.arange(sessions) // 4
    columns = {"baseline_reward": values, "kl_nats": values, "response_tokens": values, "prompt_id": ["p"] * sessions}
    if parts:
        columns["components"] = entries(parts)
    found = overoptimization.section(RunData.of_columns("r", steps, [None] * sessions, columns))
    json.dumps(found, allow_nan=False)
    assert found["proxy_gold"]["alarm"] in (None, False)
    assert all(fit["refused"] for fit in found["fits"])


def test_equal_input_gives_equal_output():
    data = pair_run(6, RISE, FALL)
    assert overoptimization.section(data) == overoptimization.section(data)
