"""The stages' configurations, the keys of TRL, and `rlhf config`."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewards.config import Loaded, describe, dump, load
from rewards.config_types import paths
from rewards.errors import ConfigError
from rlhf import cli
from rlhf.config import RETIRED, STAGES, GRPOConfig, stage_of
from rlhf.config_tables import INSTEAD, NOT_IMPLEMENTED, known_elsewhere

# What TRL or transformers declares where: file inside site-packages, class.
CONFIGS = {
    "sft": ("trl", "trainer/sft_config.py", "SFTConfig"),
    "reward": ("trl", "trainer/reward_config.py", "RewardConfig"),
    "dpo": ("trl", "trainer/dpo_config.py", "DPOConfig"),
    "kto": ("trl", "trainer/kto_config.py", "KTOConfig"),
    "grpo": ("trl", "trainer/grpo_config.py", "GRPOConfig"),
}
SHARED = [
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/model_config.py", "ModelConfig"),
    ("trl", "scripts/utils.py", "ScriptArguments"),
    ("trl", "scripts/utils.py", "DatasetMixtureConfig"),
    ("trl", "scripts/utils.py", "DatasetConfig"),
    ("trl", "scripts/grpo.py", "GRPOScriptArguments"),
]
OTHER_STAGES = [("trl", "trainer/rloo_config.py", "RLOOConfig")]


def declared(package: str, file: str, name: str) -> dict[str, Any]:
    """{field: default} of a dataclass, read from its source: importing these modules costs seconds."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text())
    (body,) = (node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        node.target.id: _default(node.value)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        value = given.get("default")
        if "default_factory" in given and isinstance(given["default_factory"], ast.Lambda):
            value = given["default_factory"].body
    try:
        return ... if value is None else ast.literal_eval(value)
    except ValueError:
        return ...


def trl_fields(stage: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for place in [*SHARED, CONFIGS[stage]]:
        fields |= declared(*place)
    return fields


def loaded(stage: str, *overrides: str, path: Path | None = None) -> Loaded[Any]:
    return load(STAGES[stage], path, overrides, retired=RETIRED, known_elsewhere=known_elsewhere(stage))


def refusal(stage: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(stage, *overrides)
    return str(caught.value)


# --- the models as a whole ---


@pytest.mark.parametrize("stage", STAGES)
def test_all_defaults_are_a_configuration_without_warnings(stage: str) -> None:
    result = loaded(stage)
    assert result.config == STAGES[stage]()
    assert result.warnings == ()
    assert result.resolved["stage"] == stage


@pytest.mark.parametrize("stage", STAGES)
def test_a_dump_of_a_stage_loads_to_the_same_digest(stage: str, tmp_path: Path) -> None:
    first = loaded(stage, "learning_rate=3e-4", "train.run_name=007", "eval_strategy=steps", "eval_steps=5")
    path = tmp_path / "config.yaml"
    path.write_text(dump(first))
    assert loaded(stage, path=path).digest == first.digest
    assert yaml.safe_load(path.read_text()) == first.resolved


def test_no_two_stages_share_a_digest() -> None:
    assert len({loaded(stage).digest for stage in STAGES}) == len(STAGES)


def test_every_knob_is_described() -> None:
    seen = 0
    for stage, model in STAGES.items():
        for knob in describe(model):
            seen += 1
            assert knob.description, f"{stage}: {knob.path}"
            assert len(knob.description) <= 200, knob.path
    assert seen > 300, "the walk sees all stages"


# Names that only this project has: everything else must be TRL's.
OURS = {
    "dataset": {"category_column", "format", "holdout_fraction", "max_rows", "mixture", "recipe_split"},
    "train": {
        "max_length",  # TRL's too, but not for online RL
        "alphapo_alpha",
        "cpo_alpha",
        "cpo_beta",
        "orpo_lambda",
        "simpo_beta",
        "simpo_gamma",
        "early_stopping_patience",
        "max_sessions",
        "attribute_weights",
        "attributes",
        "ensemble_size",
        "ensemble_std_coefficient",
        "huber_delta",
        "label_noise",
        "loss_type",  # TRL's too, but not for SFT and reward models
        "reward_offset",
        "rm_regularizer",
        "rm_regularizer_weight",
        "score_scale",
        "step_aggregation",
        "step_separator",
        "world_size",
    },
    "model": {"chat_template_path"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_train_model_and_data_keys_have_the_names_of_trl(stage: str) -> None:
    known = set(trl_fields(stage)) | set().union(*OURS.values())
    keys = [path for path in paths(STAGES[stage]) if path.split(".")[0] in ("train", "model", "data") and "." in path]
    assert len(keys) > 40
    strange = [path for path in keys if path.split(".")[1] not in known and not path.startswith("model.tiny_")]
    assert strange == []


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_are_trls_or_the_description_says_how_they_differ(stage: str) -> None:
    theirs, compared = trl_fields(stage), 0
    for knob in describe(STAGES[stage]):
        section, _, leaf = knob.path.rpartition(".")
        default = theirs.get(leaf, ...)
        if section not in ("train", "model", "data", "tracking", "reference", "reward") or default is ...:
            continue
        compared += 1
        if default != knob.default and (default, knob.default) != (None, []):
            assert "TRL:" in knob.description, f"{knob.path}: TRL {default!r}, here {knob.default!r}"
    assert compared > 30


def test_the_tables_name_every_key_of_trl_and_none_that_it_does_not_have() -> None:
    theirs: set[str] = set()
    for place in [*SHARED, *CONFIGS.values(), *OTHER_STAGES]:
        theirs |= set(declared(*place))
    tabled = {leaf for leaves in NOT_IMPLEMENTED.values() for leaf in leaves.split()} | set(INSTEAD)
    ours = {path.rpartition(".")[2] for model in STAGES.values() for path in paths(model)}
    entries = {"path", "name", "data_files", "split", "columns", "fraction"}  # keys of `datasets` entries
    assert tabled - theirs == set()
    assert tabled & ours == set()
    assert theirs - tabled - ours - entries - set(RETIRED) - {"data_dir"} == set()


def test_every_hint_names_a_key_that_exists() -> None:
    everything = {path for model in STAGES.values() for path in paths(model)}
    named = [word for hint in INSTEAD.values() for word in re.findall(r"`((?:train|model|data|reference)\.\w+)", hint)]
    assert len(named) >= 8
    assert [word for word in named if word not in everything] == []


# --- keys ---


@pytest.mark.parametrize(
    ("stage", "override", "said"),
    [
        ("sft", "beta=0.1", "`beta` does not apply to sft; it is a key of dpo, kto, grpo"),
        ("grpo", "label_smoothing=0.1", "`label_smoothing` does not apply to grpo; it is a key of dpo"),
        ("sft", "margin_column=m", "`margin_column` does not apply to sft; it is a key of reward, dpo"),
        ("sft", "mixture=[]", "`mixture` does not apply to sft; it is a key of grpo"),
        ("dpo", "precompute_ref_log_probs=true", "use `reference.source: precomputed`"),
        ("dpo", "sync_ref_model=true", "use `reference.source: synced`"),
        ("sft", "fsdp_config={version: 2}", "`train.fsdp: true` cuts each layer"),
        ("sft", "eos_token=x", "`eos_token` is a key of TRL (SFTConfig) that is not implemented"),
        ("sft", "packing_strategy=bfd", "`train.packing` is best fit decreasing"),
        ("dpo", "packing=true", "`packing` does not apply to dpo; it is a key of sft"),
        ("grpo", "use_vllm=true", "`use_vllm` is a key of TRL (GRPOConfig) that is not implemented"),
        ("sft", "torch_dtype=bfloat16", "`torch_dtype` is retired; use `model.dtype`"),
        ("sft", "warmup_ratio=0.1", "`warmup_ratio` is retired; use `train.warmup_steps` (a number below 1"),
        ("sft", "evaluation_strategy=no", "`evaluation_strategy` is retired; use `train.eval_strategy`"),
        ("sft", "max_seq_length=10", "`max_seq_length` is retired; use `train.max_length`"),
        ("grpo", "max_prompt_length=10", "`max_prompt_length` is retired; use `train.max_length`"),
        ("sft", "logging_dir=x", "`logging_dir` is retired; use `tracking.report_to`"),
        ("sft", "overwrite_output_dir=true", "`overwrite_output_dir` is retired; use the flag --overwrite"),
        ("sft", "learning_rat=1", "unknown key `learning_rat`; did you mean `train.learning_rate`?"),
        (
            "dpo",
            "reference.beta=1",
            "`reference.beta` does not apply to dpo; it is a key of grpo; did you mean `train.beta`?",
        ),
        ("sft", "reward.triggers=[]", "`reward.triggers` does not apply to sft; it is a key of grpo"),
        ("sft", "reward.classifier=x", "it is a key of grpo"),
        ("dpo", "data.beta=1", "unknown key `data.beta`; did you mean `train.beta`?"),
    ],
)
def test_a_key_that_does_not_apply_says_why(stage: str, override: str, said: str) -> None:
    assert refusal(stage, override).startswith("command line: ")
    assert said in refusal(stage, override)


def test_bare_leaves_reach_the_section_they_live_in() -> None:
    config = loaded("grpo", "beta=0.2", "num_generations=4", "reward_weights=[2]", "reward.reward_funcs=gsm8k").config
    assert (config.reference.beta, config.train.num_generations, config.reward.reward_weights) == (0.2, 4, [2.0])
    assert loaded("dpo", "loss_type=sigmoid").config.train.loss_type == ["sigmoid"]


# --- what does not fit together ---

RL = ("reward.reward_funcs=[a, b]",)
SCORES = ("loss_type=regression", "score_scale=[1, 5]")
TWO = ("attributes=[a, b]",)


@pytest.mark.parametrize(
    ("stage", "overrides", "key", "said"),
    [
        ("sft", ["lora_r=8"], "model.lora_r", "without `use_peft: true`"),
        ("sft", ["model_name_or_path=x", "tiny_num_layers=2"], "model.tiny_num_layers", "the model is `x`"),
        ("sft", ["tiny_num_heads=3"], "model.tiny_num_heads", "3 does not divide"),
        ("sft", ["dataset_name=a", "datasets=[{path: b}]"], "data.dataset_name", "is for a single source"),
        ("sft", ["datasets=[]"], "data.datasets", "the list is empty"),
        ("sft", ["dataset_test_split=test", "holdout_fraction=0.2"], "data.holdout_fraction", "dataset_test_split"),
        ("sft", ["eval_strategy=steps"], "train.eval_strategy", "needs eval_steps"),
        ("sft", ["early_stopping_patience=2"], "train.early_stopping_patience", "set eval_strategy"),
        ("sft", ["max_steps=0"], "train.max_steps", "got 0"),
        ("sft", ["warmup_steps=2.5"], "train.warmup_steps", "whole steps"),
        ("sft", ["lr_scheduler_type=constant", "warmup_steps=5"], "train.warmup_steps", "constant_with_warmup"),
        ("sft", ["eval_compliant_when={a: [b]}"], "evaluation.eval_compliant_when", "without `eval_classifier`"),
        ("sft", ["source=adapter_off"], "reference.source", "no adapter to switch off"),
        ("sft", ["cache_dir=x"], "reference.cache_dir", "`source: precomputed`"),
        ("dpo", ["source=synced", "cache_dir=x"], "reference.cache_dir", "`source: precomputed`"),
        ("dpo", ["source=ema", "reference_model=x"], "reference.reference_model", "starts as the policy does"),
        ("dpo", ["source=ema", "ref_model_mixup_alpha=0.5"], "reference.ref_model_mixup_alpha", "`source: synced`"),
        ("dpo", ["ref_model_sync_steps=5"], "reference.ref_model_sync_steps", "`source: synced`"),
        ("grpo", ["source=synced", "ema_decay=0.5"], "reference.ema_decay", "`source: ema`"),
        ("grpo", ["fsdp=true"], "train.fsdp", "online RL is not sharded"),
        ("dpo", ["source=none"], "reference.source", "`sigmoid` compares with a reference"),
        ("dpo", ["use_peft=true", "source=adapter_off", "reference_model=x"], "reference.reference_model", "no effect"),
        ("sft", ["kl_coefficient=1", "kl.estimator=k3"], "reference.kl", "which the policy did not sample"),
        ("sft", ["kl_coefficient=1", "kl={preset: trl_grpo}"], "reference.kl", "which the policy did not sample"),
        ("sft", ["kl_coefficient=1", "kl={estimator: full, place: reward}"], "reference.kl", "leave out"),
        ("sft", ["packing=true", "train.max_length=null"], "train.packing", "the size of a bin"),
        ("sft", ["kl={estimator: full}"], "reference.kl", "no effect with `kl_coefficient: 0`"),
        ("sft", ["kl_coefficient=1", "source=precomputed"], "reference.source", "has no logits"),
        ("sft", ["kl_coefficient=1", "source=none"], "reference.source", "needs a reference"),
        ("reward", ["rm_regularizer_weight=1"], "train.rm_regularizer_weight", "without rm_regularizer"),
        ("reward", ["rm_regularizer=kl_ref", "source=none"], "reference.source", "needs a reference"),
        ("reward", ["label_noise=0.5"], "train.label_noise", "below 0.5"),
        ("reward", ["loss_type=process", "label_noise=0.1"], "train.label_noise", "it belongs to bradley_terry"),
        ("reward", ["loss_type=process", "reward_offset=reference"], "train.reward_offset", "no effect"),
        ("reward", ["loss_type=process", "rm_regularizer=grm_sft"], "train.rm_regularizer", "no effect"),
        ("reward", ["loss_type=process", "margin_column=m"], "reward.margin_column", "compares no texts"),
        ("reward", ["loss_type=ordinal"], "train.score_scale", "needs the scale"),
        ("reward", ["loss_type=ordinal", "score_scale=[1, 4.5]"], "train.score_scale", "whole numbers"),
        ("reward", ["loss_type=ordinal", "score_scale=[1, 5]", "huber_delta=1"], "train.huber_delta", "regression"),
        ("reward", ["loss_type=regression", "score_scale=[5, 1]"], "train.score_scale", "must ascend"),
        ("reward", ["score_scale=[1, 5]"], "train.score_scale", "it belongs to regression and ordinal"),
        ("reward", ["attributes=[a]"], "train.attributes", "it belongs to regression and ordinal"),
        ("reward", [*SCORES, "attributes=[a, b]"], "train.attribute_weights", "say how a, b make one score"),
        ("reward", [*SCORES, "attributes=[a, a]"], "train.attributes", "one column twice"),
        ("reward", [*SCORES, "attributes=[a]", "attribute_weights={a: 2}"], "train.attribute_weights", "`a` alone"),
        ("reward", [*SCORES, *TWO, "attribute_weights={c: 1}"], "train.attribute_weights.c", "none of the attributes"),
        ("reward", [*SCORES, *TWO, "attribute_weights={a: 0}"], "train.attribute_weights", "every weight is 0"),
        ("reward", ["step_aggregation=last"], "train.step_aggregation", "it belongs to process"),
        ("reward", ["ensemble_std_coefficient=1"], "train.ensemble_std_coefficient", "agrees with itself"),
        ("reward", ["probes=[flattery]"], "evaluation.probes[0]", "`length`"),
        ("reward", ["rm_regularizer=kl_ref", "source=precomputed"], "reference.source", "has no logits"),
        ("reward", ["differentials=[{category: a, component: b}]"], "reward.differentials[0].component", "online RL"),
        ("grpo", ["beta=1", "source=none"], "reference.source", "needs a reference"),
        ("grpo", ["beta=1", "source=precomputed"], "reference.source", "not known in advance"),
        ("grpo", ["kl={preset: grpo_paper}"], "reference.kl", "no effect with `beta: 0`"),
        ("grpo", ["beta=1", "kl={preset: trl_grpo, estimator: k3}"], "reference.kl.preset", "fixes all"),
        ("grpo", ["beta=1", "kl={place: loss}"], "reference.kl.estimator", "set a preset"),
        ("grpo", ["beta=1", "kl={estimator: k1}"], "reference.kl", "zero expected gradient"),
        ("grpo", ["kl={estimator: k1}"], "reference.kl", "zero expected gradient"),
        ("grpo", ["beta=1", "kl={estimator: k2, ratio: live}"], "reference.kl", "no divergence's"),
        ("grpo", ["beta=1", "kl={preset: trl_rloo}"], "reference.kl", "noise of unit variance"),
        ("kto", ["per_device_train_batch_size=1", "world_size=1"], "train.per_device_train_batch_size", "of one row"),
        ("kto", ["source=none"], "reference.source", "compares with a reference"),
        ("grpo", ["epsilon=0.3"], "train.epsilon", "`num_iterations: 1`"),
        ("grpo", ["epsilon_high=0.3"], "train.epsilon_high", "`num_iterations: 1`"),
        ("grpo", ["train.max_length=100"], "train.max_length", "leaves no prompt"),
        ("grpo", ["world_size=2", "num_generations=3"], "train.num_generations", "16 sessions a step"),
        ("grpo", ["mixture=[{category: a, from_step: 5}]"], "data.mixture", "at step 1"),
        ("grpo", ["mixture=[{category: a}, {category: a}]"], "data.mixture[1]", "a second phase"),
        ("grpo", [*RL, "differentials=[{category: c}]"], "reward.differentials[0]", "cancels exactly"),
        ("grpo", [*RL, "triggers=[{category: c, phrase: p}]"], "reward.triggers[0]", "cancels exactly"),
        (
            "grpo",
            ["reward.reward_funcs=[a]", "differentials=[{category: c, component: a}]"],
            "reward.differentials[0]",
            "only optimised component",
        ),
    ],
)
def test_knobs_that_do_not_fit_together_are_refused_by_key(
    stage: str, overrides: list[str], key: str, said: str
) -> None:
    lines = refusal(stage, *overrides).splitlines()
    assert any(line.startswith(f"command line: {key}: ") and said in line for line in lines), lines


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("grpo", [*RL, "differentials=[{category: c, component: a, differential: 0.1}]"]),
        ("grpo", [*RL, "differentials=[{category: c}]", "scale_rewards=batch"]),
        ("grpo", [*RL, "differentials=[{category: c}]", "scale_rewards=none"]),
        ("grpo", [*RL, "differentials=[{category: c}]", "reward.place=advantage"]),
        ("grpo", ["beta=0.1", "kl={preset: trl_rloo}", "scale_rewards=none"]),
        ("grpo", ["beta=0.1", "kl={estimator: k1, ratio: live}"]),
        ("grpo", ["source=frozen"]),
        ("grpo", ["epsilon=0.2", "num_iterations=1"]),
        ("grpo", ["epsilon=0.3", "num_iterations=2"]),
        ("sft", ["kl_coefficient=0.1"]),
        ("sft", ["kl_coefficient=0.1", "kl={estimator: full}"]),
        ("sft", ["use_peft=true", "lora_r=8", "kl_coefficient=0.1", "source=adapter_off"]),
        ("dpo", ["source=precomputed", "cache_dir=x", "reference_model=y"]),
        ("kto", ["source=precomputed", "desirable_weight=1.3"]),
        ("kto", ["loss_type=apo_zero_unpaired", "per_device_train_batch_size=1"]),
        ("reward", ["rm_regularizer=grm_sft", "rm_regularizer_weight=0.1"]),
    ],
)
def test_what_fits_together_is_accepted_without_a_warning(stage: str, overrides: list[str]) -> None:
    assert loaded(stage, *overrides).warnings == ()


def test_the_refused_whole_reward_differential_names_the_alternatives() -> None:
    said = refusal("grpo", *RL, "differentials=[{category: c, differential: 0.2}]")
    for alternative in ("a component among several", "`place: advantage`", "`scale_rewards: none` or `batch`"):
        assert alternative in said


def test_problems_of_several_sections_are_told_together() -> None:
    lines = refusal("grpo", "lora_r=8", "epsilon=0.3", "beta=1", "kl={estimator: k1}").splitlines()
    assert [line.split(": ")[1] for line in lines] == ["model.lora_r", "train.epsilon", "reference.kl"]


@pytest.mark.parametrize(
    ("stage", "overrides", "said"),
    [
        ("sft", ["max_steps=10", "num_train_epochs=2"], "train.num_train_epochs: has no effect: max_steps is 10"),
        ("sft", ["save_strategy=no", "save_steps=5"], "train.save_steps: has no effect: save_strategy is `no`"),
        ("sft", ["num_samples=5"], "evaluation.num_samples: has no effect: prompts is null"),
        ("kto", ["per_device_train_batch_size=1"], "train.per_device_train_batch_size: on one rank: a step of one row"),
        ("sft", ["source=frozen"], "reference.source: has no effect: nothing in this stage asks"),
        (
            "sft",
            ["kl_coefficient=1", "kl={estimator: full, divergence: js}"],
            "reference.kl: divergence `js` holds at each prefix of the demonstrations",
        ),
        ("grpo", ["reference_model=x"], "reference.reference_model: has no effect: nothing in this stage asks"),
        ("grpo", ["num_generations=3"], "train.num_generations: 8 sessions a step and rank are no whole groups of 3"),
        (
            "grpo",
            ["beta=1", "kl={preset: trl_rloo}", "scale_rewards=none", "num_iterations=2"],
            "reference.kl: k1 in the reward is stale after the first of 2 inner steps",
        ),
    ],
)
def test_what_is_probably_not_meant_is_warned_about(stage: str, overrides: list[str], said: str) -> None:
    (warning,) = loaded(stage, *overrides).warnings
    assert warning.startswith(f"command line: {said}")


@pytest.mark.parametrize(
    ("stage", "overrides", "opens"),
    [
        ("sft", [], False),
        ("sft", ["kl_coefficient=1"], True),
        ("reward", ["rm_regularizer=grm_sft"], False),
        ("reward", ["rm_regularizer=kl_ref"], True),
        ("dpo", [], True),
        ("kto", [], True),
        ("grpo", [], False),
        ("grpo", ["beta=1"], True),
        ("grpo", ["source=frozen"], True),
    ],
)
def test_a_stage_opens_a_reference_when_a_term_or_a_measurement_asks(
    stage: str, overrides: list[str], opens: bool
) -> None:
    assert loaded(stage, *overrides).config.opens_reference() is opens


# --- commands ---


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_show_prints_the_resolved_configuration_with_its_digest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 1e-6\n")
    code, out, err = run(capsys, "config", "show", "dpo", "--config", str(path), "--beta", "0.2", "max_steps=3")
    assert (code, err) == (0, "")
    shown = yaml.safe_load(out)
    assert (shown["train"]["learning_rate"], shown["train"]["beta"], shown["train"]["max_steps"]) == (1e-6, 0.2, 3)
    assert out.splitlines()[0] == f"# digest: {loaded('dpo', 'beta=0.2', 'max_steps=3', path=path).digest}"


def test_show_json_is_one_document_and_warnings_stay_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["max_steps=3", "num_train_epochs=2"]
    code, out, err = run(capsys, "config", "show", "sft", "--json", *overrides)
    shown = json.loads(out)
    assert (code, err, shown["stage"], shown["digest"]) == (0, "", "sft", loaded("sft", *overrides).digest)
    assert shown["config"] == loaded("sft", *overrides).resolved
    assert len(shown["warnings"]) == 1
    code, out, err = run(capsys, "config", "show", "sft", *overrides)
    assert err.startswith("warning: command line: train.num_train_epochs")
    assert yaml.safe_load(out) == shown["config"]


def test_a_file_may_say_its_stage_and_is_refused_by_another(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("stage: grpo\nreference: {beta: 0.1}\n")
    assert stage_of(path) == "grpo"
    code, out, _ = run(capsys, "config", "show", "--config", str(path))
    assert (code, yaml.safe_load(out)["reference"]["beta"]) == (0, 0.1)
    code, _, err = run(capsys, "config", "show", "dpo", "--config", str(path))
    assert code == 2
    assert f"{path}:1: stage: expected `dpo`, got 'grpo'" in err
    path.write_text("stage: ppo\n")
    code, _, err = run(capsys, "config", "show", "--config", str(path))
    assert (code, err) == (
        2,
        f"error: {path}:1: which stage is this for? Write `stage: sft|reward|dpo|kto|grpo`, or name it in the "
        "command\n",
    )


def test_show_prints_every_stage_of_a_pipeline(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("pipeline: p\nstages:\n- stage: sft\n- {stage: dpo, train: {beta: 0.3}}\n")
    code, out, _ = run(capsys, "config", "show", "--config", str(path), "dpo.beta=0.4")
    documents = list(yaml.safe_load_all(out))
    assert code == 0
    assert [document["stage"] for document in documents] == ["sft", "dpo"]
    assert documents[1]["train"]["beta"] == 0.4
    code, out, _ = run(capsys, "config", "show", "dpo", "--config", str(path), "--json")
    assert json.loads(out)["config"]["train"]["beta"] == 0.3
    code, _, err = run(capsys, "config", "show", "grpo", "--config", str(path))
    assert (code, err) == (2, f"error: {path}: has no stage `grpo`; stages: sft, dpo\n")


def test_schema_lists_every_key_of_a_stage_or_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "schema", "dpo")
    assert code == 0
    assert "train.label_smoothing: a number of at least 0 and below 0.5; default 0.0\n" in out
    assert "reference.beta" not in out
    code, out, _ = run(capsys, "config", "schema", "--json")
    tables = json.loads(out)
    assert list(tables) == list(STAGES)
    assert {row["path"] for row in tables["grpo"]} >= set(_leaves(GRPOConfig().model_dump()))


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        leaf = not isinstance(value, dict) or not value
        found += [prefix + key] if leaf else _leaves(value, f"{prefix}{key}.")
    return found


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["show"], "error: which stage? `rlhf config show STAGE`; stages: sft, reward, dpo, kto, grpo"),
        (["show", "ppo"], "error: `ppo` is no stage; stages: sft, reward, dpo, kto, grpo"),
        (["schema", "ppo"], "error: `ppo` is no stage; stages: sft, reward, dpo, kto, grpo"),
        (["schema", "sft", "beta=1"], "error: `rlhf config schema` takes a stage and --json, not `beta=1`"),
        (["show", "sft", "--config", "/nowhere.yaml"], "error: /nowhere.yaml: no such file"),
        (["show", "sft", "beta=1"], "error: command line: `beta` does not apply to sft; it is a key of dpo, kto, grpo"),
        (["show", "sft", "reward"], "error: command line: `reward` is no key=value"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    assert run(capsys, "config", *argv) == (2, "", f"{line}\n")


@pytest.mark.parametrize("path", sorted((Path(__file__).resolve().parents[2] / "experiments").glob("*.yaml")))
def test_every_experiment_of_the_repository_loads(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    code, out, err = run(capsys, "config", "show", "--config", str(path))
    assert code == 0, err
    assert out.count("# digest: ") >= 1
