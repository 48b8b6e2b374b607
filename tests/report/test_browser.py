"""The page in a real browser: it fits, its text is legible, nothing is blank."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest

NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)
BROWSER = os.environ.get("CHROME") or next((p for p in map(shutil.which, NAMES) if p), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium here; set CHROME or install chromium-headless-shell"
)

# What is wider than the page, outside its picture, or written over other text.
MEASURE = """
<script>
const found = {overflow: document.documentElement.scrollWidth - window.innerWidth,
               outside: [], overlap: [], pictures: 0, texts: 0};
for (const svg of document.querySelectorAll("figure svg")) {
  const frame = svg.getBoundingClientRect();
  if (frame.width > 200 && frame.height > 20) found.pictures += 1;
  const texts = [...svg.querySelectorAll("text")].filter(t => t.textContent.trim());
  found.texts += texts.length;
  const boxes = texts.map(t => t.getBoundingClientRect());
  boxes.forEach((box, i) => {
    if (box.left < frame.left - 2 || box.right > frame.right + 2 ||
        box.top < frame.top - 2 || box.bottom > frame.bottom + 2)
      found.outside.push(texts[i].textContent.trim());
    for (let j = 0; j < i; j++) {
      const other = boxes[j];
      const w = Math.min(box.right, other.right) - Math.max(box.left, other.left);
      const h = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
      const least = Math.min(box.width * box.height, other.width * other.height);
      if (w > 0 && h > 0 && w * h > 0.2 * least)
        found.overlap.push(texts[i].textContent.trim() + " | " + texts[j].textContent.trim());
    }
  });
}
document.title = JSON.stringify(found);
</script>
"""


def browse(*arguments):
    """Runs the browser on a page; returns what it prints."""
    assert BROWSER is not None
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    done = subprocess.run(
        [BROWSER, *fixed, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["one run", "several seeds"])
@pytest.mark.parametrize("width", [1280, 1024, 600])
def test_everything_fits(finished, seeds, tmp_path, kind, width):
    page = ((finished if kind == "one run" else seeds) / "report.html").read_text("utf-8")
    copy = tmp_path / "page.html"
    copy.write_text(page.replace("</body>", f"{MEASURE}</body>"), "utf-8")
    dom = browse("--dump-dom", f"--window-size={width},900", copy.as_uri())
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    found = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert found["overflow"] <= 0
    assert found["outside"] == []
    assert found["overlap"] == []
    assert found["pictures"] == page.count("<figure") >= 8
    assert found["texts"] > 80


def test_it_is_not_blank(finished, tmp_path):
    shot = tmp_path / "page.png"
    page = (finished / "report.html").as_uri()
    browse(f"--screenshot={shot}", "--window-size=1280,3000", page)
    pixels = matplotlib.image.imread(shot)[..., :3]
    assert pixels.shape == (3000, 1280, 3)
    # Ink in every tenth of the page but the last, and colours of the curves.
    dark = (pixels.max(axis=2) < 0.6).reshape(10, 300, -1).mean(axis=(1, 2))
    assert (dark[:-1] > 0.003).all(), dark
    for color in ((0x2B, 0x6C, 0xB0), (0xD9, 0x72, 0x2E), (0x2F, 0x85, 0x5A)):
        near = np.abs(pixels - np.array(color) / 255).max(axis=2) < 0.03
        assert near.sum() > 300
