"""The script that launchers start: `accelerate launch experiments/train.py --config X [key=value ...]`.

X is a stage's configuration that says which one it is for (`stage: dpo`), or a pipeline. On a CPU two ranks are started
with `ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 experiments/train.py --config X`.
"""

import sys

from rlhf.launch import main

if __name__ == "__main__":
    sys.exit(main())
