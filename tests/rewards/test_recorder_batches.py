import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from rewards import Ledger, Recorder
from rewards.errors import DataError
from tests.rewards.fake_trainer import run
from tests.rewards.recorder_parts import Judge, batch, events, last, length, read


def test_batches_from_many_threads_are_never_mixed(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def first(completions: list[str], **columns: Any) -> list[float]:
        barrier.wait()  # every batch is begun before any is done
        return [float(text.split("-")[0]) for text in completions]

    def second(completions: list[str], **columns: Any) -> list[float]:
        return [float(text.split("-")[1]) for text in completions]

    recorder = Recorder(tmp_path, "run")
    wrapped = recorder.wrap([first, second, Judge(0.0)], weights=[100, 1, 1])

    def work(number: int) -> None:
        for again in range(3):
            run(wrapped, batch(*[f"{number}-{10 * again + i}" for i in range(4)]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    rows = read(tmp_path)
    assert len(rows) == 8 * 3 * 4
    for row in rows:
        number, i = row["response"].split("-")
        assert row["baseline_reward"] == 100 * int(number) + int(i)
        assert len(row["components"]) == 3


def test_calls_with_copies_of_the_lists_belong_together(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "run")
    sync, other = recorder.wrap([length, lambda completions, **columns: [1.0] * len(completions)])
    for texts in (["a", "b"], ["c", "d"]):
        sync(**batch(*texts))
    for texts in (["c", "d"], ["a", "b"]):
        other(**batch(*texts))
    recorder.close()
    assert [(row["response"], row["baseline_reward"]) for row in read(tmp_path)] == [
        ("a", 2.0),
        ("b", 2.0),
        ("c", 2.0),
        ("d", 2.0),
    ]


def test_the_same_batch_again_is_scored_and_recorded_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "run")
    functions = recorder.wrap([length, last])
    arguments = batch("a2")
    run(functions, arguments)
    run(functions, arguments)
    recorder.close()
    assert [row["baseline_reward"] for row in read(tmp_path)] == [4.0, 4.0]


def test_what_one_function_scored_and_the_other_never_saw_is_on_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path, "run")
    sync, _ = recorder.wrap([length, last])
    sync(**batch("a", "bb"))
    recorder.flush()
    assert read(tmp_path) == [], "the other function may be on its way"
    recorder.close()
    rows = read(tmp_path)
    assert [row["baseline_reward"] for row in rows] == [None, None]
    assert [[part["name"] for part in row["components"]] for row in rows] == [["length"]] * 2
    assert "2 sessions are recorded without a reward: reward function `last` did not answer" in caplog.text


def test_a_function_that_raises_leaves_its_batch_on_record_and_raises(tmp_path: Path) -> None:
    def broken(completions: list[str], **columns: Any) -> list[float]:
        raise ValueError("no such\n judge")

    recorder = Recorder(tmp_path, "run")
    functions = recorder.wrap([length, broken, last])
    with pytest.raises(ValueError, match="no such"):
        run(functions, batch("a", "bb"))
    rows = read(tmp_path)  # before anything is closed
    assert [row["baseline_reward"] for row in rows] == [None, None]
    assert [(part["name"], part["value"], part["status"]) for part in rows[1]["components"]] == [
        ("length", 2.0, "ok"),
        ("broken", None, "error"),
    ]
    (stopped,) = events(tmp_path, "stopped")
    assert stopped["payload"]["reason"] == "reward function `broken` raised ValueError: no such judge"
    with Ledger.open(tmp_path) as ledger:
        assert ledger.runs()[0]["status"] == "stopped"
    recorder.close()


def test_an_asynchronous_function_that_raises_leaves_its_batch_on_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def late(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0.05)
        return [1.0] * len(completions)

    async def broken(completions: list[str], **columns: Any) -> list[float]:
        raise TimeoutError("judge")

    recorder = Recorder(tmp_path, "run")
    functions = recorder.wrap([late, broken])

    async def together() -> None:
        late_one, broken_one = (function(**arguments) for function in functions)
        task = asyncio.ensure_future(late_one)
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await broken_one
        await task

    arguments = batch("a")
    asyncio.run(together())
    recorder.close()
    (row,) = read(tmp_path)
    assert [(part["name"], part["status"]) for part in row["components"]] == [("broken", "timeout")]
    assert "`late` answered after its batch was recorded without it" in caplog.text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0, "good"], "returned 'good' for row 1 of 2"),
        (None, "returned NoneType, not one number"),
        (1.0, "returned float, not one number"),
    ],
)
def test_what_is_not_one_number_a_completion_stops_training_with_the_functions_name(
    tmp_path: Path, values: Any, said: str
) -> None:
    recorder = Recorder(tmp_path, "run")
    (wrapped,) = recorder.wrap([lambda completions, **columns: values])
    with pytest.raises(DataError, match=f"reward function `<lambda>` {said}"):
        wrapped(**batch("a", "b"))
    assert [row["components"][0]["status"] for row in read(tmp_path)] == ["error", "error"]
    recorder.close()


def test_values_of_any_numeric_kind_and_from_iterators_are_read(tmp_path: Path) -> None:
    import numpy as np

    recorder = Recorder(tmp_path, "run")
    answers = iter([np.array([1.5, 2.0], dtype=np.float32), [True, np.int64(3)], (x for x in (0.5, None))])
    (wrapped,) = recorder.wrap([lambda completions, **columns: next(answers)])
    returned = [wrapped(**batch("a", "b")) for _ in range(3)]
    assert returned[2] == [0.5, None]
    recorder.close()
    assert [row["baseline_reward"] for row in read(tmp_path)] == [1.5, 2.0, 1.0, 3.0, 0.5, None]


def test_completions_that_are_no_text_are_refused_before_anything_is_scored(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "run")
    (wrapped,) = recorder.wrap([lambda completions, **columns: pytest.fail("called")])
    with pytest.raises(DataError, match="completion 1 of 2: a completion is a string or a list of messages, not int"):
        wrapped(**batch("a", 3))
    with pytest.raises(DataError, match="prompt 0 is float"):
        wrapped(**batch("a", prompts=[0.5]))
    with pytest.raises(DataError, match="without `prompts` and `completions`"):
        wrapped(completions=["a"])
    with pytest.raises(DataError, match="0 prompts and 0 completions"):
        wrapped(prompts=[], completions=[])
