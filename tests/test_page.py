"""The page of `predictions serve` in a real Chromium, used by keyboard."""

import shutil
import sqlite3
from contextlib import closing

import pytest
from conftest import make_orders
from playwright.sync_api import expect, sync_playwright
from services import service

pytestmark = pytest.mark.cluster

TOKEN = "a-token-of-many-characters"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CONTRAST = """() => {
    const light = (css) => {
        const [r, g, b] = css.match(/[\\d.]+/g).map((n) => n / 255)
            .map((n) => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const paper = light(getComputedStyle(document.body).backgroundColor);
    const ratios = {};
    for (const name of ["h1", "label", "#status", "#meaning", "#prediction", "dt", "th", "td", "#problem"]) {
        ratios[name] = ratio(light(getComputedStyle(document.querySelector(name)).color), paper);
    }
    const button = getComputedStyle(document.querySelector("button"));
    ratios.button = ratio(light(button.color), light(button.backgroundColor));
    return ratios;
}"""
NASTY = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert program, "Chromium is not installed: apt-get install chromium (./quickstart test does it)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page; the test fails if the browser reports an error."""
    page = browser.new_page()
    browser_errors = []
    page.on("pageerror", lambda error: browser_errors.append(str(error)))
    page.on("console", lambda message: browser_errors.append(message.text) if message.type == "error" else None)
    yield page
    page.close()
    # Some tests are about a response of 401, or about a service that does not answer.
    assert [text for text in browser_errors if not text.startswith("Failed to load resource")] == []


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """The orders, with two that are new and one that has changed since they were scored."""
    path = make_orders(tmp_path_factory.mktemp("page")) / "orders.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO orders (id, country, note) VALUES (?, ?, ?)", (NASTY, NASTY, NASTY))
        connection.execute("UPDATE orders SET amount = -1 WHERE id = 'order-399'")
        row = ("large", 9007199254740995, 1.0)
        connection.execute("INSERT INTO orders (id, items, amount) VALUES (?, ?, ?)", row)
    return path


@pytest.fixture(scope="module")
def running(served, database):
    with service(served.path, database.parent, PREDICTIONS_DATABASE_URL=f"sqlite:///{database}") as running:
        yield running


def look_up(page, record_id):
    """Look a record up without a mouse: the field has the focus, and its old text is selected."""
    page.keyboard.type(record_id)
    page.keyboard.press("Enter")
    expect(page.locator("#answer-id")).to_have_text(record_id)


def test_a_record_is_looked_up_by_keyboard_and_shown_next_to_its_prediction(page, running, served):
    page.goto(running.url)
    expect(page.get_by_label("Record ID")).to_be_focused()
    (answer,) = served.get("order-001")
    look_up(page, "order-001")
    expect(page.locator("#status")).to_have_text("fresh")
    expect(page.locator("#prediction")).to_contain_text(f"{answer['prediction']} with probability")
    expect(page.locator("#facts")).to_contain_text(answer["release"])
    expect(page.locator("#facts")).to_contain_text("ago")
    for name, value in answer["record"].items():
        expect(page.locator("#record")).to_contain_text(f"{name}{'–' if value is None else value}")
    look_up(page, "order-399")
    expect(page.locator("#status")).to_have_text("changed")
    look_up(page, "no-order")
    expect(page.locator("#status")).to_have_text("missing")
    expect(page.locator("#prediction")).to_have_text("–")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Look up")).to_be_focused()


def test_an_address_is_a_link_to_an_answer_and_back_goes_back(page, running):
    page.goto(f"{running.url}/#order-001")
    expect(page.locator("#answer-id")).to_have_text("order-001")
    look_up(page, "order-002")
    page.go_back()
    expect(page.locator("#answer-id")).to_have_text("order-001")
    expect(page.get_by_label("Record ID")).to_have_value("order-001")
    page.goto(running.url)
    look_up(page, "order-001")
    page.go_back()
    expect(page.locator("#answer")).to_be_hidden()
    page.goto(f"{running.url}/#a%0Ab")  # the field itself cannot hold a line feed
    expect(page.locator("#answer-id")).to_have_text("a\nb", use_inner_text=False)


def test_numbers_are_shown_as_they_are_in_the_database(page, running):
    page.goto(running.url)
    look_up(page, "large")
    expect(page.locator("#record")).to_contain_text("items9007199254740995")
    expect(page.locator("#record")).to_contain_text("amount1.0")


def test_fields_are_shown_as_text_and_never_as_html(page, running):
    page.goto(running.url)
    look_up(page, NASTY)
    expect(page.locator("#status")).to_have_text("unscored")
    expect(page.locator("#record")).to_contain_text(NASTY)
    assert page.locator("main img").count() == 0
    assert page.title() == f"Predictions: {page.locator('#name').inner_text().partition(': ')[2]}"


def test_the_releases_with_state_and_distribution(page, running, served):
    page.goto(running.url)
    row = page.locator("#releases tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text(served.storage.release().release)
    expect(row).to_contain_text("current, loaded")
    figure = row.get_by_role("img")
    assert figure.get_attribute("aria-label").startswith("scores from 0 to 1, mean 0.")
    assert figure.locator("rect").count() > 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_enough_contrast(browser, running, scheme):
    """At least 4.5 to 1 (WCAG 2.2, 1.4.3), in each colour of a status."""
    page = browser.new_page(color_scheme=scheme)
    page.goto(running.url)
    expect(page.locator("#releases tr")).to_have_count(1)  # the releases come with a request of their own
    for record_id, status in (("order-001", "fresh"), ("order-399", "changed"), ("no-order", "missing")):
        look_up(page, record_id)
        expect(page.locator("#status")).to_have_text(status)
        ratios = page.evaluate(CONTRAST)
        assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}
    page.close()


def test_a_service_with_a_token_asks_for_it(page, served, tmp_path):
    with service(served.path, tmp_path, PREDICTIONS_TOKEN=TOKEN) as running:
        page.goto(running.url)
        expect(page.get_by_label("Token of this service")).to_be_focused()
        page.keyboard.type("日本")
        page.keyboard.press("Enter")
        expect(page.locator("#problem")).to_contain_text("ASCII characters only")
        page.keyboard.type("another")
        page.keyboard.press("Enter")
        expect(page.locator("#problem")).to_be_empty()
        expect(page.get_by_label("Token of this service")).to_be_focused()
        expect(page.locator("#releases-problem")).to_contain_text("send the token")
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#releases tr")).to_have_count(1)
        expect(page.get_by_label("Record ID")).to_be_focused()
        look_up(page, "order-001")
        expect(page.locator("#status")).to_have_text("fresh")


def test_the_page_says_that_the_service_does_not_answer(page, served, tmp_path):
    with service(served.path, tmp_path) as running:
        page.goto(running.url)
        look_up(page, "order-001")
    page.keyboard.type("order-002")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").first).to_have_text("The service does not answer.")
    expect(page.locator("#answer")).to_be_hidden()
