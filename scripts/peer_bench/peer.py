"""The peer's side: TRL's trainer with its defaults, on the same rows in the same order."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from peer_bench import cases


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Step ends and losses; with `precompute`, also the seconds of TRL's own reference pass."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    config, trainer_class = _classes(spec["stage"])
    folder = Path(spec["model"]) / ("classifier" if spec["stage"] == "reward" else "policy")
    rows = [json.loads(line) for line in (Path(spec["folder"]) / "peer.jsonl").read_text().splitlines()]
    losses: list[torch.Tensor] = []
    ends: list[float] = []
    passes: list[float] = []

    class Watched(trainer_class):  # type: ignore[misc, valid-type]
        def training_step(self, *args: Any, **options: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*args, **options)
            losses.append(loss.detach().clone())
            return loss

        def _precompute_ref_logps(self, *args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = super()._precompute_ref_logps(*args, **options)
            passes.append(time.perf_counter() - began)
            return result

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **options: Any) -> None:
            if spec["device"] != "cpu":
                torch.cuda.synchronize()
            ends.append(time.time())

    trainer = Watched(
        model=str(folder),
        args=config(**_options(spec)),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[Clock()],
    )
    _compare(trainer, spec)
    trainer.train()
    return {
        "ends": ends,
        "losses": torch.stack(losses).double().tolist(),
        "reference_seconds": sum(passes) if passes else None,
    }


def _classes(stage: str) -> tuple[Any, Any]:
    import trl

    prefix = {"sft": "SFT", "reward": "Reward", "dpo": "DPO"}[stage]
    return getattr(trl, f"{prefix}Config"), getattr(trl, f"{prefix}Trainer")


def _options(spec: dict[str, Any]) -> dict[str, Any]:
    options = {
        "output_dir": str(Path(spec["folder"]) / spec["name"]),
        "seed": cases.SEED,
        "max_steps": spec["steps"],
        "per_device_train_batch_size": spec["batch"],
        "max_length": spec["max_length"],
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "bf16": spec["dtype"] == "bf16",
        "use_cpu": spec["device"] == "cpu",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "model_init_kwargs": {"dtype": "float32"},
    }
    if spec.get("precompute"):
        options["precompute_ref_log_probs"] = True
    return options


def _compare(trainer: Any, spec: dict[str, Any]) -> None:
    """Ends the process unless every batch holds exactly the tokens, and scores exactly those, that ours does."""
    found = []
    for batch in trainer.get_train_dataloader():
        mask_BT = batch["attention_mask"].bool()
        if "completion_mask" in batch:
            scored_BT = batch["completion_mask"].bool()
        else:
            scored_BT = batch["labels"] != -100 if "labels" in batch else mask_BT
        rows = zip(batch["input_ids"], mask_BT, scored_BT, strict=True)
        found.append([(ids[real].tolist(), scored[real].tolist()) for ids, real, scored in rows])
    counts = [sum(len(ids) for ids, _ in b) for b in found]
    if counts != spec["tokens"]:
        raise SystemExit(f"TRL is given {counts} tokens a step, we {spec['tokens']}: not the same work")
    if cases.digest(found, masks=spec["stage"] != "reward") != spec["digest"]:
        raise SystemExit("TRL's token ids or masks are not ours: not the same work")
