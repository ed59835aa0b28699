"""The page in a real browser, where one is installed: charts are drawn, and events can be reached by keyboard."""

import html
import re
import shutil
import subprocess

import pytest

from rewards.report.build import build
from rewards.report.charts import specs
from rewards.report.html import render
from rewards.report.record import Record
from tests.rewards import simulated

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine"),
]

# Runs after the page's own code and leaves what a reader would notice in one element.
PROBE = """
<script>
(() => {
  const said = [];
  window.addEventListener("error", (event) => said.push("error: " + event.message));
  const shown = (tip) => tip.style.visibility === "visible";
  const visible = (root) => [...root.querySelectorAll(".tip")].filter(shown).map((tip) => tip.textContent);
  const stage = document.querySelector("[data-chart=reward]");
  const mark = stage.querySelector("button.recalibration");
  mark.focus();
  said.push("focused: " + (document.activeElement === mark), "tip: " + visible(stage).join("|"));
  mark.blur();
  said.push("after blur: " + visible(stage).length);
  const plot = stage.querySelector("svg[role=img]");
  for (const key of ["ArrowRight", "ArrowRight", "End"])
    plot.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  said.push("read: " + stage.querySelector("[aria-live]").textContent);
  said.push("charts: " + document.querySelectorAll(".plot > svg").length);
  const bad = (node) => [...node.attributes].some((a) => a.value.includes("NaN"));
  said.push("bad numbers: " + [...document.querySelectorAll(".plot *")].filter(bad).length);
  said.push("sideways: " + (document.documentElement.scrollWidth > document.documentElement.clientWidth));
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = said.join("\\n");
  document.body.appendChild(out);
})();
</script>
"""


def probe(page, folder, width):
    path = folder / "page.html"
    path.write_text(page.replace("</body>", PROBE + "</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},2000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return html.unescape(found.group(1)).splitlines()


@pytest.mark.parametrize("width", [500, 1280])
def test_charts_are_drawn_and_events_are_reached_by_keyboard(tmp_path, width):
    steps = simulated.grpo_rows(sessions=3205)
    table = simulated.as_table(steps)
    events = simulated.as_events(simulated.stage_events(steps))
    report = build(Record("demo/grpo", table, events, simulated.as_runs(3205, 51), verified=True))
    said = probe(render(report), tmp_path, width)
    assert not [line for line in said if line.startswith("error")]
    assert (
        "focused: true" in said and "after blur: 0" in said and "bad numbers: 0" in said and "sideways: false" in said
    )
    assert "tip: Recalibration after session 1,920 (step 30). self: 0 % to 15 %" in said
    assert next(line for line in said if line.startswith("read: ")).startswith("read: sessions 3,")
    assert f"charts: {len(specs(report.data))}" in said
