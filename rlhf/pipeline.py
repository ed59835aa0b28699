"""`rlhf run PIPELINE.yaml`: a chain of stages in one file, outputs feeding inputs, one ledger, one report.

Keys of the file: `pipeline` (its name), `output_dir`, `seed`, `defaults` (sections shared by all stages) and `stages`,
a list of stage configurations with `stage` (sft, reward, dpo, grpo) and `name`. `${NAME}` in a value is the model
folder of an earlier stage. Every stage's configuration and rows are checked before the first one starts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from rewards.config import Loaded, load_node, read_yaml
from rewards.errors import ConfigError
from rewards.yaml_nodes import entries, is_null, plain, show, where
from rlhf.config import RETIRED, STAGES
from rlhf.config_tables import known_elsewhere
from rlhf.launch import claim_output_dir, say_if_anew, set_up_process

KEYS = ("pipeline", "output_dir", "seed", "defaults", "stages")
OWNED = {"train": ("output_dir", "run_name"), "ledger": ("path", "pipeline_id")}
FOLDERS_TAKEN = ("defaults", "ledger")  # what an override's prefix and the folder in output_dir mean already
_REFERENCE = re.compile(r"\$\{([\w-]+)\}")
_NAME = re.compile(r"[\w-]+")


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a pipeline, configured."""

    stage: str
    name: str
    loaded: Loaded[Any]


@dataclass(frozen=True)
class Plan:
    """A pipeline, configured."""

    name: str
    output_dir: Path
    stages: list[PlannedStage]


@dataclass(frozen=True)
class Shared:
    """What all stages of a pipeline have in common, and the command line's overrides."""

    name: str
    output_dir: Path
    asked_seed: str | None
    seed: str | None
    defaults: Node | None
    for_all: list[str]
    per_stage: dict[str, list[str]]


def run_pipeline(
    path: str,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: str = "auto",
) -> dict[str, Any]:
    """Runs the stages in order, then writes the report; returns where everything is.

    A finished stage is not run again with `resume`; an unfinished one goes on from its newest checkpoint.
    """
    plan = read_pipeline(Path(path), overrides)
    claim_output_dir(plan.output_dir, resume=resume, overwrite=overwrite)
    from rlhf.stages.inputs import read_inputs

    inputs = [read_inputs(planned.stage, planned.loaded.config) for planned in plan.stages]
    finished = [_finished(planned) if resume else None for planned in plan.stages]
    set_up_process()
    from rlhf.stages.registry import WORKS
    from rlhf.stages.run import run_stage

    outcomes: dict[str, Any] = {}
    for planned, rows, done in zip(plan.stages, inputs, finished, strict=True):
        if resume and not done:
            say_if_anew(Path(planned.loaded.config.train.output_dir))
        outcomes[planned.name] = done or run_stage(
            planned.stage,
            WORKS[planned.stage],
            planned.loaded,
            rows,
            resume=resume,
            progress=progress,  # type: ignore[arg-type]
        )
    return _report(plan, outcomes)


def read_pipeline(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """The pipeline in a file, with overrides on top.

    `key=value` is for the pipeline, `defaults.key=value` for all stages, `NAME.key=value` for one.
    Raises: ConfigError naming file and line.
    """
    root = entries(read_yaml(path))
    if "stage" in root and "stages" not in root:
        raise ConfigError(
            f"{where(root['stage'][0])}: configures one stage, not a pipeline: `rlhf {plain(root['stage'][1])} "
            f"--config {path}`"
        )
    for key, (node, _) in root.items():
        if key not in KEYS:
            raise ConfigError(f"{where(node)}: unknown key `{key}`; a pipeline has {', '.join(KEYS)}")
    if "stages" not in root or not isinstance(root["stages"][1], SequenceNode) or not root["stages"][1].value:
        raise ConfigError(f"{path}: a pipeline needs `stages`, a list with at least one stage")
    own, per_stage, for_all = _split(overrides)
    name = _word(root, "pipeline") or path.stem
    output_dir = Path(own.get("output_dir") or _word(root, "output_dir") or f"runs/{name}")
    defaults = None if "defaults" not in root or is_null(root["defaults"][1]) else root["defaults"][1]
    if defaults is not None:
        _refuse_owned(defaults)
    shared = Shared(name, output_dir, own.get("seed"), _word(root, "seed"), defaults, for_all, per_stage)
    stages: list[PlannedStage] = []
    for node in root["stages"][1].value:
        stages.append(_plan_stage(node, shared, [s.name for s in stages]))
    unknown = sorted(set(per_stage) - {s.name for s in stages})
    if unknown:
        known = ", ".join(s.name for s in stages)
        raise ConfigError(f"command line: `{unknown[0]}` is no stage of {path}; there are {known}")
    return Plan(name, output_dir, stages)


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]], list[str]]:
    own: dict[str, str] = {}
    per_stage: dict[str, list[str]] = {}
    for_all: list[str] = []
    for override in overrides:
        _refuse_owned_override(override)
        key, _, value = override.partition("=")
        stage, dot, rest = key.partition(".")
        if key in ("output_dir", "seed"):
            own[key] = value
        elif stage == "defaults" and dot:
            for_all.append(f"{rest}={value}")
        elif dot:
            per_stage.setdefault(stage, []).append(f"{rest}={value}")
        else:
            raise ConfigError(
                f"command line: `{key}` is no key of a pipeline; use output_dir=, seed=, defaults.{key}={value} "
                f"for all stages, or STAGE.{key}={value}"
            )
    return own, per_stage, for_all


def _plan_stage(node: Node, shared: Shared, earlier: list[str]) -> PlannedStage:
    fields = entries(node)
    if "stage" not in fields:
        raise ConfigError(f"{where(node)}: a stage needs `stage`: one of {', '.join(STAGES)}")
    stage = str(plain(fields["stage"][1]))
    if stage not in STAGES:
        raise ConfigError(f"{where(fields['stage'][1])}: unknown stage `{stage}`; choose {', '.join(STAGES)}")
    name = _word(fields, "name") or stage
    if not _NAME.fullmatch(name) or name in FOLDERS_TAKEN:
        raise ConfigError(
            f"{where(fields['name'][1])}: `{name}` cannot name a stage: letters, digits, - and _, and none of "
            f"{', '.join(FOLDERS_TAKEN)}"
        )
    if name in earlier:
        raise ConfigError(f"{where(node)}: two stages are called `{name}`; give one another `name`")
    _refuse_owned(node)
    body = _without(node, ("stage", "name"))
    merged = _merge(shared.defaults, body) if shared.defaults is not None else body
    folders = {other: str(shared.output_dir / other / "model") for other in earlier}
    merged = _resolve(merged, folders)
    decided = [
        f"train.output_dir={shared.output_dir / name}",
        f"train.run_name={shared.name}/{name}",
        f"ledger.path={shared.output_dir / 'ledger'}",
        f"ledger.pipeline_id={shared.name}",
    ]
    # The command line's seed is for all stages, the file's for those that name none themselves.
    seed = shared.asked_seed or (shared.seed if not _names_seed(merged) else None)
    if seed is not None:
        decided.insert(0, f"train.seed={seed}")
    loaded = load_node(
        STAGES[stage],
        merged,
        [*decided, *shared.for_all, *shared.per_stage.get(name, [])],
        retired=RETIRED,
        known_elsewhere=known_elsewhere(stage),
    )
    return PlannedStage(stage, name, loaded)


def _word(fields: Mapping[str, tuple[Node, Node]], key: str) -> str | None:
    """A word or number of the pipeline itself; None where it is left out."""
    if key not in fields or is_null(fields[key][1]):
        return None
    node = fields[key][1]
    if not isinstance(node, ScalarNode):
        raise ConfigError(f"{where(node)}: {key}: expected a word, got {show(node)}")
    return str(node.value) or None


def _refuse_owned(node: Node) -> None:
    """Refuses keys that the pipeline decides, in their section or flat."""
    fields = entries(node)
    for section, keys in OWNED.items():
        inside = entries(fields[section][1]) if section in fields and not is_null(fields[section][1]) else {}
        for key in keys:
            for dotted, found in {
                f"{section}.{key}": inside.get(key) or fields.get(f"{section}.{key}"),
                key: fields.get(key) if key != "path" else None,
            }.items():
                if found is not None:
                    raise ConfigError(f"{where(found[0])}: `{dotted}` is decided by the pipeline; leave it out")


def _refuse_owned_override(override: str) -> None:
    stage, dot, key = override.partition("=")[0].partition(".")
    owned = {name for section, keys in OWNED.items() for k in keys for name in (f"{section}.{k}", k)} - {"path"}
    if dot and key in owned:
        raise ConfigError(f"command line: `{stage}.{key}` is decided by the pipeline; its own key is output_dir=")


def _names_seed(node: Node) -> bool:
    fields = entries(node)
    train = fields.get("train")
    return any(key in fields for key in ("seed", "train.seed")) or (
        train is not None and isinstance(train[1], MappingNode) and "seed" in entries(train[1])
    )


def _without(node: Node, keys: Sequence[str]) -> MappingNode:
    value = [(key, item) for key, item in node.value if getattr(key, "value", None) not in keys]
    return MappingNode(node.tag, value, node.start_mark, node.end_mark)


def _merge(base: Node, over: Node) -> Node:
    """A mapping with the keys of both; where both have a mapping, merged in turn; else the second wins."""
    if not (isinstance(base, MappingNode) and isinstance(over, MappingNode)):
        return over
    below, above = entries(base), entries(over)
    value = [(key, _merge(item, above[name][1]) if name in above else item) for name, (key, item) in below.items()]
    value += [pair for name, pair in above.items() if name not in below]
    return MappingNode(over.tag, value, over.start_mark, over.end_mark)


def _resolve(node: Node, folders: dict[str, str]) -> Node:
    """The node with `${NAME}` replaced by the model folder of an earlier stage."""
    if isinstance(node, MappingNode):
        value = [(key, _resolve(item, folders)) for key, item in node.value]
        return MappingNode(node.tag, value, node.start_mark, node.end_mark)
    if isinstance(node, SequenceNode):
        return SequenceNode(node.tag, [_resolve(item, folders) for item in node.value], node.start_mark, node.end_mark)
    if not (isinstance(node, ScalarNode) and _REFERENCE.search(node.value)):
        return node
    for name in _REFERENCE.findall(node.value):
        if name not in folders:
            known = ", ".join(folders) or "none"
            raise ConfigError(f"{where(node)}: `${{{name}}}` is no earlier stage; there are: {known}")
    text = _REFERENCE.sub(lambda match: folders[match.group(1)], node.value)
    return ScalarNode(node.tag, text, node.start_mark, node.end_mark, node.style)


def _finished(planned: PlannedStage) -> dict[str, Any] | None:
    path = Path(planned.loaded.config.train.output_dir) / "run.json"
    if not path.is_file():
        return None
    done: dict[str, Any] = json.loads(path.read_text())
    if done["config_digest"] != planned.loaded.digest:
        raise ConfigError(
            f"{path}: the stage was finished with another configuration; restore it, or use --overwrite or another "
            "output_dir"
        )
    return done


def _report(plan: Plan, outcomes: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"pipeline": plan.name, "output_dir": str(plan.output_dir), "stages": outcomes}
    if int(os.environ.get("RANK", "0")) != 0:
        return result
    from rewards.ledger import Ledger
    from rewards.report import write_report
    from rlhf.outcomes import outcome_table

    html, data = plan.output_dir / "report.html", plan.output_dir / "report.json"
    ledger = Ledger.open(plan.output_dir / "ledger")
    try:
        write_report(ledger, html=html, json_path=data)
        result["outcomes"] = outcome_table(ledger, [f"{plan.name}/{planned.name}" for planned in plan.stages])
        result["ledger"] = {"path": str(plan.output_dir / "ledger"), "head": ledger.head()}
    finally:
        ledger.close()
    return {**result, "report": str(html), "report_json": str(data)}
