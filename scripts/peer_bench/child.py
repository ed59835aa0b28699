"""One process of the benchmark: `python -m peer_bench.child ROLE SPEC.json`; its result goes to the spec's `result`."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from peer_bench import cases
from peer_bench.machine import peak_bytes


def make_case(spec: dict[str, Any]) -> dict[str, Any]:
    """Model and rows in `spec["folder"]`; what both sides must agree on."""
    from transformers import AutoTokenizer

    stage, folder, model = spec["stage"], Path(spec["folder"]), Path(spec["model"])
    pairs = cases.read_pairs(Path(spec["data"]))
    if not (model / "policy" / "config.json").exists():
        model.parent.mkdir(parents=True, exist_ok=True)
        cases.build_model(model, spec["size"], [row[k] for row in pairs for k in ("prompt", "chosen", "rejected")])
    tokenizer = AutoTokenizer.from_pretrained(model / "policy")
    batch, steps, max_length = spec["batch"], spec["steps"], spec["max_length"]
    if spec.get("length"):
        rows = cases.uniform_rows(stage, tokenizer, spec["length"], batch * steps)
    else:
        rows = cases.as_rows(stage, cases.fitting(pairs, tokenizer, stage, max_length), batch * steps)
    if len(rows) < batch * steps:
        raise SystemExit(f"{spec['data']}: {len(rows)} rows fit, {batch * steps} are needed: fewer --steps or --pairs")
    cases.write_rows(folder / "ours.jsonl", rows)
    cases.write_rows(folder / "peer.jsonl", cases.in_order(rows, batch, steps))
    batches = cases.our_batches(stage, folder / "ours.jsonl", tokenizer, batch, steps, max_length)
    padded = sum(len(b) * max(len(ids) for ids, _ in b) for b in batches)
    tokens = [sum(len(ids) for ids, _ in b) for b in batches]
    return {
        "tokens": tokens,
        "scored": [sum(sum(mask) for _, mask in b) for b in batches],
        "padding_pct": 100 * (1 - sum(tokens) / padded),
        "vocabulary_used": len(tokenizer),
        "digest": cases.digest(batches, masks=stage != "reward"),
    }


def ours(spec: dict[str, Any]) -> dict[str, Any]:
    """The stage behind `rlhf STAGE --config FILE`, recording as always."""
    from peer_bench.ours import run

    return run(spec)


def peer(spec: dict[str, Any]) -> dict[str, Any]:
    """TRL's trainer."""
    from peer_bench.peer import run

    return run(spec)


ROLES = {"case": make_case, "ours": ours, "peer": peer}


def main() -> None:
    """Runs the role and writes the result."""
    warnings.filterwarnings("ignore")
    role, spec = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    result = ROLES[role](spec)
    result.setdefault("peak_bytes", peak_bytes(spec.get("device", "cpu")))
    Path(spec["result"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
