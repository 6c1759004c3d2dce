"""The page in a real browser: headless Chromium, driven over its own debugging pipe, so nothing but Chromium is needed.

Skipped where there is no Chromium. With AXE_CORE naming an `axe.min.js`, accessibility is checked by axe-core too.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest.report.index import Entry
from loadtest.report.page import index_page
from tests.support import runs
from tests.support.pages import RUNS, page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--disable-extensions"),
    "--remote-debugging-pipe",
)
# Chromium reads its file 3 and writes its file 4: the pipes are moved there, then it takes over the process.
STARTER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for number, end in zip((3, 4), ends):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""
DESKTOP, PHONE = (1440, 900, False), (390, 844, True)
MOST_PX = {DESKTOP: 5400, PHONE: 10_000}  # height of a page as it opens: six screens; what a thumb still scrolls
NAMES = (*RUNS, "comparison")
# Cells that are wider than the box that they could be scrolled in, or whose words run out of them.
CUT = """
Array.from(document.querySelectorAll('th, td')).filter(cell => {
  const box = cell.closest('.scroll'), style = box && getComputedStyle(box).overflowX;
  if (cell.checkVisibility && !cell.checkVisibility()) return false;
  const reach = cell.offsetLeft + cell.offsetWidth - (cell.closest('table').offsetLeft || 0);
  return cell.scrollWidth > cell.clientWidth + 1 || style !== 'auto' || reach > box.scrollWidth + 1;
}).map(cell => cell.textContent)
"""
EXAMPLES = sorted((Path(__file__).parents[2] / "reports" / "examples").glob("*/report.html"))


class Browser:
    """One Chromium and one page in it; every event it sent is kept in `events`."""

    def __init__(self, profile):
        from_us, to_us = os.pipe(), os.pipe()
        assert CHROMIUM is not None
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        ends = (from_us[0], to_us[1])
        starter = [sys.executable, "-c", STARTER, *map(str, ends), *command]
        self.process = subprocess.Popen(starter, pass_fds=ends, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(from_us[0])
        os.close(to_us[1])
        self.out, self.into = from_us[1], os.fdopen(to_us[0], "rb")
        self.events: list[dict[str, Any]] = []
        self.number, self.rest, self.session = 0, b"", ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next_message()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def next_message(self):
        while b"\0" not in self.rest:
            read = self.into.read1(1 << 20)
            assert read, "Chromium has gone away"
            self.rest += read
        line, self.rest = self.rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def open(self, page, screen, *, dark=False):
        width, height, mobile = screen
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.next_message())

    def run(self, script):
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self):
        """Everything the console, the log or an exception said."""
        said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event["method"] in said]

    def requests(self):
        sent = [event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def close(self):
        with contextlib.suppress(OSError):
            os.close(self.out)
        self.into.close()
        self.process.terminate()
        self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name in NAMES:
        found[name] = folder / f"{name}.html"
        found[name].write_text(page(name), encoding="utf-8")
    found["index"] = folder / "index.html"
    listed = [Entry(name, source.metrics, source.manifest, paged=True) for name, make in RUNS.items() for source in [make()]]
    found["index"].write_text(index_page("runs", listed), encoding="utf-8")
    return found


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", NAMES)
def test_page_is_silent_self_contained_and_as_wide_as_the_screen(browser, pages, name, screen):
    browser.open(pages[name], screen)
    width = browser.run("document.documentElement.scrollWidth")
    assert browser.complaints() == []
    assert browser.requests() == [pages[name].as_uri()]
    assert width <= screen[0]
    assert browser.run("document.querySelectorAll('figure svg[role=img]').length") > 10


@pytest.mark.fault("secrets", "HTML and scripts: text only")
def test_strangers_text_neither_runs_nor_becomes_an_element(browser, pages):
    browser.open(pages["hostile"], DESKTOP)
    assert browser.run("document.querySelectorAll('img, iframe, object, embed, link, form').length") == 0
    assert browser.run("document.scripts.length") == 1
    assert "<script>alert('x')</script>" in browser.run("document.body.innerText")


def test_policy_stops_a_script_that_is_not_ours(browser, pages, tmp_path):
    broken = tmp_path / "injected.html"
    attack = "<script>window.ran = true</script><img src='https://127.0.0.1:9/x.png' onerror='window.ran = true'></main>"
    broken.write_text(pages["simulated"].read_text(encoding="utf-8").replace("</main>", attack), encoding="utf-8")
    browser.open(broken, DESKTOP)
    assert browser.run("window.ran === undefined")
    assert any("Content Security Policy" in complaint for complaint in browser.complaints())


@pytest.mark.parametrize("name", [*NAMES, "index"])
def test_first_screen_holds_answer_badge_charts_and_the_head_of_the_table(browser, pages, name):
    browser.open(pages[name], DESKTOP)
    boxes = "Array.from(document.querySelectorAll({!r})).map(e => e.getBoundingClientRect().toJSON())"
    for part, n in (("h1", 1), (".badge-line", 1), (".chart", 2), (".overview thead", 1), (".overview tbody tr", None)):
        found = browser.run(boxes.format(part))[:n]
        assert len(found) >= (n or 1), part
        assert all(box["bottom"] <= 900 for box in found[:2]), part
    left, right = browser.run(boxes.format(".chart"))
    assert left["top"] == right["top"]
    assert left["right"] < right["left"]


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", [*RUNS, "comparison", "index"])
def test_page_is_short_and_cuts_no_cell(browser, pages, name, screen):
    browser.open(pages[name], screen)
    assert name == "hostile" or browser.run("document.documentElement.scrollHeight") <= MOST_PX[screen]
    assert browser.run(CUT) == []


def test_a_click_on_a_header_sorts_its_table(browser, pages):
    browser.open(pages["simulated"], DESKTOP)
    rows = "Array.from(document.querySelectorAll('#levels ~ .scroll tbody tr'))"
    column = f"{rows}.map(row => parseFloat(row.cells[3].textContent))"
    before = browser.run(column)
    browser.run("document.querySelectorAll('#levels ~ .scroll thead button')[3].click()")
    assert browser.run(column) == sorted(before)
    assert before != sorted(before)


def test_page_prints_on_few_sheets(browser, pages):
    browser.open(pages["simulated"], DESKTOP)
    assert 5 <= sheets(browser) <= 20


def sheets(browser):
    """How many sheets of paper the page that is open takes."""
    pdf = base64.b64decode(browser.call("Page.printToPDF", printBackground=True)["data"])
    assert pdf.startswith(b"%PDF")
    return pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ")


def test_page_reads_without_javascript(browser, pages):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["simulated"], DESKTOP)
        tree = browser.call("DOM.getDocument", depth=-1)
        text = json.dumps(tree)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert '"nodeName": "BUTTON"' not in text, "what needs a script is made by it"
    assert "Which engine" in text
    assert '"hidden"' in text, "the choice of a cell stays hidden"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["simulated", "damaged", "comparison"])
def test_page_is_accessible(browser, pages, name, dark):
    browser.open(pages[name], DESKTOP, dark=dark)
    assert violations(browser) == []


def violations(browser):
    """What axe-core finds on the page that is open."""
    axe = os.environ.get("AXE_CORE")
    if not axe:
        pytest.skip("AXE_CORE does not name an axe.min.js (npm package axe-core)")
    browser.run(Path(axe).read_text(encoding="utf-8") + "; 0")
    script = "axe.run().then(r => r.violations.map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html)))"
    found: list[str] = browser.run(script)
    return found


def test_choosing_a_cell_hides_the_rows_of_the_others(browser, pages):
    browser.open(pages["simulated"], DESKTOP)
    shown = "Array.from(document.querySelectorAll('#levels ~ .scroll tbody tr')).filter(r => !r.hidden).length"
    whole = browser.run(shown)
    browser.run(
        "const s = document.querySelector('#chooser select'); s.selectedIndex = 1; s.dispatchEvent(new Event('change'))"
    )
    assert 0 < browser.run(shown) < whole


def test_a_command_is_copied_or_at_least_selected(browser, pages):
    browser.open(pages["simulated"], DESKTOP)
    browser.run("document.querySelector('.command').closest('details').open = true")
    browser.run("document.querySelector('.command .copy').click()")
    assert browser.run("document.querySelector('.copy').textContent") in ("Copied", "Selected")
    assert browser.run("getSelection().toString()") == browser.run("document.querySelector('.command code').textContent")


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_index_is_silent_and_as_wide_as_the_screen(browser, tmp_path, screen):
    sample = runs.simulated()
    entry = Entry('a "run" & <more>', sample.metrics, sample.manifest, paged=True)
    page = tmp_path / "index.html"
    page.write_text(index_page("runs", [entry]), encoding="utf-8")
    browser.open(page, screen)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= screen[0]
    assert browser.run("document.querySelector('tbody a').getAttribute('href')").endswith("/report.html")


@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.parent.name)
def test_finished_example_is_silent_and_as_wide_as_the_screen(browser, page, screen):
    browser.open(page, screen)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= screen[0]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.parent.name)
def test_finished_example_prints_and_names_no_machine(browser, page):
    browser.open(page, DESKTOP)
    assert 5 <= sheets(browser) <= 24
    assert page.stat().st_size < 700_000
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home|opt|Users)/", browser.run("document.body.textContent"))


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.parent.name)
def test_finished_example_is_accessible(browser, page):
    browser.open(page, DESKTOP)
    assert violations(browser) == []


def test_there_is_an_example_of_a_demo_of_real_engines_and_of_a_damaged_run():
    assert {"demo", "cpu", "damaged"} <= {page.parent.name for page in EXAMPLES}
