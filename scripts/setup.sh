#!/usr/bin/env bash
# Creates .venv with the tested set of packages; a stamp makes a second call instant.
# PIP_EXTRA_INDEX_URL is honoured by pip itself: point it at a CPU index of torch where the default one brings CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
stamp=.venv/.stamp
wanted="$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi
"$python" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "setup: Python 3.11 or newer is needed, set PYTHON=/path/to/python3.11")'
[ -x .venv/bin/python ] || "$python" -m venv .venv
# torch first and alone: with it in place no other package can pull in another build of it.
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$(grep '^torch==' constraints.txt)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
echo "$wanted" > "$stamp"
