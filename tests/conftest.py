"A browser and a JupyterLab for the tests that need them; both are this machine's own, and nothing else is reached."

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'docs'))
import stage  # noqa: E402, F401

BIN = Path(sys.executable).parent
PICTURES = ROOT / 'build' / 'widgets'  # where a test run leaves its pictures, for people to look at; not in git


# What a shell ignores for programs in its background, the programs under test inherit: they are to hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def chromium():
    "Chromium as the system has it, or None."
    return next(
        (p for name in ('chromium', 'chromium-browser', 'google-chrome', 'chrome') if (p := shutil.which(name))), None
    )


@pytest.fixture(scope='session')
def browser_type_launch_args():
    """How Chromium is started. Without one the browser's tests are skipped, or fail where LMCOURSE_REQUIRE_BROWSER=1
    asks for them."""
    found = chromium()
    if found is None:
        why = 'no Chromium on the PATH (on Debian: apt install chromium), so nothing was tried in a browser'
        if os.environ.get('LMCOURSE_REQUIRE_BROWSER') == '1':
            pytest.fail(why)
        pytest.skip(why)
    return dict(
        executable_path=found, headless=True, args=['--no-sandbox', '--disable-gpu', '--disable-background-networking']
    )


@pytest.fixture(scope='session')
def browser_context_args():
    return dict(viewport=dict(width=1000, height=1100), locale='en-GB')


def free_port():
    "A port that nobody uses now."
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Lab:
    "A JupyterLab on a fresh copy of the lessons, with settings of its own; one for each test process."

    token = 'course'

    def __init__(self, folder: Path):
        self.folder, self.nbs, self.port = folder, folder / 'nbs', free_port()
        shutil.copytree(
            ROOT / 'nbs', self.nbs, ignore=shutil.ignore_patterns('.ipynb_checkpoints', '__pycache__', 'runs')
        )
        shutil.copytree(ROOT / 'docs', folder / 'docs', ignore=shutil.ignore_patterns('_build'))
        shutil.copytree(ROOT / '.jupyter', folder / '.jupyter')
        for name in ('pyproject.toml', 'settings.ini', 'setup.py'):
            shutil.copy(ROOT / name, folder)
        settings = {
            'notebook-extension/tracker': {'windowingMode': 'none'},
            'apputils-extension/notification': {'fetchNews': 'false'},
        }
        for name, values in settings.items():
            path = folder / 'settings' / '@jupyterlab' / f'{name}.jupyterlab-settings'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))
        dirs = {
            k: str(folder / k.lower())
            for k in (
                'JUPYTER_CONFIG_DIR',
                'JUPYTER_DATA_DIR',
                'JUPYTER_RUNTIME_DIR',
                'JUPYTERLAB_WORKSPACES_DIR',
                'LMCOURSE_CACHE',
                'IPYTHONDIR',
            )
        }
        env = {k: v for k, v in os.environ.items() if k not in ('LMCOURSE_FULL', 'LMCOURSE_DATA')}
        self.env = (
            env
            | dirs
            | dict(
                JUPYTER_CONFIG_PATH=str(folder / '.jupyter'),
                JUPYTERLAB_SETTINGS_DIR=str(folder / 'settings'),
                PATH=f'{BIN}{os.pathsep}{os.environ["PATH"]}',
                OMP_NUM_THREADS='1',
                HF_HUB_OFFLINE='1',
                PYTHONHASHSEED='0',
            )
        )
        self.log = open(folder / 'log', 'w')
        self.process = subprocess.Popen(
            [
                BIN / 'jupyter-lab',
                '--no-browser',
                '--ip=127.0.0.1',
                f'--port={self.port}',
                '--ServerApp.port_retries=0',
                f'--IdentityProvider.token={self.token}',
                '--expose-app-in-browser',
                '--allow-root',
            ],
            cwd=self.nbs,
            env=self.env,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def url(self, path):
        return f'http://127.0.0.1:{self.port}/{path}?token={self.token}'

    def wait(self):
        for _ in range(720):
            try:
                return urllib.request.urlopen(self.url('api/status')).close()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.25)
            if self.process.poll() is not None:
                break
        pytest.fail('JupyterLab did not start: ' + (self.folder / 'log').read_text()[-2000:])

    def open(self, page, name):
        "The lesson in a page, its kernel ready."
        page.set_default_timeout(180_000)  # beside other work, on two cores, the first page can take a minute
        page.goto(self.url(f'lab/tree/{name}.ipynb') + '&reset')
        page.wait_for_function('window.jupyterapp !== undefined')
        page.evaluate(
            '''async () => { const app = window.jupyterapp; await app.restored;
            for (let i = 0; i < 1200 && !app.shell.currentWidget?.context; i++)
                await new Promise(r => setTimeout(r, 100));
            const w = app.shell.currentWidget; await w.context.ready;
            await w.sessionContext.ready; await w.sessionContext.session.kernel.info; }'''
        )

    def run(self, page):
        "Run all cells: how many of code there are, how many ran, and the errors."
        return page.evaluate(
            '''async () => { const app = window.jupyterapp; await app.commands.execute('notebook:run-all-cells');
            const cells = [...app.shell.currentWidget.content.model.cells]
                .filter(c => c.type === 'code' && c.sharedModel.source.trim());
            return { code: cells.length, ran: cells.filter(c => c.executionCount).length,
                     errors: cells.flatMap(c => c.outputs.toJSON().filter(o => o.output_type === 'error')
                         .map(o => `${o.ename}: ${o.evalue}`)) }; }'''
        )

    def python(self, page, code):
        "Run code in the lesson's kernel; what it printed."
        return page.evaluate(
            '''async code => { let out = '';
            const f = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ code });
            f.onIOPub = m => { out += m.content.text ?? (m.header.msg_type === 'error' ? m.content.evalue : ''); };
            await f.done; return out; }''',
            code,
        )

    def do(self, page, command):
        page.evaluate('async c => { await window.jupyterapp.commands.execute(c); }', command)

    def close(self, page):
        "Shut the kernel down, so that the next lesson has the machine to itself."
        page.evaluate(
            '''async () => { const w = window.jupyterapp.shell.currentWidget; await w.sessionContext.shutdown(); }'''
        )


@pytest.fixture(scope='session')
def lab(tmp_path_factory, browser_type_launch_args):
    lab = Lab(tmp_path_factory.mktemp('lab'))
    try:
        lab.wait()
        yield lab
    finally:
        lab.process.terminate()
        try:
            lab.process.wait(20)
        except subprocess.TimeoutExpired:
            lab.process.kill()
        lab.log.close()
