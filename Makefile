# A convenience: every step is a command that can be typed by hand.
PY := .venv/bin/python
export HF_HUB_DISABLE_TELEMETRY := 1
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: setup demo lint test test-slow clean
setup:
	@bash scripts/setup.sh

demo: setup
	$(PY) -m rlhf.cli run experiments/quickstart.yaml --overwrite

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Two test processes on two cores: a second thread in each would wait for the other process.
test: setup lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -m "not slow" -n 2 -q

test-slow: setup
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -n 2 -q

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
