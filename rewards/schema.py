"""What a ledger holds: the columns of a session and the kinds of events, with types, units and meanings.

One table is the source of everything else: validation, the Arrow batches of the tails, the Delta tables, what readers
get and the hash chain. A new column is added at the end of its group and is null in older ledgers; a column that is
null in a whole commit leaves no trace in the chain, so adding one changes no old hash.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

# 1: rows in the columns of a SQLite table. 2: rows in Arrow batches, sealed into Delta tables. Both are read.
SCHEMA_VERSION = 2

TEXT_COLUMNS = ("prompt", "response", "rejected")
SPLITS = ("train", "eval")
ROLES = ("optimised", "observed", "gold")
STATUSES = ("ok", "na", "timeout", "error")

Source = Literal["caller", "writer"]


@dataclass(frozen=True)
class Column:
    """One column of a session.

    unit: "id" marks identifiers, where whole numbers are accepted and written as text. required: never null.
    source: who gives the value; "writer" columns are filled by the ledger. one_of: the closed set of values, if any.
    """

    name: str
    type: pa.DataType
    unit: str
    meaning: str
    required: bool = False
    source: Source = "caller"
    one_of: tuple[str, ...] = ()


_STR, _BOOL = pa.string(), pa.bool_()
_I32, _I64 = pa.int32(), pa.int64()
_F32, _F64 = pa.float32(), pa.float64()
_TIME = pa.timestamp("us", tz="UTC")

COMPONENT_COLUMNS: tuple[Column, ...] = (
    Column("name", _STR, "", "name of the reward function", required=True),
    Column("raw", _F64, "reward", "what the function returned"),
    Column("value", _F64, "reward", "raw on the declared scale, after clipping"),
    Column("weight", _F64, "", "factor in the baseline reward"),
    Column("differential_pct", _F64, "percent", "gain of the category on this component, 100 d"),
    Column("pivot", _F64, "reward", "the value that the differential leaves in place"),
    Column("role", _STR, "", "optimised, observed or gold", one_of=ROLES),
    Column("status", _STR, "", "ok, na, timeout or error", one_of=STATUSES),
    Column("scorer_id", _STR, "id", "which version of the scorer answered"),
    Column("latency_ms", _F32, "ms", "duration of the call that scored the session"),
    Column("cost", _F32, "currency", "what the call cost"),
)

COMPONENTS_TYPE = pa.list_(pa.struct([pa.field(c.name, c.type) for c in COMPONENT_COLUMNS]))

COLUMNS: tuple[Column, ...] = (
    # identity
    Column("run_id", _STR, "", "the run", required=True, source="writer"),
    Column("pipeline_id", _STR, "id", "shared by the stages of one pipeline"),
    Column("attempt", _I32, "", "process lifetime of the run, from 1", required=True, source="writer"),
    Column("writer", _I32, "", "writer process of the attempt, from 0", required=True, source="writer"),
    Column("seq", _I64, "", "number of the row in its writer's chain, from 1", required=True, source="writer"),
    Column("step", _I64, "", "optimizer step the session was scored for", required=True, source="writer"),
    Column("time", _TIME, "UTC", "when the row was handed over, unless the row says otherwise", required=True),
    Column("pipeline", _STR, "", "kind of training: sft, reward, dpo, grpo, ...", required=True),
    Column("split", _STR, "", "train or eval", required=True, one_of=SPLITS),
    Column("arm", _STR, "", "arm of an experiment"),
    Column("dataset_id", _STR, "id", "the data set the prompt came from"),
    Column("row_id", _STR, "id", "the prompt's row in the data set"),
    Column("prompt_id", _STR, "id", "the prompt", required=True),
    Column("group_id", _STR, "id", "sessions that are compared with each other"),
    Column("group_size", _I32, "sessions", "size of the group"),
    Column("trajectory_id", _STR, "id", "the conversation a turn belongs to"),
    Column("turn", _I32, "", "turn of the conversation"),
    Column("sample_seed", _I64, "", "seed the response was sampled with"),
    # what answered
    Column("policy_version", _I64, "steps", "updates behind the policy at the first token of the response"),
    Column("policy_version_last", _I64, "steps", "the same at the last token, where it can differ"),
    Column("reference_id", _STR, "id", "identity of the reference policy"),
    Column("schedule_version", _STR, "id", "version of the schedule of differentials"),
    Column("classifier_id", _STR, "id", "which version of the classifier answered"),
    # meaning
    Column("category", _STR, "", "slice the prompt belongs to"),
    Column("classification", _STR, "", "what the response did"),
    Column("compliant", _BOOL, "", "whether that was right here"),
    Column("trajectory_index", _F32, "share", "weighted mean compliance of the category before this step"),
    # reward
    Column("baseline_reward", _F64, "reward", "signal before any differential"),
    Column("adjusted_reward", _F64, "reward", "signal that enters the objective"),
    Column("differential_pct", _F64, "percent", "gain of the category on the whole reward, 100 d"),
    Column("pivot", _F64, "reward", "the reward that the differential leaves in place"),
    Column("components", COMPONENTS_TYPE, "", "one entry a reward function"),
    # training
    Column("advantage", _F32, "", "advantage that was trained on"),
    Column("advantage_unadjusted", _F32, "", "the advantage without the schedule"),
    Column("norm_mean", _F32, "reward", "mean subtracted from the reward"),
    Column("norm_std", _F32, "reward", "standard deviation divided by"),
    Column("loss_weight", _F32, "", "weight of the session in the loss"),
    # policy
    Column("kl_nats", _F32, "nats", "KL to the reference, session sum; null unless on-policy or over the vocabulary"),
    Column("kl_k3_nats", _F32, "nats", "k3 estimate of the same, session sum"),
    Column("log_ratio_nats", _F32, "nats", "log policy over reference of an off-policy text, session sum"),
    Column("logp_nats", _F32, "nats", "log-probability of the response under the policy, session sum"),
    Column("entropy_nats", _F32, "nats", "entropy of the policy, mean over response tokens"),
    Column("sampler_mismatch_max_nats", _F32, "nats", "largest gap between sampler and trainer log-probabilities"),
    # text
    Column("prompt_tokens", _I32, "tokens", "length of the prompt"),
    Column("response_tokens", _I32, "tokens", "length of the response"),
    Column("stop_reason", _STR, "", "why generation ended"),
    Column("truncated", _BOOL, "", "whether the response was cut"),
)

BY_NAME: dict[str, Column] = {column.name: column for column in COLUMNS}

# Stored with the row, covered by the chain, and not shown: a text stays provable after it was taken out.
TEXT_HASHES = tuple(f"{name}_hash" for name in TEXT_COLUMNS)

# Constant within a tail file, so its rows do not repeat them.
FILE_COLUMNS = ("run_id", "attempt", "writer")
STORED: tuple[Column, ...] = tuple(column for column in COLUMNS if column.name not in FILE_COLUMNS)

# What a sealed row says beyond its columns. chain and block name its writer's chain and its commit; both are unique in
# the ledger. position counts the commit's train rows from 0: with the offset of its commit it is the session's number,
# so numbering a run needs no sort of its rows.
PLACE_FIELDS = (pa.field("chain", _I64), pa.field("block", _I64), pa.field("position", _I32))

# A text has a salt of its own: taking out one text and its salt leaves the others of the row provable.
TEXT_SALTS = tuple(f"{name}_salt" for name in TEXT_COLUMNS)
TEXT_FIELDS = tuple(
    pa.field(name, kind) for text in TEXT_COLUMNS for name, kind in ((text, _STR), (f"{text}_salt", pa.binary()))
)

ROW_KEYS = frozenset([c.name for c in COLUMNS if c.source == "caller"]) | frozenset(TEXT_COLUMNS)
FILLED = frozenset(c.name for c in COLUMNS if c.source == "writer")


def arrow_schema(texts: bool = False) -> pa.Schema:
    """The Arrow schema of session rows, with the three texts where asked for."""
    fields = [pa.field(c.name, c.type, nullable=not c.required) for c in COLUMNS]
    return pa.schema(fields + [pa.field(name, _STR) for name in TEXT_COLUMNS if texts])


def sealed_schema() -> pa.Schema:
    """The Arrow schema of the Delta table `sessions`."""
    fields = [pa.field(c.name, c.type) for c in COLUMNS]
    return pa.schema([*fields, *PLACE_FIELDS, *(pa.field(name, pa.binary()) for name in TEXT_HASHES)])


def texts_schema() -> pa.Schema:
    """The Arrow schema of the Delta table `texts`: keyed like the rows."""
    keys = [pa.field(name, BY_NAME[name].type) for name in ("run_id", "attempt", "writer", "seq")]
    return pa.schema([*keys, pa.field("chain", _I64), *TEXT_FIELDS])


@dataclass(frozen=True)
class EventKind:
    """A kind of event: what it says and which keys its payload must have."""

    meaning: str
    required: tuple[str, ...] = ()


EVENT_KINDS: dict[str, EventKind] = {
    "attempt_started": EventKind("training began: configuration digest, stage, versions"),
    "checkpoint": EventKind("a state that can be resumed: positions of all chains"),
    "resumed": EventKind("an attempt continued from a checkpoint"),
    "stopped": EventKind("a run stopped itself: reason and exit code"),
    "recalibration": EventKind(
        "a differential changed: by how much, asked by whom, on which evidence",
        ("category", "op", "old_pct", "new_pct", "reason"),
    ),
    "trigger_evaluated": EventKind("a trigger reached its count; applied or withheld, and why"),
    "pivot_set": EventKind("the value that a differential leaves in place was fixed", ("category", "value")),
    "scorer_registered": EventKind("a scorer took part: role, weight, scale, identity"),
    "anchor_scored": EventKind("a scorer was run on its fixed anchor texts"),
    "reference_synced": EventKind("the reference policy moved"),
    "mixture_changed": EventKind("the share of a category among the prompts changed"),
    "step_stats": EventKind("figures of one optimizer step"),
    "annotation": EventKind("a person labelled something", ("annotator", "label")),
    "review": EventKind("a person reviewed an annotation, which stays readable", ("annotator", "label")),
    "text_redacted": EventKind(
        "texts of a row were taken out; their hashes stay", ("attempt", "writer", "seq", "columns")
    ),
    "evaluation": EventKind("a suite was run on held-out data"),
    "pause": EventKind("training was paused"),
    "unpause": EventKind("training went on"),
    "check_in": EventKind("a note during the run"),
    "config_changed": EventKind("a resumed run has other settings: key -> [old, new]"),
    "phase_started": EventKind("a stage of a pipeline began"),
    "release_decision": EventKind("a release was decided"),
    "attempt_ended": EventKind("training ended: status, steps"),
}

# Written by the ledger itself and left out of `events()` unless asked for by name: what makes rows count.
CLAIM_KINDS: dict[str, EventKind] = {
    "attempt_claimed": EventKind("an attempt came into being: parent, step and positions it continues from"),
    "writer_joined": EventKind("a writer joined an attempt: its file, first row and genesis"),
}
