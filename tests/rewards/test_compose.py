"""From reward functions to components, the baseline reward and compliance."""

import asyncio
import math
import pathlib
import subprocess
import sys

import pytest

from rewards.compose import Component, Composer, RewardFault, baseline, classify, compliant
from rewards.config import RewardSection
from rewards.errors import ConfigError, RunStopped

MODULE = '''
"""Functions of a user."""

def words(prompts, completions, **columns):
    return [float(len(c.split())) for c in completions]

def shout(prompts, completions, mark="!", **columns):
    return [float(c.count(mark)) for c in completions]

def only_odd(prompts, completions, number, **columns):
    return [1.0 if n % 2 else None for n in number]

def raises(prompts, completions, **columns):
    raise KeyError("gone")

def short(prompts, completions, **columns):
    return [1.0]

def text(prompts, completions, **columns):
    return ["good"] * len(completions)

def nan(prompts, completions, **columns):
    return [1.0, float("nan")][: len(completions)]
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    return lambda name: f"{path}:{name}"


def composer(*entries, **section):
    return Composer.from_config(RewardSection(reward_funcs=list(entries), **section))


def part(name, value, weight=1.0, role="optimised", status="ok"):
    return Component(name, value, value, weight, role, status, "id", 1.0)


def test_a_function_is_called_once_with_the_columns_of_all_rows():
    calls = []

    def spy(prompts, completions, **columns):
        calls.append((prompts, completions, columns))
        return [1.0, 2.0]

    made = Composer.from_config(RewardSection(reward_funcs=["model:it"]), special={"model": lambda _: spy})
    rows = made.score(["p", "q"], ["c", "d"], {"answer": [1, 2]})
    assert calls == [(["p", "q"], ["c", "d"], {"answer": [1, 2]})]
    assert [[c.raw for c in row] for row in rows] == [[1.0], [2.0]]
    assert [c.name for c in rows[0]] == ["spy"]


def test_the_baseline_is_the_weighted_sum_over_applicable_optimised_components(mine):
    made = composer(
        {"fn": mine("words"), "weight": 0.5},
        {"fn": mine("only_odd"), "weight": 2.0},
        {"fn": mine("shout"), "role": "gold"},
    )
    rows = made.score(["p"] * 2, ["a b !", "c"], {"number": [3, 4]})
    assert [baseline(row) for row in rows] == [0.5 * 3 + 2.0 * 1, 0.5 * 1]
    assert [c.status for c in rows[1]] == ["ok", "na", "ok"]
    assert rows[1][1].raw is None and rows[1][1].value is None
    assert rows[0][2].value == 1.0  # gold is recorded and not in the baseline


def test_without_any_applicable_component_the_baseline_is_null():
    rows = [part("a", None, status="na"), part("b", 1.0, role="gold"), part("c", 2.0, role="observed")]
    assert baseline(rows) is None
    assert baseline([]) is None
    assert baseline([part("a", 0.0)]) == 0.0


def test_reward_weights_take_the_place_of_the_weights(mine):
    made = composer(mine("words"), mine("shout"), reward_weights=[2.0, -1.0])
    assert baseline(made.score(["p"], ["a !"], {})[0]) == 2.0 * 2 - 1.0


def test_a_declared_scale_maps_raw_to_value(mine):
    row = composer({"fn": mine("words"), "scale": (1, 5)}).score(["p"], ["a b"], {})[0]
    assert (row[0].raw, row[0].value) == (2.0, 0.25)


def test_a_value_off_its_scale_stops_the_run_unless_a_clip_is_given(mine):
    made = composer({"fn": mine("words"), "scale": (0, 2)})
    with pytest.raises(RewardFault, match=r"`words`, row 1 of 2: 3 lies outside the declared scale 0..2") as caught:
        made.score(["p"] * 2, ["a", "a b c"], {})
    assert [row[0].status for row in caught.value.components] == ["ok", "error"]
    clipping = composer({"fn": mine("words"), "scale": (0, 2), "clip": (0, 2)})
    rows = clipping.score(["p"] * 3, ["a", "a b c", "a b c d"], {})
    assert [(c.raw, c.value) for (c,) in rows] == [(1.0, 0.5), (3.0, 1.0), (4.0, 1.0)]
    assert clipping.clipped == {"words": 2}


def test_nan_stops_the_run_and_names_function_and_row(mine):
    made = composer(mine("words"), mine("nan"))
    with pytest.raises(RewardFault, match="`nan`, row 1 of 2: returned nan") as caught:
        made.score(["p"] * 2, ["a", "b"], {})
    assert isinstance(caught.value, RunStopped) and caught.value.exit_code == 3
    assert [[c.status for c in row] for row in caught.value.components] == [["ok", "ok"], ["ok", "error"]]
    assert caught.value.components[1][1].raw is None


def test_nan_stops_the_run_also_where_errors_are_null(mine):
    with pytest.raises(RewardFault, match="nan"):
        composer(mine("nan"), on_error="null").score(["p"] * 2, ["a", "b"], {})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", "`raises` raised KeyError: 'gone'"),
        ("short", "`short` returned 1 values for 2 rows"),
        ("text", "`text` returned 'good' for row 0"),
    ],
)
def test_a_failing_function_stops_the_run_with_what_was_scored_or_is_recorded_as_null(mine, name, says):
    with pytest.raises(RewardFault, match=says) as caught:
        composer(mine("words"), mine(name)).score(["p"] * 2, ["a b", "b"], {})
    assert [[(c.name, c.raw, c.status) for c in row] for row in caught.value.components] == [
        [("words", 2.0, "ok"), (name, None, "error")],
        [("words", 1.0, "ok"), (name, None, "error")],
    ]
    rows = composer(mine("words"), mine(name), on_error="null").score(["p"] * 2, ["a b", "b"], {})
    assert [row[1].status for row in rows] == ["error", "error"]
    assert [baseline(row) for row in rows] == [2.0, 1.0]


def test_after_an_error_that_stops_the_run_no_further_function_is_called(mine):
    with pytest.raises(RewardFault) as caught:
        composer(mine("words"), mine("raises"), mine("shout")).score(["p"], ["a"], {})
    assert [c.name for c in caught.value.components[0]] == ["words", "raises"]


def test_async_functions_run_at_the_same_time_and_keep_their_place():
    meeting = []

    async def first(prompts, completions, **columns):
        meeting.append(asyncio.Event())
        await asyncio.wait_for(meeting[0].wait(), timeout=10)  # only the other one can end the wait
        return [0.5]

    async def second(prompts, completions, **columns):
        meeting[0].set()
        return [0.25]

    def plain(prompts, completions, **columns):
        return [2.0]

    functions = {"a": first, "b": plain, "c": second}
    section = RewardSection(reward_funcs=["model:a", "model:b", "model:c"])
    rows = Composer.from_config(section, special={"model": functions.get}).score(["p"], ["a"], {})
    assert [(c.name, c.raw) for c in rows[0]] == [("first", 0.5), ("plain", 2.0), ("second", 0.25)]


def test_latency_is_that_of_the_call():
    async def slow(prompts, completions, **columns):
        await asyncio.sleep(0.05)
        return [0.5, 0.5]

    made = Composer.from_config(RewardSection(reward_funcs=["model:s"]), special={"model": lambda _: slow})
    assert [c.latency_ms >= 45 for (c,) in made.score(["p"] * 2, ["a"] * 2, {})] == [True, True]


def test_async_functions_work_inside_a_running_loop():
    async def quick(prompts, completions, **columns):
        return [0.5]

    async def notebook():
        made = Composer.from_config(RewardSection(reward_funcs=["model:q"]), special={"model": lambda _: quick})
        return made.score(["p"], ["a"], {})

    assert asyncio.run(notebook())[0][0].raw == 0.5


def test_an_async_function_that_raises_is_a_fault_like_any_other():
    async def breaks(prompts, completions, **columns):
        raise TimeoutError("the judge is away")

    section = RewardSection(reward_funcs=["length", "model:b"])
    with pytest.raises(RewardFault, match="`breaks` raised TimeoutError: the judge is away") as caught:
        Composer.from_config(section, special={"model": lambda _: breaks}).score(["p"], ["a"], {})
    assert [c.status for c in caught.value.components[0]] == ["ok", "timeout"]


def test_async_functions_share_one_loop_over_calls():
    loops = []

    async def remembers(prompts, completions, **columns):
        loops.append(asyncio.get_running_loop())
        return [1.0]

    made = Composer.from_config(RewardSection(reward_funcs=["model:r"]), special={"model": lambda _: remembers})
    made.score(["p"], ["a"], {})
    made.score(["p"], ["a"], {})
    assert loops[0] is loops[1]


def test_kwargs_are_bound_and_the_name_is_kept(mine):
    made = composer({"fn": mine("shout"), "kwargs": {"mark": "?"}})
    assert made.scorers[0].call.__name__ == "shout"
    assert made.score(["p"], ["a ?? !"], {})[0][0].raw == 2.0
    with pytest.raises(ConfigError, match="no parameter `marc`; did you mean `mark`"):
        composer({"fn": mine("shout"), "kwargs": {"marc": "?"}})
    with pytest.raises(ConfigError, match="kwarg `mark` is also a column"):
        made.score(["p"], ["a"], {"mark": ["x"]})


def test_a_scorer_id_changes_with_source_and_kwargs_and_not_with_the_process(mine, tmp_path):
    def ids(path):
        code = (
            "from rewards.compose import Composer\n"
            "from rewards.config import RewardSection, RewardFunction\n"
            f"fs = [RewardFunction(fn={str(path) + ':shout'!r}, kwargs={{'mark': '?'}}, name='a'),\n"
            f"      RewardFunction(fn={str(path) + ':shout'!r}, name='b')]\n"
            "print(*[s.scorer_id for s in Composer.from_config(RewardSection(reward_funcs=fs)).scorers])\n"
        )
        root = pathlib.Path(__file__).resolve().parents[2]
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.split()

    path = tmp_path / "mine.py"
    with_kwargs, plain = ids(path)
    assert with_kwargs != plain and len(plain) == 12
    assert ids(path) == [with_kwargs, plain]
    path.write_text(MODULE.replace("c.count(mark)", "2 * c.count(mark)"))
    assert ids(path)[1] != plain


def test_a_scorer_that_knows_its_identity_is_taken_at_its_word():
    class Model:
        scorer_id = "weights-1"

        def __call__(self, prompts, completions, **columns):
            return [0.0]

    def made(identity):
        model = Model()
        model.scorer_id = identity
        section = RewardSection(reward_funcs=["model:folder"])
        return Composer.from_config(section, special={"model": lambda _: model}).scorers[0].scorer_id

    assert made("weights-1") == made("weights-1") != made("weights-2")


def test_registrations_describe_every_scorer(mine):
    made = composer(
        mine("words"),
        {"fn": "phrases", "name": "calm", "role": "gold", "scale": (0, 1), "kwargs": {"phrases": ["Stay calm."]}},
    )
    first, second = made.registrations()
    assert first == {
        "name": "words",
        "role": "optimised",
        "weight": 1.0,
        "scale": None,
        "scorer_id": made.scorers[0].scorer_id,
        "fn": mine("words"),
        "kwargs": {},
        "phrases": None,
    }
    assert (second["phrases"], second["scale"], second["name"]) == (["Stay calm."], [0.0, 1.0], "calm")


def test_a_composition_without_reward_or_with_one_name_twice_is_refused(mine):
    with pytest.raises(ConfigError, match="no function with role `optimised`"):
        composer()

    def one_name(prompts, completions, **columns):
        return [1.0]

    models = RewardSection(reward_funcs=["model:a", "model:b"])  # their names are known once they are loaded
    with pytest.raises(ConfigError, match="two functions are called `one_name`"):
        Composer.from_config(models, special={"model": lambda _: one_name})


def test_unequal_lengths_and_empty_input_are_errors(mine):
    made = composer(mine("words"))
    with pytest.raises(ValueError, match="no completions"):
        made.score([], [], {})
    with pytest.raises(ValueError, match="answer has 1 entries for 2"):
        made.score(["p", "q"], ["a", "b"], {"answer": [1]})


def test_a_classifier_gives_one_string_or_none_a_row():
    assert classify(lambda prompts, completions, **_: ["refusal", None], ["p"] * 2, ["a"] * 2, {}) == ["refusal", None]

    def wrong(prompts, completions, **columns):
        return [1, None]

    def breaks(prompts, completions, **columns):
        raise ValueError("no\nluck")

    with pytest.raises(RewardFault, match="classifier `wrong`, row 0 of 2: 1 is neither"):
        classify(wrong, ["p"] * 2, ["a"] * 2, {})
    with pytest.raises(RewardFault, match="returned 2 values for 1 rows"):
        classify(wrong, ["p"], ["a"], {})
    with pytest.raises(RewardFault, match="classifier `breaks` raised ValueError: no luck"):
        classify(breaks, ["p"], ["a"], {})


def test_compliance_is_decided_by_category_and_null_where_it_is_not_declared():
    when = {"harmful": ["refusal"], "benign": ["answered", "hedged"]}
    assert compliant("harmful", "refusal", when) is True
    assert compliant("benign", "refusal", when) is False
    assert compliant("benign", "hedged", when) is True
    assert compliant("other", "refusal", when) is None
    assert compliant(None, "refusal", when) is None
    assert compliant("harmful", None, when) is None


def test_the_baseline_of_many_small_terms_is_exact():
    rows = [part(str(i), 0.1) for i in range(10)]
    assert baseline(rows) == 1.0 == math.fsum([0.1] * 10)
