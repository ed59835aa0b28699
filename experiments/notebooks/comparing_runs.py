"""# Is the new run worse than the old one?

Answers are paired by prompt, since prompts differ far more than runs do. A mean can hide damage, so categories and the
worst answers are looked at, too; and beside every difference stands the smallest one that could have been found.
"""

# %%
import os

import matplotlib.pyplot as plt

from rewards.analysis.compare import compare
from rewards.analysis.outcomes import Place, read_sides

plt.rcParams.update({"figure.figsize": (9, 3.4), "figure.constrained_layout.use": True, "axes.grid": True})

# %% tags=["parameters"]
LEDGER = os.environ.get("LEDGER", "runs/quickstart/ledger")
RUN = os.environ.get("RUN", "")  # the new run; empty: the newest online-RL run
AGAINST = os.environ.get("AGAINST", "runs/quickstart/ledger:quickstart/dpo")  # the old one, LEDGER[:RUN]

# %%
places = Place.read(AGAINST), Place.read(LEDGER, RUN or None)
old, new, metric = read_sides(*places, None, None)
found = compare(old, new, metric)
for name in ("a", "b"):
    side = found[name]
    print(f"{'old' if name == 'a' else 'new'}: run {side['run']}, {side['split']} rows, {side['answers']:,} answers")
print(f"{metric}: {found['prompts']:,} prompts in common, {found['pairs']:,} pairs of answers\n")
print(found["verdict"])

# %% [markdown]
# ## By category
#
# New minus old with 95 % intervals; grey is too small to be found in a category of that size. A category counts as
# worse only after the adjustment for how many were looked at.

# %%
rows = [row for row in found["slices"] if row["estimate"] is not None]
whole = {"category": "all prompts", "verdict": ""} | found["difference"]
rows = [whole, *rows]
figure, axis = plt.subplots(figsize=(9, 0.9 + 0.42 * len(rows)))
for height, row in enumerate(rows[::-1]):
    if row["mde"] is not None:
        axis.fill_betweenx([height - 0.35, height + 0.35], -row["mde"], row["mde"], color="C7", alpha=0.2, lw=0)
    axis.plot(row["estimate"], height, "o", color="C0")
    if row["low"] is not None:
        axis.hlines(height, row["low"], row["high"], color="C0")
axis.axvline(0, color="black", lw=0.8)
axis.set_yticks(range(len(rows)), [f"{row['category'] or '(none)'}, n {row['n']:,}" for row in rows[::-1]])
axis.set_xlabel(f"{metric}, new minus old")
plt.show()
for row in found["slices"]:
    told = row["verdict"] or row.get("why") or ""
    print(f"{row['category'] or '(none)':16.16} n {row['n']:>6,}  {told}")

# %% [markdown]
# ## The worst answers, and the whole distribution
#
# The band holds for all quantiles together.

# %%
tails = found["tails"]
if tails["why"]:
    print("No statement about the tails:", tails["why"])
else:
    worst = tails["cvar_5"]
    interval = "" if worst["low"] is None else f" [{worst['low']:+.3f}, {worst['high']:+.3f}]"
    print(f"mean of the worst 5 %: {worst['estimate']:+.3f}{interval}, finds from {worst['mde']:.3f}, n {worst['n']:,}")
    places = [row["q"] for row in tails["quantiles"]]
    figure, axis = plt.subplots(figsize=(7, 3))
    axis.plot(places, [row["estimate"] for row in tails["quantiles"]], "o-")
    banded = [row for row in tails["quantiles"] if row["low"] is not None]
    axis.fill_between([r["q"] for r in banded], [r["low"] for r in banded], [r["high"] for r in banded], alpha=0.2)
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xlabel("quantile")
    axis.set_ylabel("new minus old")
    plt.show()

# %% [markdown]
# ## Watched while it came in
#
# An e-process may be looked at after every prompt; E of 20 or more is an alarm.

# %%
watched = found["eprocess"]
if watched["why"]:
    print("No e-process:", watched["why"])
else:
    alarm = watched["alarm_at"]
    print(
        f"largest E {watched['max_e']:.3g} over {watched['n']:,} prompts;",
        "no alarm" if alarm is None else f"alarm at prompt {alarm + 1:,}",
    )
