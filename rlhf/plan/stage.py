"""The memory of one stage: its rows are read, its model is tried with few layers, and the peak is extrapolated."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rewards.config import Loaded, RewardFunction
from rlhf.config import ModelSection
from rlhf.data.records import Record
from rlhf.plan import shallow
from rlhf.plan.memory import Model, Moment, fit, largest
from rlhf.plan.points import over_rollouts, over_rows
from rlhf.plan.process import HELD, PREPARED, process_bytes
from rlhf.plan.sizes import Size, completions, micro_batches, size_of
from rlhf.plan.trial import Trial, open_work, run_trial, with_values
from rlhf.stages.inputs import Inputs, read_inputs
from rlhf.stages.offline import Offline
from rlhf.train.optim import total_steps

# What is enough to see the largest batch of a run; more rows than this are a sample of their beginning.
MOST_ROWS = 4_000
MOST_STEPS = 4_000
ROWS_AT_ONCE = 128  # that `generate` decodes together


@dataclass(frozen=True)
class Planned:
    """A stage as it is planned. loaded: its configuration; start: the section and rows that its model comes from.

    stand_ins: scoring models that do not exist yet, by the name of their reward function.
    """

    name: str
    stage: str
    loaded: Loaded[Any]
    start: ModelSection
    start_inputs: Inputs | None = None
    stand_ins: tuple[str, ...] = ()


@dataclass(frozen=True)
class StagePlan:
    """What a stage needs. Units: bytes."""

    name: str
    stage: str
    batch: int
    peak: Moment
    largest_batch: int | None
    heaviest: Size
    assumptions: tuple[str, ...] = ()


@dataclass
class _Sizes:
    """Sizes of batches of any number of rows, of which there are `rows`.

    sampled: of what is sampled before such a batch; known: the rows that a trial may take, each with its size.
    """

    rows: int
    at: Callable[[int], list[Size]]
    sampled: Callable[[int], Size] | None = None
    known: list[tuple[Size, Record]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan_stage(planned: Planned, budget: float | None) -> StagePlan:
    """Reads, tries and extrapolates.

    Raises: ConfigError, DataError as the stage itself would.
    """
    config = planned.loaded.config
    inputs = read_inputs(planned.stage, config)
    start = planned.start_inputs or inputs
    loaded = with_values(
        planned.loaded,
        {
            "train": {"eval_strategy": "no", "early_stopping_patience": None, "world_size": None},
            "evaluation": {"prompts": None, "before": False},
        },
    )
    inputs = replace(inputs, held_out=[], eval_prompts=[])
    with tempfile.TemporaryDirectory(prefix="rlhf-plan-") as name:
        folder = Path(name)
        low, high, layers = shallow.depths(planned.start)
        sections = {
            depth: _own_adapter(shallow.make(planned.start, depth, start.texts, 1, folder / f"{depth}"), config.model)
            for depth in (low, high)
        }
        loaded = _inside(loaded, folder)
        sizes = _sizes(planned.stage, _on(loaded, sections[low]), inputs, folder)
        trials = {
            depth: _trials(planned.stage, _on(loaded, sections[depth]), inputs, sizes, depth, folder)
            for depth in (low, high)
        }
        vocabulary = _vocabulary(sections[low])
        on_gpu = torch.cuda.is_available() and not config.train.use_cpu
        process = 0 if on_gpu else process_bytes(folder / "ledger")
    half = config.train.bf16 or config.model.dtype == "bfloat16"
    where = "cuda" if on_gpu else "cpu"
    model = fit(trials[low], trials[high], (low, high, layers), vocabulary, where, 2 if half else 4)
    held = (0.0, 0.0) if on_gpu else (HELD, PREPARED if half else 0.0)
    return _told(planned, model, sizes, process, held, budget)


def _told(
    planned: Planned, model: Model, sizes: _Sizes, process: float, held: tuple[float, float], budget: float | None
) -> StagePlan:
    train = planned.loaded.config.train
    process += len(planned.stand_ins) * model.weights

    def worst(batch: int) -> tuple[Moment, Size]:
        accumulated = train.gradient_accumulation_steps > 1
        sampled = None if sizes.sampled is None else sizes.sampled(batch)
        found = [
            (model.peak(size, process, accumulated=accumulated, sampled=sampled).holding(*held), size)
            for size in set(sizes.at(batch))
        ]
        return max(found, key=lambda pair: pair[0].total)

    moment, size = worst(train.per_device_train_batch_size)
    most = None
    if budget is not None:
        most = largest(lambda batch: worst(batch)[0].total <= budget, sizes.rows)
    return StagePlan(
        planned.name,
        planned.stage,
        train.per_device_train_batch_size,
        moment,
        most,
        size,
        tuple(_assumptions(planned, model, sizes)),
    )


def _assumptions(planned: Planned, model: Model, sizes: _Sizes) -> list[str]:
    notes = [*sizes.notes, "one rank; evaluation passes keep nothing for a backward pass and are not counted"]
    if planned.stand_ins:
        notes.append(f"scoring models that do not exist yet count as the policy does: {', '.join(planned.stand_ins)}")
    if planned.loaded.config.train.fsdp:
        notes.append("train.fsdp is not counted: with R ranks weights, gradients and moments are about 1/R")
    if model.misfit > 0.05:
        notes.append(f"the trials lie up to {100 * model.misfit:.0f} % off the line they are extrapolated on")
    return notes


def _own_adapter(copy: ModelSection, section: ModelSection) -> ModelSection:
    """The shallow model with the adapter, template and precision of the stage."""
    keep = ("use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "chat_template_path", "dtype")
    return copy.model_copy(update={name: getattr(section, name) for name in keep})


def _on(loaded: Loaded[Any], section: ModelSection) -> Loaded[Any]:
    return replace(loaded, config=loaded.config.model_copy(update={"model": section}))


def _inside(loaded: Loaded[Any], folder: Path) -> Loaded[Any]:
    """With nothing written outside the folder."""
    changes: dict[str, dict[str, Any]] = {"train": {"output_dir": str(folder / "run")}}
    if loaded.config.reference.source == "precomputed":
        changes["reference"] = {"cache_dir": str(folder / "reference")}
    return with_values(loaded, changes)


def _sizes(stage: str, loaded: Loaded[Any], inputs: Inputs, folder: Path) -> _Sizes:
    """Of the stage's own rows, tokenised as it does it."""
    train = loaded.config.train
    if loaded.config.reference.source == "precomputed":
        loaded = with_values(loaded, {"reference": {"source": "frozen", "cache_dir": None}})  # without its pass
    notes = []
    if len(inputs.train) > MOST_ROWS:
        notes.append(f"the first {MOST_ROWS:,} of {len(inputs.train):,} rows stand for all")
        inputs = replace(inputs, train=inputs.train[:MOST_ROWS])
    run, work = open_work(stage, loaded, inputs, folder / "rows")
    padded = not work.module.shortcuts()[0]
    if not isinstance(work, Offline):
        return _sampled_sizes(work, loaded, notes)
    rows = [size_of(work.collate([sample]).tokens) for sample in work.samples]

    def at(batch: int) -> list[Size]:
        run.loaded = with_values(loaded, {"train": {"per_device_train_batch_size": batch}})
        order = work.make_order()
        accumulated = train.gradient_accumulation_steps
        # Of a run with this batch: with smaller ones there are more steps, and more chances of a large one.
        every = total_steps(train, order.units, batch * accumulated)
        steps = min(every, MOST_STEPS // batch + 1, 2 + 2 * order.units // (batch * accumulated))
        found = micro_batches(order, rows, steps, batch, accumulated)
        return [size.padded() for size in found] if padded else found

    notes.append(
        f"batches as the run takes them from {len(rows):,} rows, the longest of {max(r.width for r in rows)} tokens"
    )
    records = [sample.record for sample in work.samples]
    return _Sizes(len(rows), at, known=list(zip(rows, records, strict=True)), notes=notes)


def _sampled_sizes(work: Any, loaded: Loaded[Any], notes: list[str]) -> _Sizes:
    """Of completions that all reach max_completion_length."""
    train = loaded.config.train
    prompt = max(len(sample.prompt_ids) for sample in work.sampler.samples)
    group, length = train.num_generations, train.max_completion_length

    def sampled(batch: int) -> Size:
        return completions(prompt, length, min(batch * train.gradient_accumulation_steps, ROWS_AT_ONCE), group)

    notes.append(
        f"prompts of {prompt} tokens, the longest there is; answers of {length} tokens (max_completion_length)"
    )
    rows = len(work.sampler.samples) * group
    return _Sizes(rows, lambda batch: [completions(prompt, length, batch, group)], sampled, notes=notes)


def _trials(stage: str, loaded: Loaded[Any], inputs: Inputs, sizes: _Sizes, layers: int, folder: Path) -> list[Trial]:
    """Steps of different sizes."""
    found = []
    sampled = sizes.sampled is not None
    points = over_rollouts(loaded.config.train, inputs.train) if sampled else over_rows(sizes.known)
    for number, (values, rows) in enumerate(points):
        place = folder / f"trial-{layers}-{number}"
        small = with_values(loaded, {"train": {"gradient_accumulation_steps": 1, "max_steps": 4, **values}})
        small = _inside(_without_judges(small), place)
        found.append(run_trial(stage, small, replace(inputs, train=rows), layers, place))
    return found


def _without_judges(loaded: Loaded[Any]) -> Loaded[Any]:
    """With every answer scored: what a random model says may have no score, and pivots are not measured here.

    Models that score stay.
    """
    entries = getattr(loaded.config.reward, "reward_funcs", None)
    if entries is None:
        return loaded
    kept = [entry if _function(entry).startswith("model:") else _stand_in(entry) for entry in entries]
    return with_values(loaded, {"reward": {"reward_funcs": kept, "differentials": [], "triggers": []}})


def _vocabulary(section: ModelSection) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(section.model_name_or_path).get_text_config().vocab_size)


def follow(stages: Sequence[tuple[str, str, Loaded[Any]]]) -> list[Planned]:
    """Stages of a pipeline whose models come from earlier ones that have not been run.

    stages: name, stage and configuration of each, in order.
    """
    origins: dict[str, tuple[ModelSection, Inputs | None]] = {}
    planned = []
    for name, stage, loaded in stages:
        section = loaded.config.model
        at = section.model_name_or_path
        own = None if at != "tiny" else read_inputs(stage, loaded.config)
        start, start_inputs = origins.get(at, (section, own))
        loaded, stand_ins = _without_missing_models(loaded)
        planned.append(Planned(name, stage, loaded, start, start_inputs, stand_ins))
        origins[str(Path(loaded.config.train.output_dir) / "model")] = (start, start_inputs)
    return planned


def _without_missing_models(loaded: Loaded[Any]) -> tuple[Loaded[Any], tuple[str, ...]]:
    """Without reward functions that are models which do not exist yet."""
    entries = getattr(loaded.config.reward, "reward_funcs", [])
    names = [_function(entry) for entry in entries]
    gone = [n for n in names if n.startswith("model:") and not Path(n.removeprefix("model:")).exists()]
    if not gone:
        return loaded, ()
    kept = [_stand_in(entry) if name in gone else entry for entry, name in zip(entries, names, strict=True)]
    return with_values(loaded, {"reward": {"reward_funcs": kept}}), tuple(gone)


def _function(entry: Any) -> str:
    return entry if isinstance(entry, str) else str(entry.fn)


def _stand_in(entry: Any) -> Any:
    if isinstance(entry, str):
        return RewardFunction(name=entry, fn="length")
    name = entry.name or entry.fn.replace(":", ".").rsplit(".", 1)[-1]
    return entry.model_copy(update={"name": name, "fn": "length", "kwargs": {}})
