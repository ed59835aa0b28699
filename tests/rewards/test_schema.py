"""The schema holds every column and event, and `import rewards` stays light."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from rewards import schema

ROOT = Path(__file__).resolve().parents[2]

SESSION = [
    "run_id",
    "pipeline_id",
    "attempt",
    "writer",
    "seq",
    "step",
    "time",
    "pipeline",
    "split",
    "arm",
    "dataset_id",
    "row_id",
    "prompt_id",
    "group_id",
    "group_size",
    "trajectory_id",
    "turn",
    "sample_seed",
    "policy_version",
    "reference_id",
    "schedule_version",
    "classifier_id",
    "category",
    "classification",
    "compliant",
    "trajectory_index",
    "baseline_reward",
    "adjusted_reward",
    "differential_pct",
    "pivot",
    "components",
    "advantage",
    "advantage_unadjusted",
    "norm_mean",
    "norm_std",
    "loss_weight",
    "kl_nats",
    "kl_k3_nats",
    "log_ratio_nats",
    "logp_nats",
    "entropy_nats",
    "sampler_mismatch_max_nats",
    "prompt_tokens",
    "response_tokens",
    "stop_reason",
    "truncated",
]
REQUIRED = ["run_id", "attempt", "writer", "seq", "step", "time", "pipeline", "split", "prompt_id"]
COMPONENT = [
    "name",
    "raw",
    "value",
    "weight",
    "differential_pct",
    "pivot",
    "role",
    "status",
    "scorer_id",
    "latency_ms",
    "cost",
]
EVENTS = [
    "attempt_started",
    "checkpoint",
    "resumed",
    "stopped",
    "recalibration",
    "trigger_evaluated",
    "pivot_set",
    "scorer_registered",
    "anchor_scored",
    "reference_synced",
    "mixture_changed",
    "step_stats",
    "annotation",
    "review",
    "text_redacted",
    "evaluation",
    "pause",
    "unpause",
    "check_in",
    "config_changed",
    "phase_started",
    "release_decision",
    "attempt_ended",
]


def test_every_column_and_event_kind_is_there() -> None:
    assert set(SESSION) <= set(schema.BY_NAME)
    assert [c.name for c in schema.COMPONENT_COLUMNS] == COMPONENT
    assert set(EVENTS) == set(schema.EVENT_KINDS)
    assert sorted(c.name for c in schema.COLUMNS if c.required) == sorted(REQUIRED)


def test_names_are_unique_and_leave_the_computed_columns_free() -> None:
    names = [c.name for c in schema.COLUMNS]
    assert len(set(names)) == len(names)
    assert not {"session", "live", *schema.TEXT_COLUMNS, *schema.TEXT_HASHES} & set(names)


@pytest.mark.parametrize("name", ["baseline_reward", "adjusted_reward", "differential_pct", "pivot"])
def test_rewards_pivots_and_differentials_are_float64(name: str) -> None:
    assert schema.BY_NAME[name].type == pa.float64()


def test_other_measures_are_float32_and_times_have_a_zone() -> None:
    for name in ["advantage", "norm_mean", "kl_nats", "entropy_nats", "trajectory_index", "loss_weight"]:
        assert schema.BY_NAME[name].type == pa.float32()
    assert schema.BY_NAME["time"].type == pa.timestamp("us", tz="UTC")


def test_every_column_says_what_it_means_and_units_are_in_the_names() -> None:
    for column in (*schema.COLUMNS, *schema.COMPONENT_COLUMNS):
        assert column.meaning
        if column.name.endswith("_nats"):
            assert column.unit == "nats"
        if column.name.endswith("_pct"):
            assert column.unit == "percent"
    assert not any(pa.types.is_map(field.type) for field in schema.arrow_schema(texts=True))


def test_the_schema_with_texts_ends_with_the_texts() -> None:
    assert schema.arrow_schema(texts=True).names == schema.arrow_schema().names + list(schema.TEXT_COLUMNS)


def test_import_rewards_is_light_and_names_are_loaded_when_used() -> None:
    code = (
        "import sys, rewards; light = 'pyarrow' not in sys.modules; from rewards import Ledger, LedgerError; "
        "print(light, sorted(set(sys.modules) & {'torch', 'transformers', 'datasets'}), Ledger.__name__)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "True [] Ledger"


def test_rewards_has_no_other_attributes() -> None:
    import rewards

    with pytest.raises(AttributeError, match="no attribute 'Legder'"):
        rewards.Legder  # noqa: B018
    assert "Ledger" in dir(rewards)
