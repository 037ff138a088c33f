"The bar of a long run: in a terminal, in JupyterLab, and nowhere else."

import os
import pty
import re
import subprocess
import sys

import pytest
from conftest import BIN

from lmcourse.training.progress import ProgressBar


def words(text):
    return re.sub(r'[\r\n█\-|]+', ' ', text)


def test_the_bar_of_a_run_taken_up_again_counts_from_the_steps_that_were_made(capfd):
    bar = ProgressBar(100, 20, show=True)
    for done in range(21, 101):
        bar.step(done, f'after {done}')
    out, err = capfd.readouterr()
    assert not out
    assert '20.00% [20/100' in err and '100.00% [100/100' in err and 'after 100' in err
    assert '[0/' not in err and '/80' not in err


def test_the_time_that_is_left_follows_from_the_steps_since(monkeypatch, capfd):
    "Twenty steps of a hundred were made before; ten more took ten seconds, so seventy seconds are left."
    import fastprogress.fastprogress as F

    now = [0.0]
    monkeypatch.setattr(F.time, 'time', lambda: now[0])
    bar = ProgressBar(100, 20, show=True)
    for done in range(21, 31):
        now[0] += 1
        bar.step(done)
    assert '[30/100 00:10<01:10]' in capfd.readouterr().err


def test_a_bar_does_not_begin_with_an_infinite_best(tmp_path, capfd):
    "Before the first evaluation there is no best."
    from lmcourse.training.recipes import get_recipe, override, tiny
    from lmcourse.training.trainer import train

    train(
        override(tiny(get_recipe('lstm-a'), 'markov'), {'train.max_steps': 4, 'train.log_every': 1}),
        tmp_path / 'run',
        show=True,
    )
    err = capfd.readouterr().err
    assert 'train ' in err and 'inf' not in err


@pytest.mark.parametrize('how', [dict(total=100, done=100, show=True), dict(total=100, show=False), dict(total=100)])
def test_silent_where_nobody_watches_or_nothing_is_left(how, capfd):
    bar = ProgressBar(**how)
    bar.step(100, 'done')
    bar.line('a line')
    assert bar.bar is None and capfd.readouterr() == ('', '')


@pytest.mark.skipif(sys.platform == 'win32', reason='no pseudo-terminals')
def test_stopped_and_resumed_in_a_terminal(tmp_path):
    """A terminal on standard error: the bar moves, in the run and in the run that goes on, and standard output has the
    one object."""
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | {'TERM': 'xterm', 'COLUMNS': '100'}
    for begins, ends, extra in (
        ('[0/20', '[20/20', ['--max-steps', '20', '--out', tmp_path / 'run']),
        ('[20/40', '[40/40', ['--resume', tmp_path / 'run', '--max-steps', '40']),
    ):
        ours, theirs = pty.openpty()
        command = [
            BIN / 'lmcourse',
            'run',
            'lstm-a',
            *(['--tiny', '--corpus', 'markov'] if '--out' in extra else []),
            *extra,
            '--json',
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=env) as p:
            os.close(theirs)
            shown = b''
            try:
                while chunk := os.read(ours, 4096):
                    shown += chunk
            except OSError:
                pass  # Linux says so when the other end has closed
            out = p.stdout.read()
        os.close(ours)
        shown = shown.decode()
        assert p.returncode == 0, shown
        assert out.startswith(b'{') and 'validation perplexity' in shown and 'Traceback' not in shown
        assert begins in shown and ends in shown


def test_a_bar_moves_in_jupyterlab(lab, page):
    "Run a cell that trains: under it the bar, and when it is done, all of its steps."
    lab.open(page, '00_how_to_read')
    page.evaluate(
        '''async code => { const app = window.jupyterapp, w = app.shell.currentWidget;
        await app.commands.execute('notebook:insert-cell-below'); w.content.activeCell.model.sharedModel.setSource(code); await app.commands.execute('notebook:run-cell'); }''',
        "import tempfile, lmcourse.models.recurrent\nfrom lmcourse.training.recipes import get_recipe, tiny\nfrom lmcourse.training.trainer import"
        " train\nrun = train(tiny(get_recipe('lstm-a'), 'markov'), tempfile.mkdtemp() +"
        " '/run')\nprint(run.summary['steps'], 'steps')",
    )
    page.get_by_text('50 steps', exact=True).wait_for()
    bar = page.locator('progress')
    assert bar.count() == 1 and bar.get_attribute('value') == bar.get_attribute('max') == '50'
    assert re.search(r'\[50/50 .*validation best', page.locator('.jp-OutputArea-output', has=bar).inner_text())
    assert not page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count()
    lab.close(page)
