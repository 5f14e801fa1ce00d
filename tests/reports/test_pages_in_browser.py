"""The pages in headless Chromium, on a phone: nothing fails or is missing, the verdict is seen first, tables scroll alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from handbook_ext.reports.answers import shown_answers
from handbook_ext.reports.compare import read_compared, summarise_compared
from handbook_ext.reports.pages import render_comparison, render_report
from handbook_ext.reports.run_report import read_run, summarise
from handbook_ext.reports.training_pairs import shown_pairs
from tests.reports.browser import CHROMIUM, WHY_SKIPPED, asked
from tests.reports.made_run import make_judged_run
from tests.reports.written_run import make_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WHY_SKIPPED)
FEW = {"resamples": 50, "confidence": 0.9}
LOOK = """(function () {
  var boxes = Array.prototype.slice.call(document.querySelectorAll(".wide"));
  var broad = boxes.filter(function (box) { return box.scrollWidth > box.clientWidth && box.clientWidth; });
  var shown = function (one) { return one && getComputedStyle(one).display !== "none"; };
  return {
    viewport: document.querySelector("meta[name=viewport]").content, width: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    verdict: document.querySelector("h1").getBoundingClientRect().bottom, height: innerHeight,
    pictures: Array.prototype.map.call(document.images, function (one) { return one.complete && one.naturalWidth > 0; }),
    drawn: Math.min.apply(null, Array.prototype.map.call(document.images, function (one) { return one.clientWidth; })),
    broad: broad.length, scrolls: broad.every(function (box) { return getComputedStyle(box).overflowX === "auto"; }),
    cues: broad.every(function (box) { return shown(box.previousElementSibling); }),
    idle: boxes.filter(function (box) {
      var cue = box.previousElementSibling;
      return box.scrollWidth <= box.clientWidth && cue && cue.className.indexOf("cue") >= 0 && shown(cue);
    }).length,
    loaded: performance.getEntriesByType("resource").map(function (one) { return one.name; })
      .filter(function (name) { return name.indexOf("data:") !== 0; }),
    dark: matchMedia("(prefers-color-scheme: dark)").matches, page: getComputedStyle(document.body).backgroundColor,
    others: Array.prototype.map.call(document.images, function (one) { return one.currentSrc !== one.getAttribute("src"); })
  };
})()"""
SEARCH = """(function () {
  var field = document.querySelector(".search input"), entries = document.querySelectorAll("details.entry");
  var seen = function (one) { return one.offsetParent !== null; };
  var visible = function () { return Array.prototype.filter.call(entries, seen); };
  var before = visible().length, open = document.querySelectorAll("details.entry[open]").length;
  var type = function (text) {
    field.value = text;
    field.dispatchEvent(new Event("input"));
    return visible().map(function (one) { return one.querySelector("summary").textContent.trim().split("\\n")[0]; });
  };
  var found = type("iter2 SAYS  w7x"), said = document.querySelector(".search output").textContent;
  var opened = visible().every(function (one) { return one.open; });
  var none = type("no such word"), all = type("");
  return { shown: field.offsetParent !== null, before: before, found: found, said: said, opened: opened, none: none.length,
           all: all.length, open: [open, document.querySelectorAll("details.entry[open]").length] };
})()"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with answers, one of which holds markup, and with training pairs."""
    folder = tmp_path_factory.mktemp("report")
    run = make_run(folder / "run")
    for path in run.glob("*/eval.json"):
        content = json.loads(path.read_text())
        for decoding in content["decodings"].values():
            for number, row in enumerate(decoding["rows"]):
                hostile = '<img src="https://example.org/x.png"><script>alert(1)</script>' * (number == 3)
                row |= {
                    "prompt": f"ask {number}",
                    "text": f"{path.parent.name} says w{number}x {hostile}",
                    "finish_reason": "stop",
                }
        path.write_text(json.dumps(content))
    found = read_run(run)
    summary = summarise([[found]], title="A made-up run", **FEW)
    summary["answers"] = shown_answers(run, ["sft", "iter2"], "sampled")
    summary["training_pairs"] = shown_pairs(make_judged_run(folder / "runs" / "mine-run") / "iter1")
    for name, content in render_report([[found]], summary).items():
        (folder / name).write_bytes(content)
    return folder / "report.html"


def is_sound(found: dict[str, Any], pictures: int) -> None:
    assert (found["faults"], found["console"], found["loaded"]) == ([], [], [])
    assert found["viewport"] == "width=device-width, initial-scale=1"
    assert found["pictures"] == [True] * pictures
    assert (found["width"], found["overflow"]) == (390, 0)
    assert found["verdict"] < found["height"] == 844
    assert found["drawn"] > 700  # Or letters of pictures are three pixels high.
    assert found["broad"] > 0 and found["scrolls"] and found["cues"] and found["idle"] == 0


def test_a_report_on_a_phone(report: Path) -> None:
    found = asked(report, LOOK)
    is_sound(found, pictures=3)
    assert not found["dark"] and found["others"] == [False] * 3


def test_a_report_in_the_dark_shows_the_pictures_that_are_drawn_for_it(report: Path) -> None:
    found = asked(report, LOOK, dark=True)
    assert found["dark"] and found["pictures"] == [True] * 3 == found["others"]
    assert max(map(int, found["page"][4:-1].split(","))) < 60


def test_the_search_field_shows_what_holds_every_word(report: Path) -> None:
    """Of the first ten, the most changed and the pairs: those that hold `iter2`, `says` and `w7x`; without words as before."""
    found = asked(report, SEARCH)
    assert found["shown"] and found["before"] > 15
    assert found["found"] and all(each.startswith("ask 7") for each in found["found"])
    assert found["said"] == f"{len(found['found'])} of {found['before']} match" and found["opened"]
    assert (found["none"], found["all"]) == (0, found["before"])
    assert found["open"][0] == found["open"][1] > 0
    assert found["faults"] == []


def test_a_comparison_on_a_phone(tmp_path: Path) -> None:
    make_run(tmp_path / "tiny-selm")
    make_run(tmp_path / "tiny-dpo", recipe="tiny-dpo", gain=0.0)
    compared = read_compared([tmp_path / "tiny-selm", tmp_path / "tiny-dpo"])
    summary = summarise_compared(compared, **FEW) | {"sets": {"rows": [], "tests": [], "left_out": []}}
    for name, content in render_comparison(compared, summary).items():
        (tmp_path / name).write_bytes(content)
    is_sound(asked(tmp_path / "compare.html", LOOK), pictures=1)
