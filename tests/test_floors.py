"""The house plan as a test: imports point to a lower floor or stay inside one package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Longest prefix wins. `rewards` is floor 0 and imports nothing of `rlhf`, and never torch.
FLOORS = {
    "rewards": 0,
    "rlhf": 0,  # the package docstring
    "rlhf.environment": 0,
    "rlhf.batch": 1,
    "rlhf.config": 1,
    "rlhf.config_tables": 2,
    "rlhf.ops": 2,
    "rlhf.reference": 3,
    "rlhf.objectives": 4,
    "rlhf.data": 4,
    "rlhf.models": 4,
    "rlhf.train": 4,
    "rlhf.evaluation": 5,
    "rlhf.stages": 6,
    "rlhf.outcomes": 7,
    "rlhf.launch": 7,
    "rlhf.pipeline": 7,
    "rlhf.config_cli": 7,
    "rlhf.fork": 7,
    "rlhf.fork_cli": 7,
    "rlhf.notebook": 7,
    "rlhf.notebook_cli": 7,
    "rlhf.plan": 7,
    "rlhf.plan_cli": 7,
    "rlhf.cli": 7,
}
HEAVY = {"torch", "transformers", "datasets", "accelerate", "peft", "trl"}


def room(module: str) -> str:
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in FLOORS:
            return ".".join(parts[:n])
    raise AssertionError(f"{module} has no floor: add it to the table")


def modules() -> list[tuple[str, Path]]:
    found = []
    for package in ("rewards", "rlhf"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: imports are absolute")
    return names


def test_imports_point_to_a_lower_floor_or_stay_in_their_package() -> None:
    found = modules()
    assert len(found) >= 40, "the walk sees the whole house"
    wrong = []
    for module, path in found:
        here = room(module)
        for name in imported(path):
            if name.split(".")[0] not in ("rewards", "rlhf"):
                continue
            there = room(name)
            # `import rlhf.x` inside `from rlhf import x` names the package too; the package itself holds nothing.
            if there != here and not FLOORS[there] < FLOORS[here] and not (FLOORS[here] == FLOORS[there] == 7):
                wrong.append(f"{module} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
    assert wrong == []


def test_rewards_imports_neither_rlhf_nor_torch_by_its_source() -> None:
    wrong = [
        (module, name)
        for module, path in modules()
        if module.split(".")[0] == "rewards"
        for name in imported(path)
        if name.split(".")[0] in HEAVY | {"rlhf"}
    ]
    assert wrong == []


def test_importing_every_module_of_rewards_leaves_the_heavy_libraries_out() -> None:
    names = [module for module, _ in modules() if module.split(".")[0] == "rewards"]
    assert len(names) >= 15
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted(set(sys.modules) & {HEAVY | {'rlhf'}!r}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"


def test_the_folder_datasets_never_shadows_the_library() -> None:
    assert not list((ROOT / "datasets").rglob("__init__.py"))
    pytest.importorskip("datasets", reason="the extra `train` is not installed")
    code = "import datasets; print(datasets.__file__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "site-packages" in out.stdout


@pytest.mark.parametrize("module", ["rlhf.cli", "rlhf.config", "rlhf.launch", "rlhf.pipeline", "rlhf.stages.inputs"])
def test_what_runs_before_torch_does_not_load_it(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "False"
