"""The pages in a real browser, on the real server with the embedded models.

Playwright drives the Chromium of the system; it downloads none. Without one these tests are skipped.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from service.keys import new_key
from tests.service.test_server import Process, running

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: install it, on Debian with `apt-get install chromium`"
)
MODELS = Path(__file__).parents[2] / "service" / "models"
# Milliseconds; the machine may be busy, and nothing here is about time.
PATIENCE = 30_000
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with running(MODELS, SPARSELANE_MAX_BATCH_TOKENS="256", SPARSELANE_NOTICE_SECONDS="0") as process:
        yield process


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Inside containers Chromium's own sandbox has no user namespaces to use.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A page, what it asked for and what it complained about."""

    def __init__(self, context: BrowserContext, origin: str) -> None:
        self.origin = origin
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else 0)

    def open(self, path: str = "/") -> Page:
        self.page.goto(self.origin + path)
        self.page.locator("#facts div, #reference section").first.wait_for()  # what it has to fetch is there
        return self.page

    def ask(self, task: str, text: str, question: str = "") -> Page:
        page = self.page
        page.locator(f"input[value={task}]").check(force=True)
        if question:
            page.get_by_label("Question", exact=True).last.fill(question)
        page.locator("#text").fill(text)
        page.get_by_role("button", name="Ask").click()
        page.locator("#shown").wait_for()
        return page


@pytest.fixture
def visit(server: Process, browser: Browser) -> Iterator[Visit]:
    context = browser.new_context()
    made = Visit(context, f"http://127.0.0.1:{server.port}")
    yield made
    context.close()


def test_a_question_is_answered_in_its_text(visit: Visit) -> None:
    page = visit.open()
    page.get_by_role("button", name="The mill").click()
    expect(page.locator("#marked mark.best")).to_have_text("1735")
    expect(page.get_by_role("status")).to_contain_text("the best: 1735")
    assert page.locator("#marked").text_content() == page.locator("#text").input_value()
    assert page.locator("#answers li").count() == 3
    facts = page.locator("#facts").inner_text()
    assert all(part in facts for part in ("90.0 %", "5.4 MB", "78.6 (dense 80.6) on squad-v1.1", "1 thread"))
    times = page.locator("#times").inner_text()
    assert all(part in times for part in ("tokens", "wait", "model", "answer", "network", "together", "in 1 window"))
    assert visit.complaints == []


def test_nothing_comes_from_outside(visit: Visit) -> None:
    visit.open()
    visit.open("/docs")
    assert len(visit.requests) >= 9
    assert [url for url in visit.requests if not url.startswith(visit.origin)] == []


def test_labels_have_bars_and_entities_colours(visit: Visit) -> None:
    visit.open()
    page = visit.ask("text-classification", "A warm, funny and deeply moving film.")
    assert page.locator("#answers .what").all_inner_texts() == ["positive", "negative"]
    first, second = (bar.bounding_box() for bar in page.locator(".bar span").all())
    assert first and second and first["width"] > 10 * second["width"]
    page = visit.ask("token-classification", "🎾 Serena Williams beat Naomi Osaka in Melbourne, said Reuters.")
    marks = page.locator("#marked mark")
    assert marks.all_text_contents() == ["Serena Williams", "Naomi Osaka", "Melbourne", "Reuters"]
    groups = [mark.get_attribute("data-group") for mark in marks.all()]
    assert groups == ["PER", "PER", "LOC", "ORG"]
    colours = [mark.evaluate("mark => getComputedStyle(mark).backgroundColor") for mark in marks.all()]
    assert colours[0] == colours[1]
    assert len(set(colours)) == 3


HARD = [
    *("🎉👨‍👩‍👧 x", "e\u0301a\u0308 cafe\u0301", "שלום עולם", "a\r\nb\x00c", "हिन्दी"),
    *("\u202eabc\u202c", "\U0001d518\U0001d52b \U00010348", "\ufeffa\u200bb"),
]


def test_offsets_are_code_points_whatever_the_text(visit: Visit) -> None:
    cases = [(text, a, b) for text in HARD for a in range(len(text)) for b in range(a + 1, len(text) + 1)]
    cut = visit.open().evaluate(
        """async (cases) => {
            const { segments } = await import("/page/page.js");
            return cases.map(([text, start, end]) => segments(text, [{ start, end }])
                .map(([from, to, entry]) => [text.slice(from, to), Boolean(entry)]));
        }""",
        cases,
    )
    for (text, start, end), parts in zip(cases, cut, strict=True):
        assert "".join(part for part, _ in parts) == text
        assert [part for part, marked in parts if marked] == [text[start:end]]


def test_where_answers_overlap_the_better_one_wins(visit: Visit) -> None:
    entries = [{"start": 2, "end": 4}, {"start": 0, "end": 5}, {"start": 4, "end": 4}]
    cut = visit.open().evaluate(
        """async (entries) => (await import("/page/page.js")).segments("abcdefg", entries)
            .map(([start, end, entry]) => [start, end, entries.indexOf(entry)])""",
        entries,
    )
    assert cut == [[0, 2, 1], [2, 4, 0], [4, 5, 1], [5, 7, -1]]


def test_markup_in_a_text_stays_text(visit: Visit) -> None:
    page = visit.open()
    text = "<img src=x onerror='window.broken=1'><script>window.broken=1</script> It was built in 1735 & <b>sold</b>."
    visit.ask("question-answering", text, "<img src=y onerror='window.broken=1'> When was it built?")
    assert page.locator("#marked").text_content() == text
    assert page.locator("#result img, #result script, #marked b").count() == 0
    assert page.evaluate("window.broken") is None
    assert not any(url.endswith(("/x", "/y")) for url in visit.requests)


def test_the_policy_stops_scripts_that_are_not_ours(visit: Visit) -> None:
    page = visit.open()
    refused = page.evaluate(
        """() => { try { document.body.innerHTML = "<p>x"; return ""; } catch (error) { return error.name; } }"""
    )
    assert refused == "TypeError"
    page.evaluate("""() => { const made = document.createElement("script"); made.append("x");
        try { made.text = "window.broken = 1"; } catch { } document.body.append(made); }""")
    assert page.evaluate("window.broken") is None


def test_everything_works_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit.open()
    page.keyboard.press("Tab")  # the link to the reference
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.value") == "text-classification"
    assert page.evaluate("location.hash") == "#text-classification"
    outline = "getComputedStyle(document.activeElement.nextElementSibling).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Tab")  # the model
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.type("A cold meal.")
    page.keyboard.press("Control+Enter")
    page.locator("#shown").wait_for()
    expect(page.get_by_role("status")).to_contain_text("negative")


def test_every_field_has_a_name_for_screen_readers(visit: Visit) -> None:
    page = visit.open()
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, select, textarea, button")]
            .filter((e) => !e.labels?.length && !e.textContent.trim()).map((e) => e.outerHTML)"""
    )
    assert unnamed == []


def test_the_curl_command_gives_the_same_answer(visit: Visit) -> None:
    page = visit.open()
    visit.ask("question-answering", "It's 'quoted' \"so\" $HOME `x` \\ and\nbuilt in 1735 🎉.", "When was it built?")
    command = page.locator("#curl").text_content()
    assert command is not None
    answered = subprocess.run([*shlex.split(command), "-s"], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(answered.stdout) == json.loads(page.locator("#json").text_content() or "")


def test_a_problem_stands_at_its_field(visit: Visit) -> None:
    page = visit.open()
    page.locator("#text").fill("Some text.")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("Invalid request (422)")
    question = page.locator("#question")
    expect(question).to_have_attribute("aria-invalid", "true")
    expect(question).to_be_focused()
    expect(page.locator("#question-wrong")).to_have_text("the question has no words")
    expect(page.locator("#shown")).to_be_hidden()
    visit.ask("question-answering", "It was built in 1735.", "When was it built?")
    expect(page.get_by_role("alert")).to_be_hidden()
    assert question.get_attribute("aria-invalid") is None


def test_a_request_can_be_cancelled_and_the_server_stops_its_work(visit: Visit, server: Process) -> None:
    cancelled = 'sparselane_requests_total{model="qa",outcome="cancelled",task="question-answering"}'
    page = visit.open()
    page.locator("#question").fill("Who was it?")
    page.locator("#text").fill("It was the old miller of the mill. " * 2800)
    # On a busy machine the click may come before the server knows what is asked, which is no model's request yet, or
    # after the answer. It is an event and not a place on the screen: the buttons move when Cancel appears.
    for _ in range(10):
        page.get_by_role("button", name="Ask").click()
        page.locator("#cancel").dispatch_event("click")
        expect(page.get_by_role("button", name="Ask")).to_be_enabled()
        if page.get_by_role("status").text_content() != "Cancelled.":
            continue
        for _ in range(100):
            if server.metric(cancelled):
                return
            page.wait_for_timeout(20)
    pytest.fail("no cancelled request was counted")


def test_a_key_is_sent_named_in_the_command_and_kept_nowhere(visit: Visit) -> None:
    page = visit.open()
    page.get_by_text("API key").click()
    page.locator("#key").fill("secret-key")
    page.locator("#text").fill("x")
    with page.expect_request("**/v1/question-answering") as asked:
        page.keyboard.press("Control+Enter")
    assert asked.value.headers["authorization"] == "Bearer secret-key"
    expect(page.locator("#curl")).to_contain_text('-H "authorization: Bearer $SPARSELANE_KEY"')
    assert "secret-key" not in page.content()
    kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.href]")
    assert kept == [0, 0, "", f"{visit.origin}/"]


def test_a_key_is_asked_for_where_the_server_wants_one(browser: Browser, tmp_path: Path) -> None:
    key, table = new_key("alice")
    (tmp_path / "keys.toml").write_text(table)
    with (
        running(MODELS, SPARSELANE_KEYS_FILE=str(tmp_path / "keys.toml"), SPARSELANE_NOTICE_SECONDS="0") as process,
        browser.new_context() as context,
    ):
        visit = Visit(context, f"http://127.0.0.1:{process.port}")
        page = visit.page
        page.goto(visit.origin)
        page.get_by_role("button", name="The mill").click()
        expect(page.get_by_role("alert")).to_contain_text("Unauthorized (401)")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type(key)
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("#marked mark.best")).to_have_text("1735")
        assert key not in page.content()
        # The browser says itself that an answer was a 401; nothing else is wrong.
        assert all("401" in complaint for complaint in visit.complaints)


# The server of this test has no keys and no load: the answers are what one that has would send.
@pytest.mark.parametrize(
    ("status", "headers", "shown"),
    [(401, {}, "Unauthorized (401)"), (503, {"retry-after": "7"}, "Try again in 7 s."), (502, {}, "<h1>Bad")],
)
def test_other_problems_are_shown(visit: Visit, status: int, headers: dict[str, str], shown: str) -> None:
    problem: dict[str, Any] = {
        "title": "Unauthorized",
        "status": status,
        "detail": "a key is needed",
        "request_id": "r",
    }
    body = "<h1>Bad gateway" if status == 502 else json.dumps(problem)
    page = visit.open()
    page.route("**/v1/question-answering", lambda route: route.fulfill(status=status, headers=headers, body=body))
    page.get_by_role("button", name="The mill").click()
    expect(page.get_by_role("alert")).to_contain_text(shown)
    if status == 401:
        expect(page.locator("#key")).to_be_focused()


def test_a_server_that_is_gone_is_said(visit: Visit) -> None:
    page = visit.open()
    page.route("**/v1/question-answering", lambda route: route.abort("connectionrefused"))
    page.get_by_role("button", name="The mill").click()
    expect(page.get_by_role("alert")).to_contain_text("could not be reached")
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()


CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { const colour = getComputedStyle(e).backgroundColor;
    return numbers(colour)[3] === 0 && e.parentElement ? ground(e.parentElement) : colour; };
  const shown = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
    [...e.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  return shown.map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)];
  }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/", "/docs"])
def test_text_is_readable_in_both_schemes_and_fits_a_phone(
    server: Process, browser: Browser, scheme: Any, path: str
) -> None:
    viewport: Any = {"width": 360, "height": 740}
    with browser.new_context(color_scheme=scheme, viewport=viewport, has_touch=True) as context:
        visit = Visit(context, f"http://127.0.0.1:{server.port}")
        page = visit.open(path)
        if path == "/":
            visit.ask("token-classification", "Angela Merkel visited Siemens in Munich, " + "x" * 200)
        assert page.evaluate(CONTRAST) == []
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 22, 26)"
        assert dark == (scheme == "dark")


def test_the_reference_shows_every_operation_and_schema(visit: Visit, server: Process) -> None:
    page = visit.open("/docs")
    document = server.ask("GET", "/openapi.json")[1]
    shown = page.locator("#reference h2 code").all_inner_texts()
    assert sorted(set(shown)) == sorted(document["paths"])
    names = [
        name.removeprefix("schema-") for name in page.locator("[id^=schema-]").evaluate_all("e => e.map(x => x.id)")
    ]
    assert names == list(document["components"]["schemas"])
    links = page.locator("#reference a[href^='#']").evaluate_all(
        "all => all.map((a) => a.getAttribute('href').slice(1))"
    )
    assert set(links) <= {f"schema-{name}" for name in names}
    for task in ("question-answering", "text-classification", "token-classification"):
        command = page.locator("pre", has_text=f"/v1/{task} ").first.inner_text()
        done = subprocess.run([*shlex.split(command), "-s"], capture_output=True, text=True, check=True, timeout=60)
        assert "results" in json.loads(done.stdout)
    assert visit.complaints == []
