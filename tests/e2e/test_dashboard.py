"""The dashboard in a real browser: signing in, live progress, forms, light and dark, small screens.

Needs Debian's chromium and its driver; skips without. ``EDGE_SHOTS=folder`` keeps the pictures.
"""

import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn
from fleet_sample import add_money, fill, make_sample
from sqlalchemy import text
from starlette.applications import Starlette

from edge_sync.web import routes

webdriver = pytest.importorskip("selenium.webdriver")
errors = pytest.importorskip("selenium.common.exceptions")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="needs chromium and chromedriver (Debian packages)"
)
_WAIT_S = 15.0


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    sample = make_sample(tmp_path_factory.mktemp("dashboard") / "hub", clock=time.time)
    fill(sample)
    add_money(sample.hub)
    app = Starlette(routes=routes(sample.hub))
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield sample, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    sample.hub.close()


@pytest.fixture(scope="module", params=["light", "dark"])
def browser(request, site):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    dark = "0" if request.param == "dark" else "1"
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "window-size=1280,900",
        f"blink-settings=preferredColorScheme={dark}",
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.scheme = request.param
    sample, url = site
    driver.get(url)
    shot(driver, "login")
    find(driver, "#token").send_keys(sample.tokens["admin"])
    find(driver, "button.main").click()
    wait(lambda: find(driver, "h1").text == "Fleet")
    yield driver
    driver.quit()


def wait(holds):
    end = time.monotonic() + _WAIT_S
    while time.monotonic() < end:
        # What is looked at may be replaced just then.
        with suppress(errors.NoSuchElementException, errors.StaleElementReferenceException):
            if holds():
                return
        time.sleep(0.05)
    pytest.fail("The page did not come to what was expected.")


def find(driver, selector):
    return driver.find_element("css selector", selector)


def shot(driver, name):
    folder = os.environ.get("EDGE_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(Path(folder) / f"{name}-{driver.scheme}.png"))


def one(sample, query):
    with sample.hub.store.reading() as connection:
        return connection.execute(text(query)).scalar_one()


def paths(sample):
    device = one(sample, "SELECT min(id) FROM devices")
    rollout = one(sample, "SELECT max(id) FROM rollouts")
    return {
        "fleet": "/",
        "devices": "/devices",
        "device": f"/devices/{device}",
        "policies": "/policies",
        "policy": "/policies/3",
        "new": "/policies/new",
        "rollouts": "/rollouts",
        "rollout": f"/rollouts/{rollout}",
        "budget": "/budget",
        "audit": "/audit",
    }


@pytest.mark.parametrize("width", [1280, 400])
def test_every_page_fits_its_window_and_breaks_no_rule_of_the_browser(site, browser, width):
    sample, url = site
    browser.set_window_size(width, 900)
    browser.get_log("browser")
    for name, path in paths(sample).items():
        browser.get(url + path)
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"{name} is {wide} px wider than its window of {width}"
        shot(browser, f"{name}-{width}")
        assert browser.get_log("browser") == [], name
    browser.set_window_size(1280, 900)


def test_the_page_follows_the_system_in_light_and_dark(site, browser):
    browser.get(site[1])
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    lightness = sum(int(part) for part in back[4:-1].split(",")) / 3
    assert (lightness > 128) is (browser.scheme == "light"), back


def test_text_stands_out_from_what_is_behind_it(site, browser):
    browser.get(site[1] + paths(site[0])["rollout"])
    ratios = browser.execute_script(_CONTRAST)
    assert len(ratios) > 10
    assert min(ratios.values()) >= 4.5, sorted(ratios.items(), key=lambda pair: pair[1])[:5]


def test_progress_comes_without_loading_the_page_again(site, browser):
    sample, url = site
    browser.get(url + paths(sample)["rollout"])
    browser.execute_script("window.same = true")
    before = find(browser, ".wave .counts").text
    revision = one(sample, "SELECT revision FROM rollouts ORDER BY id DESC LIMIT 1")
    other = 2 if browser.scheme == "dark" else revision
    sample.hub.store.write(
        lambda c: c.execute(text("UPDATE devices SET revision = :to"), {"to": other})
    )
    wait(lambda: find(browser, ".wave .counts").text != before)
    assert browser.execute_script("return window.same") is True


def test_what_cannot_be_undone_is_asked_first(site, browser):
    sample, url = site
    browser.get(url + paths(sample)["rollout"])
    find(browser, "button.bad").click()
    question = browser.switch_to.alert
    assert "Abort" in question.text
    question.dismiss()
    assert one(sample, "SELECT state FROM rollouts ORDER BY id DESC LIMIT 1") == "running"


def test_pause_and_resume_by_button(site, browser):
    sample, url = site
    browser.get(url + paths(sample)["rollout"])
    for label, state in (("Pause", "paused"), ("Resume", "running")):
        button = f"//button[normalize-space()='{label}']"
        wait(lambda button=button: browser.find_elements("xpath", button))
        browser.find_element("xpath", button).click()
        wait(lambda state=state: find(browser, "h1 .tag").text == state)


# WCAG 2.2, 1.4.3: contrast of text with the nearest opaque background behind it.
_CONTRAST = """
const light = (rgb) => {
  const [r, g, b] = rgb.map((c) => {
    const s = c / 255;
    return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const parts = (color) => color.match(/[\\d.]+/g).map(Number);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const back = parts(getComputedStyle(at).backgroundColor);
    if (back.length === 3 || back[3] === 1) return back.slice(0, 3);
  }
  return [255, 255, 255];
};
const found = {};
for (const element of document.querySelectorAll("h1, h2, p, a, td, th, button, .tag, .counts")) {
  if (!element.innerText.trim() || element.classList.contains("skip")) continue;
  const [a, b] = [parts(getComputedStyle(element).color), behind(element)].map((c) => light(c));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const name = element.tagName + "." + element.className + ": " + element.innerText.slice(0, 20);
  found[name] = Math.min(found[name] || 99, ratio);
}
return found;
"""
