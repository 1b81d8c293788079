"""The report in a real browser, headless Chromium without a network: it renders, plays in step, and runs nothing foreign.

Screenshots stay in test-artifacts/report/, for people.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rewardfl_trainer.report import command
from tests.cluster.machine import ensure_programs
from tests.cluster.paths import find_program
from tests.unit.report_runs import FRAMES, HEIGHT, HOSTILE, WIDTH, box, write_run

pytestmark = pytest.mark.slow

ARTIFACTS = Path(__file__).parents[2] / "test-artifacts" / "report"
PATIENCE_SECONDS = 60.0
DESK, PHONE = (1280, 900), (390, 844)
LOADED = "[...document.querySelectorAll('video')].every(video => video.readyState >= 2 && !video.seeking)"
PICTURE = """() => [...document.querySelectorAll('video')].every(video => {
    const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
    const brush = canvas.getContext('2d');
    brush.drawImage(video, 0, 0, 1, 1);
    return Math.max(...brush.getImageData(0, 0, 1, 1).data.slice(0, 3)) > 30;
})"""
"""Every video shows something other than black."""
TIMES = "[...document.querySelectorAll('video')].map(video => video.currentTime)"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run, and one of two."""
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / "one"), write_run(folder / "two", name="higher-rate", gain=0.35, learning_rate=3e-4)]
    made = {"run": folder / "run.html", "compared": folder / "compared.html"}
    command.run([str(runs[0])], made["run"])
    command.run([str(run) for run in runs], made["compared"])
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    ensure_programs({"chromium": "chromium"})
    with sync_playwright() as playwright:
        program = str(find_program("chromium"))
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])  # CI's user is root
        yield started
        started.close()


@dataclass
class Shown:
    """A page in a window, with everything that it complained of or asked for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def watch(self) -> None:
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url.split(":", 1)[0]))

    def shot(self, name: str) -> None:
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        width, height = self.page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
        self.page.set_viewport_size({"width": width, "height": height})
        until(self.page, PICTURE)
        self.page.screenshot(path=ARTIFACTS / f"{name}.png")

    def readings(self) -> list[str]:
        return self.page.locator(".reading").all_inner_texts()


def until(page: Page, condition: str) -> None:
    """Wait until a condition holds on the page. (Playwright's own wait evaluates text there, which the page's policy forbids.)"""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {condition}"
        page.wait_for_timeout(20)


Show = Callable[..., Shown]


@pytest.fixture
def show(browser: Browser, pages: dict[str, Path]) -> Iterator[Show]:
    """Return a function that opens a page in a window of its own; at the end nothing may have gone wrong in any."""
    opened: list[Shown] = []

    def open_page(name: str = "run", size: tuple[int, int] = DESK, scheme: Any = "light") -> Shown:
        viewport: Any = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True, has_touch=size == PHONE)
        shown = Shown(context.new_page())
        shown.watch()
        shown.page.goto(pages[name].as_uri())
        until(shown.page, LOADED)
        opened.append(shown)
        return shown

    yield open_page
    for shown in opened:
        assert shown.complaints == []
        assert set(shown.requests) <= {"file", "blob", "data"}
        shown.page.context.close()


@pytest.mark.parametrize(
    ("name", "size", "scheme"),
    [
        ("run", DESK, "light"),
        ("run", DESK, "dark"),
        ("run", PHONE, "light"),
        ("compared", DESK, "light"),
        ("compared", PHONE, "dark"),
    ],
)
def test_a_page_renders_on_every_screen_and_fits_it(show: Show, name: str, size: tuple[int, int], scheme: str) -> None:
    shown = show(name, size, scheme)
    page = shown.page
    charts = page.locator(".plot")
    assert charts.count() >= 6
    for chart in charts.all():
        assert chart.locator("svg .scatterlayer path.js-line, svg .scatterlayer path.point").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing has to be scrolled sideways"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(245, 246, 248)" if scheme == "light" else "rgb(15, 18, 22)")
    sizes = page.evaluate("[...document.querySelectorAll('video')].map(video => [video.videoWidth, video.videoHeight])")
    assert sizes == [[WIDTH, HEIGHT]] * (8 if name == "run" else 12)
    if name == "run":
        assert page.locator(".card .change").first.inner_text() == "+0.100 over 3 noises"
    shown.shot(f"{name}-{'phone' if size == PHONE else 'desk'}-{scheme}")


def test_space_plays_all_videos_in_step_again_and_again_and_pauses_them(show: Show) -> None:
    shown = show(size=(1280, 2400))
    page = shown.page
    page.keyboard.press("Space")
    expect(page.locator("#play-label")).to_contain_text("Pause")
    page.evaluate("""() => {
        window.seen = [];
        const videos = [...document.querySelectorAll('video')];
        const look = () => { window.seen.push(videos.map(video => video.currentTime)); requestAnimationFrame(look); };
        look();
    }""")
    until(page, "window.seen.filter((times, at) => at && times[0] < window.seen[at - 1][0]).length >= 2")
    seen: list[list[float]] = page.evaluate("window.seen")
    apart = sorted(max(times) - min(times) for times in seen)
    assert apart[len(apart) // 2] <= 2 / 16, "they are at the same frame, give or take one"
    page.keyboard.press("Space")
    until(page, f"{LOADED} && [...document.querySelectorAll('video')].every(video => video.paused)")
    times = page.evaluate(TIMES)
    assert max(times) == pytest.approx(min(times)), "paused, all show the same frame"


def test_arrows_go_frame_by_frame_with_the_score_and_the_face_of_each(show: Show) -> None:
    shown = show()
    page = shown.page
    page.keyboard.press("b")
    for number in (2, 3):
        page.keyboard.press("ArrowRight")
        until(page, LOADED)
        assert page.evaluate(TIMES) == pytest.approx([(number - 0.5) / 16] * 8)
    readings = shown.readings()
    assert all(reading.startswith("frame 3: 0.") for reading in readings)
    frame, face = page.locator(".screen").first.bounding_box(), page.locator(".box").first.bounding_box()
    assert frame is not None
    assert face is not None
    left, top, right, bottom = box(2)
    scale = frame["width"] / WIDTH
    assert face["x"] - frame["x"] == pytest.approx(left * scale, abs=1)
    assert face["y"] - frame["y"] == pytest.approx(top * scale, abs=1)
    assert face["width"] == pytest.approx((right - left) * scale, abs=1)
    assert face["height"] == pytest.approx((bottom - top) * scale, abs=1)
    shown.shot("run-desk-faces")
    page.keyboard.press("ArrowRight")
    faceless = [reading for reading in shown.readings() if reading == "frame 4: no face"]
    assert len(faceless) == 2, "before and after, of the row whose frame has none"
    assert page.locator(".box:visible").count() == 6
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    assert shown.readings()[0].startswith(f"frame {FRAMES}"), "before the first frame comes the last"


def test_the_focus_is_seen_and_the_theme_can_be_switched_and_lasts_in_the_charts(show: Show) -> None:
    page = show().page
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"
    until(page, "document.querySelector('.plot').layout.font.color === '#98a2b3'")
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)"
    until(page, "document.querySelector('.plot').layout.font.color === '#626b7a'")


def test_names_from_the_dataset_are_text_and_the_policy_forbids_other_scripts_and_every_request(show: Show) -> None:
    shown = show()
    page = shown.page
    assert page.locator(".prompt", has_text="window.hacked").first.inner_text().startswith("<script>window.hacked = 1</script>")
    assert page.locator(".prompt").evaluate_all("all => all.map(one => one.title)").count(HOSTILE) == 1
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.locator("img").count() == 0
    assert page.get_by_text("s3://data/<b>faces</b>/").count() == 1
    page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 1';
        document.body.append(script);
    }""")
    assert page.evaluate("typeof window.hacked") == "undefined"
    refused = page.evaluate("fetch('https://example.com/').then(() => '', error => String(error))")
    assert refused.startswith("TypeError")
    assert len([text for text in shown.complaints if "Content Security Policy" in text]) >= 2
    shown.complaints.clear()


def test_a_comparison_names_what_differs_and_shows_each_row_of_all_runs(show: Show) -> None:
    page = show("compared").page
    table = page.locator("#parameters table")
    assert [cell.strip() for cell in table.locator("tbody th").all_inner_texts()] == ["learning_rate"]
    assert table.locator("tbody td").all_inner_texts() == ["0.0001", "0.0003"]
    assert page.locator(".card[data-card]").count() == 4
    captions = page.locator(".card[data-card]").first.locator("figcaption").all_inner_texts()
    assert [caption.split("\n")[0].strip() for caption in captions] == [
        "before",
        "A: face-identity",
        "B: higher-rate",
    ]
    lines = page.locator("[data-chart='held_out']").evaluate(
        "chart => chart.data.filter(line => line.showlegend !== false).length"
    )
    assert lines == 2
