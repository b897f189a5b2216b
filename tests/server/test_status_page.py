"""The status page in a real, headless browser."""

import os
import shutil

import pytest
from running_server import wait_for

BODY = {"prompt": "ab" * 40, "max_tokens": 20, "ignore_eos": True}
BINARIES = [
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
]


@pytest.fixture
def browser(tmp_path):
    if None in BINARIES:
        pytest.skip("no headless browser: install Debian's chromium and chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BINARIES[0]
    for argument in ("headless=new", "disable-gpu", "disable-dev-shm-usage", "no-proxy-server"):
        options.add_argument(f"--{argument}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses root with one
    options.add_argument(f"--user-data-dir={tmp_path}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(BINARIES[1]))
    yield driver
    driver.quit()


def numbers(browser, panel):
    """What a panel shows now, by its series' names."""
    keys = browser.find_elements("css selector", f"#{panel} .key")
    return {key.text.rpartition(" ")[0]: key.text.rpartition(" ")[2] for key in keys}


def test_the_page_draws_the_metrics(browser, server, client):
    browser.get(f"{server.url}/status")
    state = browser.find_element("id", "state")
    wait_for(lambda: state.text == "live")
    engine = browser.find_element("id", "engine").text
    for word in ("tiny", "tp 1", "cpu", "all-reduce: none"):
        assert word in engine
    assert numbers(browser, "slots") == {"used": "0.00", "all": "4.00"}
    memory = browser.find_element("css selector", "#memory table").text
    assert "rank weights state kv" in memory
    assert float(memory.splitlines()[1].split()[1]) > 0

    for _ in range(2):
        assert client.post("/v1/completions", json=BODY).status_code == 200

    def lines(panel):
        found = browser.find_elements("css selector", f"#{panel} polyline")
        return [line.get_attribute("points").split() for line in found]

    # The next samples see the tokens; every panel then has a point per sample.
    wait_for(lambda: any(y_of(point) < 90 for point in lines("throughput")[0]))
    assert any(y_of(point) < 90 for point in lines("latency")[0])
    assert len(lines("queue")[0]) >= 2
    requested = browser.execute_script(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert set(requested) == {f"{server.url}/metrics"}
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def y_of(point):
    """0 at the top of a plot, 98 at its bottom."""
    return float(point.split(",")[1])


def test_the_page_says_when_the_server_is_gone(browser, server):
    browser.get(f"{server.url}/status")
    wait_for(lambda: browser.find_element("id", "state").text == "live")
    browser.execute_script("window.fetch = () => Promise.reject(new Error('gone'))")
    wait_for(lambda: "no answer (gone)" in browser.find_element("id", "state").text)
