"""A real browser without a window, driven through its own protocol over two pipes: nothing but the browser is needed."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60
QUIET = ["--headless", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]


def executable():
    """The path of a Chromium; None where there is none."""
    return os.environ.get("CHROME") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page at a time, offline; `problems` are errors and warnings of its console, `requests` all that it asked for."""

    def __enter__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (theirs_in, self.write), (self.read, theirs_out) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]

        def third_and_fourth():
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        words = [executable(), *QUIET, *sandbox, f"--user-data-dir={self.profile.name}", "--remote-debugging-pipe"]
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(words, pass_fds=(3, 4), preexec_fn=third_and_fourth, **streams)
        for end in (*ends, theirs_in, theirs_out):
            os.close(end)
        self.count, self.left, self.events, self.session = 0, b"", [], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.ask("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self.read)
        os.close(self.write)
        self.profile.cleanup()

    def ask(self, method, **parameters):
        """The answer to a request of the protocol."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        os.write(self.write, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while (answer := self.next()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def next(self):
        """The next message of the browser."""
        end = time.monotonic() + SECONDS
        while b"\0" not in self.left:
            assert select.select([self.read], [], [], max(0, end - time.monotonic()))[0], "the browser does not answer"
            more = os.read(self.read, 1 << 16)
            assert more, "the browser has ended"
            self.left += more
        message, _, self.left = self.left.partition(b"\0")
        return json.loads(message)

    def open(self, path, width=1100):
        """Show a file, and wait until it and its pictures are there."""
        self.events = []
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.next())

    def run(self, expression):
        """The value of an expression on the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, selector="html"):
        """An element, by default the page from top to bottom, as PNG."""
        box = f"JSON.stringify(document.querySelector({selector!r}).getBoundingClientRect())"
        place = {name: value for name, value in json.loads(self.run(box)).items() if name in ("x", "y", "width", "height")}
        place["y"] += self.run("window.scrollY")
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip={**place, "scale": 1})["data"])

    @property
    def problems(self):
        self.run("0")  # what was said before is there now
        thrown = [e["params"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        said = [e["params"] for e in self.events if e["method"] == "Runtime.consoleAPICalled"]
        logged = [e["params"]["entry"] for e in self.events if e["method"] == "Log.entryAdded"]
        return thrown + [p for p in said if p["type"] in ("error", "warning", "assert")] + [e for e in logged if e["level"] != "verbose"]

    @property
    def requests(self):
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
