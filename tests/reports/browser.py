"""A page in headless Chromium: it is opened from disk, asked by a script that is put into it, and what that found is returned."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
WHY_SKIPPED = "needs Chromium on the path (apt-get install chromium)"
# In front of all else, so that it hears of every fault: of scripts, of pictures, of what the page may not load.
LISTEN = """<script>
window.faults = [];
addEventListener("error", function (event) { faults.push(event.message || "not loaded: " + event.target.outerHTML); }, true);
addEventListener("securitypolicyviolation", function (event) { faults.push("may not load " + event.blockedURI); });
</script>"""
ASK = """<script>
addEventListener("load", function () {
  var found = %s;
  found.faults = faults;
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
# A window of headless Chromium is 500 pixels wide at least; a frame is as narrow as a phone.
FRAME = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<iframe src="%s" style="width: %dpx; height: %dpx; border: 0"></iframe><pre id="asked"></pre>
<script>addEventListener("message", function (event) { document.getElementById("asked").textContent = event.data; });</script>"""


def asked(page: Path, script: str, *, width: int = 390, height: int = 844, dark: bool = False) -> dict[str, Any]:
    """Returns what a JavaScript expression finds in a page of that size, with `faults` and the `console`'s lines."""
    text = page.read_text(encoding="utf-8")
    copy, frame = page.with_name(f"asked-{page.name}"), page.with_name(f"frame-{page.name}")
    copy.write_text(text.replace("<head>", f"<head>{LISTEN}", 1).replace("</body>", f"{ASK % script}</body>"), encoding="utf-8")
    frame.write_text(FRAME % (copy.name, width, height), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"]
    options += ["--window-size=1000,1200", f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=2000"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [str(CHROMIUM), *options, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="asked">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None and found[1], done.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result | {"console": re.findall(r"CONSOLE.*", done.stderr)}
