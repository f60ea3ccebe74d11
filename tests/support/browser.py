"""A headless Chromium, driven over the WebDriver protocol by Python's own HTTP client."""

import base64
import json
import os
import shutil
import urllib.error
import urllib.request

from support import harness, ports

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = None if DRIVER and BROWSER else "apt install chromium chromium-driver"
# High enough that TensorBoard draws all its cards: it leaves out those below the window.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1280,6000"),
)

# Text and elements of pages that keep parts of themselves in shadow trees.
_DEEP = """
const all = (root) => [...root.querySelectorAll('*')].flatMap(
  (element) => [element, ...(element.shadowRoot ? all(element.shadowRoot) : [])]);
"""


class Browser:
    """One page; a context manager."""

    def __enter__(self):
        port = ports.free()
        self._driver = harness.Process(
            [DRIVER, f"--port={port}"],
            environment={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        )
        self._address = f"http://127.0.0.1:{port}"
        capabilities = {"goog:chromeOptions": {"binary": BROWSER, "args": FLAGS}}
        answer = eventually(
            lambda: self._call("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}}),
            self._driver.said,
        )
        self._address += f"/session/{answer['sessionId']}"
        return self

    def __exit__(self, *_):
        try:
            self._call("DELETE", "")
        finally:
            self._driver.__exit__()

    def open(self, address):
        self._call("POST", "/url", {"url": address})

    def run(self, script, *arguments):
        """What a JavaScript function body returns; `all(root)` lists elements, however deep."""
        body = {"script": _DEEP + script, "args": arguments}
        return self._call("POST", "/execute/sync", body)

    def text(self):
        """All the text that the page shows."""
        return self.run(
            "return all(document).filter((e) => e.checkVisibility()).flatMap((e) =>"
            " [...e.childNodes].filter((n) => n.nodeType == 3).map((n) => n.textContent.trim()))"
            ".filter(Boolean).join('\\n');"
        )

    def click(self, text):
        """Clicks the first visible element that shows just this text."""
        clicked = self.run(
            "const found = all(document).filter((e) => e.checkVisibility() && [...e.childNodes]"
            ".some((n) => n.nodeType == 3 && n.textContent.trim() == arguments[0]))[0];"
            "if (found) found.click(); return Boolean(found);",
            text,
        )
        assert clicked, f"nothing says {text!r}:\n{self.text()}"

    def screenshot(self):
        """PNG of the window."""
        return base64.b64decode(self._call("GET", "/screenshot"))

    def _call(self, method, path, body=None):
        request = urllib.request.Request(
            self._address + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None


def eventually(attempt, what):
    """Waits for what `attempt` gives, which may fail until then."""
    return harness.wait_until(attempt, what, errors=(OSError, AssertionError))
