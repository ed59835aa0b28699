"""The `rlhf` commands as people use them: pipelines, output folders, rows that no one should have sent, signals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rewards import Ledger
from rlhf.cli import main
from rlhf.launch import Terminated, told
from rlhf.launch import main as train_main
from rlhf.pipeline import read_pipeline
from tests.rlhf.stages.tiny_runs import MODEL, ROOT, environment

TINY = [*MODEL, "train.use_cpu=true", "train.save_strategy=no", "data.holdout_fraction=0"]
ROWS = [{"prompt": f"What is {i}? ", "completion": f"It is {i}."} for i in range(6)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return save(tmp_path / "rows.jsonl", ROWS)


def save(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(capsys: pytest.CaptureFixture[str], *argv: object, code: int = 2) -> str:
    """The one line with which a command refuses."""
    capsys.readouterr()
    assert main([str(arg) for arg in argv]) == code
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in said.err, said.err
    return lines[0]


def pipeline(tmp_path: Path, data: Path, head: str = "", defaults: str = "", stages: str = "") -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(
        f"output_dir: {tmp_path / 'out'}\n{head}defaults:\n  data: {{dataset_name: {data}, holdout_fraction: 0}}\n"
        f"{defaults}stages:\n  - stage: sft\n{stages}"
    )
    return path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (r'{"prompt": "a \ud83d", "completion": "b"}', r"\ud83d, half of a surrogate pair"),
        ('{"prompt": "a", "completion": "b", "n": ' + "9" * 5000 + "}", "too long to read"),
        ('{"prompt": "a", "completion": "b", "n": ' + "[" * 100_000 + "}", "nested too deeply"),
        (
            '{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}',
            "same",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(
    line: str, said: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    error = refused(capsys, "sft", *TINY, f"dataset_name={data}", f"output_dir={tmp_path / 'run'}")
    assert "rows.jsonl:2" in error and said in error
    assert not (tmp_path / "run").exists()


def test_a_whole_surrogate_pair_is_a_character(data: Path) -> None:
    from rlhf.data.files import read_file

    data.write_text(r'{"prompt": "\ud83d\ude00", "completion": "\\ud83d"}' + "\n")
    assert read_file(data)[0][2] == {"prompt": "\N{GRINNING FACE}", "completion": r"\ud83d"}


def test_an_empty_prompt_is_told_as_one_where_prompts_are_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "p.jsonl", [{"prompt": "", "completion": "b"}] * 3)
    keys = [f"dataset_name={path}", "reward_funcs=length", f"output_dir={tmp_path / 'run'}", *TINY]
    assert "dropped 3 of 3 rows: empty prompt" in refused(capsys, "grpo", *keys)


def test_advice_on_labelled_completions_is_given_only_where_it_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "p.jsonl", [{"prompt": "a", "completion": "b", "label": True}])
    keys = [f"dataset_name={path}", f"output_dir={tmp_path / 'run'}"]
    assert "data.format=prompt_completion" in refused(capsys, "sft", *keys)
    assert "data.format=prompt_completion" not in refused(capsys, "dpo", *keys)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_is_told_before_training(
    place: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    error = refused(capsys, "sft", *TINY, f"dataset_name={data}", f"output_dir={tmp_path / place}")
    assert f"{tmp_path / place}: cannot be the output_dir" in error


def test_resuming_where_there_is_nothing_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"dataset_name={data}", f"output_dir={tmp_path / 'run'}", "--resume"]
    assert "nothing to resume" in refused(capsys, "sft", *TINY, *keys)
    assert "nothing to resume" in refused(capsys, "run", pipeline(tmp_path, data), "--resume")
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


def test_resuming_without_a_checkpoint_says_that_it_starts_again(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*TINY, f"dataset_name={data}", f"output_dir={tmp_path / 'run'}", "max_steps=1"]
    assert main(["sft", *keys]) == 0
    assert "step 1" not in capsys.readouterr().err
    assert main(["sft", *keys, "--resume"]) == 0
    assert f"{tmp_path / 'run'}: no checkpoint yet; starts again at step 1" in capsys.readouterr().err
    ledger = Ledger.open(tmp_path / "run" / "ledger")
    assert ledger.runs()[0]["attempts"] == 2 and ledger.runs()[0]["steps"] == 1


def test_a_finished_stage_says_where_its_model_and_ledger_are(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [f"dataset_name={data}", f"output_dir={tmp_path / 'run'}", "max_steps=1"]
    assert main(["sft", *TINY, *keys]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"model: {tmp_path / 'run' / 'model'}", f"ledger: {tmp_path / 'run' / 'ledger'}"]
    assert "6 rows of rows.jsonl" in said.err
    assert main(["sft", *TINY, *keys, "--json", "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "completed"


def test_bad_usage_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice" in refused(capsys, "sfft")
    assert "expected one argument" in refused(capsys, "sft", "--config")
    capsys.readouterr()
    assert train_main([]) == 2
    assert capsys.readouterr().err.startswith("error: the following arguments are required: --config")


def test_a_seed_that_no_generator_takes_is_refused_with_the_limit_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert "below 4294967296" in refused(capsys, "sft", f"seed={10**20}")


def test_a_number_of_thousands_of_digits_in_a_configuration_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("stage: sft\nseed: " + "9" * 5000 + "\n")
    assert f"{path}:2: a number of 5,000 digits" in refused(capsys, "sft", "--config", path)


def test_a_pipeline_given_to_a_stage_and_a_stage_given_to_run_say_which_command_is_right(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pipeline(tmp_path, data)
    assert f"rlhf run {path}" in refused(capsys, "sft", "--config", path)
    stage = tmp_path / "stage.yaml"
    stage.write_text("stage: dpo\nbeta: 0.2\n")
    assert f"rlhf dpo --config {stage}" in refused(capsys, "run", stage)


@pytest.mark.parametrize(
    "override",
    [
        "sft.train.output_dir=x",
        "sft.output_dir=x",
        "sft.ledger.path=x",
        "defaults.train.run_name=x",
        "sft.pipeline_id=x",
    ],
)
def test_what_a_pipeline_decides_cannot_be_overridden_under_it(
    override: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "run", pipeline(tmp_path, data), override)
    assert override.split("=")[0] in error and "decided by the pipeline" in error


@pytest.mark.parametrize("where", ["defaults", "stages"])
@pytest.mark.parametrize("text", ["output_dir: x", "train: {run_name: x}", "train.output_dir: x", "ledger: {path: x}"])
def test_what_a_pipeline_decides_cannot_stand_in_its_parts(
    where: str, text: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indent = "  " if where == "defaults" else "    "
    path = pipeline(tmp_path, data, **{where: f"{indent}{text}\n"})
    line = 4 if where == "defaults" else 6
    error = refused(capsys, "run", path)
    assert f"{path}:{line}" in error and "decided by the pipeline" in error


@pytest.mark.parametrize("name", ["../x", "a b", "ledger", "defaults"])
def test_a_stage_name_that_is_no_folder_of_its_own_is_refused(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pipeline(tmp_path, data, stages=f"    name: {name}\n")
    assert f"{path}:6: `{name}` cannot name a stage" in refused(capsys, "run", path)


@pytest.mark.parametrize("head", ["seed: {a: 1}\n", "pipeline: [1]\n"])
def test_a_pipeline_key_of_the_wrong_form_is_named_with_its_line(
    head: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pipeline(tmp_path, data, head=head)
    assert f"{path}:2: {head.split(':')[0]}: expected a word" in refused(capsys, "run", path)


def test_defaults_that_are_no_mapping_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"defaults: 3\nstages: [{{stage: sft, data: {{dataset_name: {data}}}}}]\n")
    assert f"{path}:1: expected `key: value` lines, got 3" in refused(capsys, "run", path)


def test_a_stages_own_seed_goes_before_the_files_and_the_command_lines_before_both(data: Path, tmp_path: Path) -> None:
    other = "  - stage: dpo\n"
    path = pipeline(tmp_path, data, head="seed: 7\n", stages=f"    seed: 11\n{other}")
    seeds = lambda *keys: [s.loaded.config.train.seed for s in read_pipeline(path, keys).stages]  # noqa: E731
    assert seeds() == [11, 7]
    assert seeds("seed=5") == [5, 5]
    assert seeds("seed=5", "dpo.seed=9") == [5, 9]


@pytest.mark.parametrize(("error", "code", "by"), [(KeyboardInterrupt, 130, "Ctrl-C"), (Terminated, 143, "SIGTERM")])
def test_an_interruption_is_one_line(
    error: type[BaseException], code: int, by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error

    before = signal.getsignal(signal.SIGTERM)
    assert told(command) == code
    assert capsys.readouterr().err.splitlines() == [
        f"error: ended by {by}; what was recorded stays; --resume goes on from the newest checkpoint"
    ]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_interrupted_leaves_a_ledger_that_verifies(
    sent: signal.Signals, code: int, data: Path, tmp_path: Path
) -> None:
    # A shell may start its background children with SIGINT ignored, and Python leaves it so.
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from rlhf.cli import main; sys.exit(main())"
    )
    keys = [f"dataset_name={data}", f"output_dir={tmp_path / 'run'}", "max_steps=100000", "logging_steps=100"]
    command = [sys.executable, "-c", script, "sft", *TINY, *keys, "per_device_train_batch_size=2"]
    with subprocess.Popen(command, env=environment(), cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "step=100/" in line:
                break
        os.kill(child.pid, sent)
        rest = child.stderr.read()
        assert child.wait(timeout=60) == code
    assert "Traceback" not in rest and rest.splitlines()[-1].startswith("error: ended by"), rest
    ledger = Ledger.open(tmp_path / "run" / "ledger")
    assert ledger.verify().ok
    assert ledger.runs()[0]["sessions"] >= 200
