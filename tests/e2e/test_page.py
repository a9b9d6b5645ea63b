"""The endpoint's page in a real browser: what it marks, filters, copies and tells; on a phone, in the dark, by key."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.e2e.page_server import PAGE, Endpoint, find_entities, redact, serve_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium browser is installed")

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
SENTENCE = "Ada Lovelace wrote to Babbage from London. Turing read it in Manchester."
HOSTILE = "<img src=x onerror=window.broken=1>"
MARKS = """
const found = [];
let before = 0;
const walk = document.createTreeWalker(document.getElementById("marked"), NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const text = walk.currentNode.data, mark = walk.currentNode.parentElement.closest("mark:not(.off)");
  if (mark) found.push([text, mark.dataset.label, before, before + [...text].length]);
  before += [...text].length;
}
return found;
"""
CONTRAST = """
// The pairs of colours as a person sees them: each element's text on the nearest ground under it.
const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const read = (colours) => {
  paint.clearRect(0, 0, 1, 1);
  for (const colour of colours) { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); }
  return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const light = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const compare = (node, part) => {
  const style = getComputedStyle(node, part), grounds = [style.backgroundColor];
  for (let up = part ? node : node.parentElement; up; up = up.parentElement) {
    grounds.unshift(getComputedStyle(up).backgroundColor);
  }
  const [one, other] = [light(read([...grounds, style.color])), light(read(grounds))].sort((a, b) => b - a);
  return (one + 0.05) / (other + 0.05);
};
const worst = {};
for (const selector of arguments[0]) {
  for (const node of document.querySelectorAll(selector.replace("::after", ""))) {
    const contrast = compare(node, selector.endsWith("::after") ? "::after" : null);
    worst[selector] = Math.min(worst[selector] ?? 99, contrast);
  }
}
return worst;
"""


class Page:
    """The page in the browser, as a person uses it."""

    def __init__(self, browser: webdriver.Chrome, endpoint: Endpoint):
        self.browser, self.endpoint = browser, endpoint

    def open(self) -> None:
        self.browser.get(self.endpoint.url)
        self.wait(lambda: self.find("#model-facts").text or self.find("#key-form").is_displayed())

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.browser, 15, poll_frequency=0.02).until(lambda _: condition())

    def write(self, text: str) -> None:
        """Replace the text, as a paste would, without a request."""
        self.run("document.getElementById('text').value = arguments[0]", text)

    def send(self) -> None:
        """Press the button, and wait for what comes of it."""
        self.find("#send").click()
        self.wait(lambda: self.find("#result").get_attribute("aria-busy") == "false")

    def ask(self, text: str) -> list[list[Any]]:
        self.write(text)
        self.send()
        return self.marks()

    def marks(self) -> list[list[Any]]:
        """Text, label, start and end of all that is marked, counted in the text that is shown."""
        return self.run(MARKS)

    def shown_text(self) -> str:
        return self.run("return document.getElementById('marked').textContent")

    def problem(self) -> str:
        return self.wait(lambda: self.find("#problem").text)

    def drop(self, name: str, content: bytes) -> None:
        """Drop a file onto the page."""
        self.run(
            "const data = new DataTransfer();"
            "data.items.add(new File([Uint8Array.from(arguments[1])], arguments[0]));"
            "document.body.dispatchEvent("
            "  new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));",
            name,
            list(content),
        )

    def emulate(self, command: str, **parameters: Any) -> None:
        self.browser.execute_cdp_cmd(f"Emulation.{command}", parameters)

    def paste(self) -> str:
        """What the clipboard holds, by way of the keyboard."""
        field = self.find("#text")
        field.clear()
        field.send_keys(Keys.CONTROL, "v")
        return field.get_property("value")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.page_load_strategy = "eager"
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = shutil.which("chromedriver") or shutil.which("chromium.chromedriver")
    assert driver, "Chromium is installed, but its driver is not: install chromedriver (Debian: chromium-driver)"
    browser = webdriver.Chrome(options=options, service=Service(driver))
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SCREEN)
    yield browser
    browser.quit()


SCREEN = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with serve_page() as endpoint:
        yield endpoint


@pytest.fixture
def page(browser: webdriver.Chrome, endpoint: Endpoint) -> Iterator[Page]:
    """The page freshly opened; afterwards, nothing must have met the policy or thrown."""
    vars(endpoint).update(vars(Endpoint(url=endpoint.url)))
    page = Page(browser, endpoint)
    page.open()
    yield page
    page.run("sessionStorage.clear()")
    logged = [entry["message"] for entry in browser.get_log("browser")]
    assert not [message for message in logged if "Content Security Policy" in message or "Uncaught" in message]


def list_expected(text: str) -> list[list[Any]]:
    return [[entity["text"], entity["label"], entity["start"], entity["end"]] for entity in find_entities(text)]


@pytest.mark.parametrize(
    "text",
    [
        SENTENCE,
        "👩🏽‍🚀🚀 Mae Jemison 🌍 flew with NASA 🇳🇱 from Florida 🚆.",
        "דנה גרה בחיפה 📚.\nSony in Tokyo, e\u0301 and 田中花 子.\n\n\tEnd",
        "  Ada <b>Bob</b> &amp; Carl\u00a0\u200fDan 𝒳 Eve",
        "lower case alone",
    ],
    ids=["plain", "emoji", "rtl", "markup", "nothing"],
)
def test_marks_are_exactly_where_the_entities_are(page: Page, text: str) -> None:
    assert page.ask(text) == list_expected(text)
    assert page.shown_text() == text


def test_a_file_keeps_its_line_ends_and_offsets(page: Page, tmp_path: Path) -> None:
    text = "Ada 🌍\r\nmet Bob\r\n\r\nin Paris.\r\n"
    (tmp_path / "note.txt").write_bytes(text.encode())
    page.find("#file").send_keys(str(tmp_path / "note.txt"))
    page.wait(page.marks)
    assert page.endpoint.requests[-1][1]["text"] == text
    assert page.marks() == list_expected(text)
    assert page.shown_text() == text


def test_a_dropped_text_is_read_and_other_files_are_refused(page: Page) -> None:
    page.drop("photo.png", b"\x89PNG\r\n\x1a\n\x00\xff")
    assert "photo.png" in page.wait(lambda: page.find("#notice").text)
    assert "UTF-8" in page.find("#notice").text
    page.drop("program.bin", b"Ada\x00Bob")
    page.wait(lambda: "binary" in page.find("#notice").text)
    page.drop("long.txt", b"a" * 100 + b"")
    page.wait(lambda: page.find("#text").get_property("value") == "a" * 100)
    assert not page.find("#notice").is_displayed()
    page.run(
        "const data = new DataTransfer(); data.items.add(new File([new Uint8Array(3e6)], 'huge.txt'));"
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))"
    )
    page.wait(lambda: "too large" in page.find("#notice").text)
    assert len(page.find("#text").get_property("value")) == 100
    page.drop("good.txt", "Zoë met Bob.".encode())
    page.wait(lambda: page.shown_text() == "Zoë met Bob.")


def test_markup_in_text_labels_and_errors_stays_text(page: Page) -> None:
    text = f"{HOSTILE} Ada <script>window.broken=1</script>"
    start = text.index("Ada")
    entity = {"text": "Ada", "label": HOSTILE, "start": start, "end": start + 3, "score": 0.5}
    whole = {"text": text, "label": "\"><svg onload='window.broken=1'>", "start": 0, "end": 3, "score": 0.5}
    page.endpoint.answers = [{"entities": [entity, whole], "coverage": {"fraction": HOSTILE, "num_words": HOSTILE}}]
    assert page.ask(text) == [["Ada", HOSTILE, start, start + 3]]
    assert page.shown_text() == text
    page.find("#table-part summary").click()
    page.run("document.querySelector('#marked mark').focus()")
    page.wait(lambda: page.find("#details-label").text == HOSTILE)
    page.wait(lambda: len(page.browser.find_elements(By.CSS_SELECTOR, "#rows tr")) == 2)
    assert "could not be marked" in page.find("#unplaced").text  # the one that does not fit the text
    assert HOSTILE in page.find("#legend").text
    told = {"title": HOSTILE, "detail": HOSTILE, "errors": [{"pointer": HOSTILE, "detail": HOSTILE}]}
    page.endpoint.refusals = [(422, told, {"x-request-id": HOSTILE})]
    page.send()
    assert page.problem().count(HOSTILE) == 5
    page.endpoint.models = ["plain", HOSTILE]
    page.open()
    assert HOSTILE in page.find("#model").text
    assert page.run("return document.querySelectorAll('main img, main svg, main script').length") == 0
    assert page.run("return window.broken") is None


def test_labels_and_minimum_score_filter_without_a_request(page: Page) -> None:
    page.ask(SENTENCE)
    asked = len(page.endpoint.requests)
    person = page.find(".label-chip[data-label=PER]")
    assert (person.text.split(), person.get_attribute("aria-pressed")) == (["PER", "2"], "true")
    person.click()
    assert {label for _, label, _, _ in page.marks()} == {"ORG", "LOC"}
    assert person.get_attribute("aria-pressed") == "false"
    assert page.find("#status").text == "3 of 5 entities"
    slide(page, 0.5)
    page.wait(lambda: [label for _, label, _, _ in page.marks()] == ["LOC"])
    assert page.find(".label-chip[data-label=ORG] .count").text == "0"
    assert page.shown_text() == SENTENCE
    page.find("#reset").click()
    assert page.marks() == list_expected(SENTENCE)
    assert len(page.endpoint.requests) == asked


def slide(page: Page, score: float) -> None:
    """Move the slider there."""
    page.run(
        "const slider = document.getElementById('min-score'); slider.value = arguments[0];"
        "slider.dispatchEvent(new Event('input', {bubbles: true}))",
        score,
    )


def test_a_label_has_one_colour_and_the_usual_labels_differ(page: Page) -> None:
    page.ask(SENTENCE)
    pairs = page.run(
        "return [...document.querySelectorAll('#marked mark')].map((m) => [m.dataset.label, m.style.cssText])"
    )
    hues = {label: float(re.search(r"[\d.]+", style)[0]) for label, style in pairs}
    assert len({tuple(pair) for pair in pairs}) == len(hues) == 3
    ordered = sorted(hues.values())
    assert min(later - former for former, later in pairwise(ordered)) >= 40


def test_copied_json_is_what_is_shown(page: Page) -> None:
    text = "🌍 Ada met Bob in Paris and Carl."
    page.find("#redact input[value=label]").find_element(By.XPATH, "..").click()
    page.ask(text)
    page.find(".label-chip[data-label=ORG]").click()
    page.find("#copy").click()
    page.wait(lambda: page.find("#copy").text == "Copied")
    copied = json.loads(page.paste())
    kept = [entity for entity in find_entities(text) if entity["label"] != "ORG"]
    assert copied["entities"] == kept
    assert copied["redacted"] == redact(text, kept, "label")
    assert copied["coverage"]["num_characters"] == len(text)


@pytest.mark.parametrize("way", ["mask", "label", "hash"])
def test_redacted_text_leaves_what_the_filters_leave(page: Page, way: str) -> None:
    text = "🌍 Ada met Bob in Paris,\nדנה too."
    page.ask(text)
    page.find(f"#redact input[value={way}]").find_element(By.XPATH, "..").click()
    read = lambda: page.run("return document.getElementById('redacted').textContent")  # noqa: E731
    page.wait(lambda: read() == redact(text, find_entities(text), way)["text"])
    assert page.endpoint.requests[-1][1] == {"text": text, "redact": way}
    page.find(".label-chip[data-label=ORG]").click()
    kept = [entity for entity in find_entities(text) if entity["label"] != "ORG"]
    assert read() == redact(text, kept, way)["text"]
    assert "1 entity left readable" in page.find("#redacted-note").text


def test_table_holds_the_entities_and_sorts(page: Page) -> None:
    page.ask(SENTENCE)
    page.find("#table-part summary").click()
    read = lambda: page.run(  # noqa: E731
        "return [...document.querySelectorAll('#rows tr')].map((row) => [...row.cells].map((c) => c.textContent))"
    )
    rows = [
        [one["text"], one["label"], str(one["start"]), str(one["end"]), f"{one['score']:.3f}"]
        for one in find_entities(SENTENCE)
    ]
    page.wait(lambda: read() == rows)
    page.find("th[data-key=score] button").click()
    assert [row[4] for row in read()] == sorted((row[4] for row in rows), reverse=True)
    assert page.find("th[data-key=score]").get_attribute("aria-sort") == "descending"


def test_coverage_and_latency_are_told(page: Page) -> None:
    page.ask(SENTENCE)
    facts = page.find("#facts").text.split("\n")
    told = dict(zip(facts[::2], facts[1::2], strict=True))
    assert told.pop("Round trip").endswith(" ms")
    expected = {"Text read": "100 %", "Words": "12", "Sub-tokens": "24", "Windows": "1"}
    assert told == expected | {"Queue": "1.5 ms", "Engine": "20 ms"}
    page.endpoint.answers = [{"entities": [], "coverage": {"fraction": 0.99999}}]
    page.send()
    assert page.find("#facts .low dd").text == "99.9 %"  # not rounded up to the whole


def test_refusals_are_told_in_full_and_can_be_tried_again(page: Page) -> None:
    mistake = {"pointer": "/text", "detail": "longer than 100 characters"}
    page.endpoint.refusals = [
        (422, {"title": "Unprocessable Content", "detail": "A rule is broken.", "errors": [mistake]}, {}),
        (429, {"title": "Too Many Requests", "detail": "The queue is full."}, {"retry-after": "7"}),
        (500, {"title": "Internal Server Error", "detail": "Something broke."}, {}),
    ]
    page.ask(SENTENCE)
    assert page.find("#problem").get_attribute("role") == "alert"
    for fact in ["Unprocessable Content", "422", "A rule is broken.", "/text", "longer than 100 characters", "r-1"]:
        assert fact in page.problem()
    assert not page.find("#answer").is_displayed()
    page.send()
    assert "Too Many Requests" in page.problem()
    assert "wait 7 seconds" in page.problem()
    page.send()
    assert "Something broke." in page.problem()
    page.find("#problem button").click()
    page.wait(page.marks)
    assert page.find("#problem").text == ""


def test_an_answer_of_another_server_is_told(page: Page) -> None:
    page.endpoint.answers = [{"hello": "world"}]
    page.ask(SENTENCE)
    assert "not a rayner endpoint" in page.problem()


def test_a_stopped_endpoint_is_told_and_the_text_stays(browser: webdriver.Chrome) -> None:
    with serve_page() as endpoint:
        page = Page(browser, endpoint)
        page.open()
    page.ask(SENTENCE)
    assert "cannot be reached" in page.problem()
    assert page.find("#text").get_property("value") == SENTENCE


def test_a_key_is_asked_for_after_401_alone_and_kept_over_a_reload(page: Page) -> None:
    page.ask(SENTENCE)
    assert not page.find("#key-form").is_displayed()
    page.endpoint.key = "s3cret"
    page.send()
    assert "needs an API key" in page.problem()
    page.wait(lambda: page.find("#key-form").is_displayed())
    page.find("#key").send_keys("wrong", Keys.ENTER)
    page.wait(lambda: "refused" in page.problem())
    page.find("#key").send_keys("s3cret", Keys.ENTER)
    page.wait(page.marks)
    assert not page.find("#key-form").is_displayed()
    page.open()
    assert page.ask(SENTENCE) == list_expected(SENTENCE)
    assert page.run("return localStorage.length") == 0
    page.find("#forget-key").click()
    page.send()
    assert "needs an API key" in page.problem()


def test_a_model_is_offered_where_there_are_several(page: Page) -> None:
    assert not page.find("#model-choice").is_displayed()
    page.endpoint.models = ["plain", "news é"]
    page.open()
    page.ask(SENTENCE)
    page.find("#model").send_keys("news")
    page.wait(lambda: len(page.endpoint.requests) == 2)
    assert [path for path, _ in page.endpoint.requests] == ["/v1/entities", "/v1/models/news é/entities"]


def test_typing_asks_after_a_pause_and_for_the_last_text(page: Page) -> None:
    page.find("#text").send_keys(SENTENCE)
    page.wait(lambda: page.marks() == list_expected(SENTENCE))
    assert page.endpoint.requests[-1][1] == {"text": SENTENCE}
    assert len(page.endpoint.requests) < 10  # not one a key


def test_a_late_answer_never_replaces_a_newer_one(page: Page) -> None:
    page.write("HOLD Ada")
    page.find("#send").click()
    page.wait(lambda: page.endpoint.requests)
    assert page.find("#result").get_attribute("aria-busy") == "true"
    assert page.ask("Bob alone") == [["Bob", "PER", 0, 3]]
    page.endpoint.held.set()
    page.wait(lambda: page.endpoint.answered == ["Bob alone", "HOLD Ada"])
    page.browser.execute_async_script("fetch('v1/models').then(arguments[0])")  # one that comes later still
    assert page.shown_text() == "Bob alone"
    assert page.find("#problem").text == ""


def test_everything_works_by_keyboard_alone(page: Page) -> None:
    def press(*keys: str) -> None:
        ActionChains(page.browser).send_keys(*keys).perform()

    def go_to(selector: str, key: str = Keys.TAB) -> None:
        for _ in range(30):
            if page.run("return document.activeElement.matches(arguments[0])", selector):
                return
            press(key)
        raise AssertionError(f"{selector} cannot be reached by {key}")

    go_to("#text")
    ActionChains(page.browser).send_keys(SENTENCE).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(
        Keys.CONTROL
    ).perform()
    page.wait(page.marks)
    go_to("#marked mark")
    assert page.find("#details").is_displayed()
    assert page.browser.switch_to.active_element.get_attribute("aria-describedby") == "details"
    press(Keys.ARROW_RIGHT)
    assert page.find("#details-text").text == "Babbage"
    assert page.find("#details-score").text == "0.350"
    press(Keys.END)
    assert page.find("#details-text").text == "Manchester"
    press(Keys.ESCAPE)
    assert not page.find("#details").is_displayed()
    go_to(".label-chip[data-label=PER]", Keys.SHIFT + Keys.TAB)
    press(Keys.NULL, Keys.SPACE)
    assert {label for _, label, _, _ in page.marks()} == {"ORG", "LOC"}
    go_to("summary")
    press(Keys.ENTER)
    page.wait(lambda: page.find("#rows tr"))
    go_to("#rows .jump")
    press(Keys.ENTER)
    assert page.find("#details-text").text == "Babbage"


def test_details_open_under_the_pointer_and_stay_inside_the_window(page: Page) -> None:
    page.ask("word " * 200 + SENTENCE)
    for mark in page.browser.find_elements(By.CSS_SELECTOR, "#marked mark"):
        page.run("arguments[0].scrollIntoView({block: 'center'})", mark)
        ActionChains(page.browser).move_to_element(mark).perform()
        assert page.find("#details-text").text == mark.get_property("textContent")
        box = page.run("return document.getElementById('details').getBoundingClientRect().toJSON()")
        assert box["left"] >= 0
        assert box["right"] <= 1280
        assert box["top"] >= 0
        assert box["bottom"] <= 900
    ActionChains(page.browser).move_to_element(page.find("h1")).perform()
    page.wait(lambda: not page.find("#details").is_displayed())


@pytest.mark.parametrize("width", [360, 700, 1000])
def test_nothing_is_wider_than_the_window(page: Page, width: int) -> None:
    page.endpoint.models = ["plain", "a-model-with-a-rather-long-name-for-a-phone"]
    page.emulate("setDeviceMetricsOverride", **SCREEN | {"width": width, "height": 740, "mobile": width < 500})
    try:
        page.open()
        measure = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        scroll, client = page.run(measure)
        assert scroll == client
        page.find("#redact input[value=hash]").find_element(By.XPATH, "..").click()
        text = f"{SENTENCE} {'W' * 300} Supercalifragilisticexpialidocious{'x' * 80}"
        assert page.ask(text) == list_expected(text)
        page.find("#table-part summary").click()
        assert find_overflowing(page) == []
        scroll, client = page.run(measure)
        assert scroll == client
        page.endpoint.refusals = [(422, {"detail": "/" * 300, "title": "T" * 100}, {})]
        page.send()
        scroll, client = page.run(measure)
        assert scroll == client
    finally:
        page.emulate("setDeviceMetricsOverride", **SCREEN)


def find_overflowing(page: Page) -> list[str]:
    """What sticks out of its panel, apart from what scrolls by itself."""
    return page.run("""
        return [...document.querySelectorAll(".panel")].flatMap((panel) => {
          const edge = panel.getBoundingClientRect().right;
          return [...panel.querySelectorAll("*")]
            .filter((node) => !node.closest(".table-scroll, .unseen, .progress") && node.getBoundingClientRect().width)
            .filter((node) => node.getBoundingClientRect().right > edge + 0.5)
            .map((node) => node.outerHTML.slice(0, 80));
        });
    """)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_scheme_and_contrast_suffices(page: Page, scheme: str) -> None:
    page.emulate("setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    labels = [f"LABEL{i}" for i in range(24)]
    text = " ".join(["Ada"] * 24)
    entities = [
        {"text": "Ada", "label": x, "start": 4 * i, "end": 4 * i + 3, "score": 0.5} for i, x in enumerate(labels)
    ]
    page.endpoint.answers = [{"entities": entities, "coverage": {"fraction": 0.5}}]
    try:
        page.ask(text)
        ground = page.run("return getComputedStyle(document.documentElement).backgroundColor")
        assert (min(map(int, re.findall(r"\d+", ground))) > 200) == (scheme == "light")
        page.run("document.querySelector('.label-chip').click()")
        kinds = [
            "body",
            "mark:not(.off)",
            "mark:not(.off)::after",
            ".label-chip",
            ".muted",
            "#send",
            ".quiet",
            ".low dd",
        ]
        contrasts = page.run(CONTRAST, [*kinds, "textarea", "#copy", ".chip", "dt"])
        page.endpoint.refusals = [(500, {}, {})]
        page.send()
        contrasts |= page.run(CONTRAST, [".problem h3", ".problem p", ".problem button"])
        assert len(contrasts) == len(kinds) + 7
        assert {kind: ratio for kind, ratio in contrasts.items() if ratio < 4.5} == {}
    finally:
        page.emulate("setEmulatedMedia", features=[])


def test_examples_are_answered_in_every_script(page: Page) -> None:
    for button in page.browser.find_elements(By.CSS_SELECTOR, "[data-example]"):
        button.click()
        text = page.find("#text").get_property("value")
        page.wait(lambda text=text: page.shown_text() == text)
        assert page.marks() == list_expected(text)
    page.find("[data-example=arabic]").click()
    page.wait(lambda: "باريس" in page.shown_text())
    assert page.run("return getComputedStyle(document.getElementById('marked')).direction") == "rtl"


def test_a_long_text_is_marked_whole(page: Page) -> None:
    text = "".join(f"🌍 Name{i} went to and fro.\r\n" for i in range(8000))
    assert len(text) > 200_000
    page.drop("long.txt", text.encode())
    page.wait(lambda: page.find("#status").text == "8,000 entities")
    assert page.marks() == list_expected(text)
    assert page.shown_text() == text
    copied = page.run(
        "getSelection().selectAllChildren(document.getElementById('marked')); return getSelection().toString()"
    )
    assert copied.rstrip() == text.rstrip()  # without the labels, and without lines between its blocks
    slide(page, 0.9)
    page.wait(lambda: page.find("#status").text.startswith("2,667 of 8,000"))


def test_the_page_loads_nothing_from_elsewhere(page: Page) -> None:
    loaded = page.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    files = {path.name for path in PAGE.iterdir()} - {"index.html"}
    names = {name.removeprefix(page.endpoint.url).partition("?")[0] for name in loaded}
    assert names >= {f"page/{name}" for name in files}
    assert all(name.startswith((page.endpoint.url, "data:")) for name in loaded)
