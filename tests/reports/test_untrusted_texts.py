"""What data, policies and judges write into a report is text there: no tag, picture or link of theirs, in HTML and Markdown."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from handbook_ext.reports.answers import shown_answers
from handbook_ext.reports.page_environment import markdown_escaped
from handbook_ext.reports.pages import render_report
from handbook_ext.reports.run_report import read_run, summarise
from handbook_ext.reports.training_pairs import shown_pairs
from tests.reports.made_run import make_judged_run
from tests.reports.written_run import make_run

HOSTILE = (
    '<img src="https://evil.example/a.png"><script>alert(1)</script> ![b](https://evil.example/b.png) '
    "[c](javascript:alert(1)) `` ` `` | </td> <https://evil.example/d> &lt;b&gt; $x$\n# heading\n- item\n\n> quote"
)
TEXT = "zzz " + HOSTILE


class Seen(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def addresses(self) -> set[str]:
        """What the page loads or links to, without what it holds itself."""
        found = {str(attrs[name]) for _, attrs in self.tags for name in ("src", "href", "srcset") if name in attrs}
        return {each for each in found if not each.startswith(("data:", "#"))}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages of a report whose title, prompts, ids, answers, training pairs and remarks are all hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    run = make_run(folder / "run")
    for path in run.glob("*/eval.json"):
        content = json.loads(path.read_text())
        for decoding in content["decodings"].values():
            for row in decoding["rows"]:
                row |= {"prompt": TEXT, "text": TEXT, "finish_reason": "stop"}
        path.write_text(json.dumps(content))
    found = read_run(run)
    summary = summarise([[found]], title=TEXT, resamples=50, confidence=0.9)
    summary["answers"] = shown_answers(run, ["sft", "iter2"], "sampled")
    summary["training_pairs"] = shown_pairs(make_judged_run(folder / "runs" / "mine-run") / "iter1")
    for pair in summary["training_pairs"]["pairs"]:
        pair |= {"prompt": TEXT, "prompt_id": TEXT, "why": TEXT}
        for each in pair["candidates"]:
            each |= {"text": TEXT, "label": TEXT}
    for what in ("improved", "worsened", "first"):
        for each in summary["answers"][what]:
            each["prompt_id"] = TEXT
    return {
        name: content.decode()
        for name, content in render_report([[found]], summary).items()
        if name in ("report.html", "report.md")
    }


def test_the_page_has_no_tag_of_the_data(pages: dict[str, str]) -> None:
    page = Seen(pages["report.html"])
    assert page.addresses() == set() and "evil.example" in "".join(page.texts)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{}]  # The page's own search field.


def test_markdown_renders_no_tag_picture_link_or_heading_of_the_data(pages: dict[str, str]) -> None:
    """As a reader shows it: the pictures of the report itself are all that it loads."""
    rendered = Seen(MarkdownIt("commonmark", {"html": True}).enable("table").render(pages["report.md"]))
    assert {each for each in rendered.addresses() if not each.endswith(".png") or "/" in each} == set()
    headings = [tag for tag, _ in rendered.tags if tag in ("h1", "h2", "h3")]
    own = [line for line in pages["report.md"].splitlines() if line.startswith("#")]
    assert len(headings) == len(own) and not any(line.startswith("# heading") for line in own)
    assert {tag for tag, _ in rendered.tags} <= {
        "h1", "h2", "h3", "p", "strong", "em", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "img",
    }  # fmt: skip
    assert "evil.example" in "".join(rendered.texts)


@pytest.mark.parametrize("text", [HOSTILE, "# x", "> x", "- x", "+ x", "a\r\n# b", "\\", "<!-- -->", "[a]: https://evil.example"])
def test_an_escaped_text_is_one_paragraph_of_itself(text: str) -> None:
    rendered = Seen(MarkdownIt("commonmark", {"html": True}).render(markdown_escaped(text)))
    assert [tag for tag, _ in rendered.tags] == ["p"]
