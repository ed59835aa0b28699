"""The end of a reward model: probes and calibration on record, its identity, and what its score is elsewhere."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rewards.cli import main as rewards
from rewards.errors import ConfigError
from rlhf.data.records import Record
from rlhf.data.tokenise import prepare_pairs
from rlhf.evaluation.probes import NEUTRAL, PROBES
from rlhf.models.load import load_reward_model
from rlhf.stages.model_reward import model_rewards
from tests.rlhf.stages.reward_rows import rated, responses, sums, write
from tests.rlhf.stages.tiny_runs import live_events, live_view, run, summary

HELD = ["data.holdout_fraction=0.4", "train.max_length=256"]


def evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    return {event["suite"]: event for event in live_events(folder, "reward", "evaluation")}


def reward_function(place: str) -> Any:
    """What a stage would call for `model:PLACE`."""
    run_like = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        config=SimpleNamespace(train=SimpleNamespace(per_device_eval_batch_size=3)),
    )
    return model_rewards(run_like)["model"](place)  # type: ignore[arg-type]


def test_probes_are_an_event_rows_and_figures_that_agree(tmp_path: Path) -> None:
    assert run("reward", tmp_path / "run", *HELD, steps=2) == 0
    event = evaluations(tmp_path / "run")["reward_probes"]
    outcome = summary(tmp_path / "run")["outcome"]
    assert event["when"] == "after" and event["metrics"] == outcome["probes"]
    rows = [row for row in live_view(tmp_path / "run", "reward") if row["split"] == "eval"]
    assert {row["arm"] for row in rows} == {f"probe {name}" for name in [*PROBES, "sycophancy"]}
    for name in [*PROBES, "sycophancy"]:
        mine = [row for row in rows if row["arm"] == f"probe {name}"]
        wins, shift = (event["metrics"][f"{name}_{key}"] for key in ("wins", "shift"))
        assert wins["n"] == shift["n"] == len(mine) > 5
        z = [row["baseline_reward"] for row in mine]
        assert wins["value"] == pytest.approx(sum(v > 0 for v in z) / len(z))
        assert shift["value"] == pytest.approx(sum(z) / len(z) / event["spread"])
        for row in mine:
            after, before = (part["raw"] for part in row["components"])
            assert row["baseline_reward"] == pytest.approx(after - before)
            assert row["response"] != row["rejected"]


def test_which_probes_are_tried_is_a_choice_and_none_without_held_out_rows(tmp_path: Path) -> None:
    assert run("reward", tmp_path / "two", *HELD, "evaluation.probes=[hedging, citations]", steps=1) == 0
    names = {name.rsplit("_", 1)[0] for name in summary(tmp_path / "two")["outcome"]["probes"]}
    assert names == {"hedging", "citations"}
    assert run("reward", tmp_path / "off", *HELD, "evaluation.probes=false", steps=1) == 0
    assert "reward_probes" not in evaluations(tmp_path / "off")
    assert run("reward", tmp_path / "none", "data.holdout_fraction=0", steps=1) == 0
    assert evaluations(tmp_path / "none") == {}


def test_calibration_is_on_record_saved_with_the_model_and_changes_no_score(tmp_path: Path) -> None:
    keys = [*HELD, "data.max_rows=1200", "train.learning_rate=3e-3", "evaluation.probes=false"]
    assert run("reward", tmp_path / "run", *keys, steps=60, batch=16) == 0
    event = evaluations(tmp_path / "run")["reward_calibration"]
    assert sum(b["n"] for b in event["reliability"]) == event["metrics"]["brier_before"]["n"]
    temperature = event["metrics"]["temperature"]
    model, _ = load_reward_model(tmp_path / "run" / "model")
    assert temperature["low"] < temperature["value"] < temperature["high"]
    assert (model.temperature or {"value": None})["value"] == temperature["value"]
    config = tmp_path / "run" / "model" / "value_head.json"
    described = json.loads(config.read_text())
    score = reward_function(str(tmp_path / "run" / "model"))(["What?"], ["This."])
    config.write_text(json.dumps({**described, "temperature": {"value": 9.0, "low": None, "high": None, "n": 5}}))
    assert reward_function(str(tmp_path / "run" / "model"))(["What?"], ["This."]) == score


def test_from_which_margin_the_model_decides_is_on_record_and_in_the_report(tmp_path: Path) -> None:
    keys = [*HELD, "data.max_rows=300", "train.learning_rate=3e-3", "evaluation.probes=false"]
    assert run("reward", tmp_path / "run", *keys, steps=30, batch=16) == 0
    event = evaluations(tmp_path / "run")["reward_calibration"]
    metrics, categories = event["metrics"], event["by_category"]
    prompts = metrics["e_aurc"]["n"]
    assert metrics["decide_margin"]["n"] + metrics["coverage"]["n"] == prompts <= event["n"]
    assert metrics["coverage_law"]["value"] is None or metrics["coverage_law"]["value"] >= 0.9
    decided, right = metrics["decided"], metrics["decided_accuracy"]
    if right["value"] is not None:  # what is missed is what was decided wrongly
        missed = right["n"] * (1 - right["value"])
        assert metrics["coverage"]["value"] == pytest.approx(1 - missed / decided["n"])
    assert summary(tmp_path / "run")["outcome"]["calibration"]["metrics"] == metrics
    # A category has figures of its own threshold or the reason why it has none, never those of the threshold over all.
    assert len(categories) > 3 and sum(found["coverage_pooled"]["n"] for found in categories.values()) == decided["n"]
    few = [found for found in categories.values() if found["decide_margin"]["n"] < 9]
    assert few and all("takes 9" in found[name]["why"] for found in few for name in ("decided", "coverage"))
    assert all("why" not in found["decide_margin"] for found in categories.values() if found not in few)
    page = tmp_path / "page.html"
    assert rewards(["report", str(tmp_path / "run" / "ledger"), "--out", str(page)]) == 0
    text = page.read_text()
    assert all(f">{name}<" in text for name in ("decide_margin", "decided_accuracy", "coverage", "e_aurc"))
    assert few[0]["decide_margin"]["why"] in text


def test_a_reliability_diagram_is_drawn_where_matplotlib_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `analysis` is not installed")
    assert run("reward", tmp_path / "run", *HELD, "evaluation.probes=false", steps=1) == 0
    assert (tmp_path / "run" / "reliability.png").read_bytes()[:4] == b"\x89PNG"


KEYS = {
    "pairs": ["train.ensemble_size=2", "train.ensemble_std_coefficient=0.5"],
    "attributes": [
        "train.loss_type=regression",
        "train.score_scale=[0, 4]",
        "train.attributes=[help, length]",
        "train.attribute_weights={help: 0.75, length: -0.25}",
    ],
    "ordinal": ["train.loss_type=ordinal", "train.score_scale=[1, 5]"],
    "process": ["train.loss_type=process", "train.step_aggregation=product"],
}
ROWS: dict[str, Any] = {"attributes": rated, "ordinal": responses, "process": sums}


@pytest.mark.parametrize("kind", KEYS)
def test_a_saved_model_gives_the_declared_score_as_a_reward_function(kind: str, tmp_path: Path) -> None:
    keys = [*KEYS[kind], "evaluation.probes=[mirroring]", *HELD]
    keys += write(tmp_path / "rows.jsonl", ROWS[kind]()) if kind in ROWS else []
    assert run("reward", tmp_path / "run", *keys, steps=2) == 0
    folder = str(tmp_path / "run" / "model")
    rows = [row for row in live_view(tmp_path / "run", "reward") if row["split"] == "eval"]
    function = reward_function(folder)
    prompts, answers = [row["prompt"] for row in rows], [row["response"] for row in rows]
    expected = [row["components"][0]["raw"] for row in rows]
    assert function(prompts, answers) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) > 3


def test_disagreement_and_attributes_are_components_of_their_own(tmp_path: Path) -> None:
    keys = [*write(tmp_path / "rows.jsonl", rated()), *KEYS["attributes"], "train.ensemble_size=3"]
    assert run("reward", tmp_path / "run", *keys, steps=2) == 0
    folder = str(tmp_path / "run" / "model")
    asked = (["Say something."] * 2, ["amber basin", "delta"])
    whole, help_, length, doubt = (
        reward_function(folder + part)(*asked) for part in ("", "#help", "#length", "#disagreement")
    )
    for i in range(2):
        assert whole[i] == pytest.approx(0.75 * help_[i] - 0.25 * length[i], abs=1e-5)
        assert doubt[i] > 0
    with pytest.raises(ConfigError, match="the model has no `wit`; it gives help, length, disagreement"):
        reward_function(folder + "#wit")


def test_the_identity_of_a_model_is_that_of_its_component_in_online_rl(tmp_path: Path) -> None:
    assert run("reward", tmp_path / "rm", "train.ensemble_size=2", steps=2) == 0
    model = tmp_path / "rm" / "model"
    functions = (
        f"[{{name: rm, fn: 'model:{model}'}}, {{name: doubt, fn: 'model:{model}#disagreement', role: observed}}]"
    )
    assert run("grpo", tmp_path / "rl", f"reward.reward_funcs={functions}", "reward.classifier=null", steps=1) == 0
    registered = {e["name"]: e for e in live_events(tmp_path / "rl", "grpo", "scorer_registered")}
    assert registered["rm"]["scorer_id"] == summary(tmp_path / "rm")["outcome"]["scorer_id"]
    assert registered["doubt"]["scorer_id"] != registered["rm"]["scorer_id"]
    for row in live_view(tmp_path / "rl", "grpo"):
        parts = {part["name"]: part for part in row["components"]}
        assert row["baseline_reward"] == pytest.approx(parts["rm"]["value"]) and parts["doubt"]["raw"] > 0


def test_two_models_have_two_identities_and_a_copy_has_the_same(tmp_path: Path) -> None:
    found = []
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        assert run("reward", tmp_path / name, f"train.seed={seed}", "evaluation.probes=false", steps=1) == 0
        outcome = summary(tmp_path / name)["outcome"]
        found.append(reward_function(str(tmp_path / name / "model")).scorer_id)
        assert found[-1] == outcome["identity"]
    assert found[0] == found[1] != found[2]


def test_a_conversation_is_scored_on_the_tokens_that_pairs_are_trained_on(tmp_path: Path) -> None:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "prompt": turn("user", f"Say {i}"),
            "chosen": turn("assistant", f"It is {i}."),
            "rejected": turn("assistant", f"No {i}."),
        }
        for i in range(20)
    ]
    assert run("reward", tmp_path / "run", *write(tmp_path / "rows.jsonl", rows), *HELD, steps=2) == 0
    model, tokenizer = load_reward_model(tmp_path / "run" / "model")
    record = Record("r", "d", "rows:1", "pair", **rows[3])
    (sample,), _ = prepare_pairs([record], tokenizer)
    with torch.no_grad():
        from rlhf.data.collate import token_batch

        trained = model(token_batch([sample.chosen], tokenizer.pad_token_id)).scores_B.item()
    asked = reward_function(str(tmp_path / "run" / "model"))([rows[3]["prompt"]], [rows[3]["chosen"]])
    assert asked == pytest.approx([trained], abs=1e-6)
    probed = [row for row in live_view(tmp_path / "run", "reward") if row["arm"] == "probe mirroring"]
    assert probed and all("You ask about this: Say" in row["response"] for row in probed)


def planted(path: Path, by: str) -> list[str]:
    """Pairs in which the better text is the longer one, or of two equally long texts the one with a word in it."""
    draw = random.Random(5)
    words = " ".join(NEUTRAL).split()
    rows = []
    for i in range(240):
        short = draw.choices(words, k=draw.randint(4, 20))
        if by == "length":
            better, worse = [*short, *draw.choices(words, k=draw.randint(6, 24))], short
        else:
            place = draw.randrange(len(short))
            better, worse = [*short[:place], "amber", *short[place + 1 :]], short
            pad = draw.choices(words, k=draw.randint(0, 24))  # length says nothing: both sides have any
            better, worse = [*better, *pad], [*worse, *pad]
        rows.append({"prompt": f"Words {i}?", "chosen": " ".join(better), "rejected": " ".join(worse)})
    return write(path, rows)


@pytest.mark.slow
def test_a_model_that_learned_to_like_length_is_found_and_one_that_learned_a_word_is_not_paid_by_length(
    tmp_path: Path,
) -> None:
    found = {}
    for by in ("length", "word"):
        keys = [*planted(tmp_path / f"{by}.jsonl", by), HELD[0], "train.max_length=700"]
        keys += ["train.learning_rate=3e-3", "evaluation.probes=[length]"]
        assert run("reward", tmp_path / by, *keys, steps=120, batch=16) == 0
        outcome = summary(tmp_path / by)["outcome"]
        found[by] = (outcome["held_out_pairs"]["accuracy"]["value"], outcome["probes"])
    assert found["length"][0] > 0.9 and found["word"][0] > 0.9
    assert found["length"][1]["length_shift"]["found"] and found["length"][1]["length_wins"]["low"] > 0.8
    word = found["word"][1]["length_shift"]
    assert not word["found"] and abs(word["value"]) < 0.1
