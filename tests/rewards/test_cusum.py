import numpy as np
import pytest

from rewards.analysis import cusum
from rewards.analysis.cusum import BURN_IN, Cusum, false_alarm, first_alarm, fit_burn_in
from tests.rewards.accepted import record
from tests.rewards.series_worlds import N, ar1, run_of


def by_loop(z, k, h):
    up = down = 0.0
    for t, value in enumerate(z):
        up, down = max(0.0, up + value - k), max(0.0, down - value - k)
        if max(up, down) > h:
            return t, "up" if up > down else "down"
    return None


@pytest.mark.parametrize("shift", [0.0, 0.4, -0.4])
def test_the_first_alarm_is_that_of_the_recursion(shift):
    z = np.random.default_rng(1).standard_normal(5000) + shift * (np.arange(5000) > 3000)
    found = first_alarm(z, k=0.25, h=8.0)
    expected = by_loop(z, 0.25, 8.0)
    assert (None if found is None else (found.place, found.direction)) == expected
    assert found is not None and found.onset <= found.place


def test_the_sum_starts_at_zero_and_its_onset_is_found_by_hand():
    found = first_alarm(np.array([-1.0, 0.5, 1.0, 1.0, 1.0]), k=0.25, h=2.0)
    # sums of rises: 0, .25, 1, 1.75, 2.5
    assert (found.place, found.onset, found.direction) == (4, 1, "up")
    assert first_alarm(np.zeros(10), k=0.25, h=2.0) is None
    assert first_alarm(np.zeros(0)) is None
    assert first_alarm(np.full(3, -3.0), k=0.25, h=2.0).onset == 0


def test_one_value_at_a_time_gives_the_alarm_of_the_whole_series():
    x = ar1(np.random.default_rng(2), 0.5, 4000)
    x[2500:] -= 0.8
    fitted = fit_burn_in(x[:BURN_IN])
    watch = Cusum(fitted, before=x[BURN_IN - 1])
    spoken = [watch.update(value) for value in x[BURN_IN:]]
    place = next(i for i, word in enumerate(spoken) if word)
    found = first_alarm(fitted.whitened(x[BURN_IN:], x[BURN_IN - 1]))
    assert (place, spoken[place]) == (found.place, found.direction) == (found.place, "down")


def test_whitening_takes_the_autocorrelation_out_and_leaves_unit_variance():
    x = ar1(np.random.default_rng(3), 0.6, 100_000)
    fitted = fit_burn_in(x[:50_000])
    assert fitted.phi == pytest.approx(0.6, abs=0.02) and fitted.sd == pytest.approx(0.8, abs=0.01)
    z = fitted.whitened(x[50_000:], x[49_999])
    assert z.std() == pytest.approx(1, abs=0.02) and np.corrcoef(z[1:], z[:-1])[0, 1] == pytest.approx(0, abs=0.02)


def test_a_burn_in_of_few_or_equal_values_is_refused():
    with pytest.raises(ValueError, match="200 values"):
        fit_burn_in(np.arange(100.0))
    with pytest.raises(ValueError, match="equal"):
        fit_burn_in(np.full(500, 0.1))


def test_the_section_names_the_session_of_the_alarm_and_when_it_began():
    x = ar1(np.random.default_rng(4), 0.3)
    x[6000:] += 1.0
    found = cusum.section(run_of(np.r_[np.full(500, np.nan), x]))
    assert found["alarm"] is True and found["direction"] == "up" and found["burn_in"]["sessions"] == 1000
    assert 6500 < found["session"] < 6700 and abs(found["onset_session"] - 6500) < 60
    assert found["watched"] == N - 1000 and "false alarm" in found["verdict"]
    calm = cusum.section(run_of(ar1(np.random.default_rng(5), 0.3)))
    assert calm["alarm"] is False and calm["session"] is None and "held" in calm["verdict"]


@pytest.mark.parametrize(
    ("x", "why"), [(np.zeros(0), "got 0"), (np.arange(10.0), "got 5"), (np.full(900, 0.5), "equal")]
)
def test_a_run_that_cannot_be_watched_says_why(x, why):
    found = cusum.section(run_of(x))
    assert why in found["why"] and found["alarm"] is None


def test_the_false_alarm_formula_is_near_the_published_run_length():
    # Montgomery's table for k = .5, h = 5: the two-sided run length is 465
    assert -1 / np.log1p(-false_alarm(1, k=0.5, h=5)) == pytest.approx(465, rel=0.02)
    assert false_alarm(N, h=22) == pytest.approx(0.029, abs=0.003)


@pytest.mark.slow
def test_the_false_alarm_rate_is_kept_by_whitening_and_lost_without_it():
    seeds = 300
    shares = {}
    for rho in (0.0, 0.1, 0.3, 0.6):
        raw = raw_20 = white = 0
        for seed in range(seeds):
            x = ar1(np.random.default_rng([6, seed]), rho)
            raw += first_alarm(x) is not None
            raw_20 += first_alarm(x, h=20.0) is not None
            fitted = fit_burn_in(x[:BURN_IN])
            white += first_alarm(fitted.whitened(x[BURN_IN:], x[BURN_IN - 1])) is not None
        shares[rho] = (raw / seeds, raw_20 / seeds, white / seeds)
        record(f"cusum: false alarm, known level, AR(1) {rho}, h = 22", raw / seeds, "iid .015", seeds)
        record(f"cusum: false alarm, known level, AR(1) {rho}, h = 20", raw_20 / seeds, ".065, .285, .98, 1", seeds)
        record(f"cusum: false alarm, whitened on 1,000, AR(1) {rho}, h = 22", white / seeds, "<= .12", seeds)
    assert shares[0.0][0] <= 0.05 and 0.02 <= shares[0.0][1] <= 0.12
    assert shares[0.3][1] >= 0.9 and shares[0.6][1] == 1.0
    assert max(white for _, _, white in shares.values()) <= 0.12


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "accepted"), [(0.0, 90), (0.3, 160)])
def test_a_shift_of_half_a_standard_deviation_is_found_within_a_hundred_sessions_or_so(rho, accepted):
    seeds, delays, missed = 300, [], 0
    for seed in range(seeds):
        x = ar1(np.random.default_rng([7, seed]), rho, 6000)
        x[3000:] += 0.5
        fitted = fit_burn_in(x[:BURN_IN])
        found = first_alarm(fitted.whitened(x[BURN_IN:], x[BURN_IN - 1]))
        if found is None:
            missed += 1
        elif found.place >= 2000:
            delays.append(found.place - 2000)
    median = float(np.median(delays))
    record(f"cusum: median delay for .5 sd, AR(1) {rho}, h = 22", median, "66 (iid), 125 at h = 20", len(delays))
    assert median <= accepted and missed == 0 and len(delays) >= 0.9 * seeds
