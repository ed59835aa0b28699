"""# Is the reward still about what it was meant for?

The further a policy goes from its reference, the more of the proxy reward is won by what the proxy gets wrong. A gold
component, which is recorded and never optimised, shows it: it peaks and falls while the proxy still rises.
"""

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from rewards import Ledger
from rewards.analysis import overoptimization
from rewards.analysis.convergence import mean_series, step_bins
from rewards.analysis.data import RunData
from rewards.runs import choose_run, pipeline_kinds

plt.rcParams.update({"figure.figsize": (9, 3.4), "figure.constrained_layout.use": True, "axes.grid": True})

# %% tags=["parameters"]
LEDGER = os.environ.get("LEDGER", "runs/quickstart/ledger")
RUN = os.environ.get("RUN", "")  # empty: the newest online-RL run

# %%
with Ledger.open(LEDGER) as ledger:
    run = RUN or choose_run(ledger.runs(), pipeline_kinds(ledger.events(kind="attempt_started")))
    with RunData.read(ledger, run) as data:
        found = overoptimization.section(data)
        bins = step_bins(data.steps)
        baseline, kl = data.column("baseline_reward").copy(), data.column("kl_nats").copy()
        entropy = data.column("entropy_nats").copy()
        gold = {name: data.component(name).copy() for name, role in data.component_roles.items() if role == "gold"}
    print(f"run {run}: {data.sessions:,} sessions; gold components: {', '.join(gold) or 'none'}")
    if found["why"]:
        print("missing:", found["why"])

# %% [markdown]
# ## Proxy and gold over the run

# %%
nan = float("nan")
middles = [(one.start + one.stop) / 2 for one in bins]


def draw(axis, values, label, color):
    """A line of means over the bins with its band."""
    series = mean_series(values, bins)
    if all(one.value is None for one in series):
        axis.text(0.5, 0.5, f"{label}: nothing on record", ha="center", transform=axis.transAxes)
        return
    axis.plot(middles, [nan if one.value is None else one.value for one in series], color=color, label=label)
    low, high = ([nan if getattr(one, end) is None else getattr(one, end) for one in series] for end in ("low", "high"))
    axis.fill_between(middles, low, high, color=color, alpha=0.2)


figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
draw(axes[0], baseline, "proxy: baseline reward", "C0")
for place, (name, values) in enumerate(gold.items(), start=1):
    draw(axes[0], values, f"gold: {name}", f"C{place}")
draw(axes[1], kl, "KL from the reference (nats)", "C4")
draw(axes[2], entropy, "entropy (nats)", "C5")
for axis in axes:
    axis.set_xlabel("session")
    axis.xaxis.set_major_locator(plt.MaxNLocator(5))
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
plt.show()

# %%
alarm = found["proxy_gold"]
print(("ALARM  " if alarm["alarm"] else "") + (alarm["verdict"] or f"No statement: {alarm['why']}."))

# %% [markdown]
# ## Reward against distance
#
# d is the root of the KL divergence. One fit for every version of schedule, scorer and reference, since a new version
# is a new signal. A peak is declared only where the bend is clear and the peak's interval lies inside the data.

# %%
shown = [fit for fit in found["fits"] if fit["points"]]
rewards = list(dict.fromkeys(fit["of"] for fit in shown))
if rewards:
    figure, axes = plt.subplots(1, len(rewards), figsize=(5.2 * len(rewards), 3.4), squeeze=False)
    for axis, name in zip(axes[0], rewards, strict=True):
        for place, fit in enumerate(one for one in shown if one["of"] == name):
            d = np.sqrt([point["kl_nats"] for point in fit["points"]])
            axis.plot(d, [point["reward"] for point in fit["points"]], ".", color=f"C{place}", alpha=0.6)
            if fit["alpha"] and fit["beta"]:
                grid = np.linspace(max(d.min(), 1e-6), d.max(), 200)
                alpha, beta = fit["alpha"]["estimate"], fit["beta"]["estimate"]
                offset = (
                    (fit["offset"] or {}).get("estimate", 0.0) if isinstance(fit["offset"], dict) else fit["offset"]
                )
                axis.plot(grid, (offset or 0.0) + grid * (alpha - beta * np.log(grid)), color=f"C{place}")
            peak = fit["peak_kl_nats"]
            if peak is not None:
                axis.axvspan(np.sqrt(peak["low"]), np.sqrt(peak["high"]), color=f"C{place}", alpha=0.15)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("d = sqrt(KL)")
    plt.show()
for fit in found["fits"]:
    print(f"sessions {fit['sessions'][0]:,} to {fit['sessions'][1]:,}: {fit['verdict']}")

# %% [markdown]
# ## Is the reward paid for length?

# %%
length = found["length"]
print(length.get("verdict") or f"No statement: {length.get('why')}.")
