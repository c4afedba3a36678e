"""The pages in a real browser, wide and narrow, light and dark: nothing overlaps, is cut off or hard to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.search.browser import Browser, chromium
from tests.search.test_report import make_summary

from trimtab.search.report.run_report import page, render, section

PROGRAM = chromium()

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on PATH (apt-get install chromium)")

#: The boxes of all lines of text that are shown: [left, top, right, bottom, text, size in pixels, contrast (WCAG 2.1)].
#: A box is as high as its letters, about, not as its line.
TEXTS = """(() => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => colour.slice(0, 3).map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest("script,style,#tip") || !parent.checkVisibility()) continue;
    const style = getComputedStyle(parent), size = parseFloat(style.fontSize);
    const [a, b] = [light(parse(parent.closest("svg") ? style.fill : style.color)), light(behind(parent))];
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      const middle = (box.top + box.bottom) / 2;
      if (box.width > 1) found.push([box.left, middle - .36 * size, box.right, middle + .36 * size,
        node.data.trim(), size, (Math.max(a, b) + .05) / (Math.min(a, b) + .05)]);
    }
  }
  return found;
})()"""

#: What is wider than it may be, so that it scrolls sideways or is cut off.
TOO_WIDE = """[document.documentElement, ...document.querySelectorAll("body *:not(svg, svg *)")]
  .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1)
  .map(e => `${e.tagName} ${e.className} ${e.textContent.slice(0, 60)}`)"""


def overlapping(texts: list[list[Any]]) -> list[tuple[str, str]]:
    """The pairs of texts whose boxes share more than a pixel in both directions."""
    found, apart = [], 1.0
    for i, (left, top, right, bottom, text, *_) in enumerate(texts):
        for other in texts[i + 1 :]:
            across = min(right, other[2]) - max(left, other[0])
            along = min(bottom, other[3]) - max(top, other[1])
            if across > apart and along > apart:
                found.append((text, other[4]))
    return found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("chromium")) as found:
        yield found


def run_page() -> str:
    """The report of a run with every form of layer, long names, and a network that was finished."""
    summary = make_summary(
        agents=("evolution(crossed=0.3, population=64)", "uniform", "random", "package.mine:Climber")
    )
    forms = ("svd of rank 12", "block 0.5", "tucker of rank 24", "kernels 64", "circulant 16")
    for layer, form in zip(summary["layers"][3:], forms, strict=False):
        layer |= {"rank": None, "form": form, "w_bits": 4, "a_bits": 8}
    for i, name in enumerate(("features.2.0.block.1.0.depthwise", "encoder.layers.encoder_layer_11.mlp.0")):
        summary["layers"][i]["layer"] = name
    best = summary["agents"][0]["best"]
    training = {"accuracy_before": 0.871, "epochs": 14.2, "images_per_second": 812.0, "processes": 2, "seconds": 1204.5}
    summary["finished"] = {**best, "training": {**training, "tried": [{}, {}, {}]}, "final_before": 0.8688}
    return render(summary)


PAGES = {
    "a run": run_page,
    "many layers": lambda: render(make_summary(layers=60)),
    "no winner": lambda: render(make_summary(won=False)),
}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_readable(browser: Browser, name: str, scheme: str, width: int, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(PAGES[name]())
    browser.show(tmp_path / "report.html", width, scheme)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
    browser.evaluate("document.querySelector('.all').click()")
    assert overlapping(browser.evaluate(TEXTS)) == []
    browser.evaluate("document.querySelector('[name=view]').click()")
    texts = browser.evaluate(TEXTS)
    assert len(texts) > 100
    assert overlapping(texts) == []
    assert browser.evaluate(TOO_WIDE) == []
    assert [text[4] for text in texts if text[0] < 0 or text[2] > width + 1] == []
    assert [text[4] for text in texts if text[5] < 11.5] == []
    assert [(text[4], text[6]) for text in texts if text[6] < 4.5] == []
    shot = browser.screenshot()
    (tmp_path / "report.png").write_bytes(shot)
    assert shot.startswith(b"\x89PNG")


def test_overlaps_are_found(browser: Browser, tmp_path: Path) -> None:
    row = '<p style="display:grid;grid-template-columns:2rem 1fr;white-space:nowrap"><span>{}</span><span>{}</span></p>'
    body = section("Rows", row.format("ab", "layer1") + row.format("svd of rank 12", "layer2.0.conv2"))
    (tmp_path / "page.html").write_text(page("Overlap", body))
    browser.show(tmp_path / "page.html", 1280, "light")
    assert overlapping(browser.evaluate(TEXTS)) == [("svd of rank 12", "layer2.0.conv2")]
