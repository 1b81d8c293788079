"""The documentation's site: it builds without a warning, every link and anchor leads somewhere, nothing comes from elsewhere.

One build for all tests. Links to other hosts are compared with a list and not followed: the tests have no network. Screenshots
of the browser stay in test-artifacts/site/, for people.
"""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.cluster.machine import ensure_programs
from tests.cluster.paths import REPOSITORY, find_program
from tests.unit.docs_site import DOCS, Content, Site, sources
from website.hooks import with_lists

pytestmark = pytest.mark.slow

ARTIFACTS = REPOSITORY / "test-artifacts" / "site"
DESK, PHONE = (1280, 900), (390, 844)
BACKGROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(30, 34, 41)"}
KNOWN_HOSTS = {"github.com", "huggingface.co", "kueue.sigs.k8s.io", "pypi.org", "squidfunk.github.io"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.build(tmp_path_factory.mktemp("docs") / "site")


def test_it_builds_without_a_warning(site: Site) -> None:
    assert [line for line in site.log.splitlines() if not line.startswith("INFO")] == []
    assert len(site.pages) > len(sources())


def test_every_link_and_every_anchor_leads_somewhere(site: Site) -> None:
    broken = []
    for page, content in site.pages.items():
        for link in content.all_links:
            target = site.target(page, link)
            if target is None:
                continue
            path, anchor = target
            ids = site.pages[path].ids if path in site.pages else []
            if not path.is_file() or (anchor and anchor not in ids):
                broken.append(f"{page.relative_to(site.folder)}: {link}")
    assert broken == []


def test_no_id_is_given_twice_on_a_page(site: Site) -> None:
    twice = {page.name: {name for name in content.ids if content.ids.count(name) > 1} for page, content in site.pages.items()}
    assert {name: ids for name, ids in twice.items() if ids} == {}


def test_every_page_is_in_the_navigation_and_every_file_is_linked_to(site: Site) -> None:
    front = site.folder / "index.html"
    navigation = {target[0] for link in site.pages[front].navigation if (target := site.target(front, link))}
    assert {
        source for source in sources() if site.folder / source.relative_to(DOCS).with_suffix(".html") not in navigation
    } == set()
    linked = {
        target[0] for page, content in site.pages.items() for link in content.all_links if (target := site.target(page, link))
    }
    assert {page.relative_to(site.folder).as_posix() for page in site.pages if page not in linked} == set()


def test_nothing_is_loaded_from_another_host(site: Site) -> None:
    loaded = {(page, address) for page, content in site.pages.items() for address in content.loaded}
    assert {address for _, address in loaded if urlsplit(address).scheme not in ("", "data") or urlsplit(address).netloc} == set()
    found = (site.target(page, address) for page, address in loaded if not address.startswith("data:"))
    assert {str(target[0]) for target in found if target and not target[0].is_file()} == set()
    styles = "\n".join(path.read_text(encoding="utf-8") for path in site.folder.rglob("*.css"))
    assert "@import" not in styles
    assert "url(http" not in styles


def test_links_to_other_hosts_are_known(site: Site) -> None:
    hosts = {urlsplit(link).netloc for content in site.pages.values() for link in content.all_links}
    assert hosts - {""} == KNOWN_HOSTS


@pytest.mark.parametrize("source", sources(), ids=lambda source: source.relative_to(DOCS).as_posix())
def test_a_page_has_the_same_structure_here_and_in_a_repositorys_browser(site: Site, source: Path) -> None:
    markdown = with_lists(source.read_text(encoding="utf-8"), source)
    elsewhere = Content.of(MarkdownIt("commonmark").enable("table").render(markdown))
    assert site.page_of(source).structure == elsewhere.structure


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    ensure_programs({"chromium": "chromium"})
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=str(find_program("chromium")), args=["--no-sandbox"]
        )  # CI's user is root
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(site: Site) -> Iterator[str]:
    """Where the site is served on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site.folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Reader:
    """A window onto the site, with everything that it complained of or asked for."""

    def __init__(self, browser: Browser, size: tuple[int, int] = DESK, scheme: str = "light") -> None:
        viewport = {"width": size[0], "height": size[1]}
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, has_touch=size == PHONE)  # type: ignore[arg-type]
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.origins: set[str] = set()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", lambda request: self.origins.add("{0.scheme}://{0.netloc}".format(urlsplit(request.url))))

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # of a page that was left before its icon had come
            self.complaints.append(f"{request.url}: {request.failure}")

    def close(self) -> None:
        self.context.close()
        assert self.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_it_opens_from_its_folder_on_every_screen_and_fits_it(
    site: Site, browser: Browser, size: tuple[int, int], scheme: str
) -> None:
    reader = Reader(browser, size, scheme)
    for name in ("index", "concepts", "reference", "decisions/0061-reconcile", "files/examples/rewardfljob-eight-gpus.yaml"):
        reader.page.goto((site.folder / f"{name}.html").as_uri())
        expect(reader.page.locator("article h1")).to_be_visible()
        assert reader.page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing has to be scrolled sideways"
        assert reader.page.evaluate("getComputedStyle(document.body).backgroundColor") == BACKGROUNDS[scheme]
        kind = "phone" if size == PHONE else "desk"
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        reader.page.screenshot(path=ARTIFACTS / f"{name.replace('/', '-')}-{kind}-{scheme}.png")
    assert reader.origins <= {"file://", "data://"}
    reader.close()


@pytest.mark.parametrize("how", ["folder", "server"])
def test_its_search_works_without_a_network(site: Site, browser: Browser, address: str, how: str) -> None:
    reader = Reader(browser)
    root = site.folder.as_uri() if how == "folder" else address
    reader.page.goto(f"{root}/benchmarks/index.html")
    reader.page.keyboard.press("/")
    reader.page.keyboard.type("goodput")
    result = reader.page.locator(".md-search-result__link").first
    expect(result).to_be_visible()
    result.click()
    reader.page.wait_for_url(re.compile(r"/(report|concepts)\.html"))
    expect(reader.page.locator("article", has_text=re.compile("goodput", re.IGNORECASE))).to_be_visible()
    assert reader.origins <= {"file://", "data://", "about://", address}
    reader.close()


def test_light_and_dark_can_be_switched_and_last(site: Site, browser: Browser, address: str) -> None:
    reader = Reader(browser)
    reader.page.goto(f"{address}/start.html")
    reader.page.locator("label[title=Dark]").click()
    for _ in range(2):
        assert reader.page.evaluate("getComputedStyle(document.body).backgroundColor") == BACKGROUNDS["dark"]
        reader.page.goto(f"{address}/concepts.html")
    reader.close()
