"""Real browsers for the tests of widgets: servers for JupyterLab, Notebook and Voilà, what a page complains of, and
hands for widgets.
"""

import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from commands import free_port

WAIT = 60  # seconds, for what takes one second where nothing else runs
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
OUTPUT = ".jp-OutputArea-output:has(.jupyter-widgets)"

# in Voilà's own template; answered here, so that nothing leaves
VOILA_FONTS = re.compile(r"https://cdn\.jsdelivr\.net/npm/@fortawesome/.*\.css")

# Errors of a page that say nothing about what is tested in it: what they match, and why they are harmless.
HARMLESS = {
    r"Could not restore the debugger state": "JupyterLab's debugger asks the kernel that is being restarted",
    r"reading 'schema'\)\s+at \S*/static/notebook/": "Notebook's shortcuts hear of settings that are not there yet",
    r"/voila/labextensions/@jupyter-notebook/lab-extension/": "Voilà loads Notebook's extension where both are "
    "installed, and has no place for it",
}


# Chromium


def chromium():
    "The path of Chromium; installed with apt-get where that is possible, else the test is skipped."
    names = ("chromium", "chromium-browser", "google-chrome")
    find = lambda: os.environ.get("POLCA_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    command = "apt-get update && apt-get install -y -qq chromium"
    if not find() and shutil.which("apt-get") and Path("/etc/debian_version").exists() and os.geteuid() == 0:
        subprocess.run(
            command, shell=True, stdout=subprocess.DEVNULL, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        )
    return find() or pytest.skip(f"no Chromium: `{command}`, or its path in POLCA_CHROMIUM")


@contextlib.contextmanager
def open_browser():
    "A headless Chromium that can reach 127.0.0.1 only."
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: `pip install playwright`")
    path = chromium()
    with playwright.sync_playwright() as p:
        playwright.expect.set_options(timeout=WAIT * 1000)
        browser = p.chromium.launch(executable_path=path, args=ARGS, headless=True)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def open_page(browser, width=1280, height=900):
    "A page with a profile of its own; `page.log` is its `Log`."
    context = browser.new_context(viewport={"width": width, "height": height})
    context.set_default_timeout(WAIT * 1000)
    page = context.new_page()
    page.log = Log(page)
    try:
        yield page
    finally:
        context.close()


# Notebooks and servers


def write_notebook(path, *cells):
    "Writes a notebook of code cells for the kernel `python3`."
    import nbformat

    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    new = nbformat.v4.new_notebook(
        metadata={"kernelspec": kernel}, cells=[nbformat.v4.new_code_cell(c.strip()) for c in cells]
    )
    nbformat.write(new, path)
    return Path(path)


class Server:
    "A server that runs: its `url`, and what it and its kernels wrote (`output()`)."

    def __init__(self, url, log, pid):
        self.url = url
        self.log = Path(log)
        self.pid = pid

    def output(self):
        return self.log.read_text(errors="replace")

    def request(self, path, method="GET", data=None):
        "What its REST API answers."
        body = None if data is None else json.dumps(data).encode()
        asked = urllib.request.Request(
            f"{self.url}/{path}", data=body, method=method, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=WAIT) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def restart_kernels(self):
        "Restarts its kernels without the page's doing (JupyterLab and Notebook only)."
        for kernel in self.request("api/kernels"):
            self.request(f"api/kernels/{kernel['id']}/restart", "POST", {})

    def kill_kernels(self):
        "Kills its kernels, as when memory runs out: the server starts them again."
        import psutil

        for process in psutil.Process(self.pid).children(recursive=True):
            if "ipykernel_launcher" in process.cmdline():
                process.kill()

    def end_sessions(self):
        "Shuts its kernels down: a notebook opened next gets a new one."
        for session in self.request("api/sessions"):
            self.request(f"api/sessions/{session['id']}", "DELETE")


def environment(home):
    "The environment of a server and its kernels: nothing of the user's, one thread."
    jupyter = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    folders = {name: str(home / folder) for name, folder in jupyter.items()}
    for folder in folders.values():
        Path(folder).mkdir(parents=True, exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return {**kept, **folders, "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=WAIT).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def serve(module, arguments, config, home, folder):
    "Runs `python -m module` in `folder` until it answers; at the end it and its kernels are stopped."
    home = Path(home)
    env = environment(home)
    log = home / "server.log"
    port = free_port()
    (home / "config" / "jupyter_config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", module, *map(str, arguments), f"--port={port}", "--no-browser"]
    with open(log, "w") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}", log, process.pid)
    end = time.time() + 2 * WAIT
    try:
        while not answers(f"{server.url}/api"):
            assert process.poll() is None and time.time() < end, f"{module} does not answer:\n{server.output()[-3000:]}"
            time.sleep(0.1)
        yield server
    finally:
        stop(process)


def stop(process):
    "Ends a server in the way in which it shuts down its kernels; kernels also end by themselves where it is killed."
    for end in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, end)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)


def jupyter_config(folder):
    # for the menu's commands and the state of the kernel
    app = {
        "news_url": None,
        "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "extension_manager": "readonly",
        "expose_app_in_browser": True,
    }
    server = {"ip": "127.0.0.1", "root_dir": str(folder), "allow_root": True, "disable_check_xsrf": True}
    return {
        "ServerApp": server,
        "IdentityProvider": {"token": ""},
        "LabApp": app,
        "JupyterNotebookApp": {"expose_app_in_browser": True},
    }


def jupyter_lab(folder, home):
    "JupyterLab for the notebooks in `folder`; settings and all else that it writes go to `home`."
    return serve("jupyterlab", [], jupyter_config(folder), home, folder)


def jupyter_notebook(folder, home):
    "Notebook 7, as `jupyter_lab`; skipped where it is not installed."
    pytest.importorskip("notebook", minversion="7", reason="no Notebook: `pip install notebook`")
    return serve("notebook", [], jupyter_config(folder), home, folder)


def voila(notebook, home):
    "Voilà for one notebook."
    pytest.importorskip("voila", reason="no Voilà: `pip install voila`")
    options = ["--Voila.ip=127.0.0.1", "--show_tracebacks=True", "--VoilaConfiguration.allow_theme_override=YES"]
    return serve("voila", [Path(notebook).name, *options], {}, home, Path(notebook).parent)


# Opening notebooks

PANEL = "window.jupyterapp?.shell?.currentWidget"
IDLE = f"() => {PANEL}?.sessionContext?.isReady && {PANEL}.sessionContext.session?.kernel?.status === 'idle'"


def set_settings(server, theme):
    "The theme, and no questions or news."
    settings = {
        "themes": {"theme": f"JupyterLab {theme.title()}", "adaptive-theme": False},
        "notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    }
    for name, values in settings.items():
        server.request(f"lab/api/settings/@jupyterlab/apputils-extension:{name}", "PUT", {"raw": json.dumps(values)})


def run_all(page, timeout=WAIT):
    """Runs all cells of the open notebook by the menu's command, once its kernel is ready, and waits until they are
    done.
    """
    page.wait_for_function(IDLE, timeout=timeout * 1000)
    command = "window.jupyterapp.commands.execute('notebook:run-all-cells')"
    page.evaluate(f"() => {{ window.ranAll = false; {command}.finally(() => {{ window.ranAll = true }}) }}")
    page.wait_for_function("() => window.ranAll", timeout=timeout * 1000)


def output(page, number=0):
    "An output with widgets, the first one: what is looked for in it is not found in the source above it."
    return page.locator(OUTPUT).nth(number)


def open_in(page, server, address, theme, new_kernel, timeout):
    if new_kernel:
        server.end_sessions()
    set_settings(server, theme)
    page.goto(f"{server.url}/{address}")
    run_all(page, timeout)
    output(page).wait_for()
    settle(page)


def open_lab(page, server, notebook, theme="light", new_kernel=True, timeout=WAIT):
    """Opens a notebook of the server's folder in JupyterLab, alone, and runs it: with a new kernel, or with the one
    that it had when it was last open, which has imported what it needs.
    """
    open_in(page, server, f"doc/tree/{quote(str(notebook))}?reset", theme, new_kernel, timeout)


def open_notebook(page, server, notebook, theme="light", new_kernel=True, timeout=WAIT):
    "As `open_lab`, in Notebook 7."
    open_in(page, server, f"notebooks/{quote(str(notebook))}", theme, new_kernel, timeout)


def open_voila(page, server, theme="light", timeout=WAIT):
    "Opens the notebook of a Voilà server; Voilà starts a new kernel for each page."
    page.route(VOILA_FONTS, lambda route: route.fulfill(status=200, content_type="text/css", body=""))
    page.goto(f"{server.url}/?theme={theme}", timeout=timeout * 1000)
    output(page).wait_for()
    settle(page)


# What went wrong


def messages(frame):
    """The parts of a kernel message as a websocket carries it: channel, header, parent header, metadata, content; none
    of them where it is another.
    """
    if isinstance(frame, str):
        return []
    numbers = [
        int.from_bytes(frame[i : i + 8], "little") for i in range(0, 8 * (1 + int.from_bytes(frame[:8], "little")), 8)
    ]
    return [frame[a:b] for a, b in zip(numbers[1:], numbers[2:])][:5]


class Log:
    "What a page, its kernel and the network complained of since the page was made."

    def __init__(self, page):
        self.console = []
        self.errors = []
        self.outside = []
        self.failed = []
        self.kernel = []
        self.pending = set()
        self.last = time.time()
        page.on("console", self.on_console)
        page.on("pageerror", lambda e: self.add(self.errors, e.stack or e.message))
        page.on("request", lambda r: self.on_address(r.url))
        page.on("requestfailed", self.on_failed)
        page.on("response", lambda r: r.status >= 400 and self.failed.append(f"{r.url}: {r.status}"))
        page.on("websocket", self.on_websocket)

    def add(self, found, text):
        if not any(re.search(harmless, text) for harmless in HARMLESS):
            found.append(text)

    def on_console(self, message):
        if message.type == "error":
            self.add(self.console, f"{message.text} ({message.location.get('url', '')})")

    def on_address(self, address):
        parts = urlsplit(address)
        away = parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1"
        if away and not VOILA_FONTS.fullmatch(address):
            self.outside.append(address)

    def on_failed(self, request):
        if request.failure != "net::ERR_ABORTED":
            self.failed.append(f"{request.url}: {request.failure}")  # aborted: the page was left

    def on_websocket(self, socket):
        self.on_address(socket.url)
        socket.on("framesent", self.on_sent)
        socket.on("framereceived", self.on_received)

    def on_sent(self, frame):
        self.last = time.time()
        if parts := messages(frame):
            header = json.loads(parts[1])
            if header["msg_type"] in ("comm_msg", "execute_request"):
                self.pending.add(header["msg_id"])

    def on_received(self, frame):
        self.last = time.time()
        if not (parts := messages(frame)):
            return
        kind = json.loads(parts[1])["msg_type"]
        parent = json.loads(parts[2]).get("msg_id")
        content = json.loads(parts[4]) if kind in ("status", "error", "stream") else {}
        if kind == "error":
            self.kernel.append(re.sub(r"\x1b\[[\d;]*m", "", "\n".join(content["traceback"])) or content["evalue"])
        if kind == "stream" and "Traceback" in content["text"]:
            self.kernel.append(content["text"])
        if content.get("execution_state") == "idle":
            self.pending.discard(parent)
        if content.get("execution_state") in ("starting", "restarting"):
            self.pending.clear()

    def clear(self):
        for found in (self.console, self.errors, self.outside, self.failed, self.kernel):
            found.clear()


def settle(page, quiet=0.2, timeout=WAIT):
    "Waits until the kernel has answered all that the page sent, and nothing was sent for `quiet` seconds."
    end = time.time() + timeout
    page.wait_for_timeout(50)
    while page.log.pending or time.time() - page.log.last < quiet:
        assert time.time() < end, f"the kernel does not answer {page.log.pending}"
        page.wait_for_timeout(50)


def problems(page):
    """What is wrong with a page, as a list of texts: errors of its scripts, its kernel, its cells, and requests that
    failed or went to another host.
    """
    log = page.log
    kinds = ("outside", "failed", "errors", "console", "kernel")
    found = [f"{kind}: {what}" for kind in kinds for what in getattr(log, kind)]
    failed = page.locator("[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
    text = page.locator("body").inner_text()
    if "Traceback" in text and not failed:
        failed = [text[max(0, text.index("Traceback") - 200) :][:2000]]
    return found + [f"page: {text}" for text in failed]


def assert_clean(page):
    "Nothing is wrong with the page, after the kernel has done all that it was asked for."
    settle(page)
    assert not problems(page), "\n".join(problems(page))


# Pictures


def screenshot(page, path, width=1280, of=OUTPUT, limit=150_000):
    "Writes a picture of an element in full height as a small PNG, from a window that is `width` wide."
    before = page.viewport_size
    element = page.locator(of).first
    height = before["height"]
    for _ in range(3):  # the height depends on the width, and what comes into view may be drawn only then
        page.set_viewport_size({"width": width, "height": height})
        element.scroll_into_view_if_needed()
        page.wait_for_timeout(150)
        height = int(element.bounding_box()["height"]) + 300  # for the bars of JupyterLab
    png = element.screenshot(animations="disabled", caret="hide")
    page.set_viewport_size(before)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(smaller(png, limit))
    return Path(path)


def smaller(png, limit):
    "The picture with a palette of as many colours as `limit` bytes allow; as it is where Pillow is missing."
    try:
        from PIL import Image
    except ImportError:
        return png
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for colours in (256, 128, 64, 32, 16):
        out = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= limit:
            break
    return out.getvalue()


def theme(page):
    "The theme that the page says it has."
    return "light" if page.locator("body").get_attribute("data-jp-theme-light") == "true" else "dark"


# Hands: `where` is a page or a part of it


def control(where, kind, description):
    "The visible ipywidgets control of a CSS class that has this description."
    label = getattr(where, "page", where).locator(
        "label.widget-label", has_text=re.compile(rf"^\s*{re.escape(description)}\s*$")
    )
    return where.locator(f".{kind}", has=label).filter(visible=True).first


def choose(where, description, option):
    "Chooses an option of a Dropdown by its text."
    control(where, "widget-dropdown", description).locator("select").select_option(label=option)


def chosen(where, description):
    "The text of the option that a Dropdown shows."
    return (
        control(where, "widget-dropdown", description)
        .locator("select")
        .evaluate("s => s.selectedOptions[0]?.textContent")
    )


def slide(where, description, steps, handle=0):
    """Moves a handle of a slider (of a range: 0 or 1) by steps to the right, to the left where negative.

    By keys: Notebook 7 takes them for itself.
    """
    grip = control(where, "widget-hslider", description).locator(".noUi-handle").nth(handle)
    for _ in range(abs(steps)):
        grip.press("ArrowRight" if steps > 0 else "ArrowLeft")


def slide_to(where, description, place, handle=0):
    "Pulls a handle of a slider to a place from 0 to 1 on its line."
    slider = control(where, "widget-hslider", description)
    slider.scroll_into_view_if_needed()
    grip = slider.locator(".noUi-handle").nth(handle).bounding_box()
    line = slider.locator(".noUi-base").bounding_box()
    mouse = slider.page.mouse
    y = grip["y"] + grip["height"] / 2
    mouse.move(grip["x"] + grip["width"] / 2, y)
    mouse.down()
    mouse.move(line["x"] + place * line["width"], y, steps=5)
    mouse.up()


def shown(where, description):
    "What a slider shows as its value."
    return control(where, "widget-hslider", description).locator(".widget-readout").inner_text()


def write(where, description, text):
    "Replaces what is in a Text, and presses Enter."
    box = control(where, "widget-text", description).locator("input")
    box.fill(text)
    box.press("Enter")


def press(where, description):
    "Presses a Button."
    where.locator("button.jupyter-button", has_text=re.compile(rf"^\s*{re.escape(description)}\s*$")).filter(
        visible=True
    ).first.click()


def open_tab(where, title):
    "Chooses a page of a Tab by its title."
    name = getattr(where, "page", where).locator(
        ".lm-TabBar-tabLabel", has_text=re.compile(rf"^\s*{re.escape(title)}\s*$")
    )
    where.locator(".widget-tab .lm-TabBar-tab", has=name).filter(visible=True).first.click()


def part(where, **data):
    """The first element with data attributes, `part(page, pick=3)` for `data-pick="3"` and `pick=True` for any; it has
    click(), hover(), press(key).
    """
    return where.locator("".join(f"[data-{n}]" if v is True else f"[data-{n}='{v}']" for n, v in data.items())).first


def drag(element, start, end, steps=5):
    "Drags over an element from one place to another, in parts of its width."
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    mouse = element.page.mouse
    x = lambda part: box["x"] + part * box["width"]
    y = box["y"] + box["height"] / 2
    mouse.move(x(start), y)
    mouse.down()
    mouse.move(x(end), y, steps=steps)
    mouse.up()


def drag_around(element, reach=0.35, points=24):
    "Drags once around the middle of an element, in parts of its height."
    element.scroll_into_view_if_needed()
    box = element.bounding_box()
    mouse = element.page.mouse
    for i in range(points + 1):
        angle = 2 * math.pi * i / points
        x = box["x"] + box["width"] / 2 + reach * box["height"] * math.cos(angle)
        mouse.move(x, box["y"] + box["height"] * (0.5 + reach * math.sin(angle)), steps=3)
        if not i:
            mouse.down()
    mouse.up()


def until(condition, timeout=WAIT):
    "Waits until something is true."
    end = time.time() + timeout
    while not condition():
        assert time.time() < end, "it has not come true"
        time.sleep(0.1)


def restart(page):
    "Restarts the kernel by the menu's command, and says yes."
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:restart-kernel') }")
    page.locator(".jp-Dialog button.jp-mod-accept").click()
