"""TRL's trainers on a tiny model with a recorder, in this process or as a program of its own.

As a program: `trl_runs.py FOLDER OPTIONS.json`; ranks are started by torchrun. What the reward functions saw is written
to FOLDER/seen-RANK.jsonl by the functions themselves, apart from the ledger.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rewards import Ledger, Recorder

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [{"prompt": f"What is {i} plus {i}?", "category": "even" if i % 2 == 0 else "odd"} for i in range(8)]
HELD_OUT = [{"prompt": f"How much is {i} times {i}?", "category": "times"} for i in range(2)]
PAIRS = [
    {"prompt": r["prompt"], "chosen": f" It is {2 * i}.", "rejected": " No" + "." * i} for i, r in enumerate(TRAIN)
]


def build(folder: Path) -> Path:
    """The model's folder; RLOO and a resumed run load it anew."""
    from rlhf.config import ModelSection
    from rlhf.models.tiny import build_model, build_tokenizer

    path = folder / "model"
    if not path.exists():
        texts = [str(value) for row in TRAIN + HELD_OUT + PAIRS for value in row.values()]
        tokenizer = build_tokenizer(texts, 300)
        section = ModelSection(tiny_hidden_size=16, tiny_num_layers=2, tiny_num_heads=2, tiny_num_kv_heads=1)
        build_model(section, tokenizer, 0).save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


def functions(folder: Path, kill_at: int | None) -> list[Any]:
    """A function of the length, one that scores some completions only and is asynchronous, and one that may kill."""

    def note(name: str, completions: list[str], values: list[float | None], step: int) -> None:
        with (folder / f"seen-{os.environ.get('RANK', 0)}.jsonl").open("a") as file:
            for completion, value in zip(completions, values, strict=True):
                file.write(json.dumps([name, completion, value, step]) + "\n")

    def length(prompts: list[str], completions: list[str], trainer_state: Any, **columns: Any) -> list[float]:
        values = [float(len(text)) for text in completions]
        note("length", completions, list(values), trainer_state.global_step)
        if trainer_state.global_step == kill_at and "plus" in prompts[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return values

    async def parity(completions: list[str], trainer_state: Any, **columns: Any) -> list[float | None]:
        values = [float(len(text) % 2) if len(text) % 3 else None for text in completions]
        note("parity", completions, values, trainer_state.global_step)
        return values

    return [length, parity]


DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 1e-2,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
}
ONLINE: dict[str, Any] = {"num_generations": 4, "max_completion_length": 6}


def train(
    folder: Path,
    kind: str = "GRPO",
    *,
    resume: int | None = None,
    kill_at: int | None = None,
    wrap: Any = None,
    recorder_options: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Trains and returns the trainer; the recorder is closed. wrap: reward functions instead of the usual."""
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    model = build(folder.parent)
    online = kind in ("GRPO", "RLOO")
    settings = {**DEFAULTS, **(ONLINE if online else {}), "output_dir": str(folder / "out"), **options}
    recorder = Recorder(folder / "ledger", "run", **(recorder_options or {}))
    common = {
        "args": getattr(trl, f"{kind}Config")(**settings),
        "train_dataset": Dataset.from_list(TRAIN if online else PAIRS),
        "eval_dataset": Dataset.from_list(HELD_OUT if online else PAIRS[:2]),
        "processing_class": AutoTokenizer.from_pretrained(model),
        "callbacks": [recorder.callback()],
    }
    if online:
        common["reward_funcs"] = recorder.wrap(wrap or functions(folder, kill_at))
    trainer = getattr(trl, f"{kind}Trainer")(str(model), **common)
    with recorder:
        trainer.train(resume_from_checkpoint=str(folder / "out" / f"checkpoint-{resume}") if resume else None)
    return trainer


def child(folder: Path, ranks: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same in processes of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    build(folder.parent)
    (folder / "options.json").write_text(json.dumps(options))
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--rdzv-backend=c10d"]
        command += ["--rdzv-endpoint=localhost:0"]
    here = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [*command, str(Path(__file__)), str(folder), str(folder / "options.json")],
        env={**os.environ, **here},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


def sessions(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """The run's rows with texts."""
    with Ledger.open(folder / "ledger") as ledger:
        rows: list[dict[str, Any]] = ledger.sessions("run", texts=True, **options).to_pylist()
    return rows


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The run's live events of a kind."""
    with Ledger.open(folder / "ledger") as ledger:
        return ledger.events("run", kind=kind)


def seen(folder: Path, name: str = "length", rank: int = 0) -> list[list[Any]]:
    """[completion, value, steps done] of every completion that a function was called with, in order."""
    lines = (folder / f"seen-{rank}.jsonl").read_text().splitlines()
    return [entry[1:] for entry in map(json.loads, lines) if entry[0] == name]


if __name__ == "__main__":
    train(Path(sys.argv[1]), **json.loads(Path(sys.argv[2]).read_text()))
