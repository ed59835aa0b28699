"""Six objectives from one start on human preference pairs: what each gains in held-out pairs and what it costs.

    python experiments/hh_family.py --data pairs.jsonl.gz --out runs/hh_family [--seeds 3] [--jobs 1] [--size small]

One split by prompt, one start (language modelling on the training conversations), then SFT, reward model, DPO, IPO,
KTO and SimPO from it, `--seeds` seeds each, every run the command that a user would type. Prints a Markdown table and
writes `table.json`. The start is the reference throughout. Nothing is tuned by the held-out pairs.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SIZES = {
    "small": {"tiny_vocab_size": 2048, "tiny_hidden_size": 192, "tiny_num_layers": 4, "tiny_num_heads": 6},
    "medium": {"tiny_vocab_size": 4096, "tiny_hidden_size": 384, "tiny_num_layers": 8, "tiny_num_heads": 6},
}
EPOCHS = {"small": 6, "medium": 10}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "SFT": ("sft", {"learning_rate": 1e-4, "assistant_only_loss": True}),
    "reward model": ("reward", {"learning_rate": 1e-4}),
    "DPO": ("dpo", {"learning_rate": 1e-4, "beta": 0.1}),
    "IPO (sums)": ("dpo", {"learning_rate": 1e-4, "loss_type": ["ipo_sum"], "beta": 0.1}),
    "KTO": ("kto", {"learning_rate": 1e-4, "beta": 0.1}),
    "SimPO": ("dpo", {"learning_rate": 1e-4, "loss_type": ["simpo"]}),
}
TOKENS, TEMPERATURE, TURN = 48, 1.0, "\n\nAssistant:"


def main() -> int:
    """Runs everything that is not there yet; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="HH transcripts, JSON lines, gzipped")
    parser.add_argument("--out", type=Path, default=Path("runs/hh_family"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--evaluate", metavar="RUN", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.evaluate:
        return _evaluate(args.out, args.evaluate)
    if not args.data.is_file():
        print(f"error: {args.data}: there is no such file", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    split(args.data, args.out)
    sizes = {**SIZES[args.size], "tiny_num_kv_heads": 2}
    train = {"learning_rate": 1e-3, "num_train_epochs": EPOCHS[args.size], "warmup_steps": 0.05}
    _train(args.out, "start", "sft", {"model": sizes, "train": {**train, "seed": 7}})
    work = [(name, seed) for seed in range(1, args.seeds + 1) for name in METHODS]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda item: _one(args.out, *item), work))
    table = summary(args.out, args.seeds)
    (args.out / "table.json").write_text(json.dumps(table, indent=1))
    print(markdown(table))
    return 0


def split(data: Path, out: Path) -> None:
    """A fifth of the prompts is held out, by a digest of the prompt, so that every run has the same ones."""
    sides: dict[bool, list[str]] = {True: [], False: []}
    with gzip.open(data, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            prompt = row["chosen"][: row["chosen"].rfind(TURN)]
            held_out = int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 5 == 0
            sides[held_out].append(json.dumps({**row, "row_id": f"hh:{number}"}))
    for held_out, lines in sides.items():
        (out / f"{'test' if held_out else 'train'}.jsonl").write_text("\n".join(lines) + "\n")


def _train(out: Path, name: str, stage: str, config: dict[str, Any]) -> Path:
    folder = out / name.replace(" ", "_")
    if (folder / "run.json").is_file():
        return folder
    common = {
        "output_dir": str(folder),
        "max_length": 384,
        "per_device_train_batch_size": 16,
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
    }
    whole = {
        "stage": stage,
        **config,
        "data": {"dataset_name": str(out / "train.jsonl"), "holdout_fraction": 0},
        "train": {**common, **config["train"]},
    }
    path = out / f"{folder.name}.yaml"
    path.write_text(json.dumps(whole))  # JSON is YAML
    _call("-m", "rlhf.cli", stage, "--config", str(path), "--overwrite", "--progress", "none")
    return folder


def _one(out: Path, name: str, seed: int) -> None:
    stage, train = METHODS[name]
    model = {"model_name_or_path": str(out / "start" / "model")}
    train = {"num_train_epochs": 1, "warmup_steps": 0.05, **train, "seed": seed}
    folder = _train(out, f"{name} {seed}", stage, {"model": model, "train": train})
    if not (folder / "held_out.json").is_file():
        _call(str(Path(__file__)), "--data", "-", "--out", str(out), "--evaluate", str(folder))


def _call(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr[-2000:]}")


def _evaluate(out: Path, folder: Path) -> int:
    """Held-out pairs and sampled answers of one run, figures pair by pair and answer by answer."""
    import torch

    from rlhf.config import DataSection, ModelSection
    from rlhf.data import collate, holdout, tokenise
    from rlhf.models.load import load_policy, load_reward_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    start, tokenizer = load_policy(ModelSection(model_name_or_path=str(out / "start" / "model")), seed=0, device=device)
    records, _ = holdout.load_records(DataSection(dataset_name=str(out / "test.jsonl")), "dpo", "train", 0)
    pairs, _ = tokenise.prepare_pairs(records, tokenizer, max_length=384)
    batches = [collate.pairs(pairs[i : i + 16], tokenizer.pad_token_id) for i in range(0, len(pairs), 16)]
    stage = json.loads((folder / "run.json").read_text())["stage"]
    found: dict[str, Any] = {"rows": [p.row_id for p in pairs]}
    with torch.no_grad():
        if stage == "reward":
            model, _ = load_reward_model(folder / "model", device=device)
            found["margins"] = _margins(lambda tokens: model(tokens).scores_B, batches, device)
        else:
            section = ModelSection(model_name_or_path=str(folder / "model"))
            policy, _ = load_policy(section, seed=0, device=device)
            free = "simpo" in str(json.loads(folder.with_suffix(".yaml").read_text())["train"].get("loss_type"))
            found["margins"] = _margins(
                (lambda tokens: _mean(policy, tokens)) if free else (lambda tokens: _ratio(policy, start, tokens)),
                batches,
                device,
            )
            found |= _answers(policy, start, tokenizer, records, device)
    (folder / "held_out.json").write_text(json.dumps(found))
    return 0


def _margins(score: Any, batches: list[Any], device: str) -> list[float]:
    from rlhf.batch import to_device

    margins: list[float] = []
    for batch in batches:
        scores_B = score(to_device(batch, device).tokens)
        margins += (scores_B[: batch.pairs] - scores_B[batch.pairs :]).tolist()
    return margins


def _ratio(policy: Any, start: Any, tokens: Any) -> Any:
    return (policy.eval()(tokens).logps_BT - start.eval()(tokens).logps_BT).sum(1)


def _mean(policy: Any, tokens: Any) -> Any:
    return policy.eval()(tokens).logps_BT.sum(1) / tokens.mask_BT.sum(1)


def _answers(policy: Any, start: Any, tokenizer: Any, records: list[Any], device: str) -> dict[str, Any]:
    """One answer to each held-out prompt: text, length, and its log-ratio to the start, whose mean estimates the KL."""
    from dataclasses import replace

    from rlhf.batch import to_device
    from rlhf.data import collate, tokenise
    from rlhf.evaluation.answers import answer, sample_seed

    asked = {str(r.prompt): replace(r, kind="prompt", chosen=None, rejected=None) for r in records}
    samples, _ = tokenise.prepare_prompts(list(asked.values()), tokenizer, max_prompt_length=320)
    seeds = [[sample_seed(0, s.row_id)] for s in samples]
    answers = answer(policy, tokenizer, samples, seeds, max_new_tokens=TOKENS, temperature=TEMPERATURE)
    ratios: list[float] = []
    for i in range(0, len(answers), 16):
        part = answers[i : i + 16]
        tokens = collate.completions([a.sample.prompt_ids for a in part], [a.ids for a in part], tokenizer.pad_token_id)
        ratios += _ratio(policy, start, to_device(tokens, device)).tolist()
    return {"log_ratios": ratios, "lengths": [len(a.ids) for a in answers], "texts": [a.text for a in answers]}


def summary(out: Path, seeds: int) -> dict[str, Any]:
    """Figures of each method: means over seeds, intervals by a bootstrap over pairs or prompts, and each seed's own."""
    table: dict[str, Any] = {}
    for name in METHODS:
        files = [out / f"{name} {seed}".replace(" ", "_") / "held_out.json" for seed in range(1, seeds + 1)]
        runs = [json.loads(file.read_text()) for file in files]
        right = [[(m > 0) + 0.5 * (m == 0) for m in run["margins"]] for run in runs]
        table[name] = {"accuracy": _figure(right)}
        if "texts" in runs[0]:
            table[name]["kl_nats"] = _figure([run["log_ratios"] for run in runs])
            table[name]["tokens"] = _figure([run["lengths"] for run in runs])
            table[name]["vocabulary"] = _vocabulary([run["texts"] for run in runs])
    return table


def _figure(runs: list[list[float]]) -> dict[str, Any]:
    import numpy as np

    values = np.asarray(runs, dtype=np.float64)
    per_item = values.mean(axis=0)
    draws = np.random.default_rng(0).integers(0, len(per_item), size=(4000, len(per_item)))
    low, high = np.quantile(per_item[draws].mean(axis=1), [0.025, 0.975])
    return {"value": values.mean(), "low": low, "high": high, "n": len(per_item), "seeds": values.mean(axis=1).tolist()}


def _vocabulary(runs: list[list[str]]) -> dict[str, Any]:
    """Distinct words expected in a sample of 500, so that neither length nor number of answers plays a part."""
    import numpy as np
    from scipy.special import stdtrit

    from rewards.analysis.behaviour import rarefied_types, words

    def types(texts: list[str]) -> float | None:
        counts = np.unique([word for text in texts for word in words(text)], return_counts=True)[1].astype(float)
        return rarefied_types(counts, 500) if counts.sum() >= 500 else None

    found = [types(texts) for texts in runs]
    whole = [value for value in found if value is not None]
    if len(whole) < len(found) or len(whole) < 2:
        return {"value": None, "seeds": found, "n": len(runs[0])}
    # Over seeds alone: answers of one seed share its words.
    half = float(stdtrit(len(whole) - 1, 0.975) * np.std(whole, ddof=1) / len(whole) ** 0.5)
    middle = float(np.mean(whole))
    return {"value": middle, "low": middle - half, "high": middle + half, "seeds": found, "n": len(runs[0])}


def markdown(table: dict[str, Any]) -> str:
    """The table for people."""
    heads = ["", "held-out pairs right", "KL to the start, nats an answer", "tokens an answer", "words in 500"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in table.items():
        cells = [_cell(row["accuracy"], 3), *(_cell(row.get(key), 2) for key in ("kl_nats", "tokens"))]
        words = row.get("vocabulary")
        shown = _cell(words if words is not None and words["value"] is not None else None, 0)
        lines.append(f"| {name} | {' | '.join(cells)} | {shown} |")
    return "\n".join(lines)


def _cell(figure: dict[str, Any] | None, digits: int) -> str:
    if figure is None:
        return "-"
    seeds = " ".join(f"{value:.{digits}f}" for value in figure["seeds"])
    return f"{figure['value']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}] ({seeds})"


if __name__ == "__main__":
    sys.exit(main())
