"What CI runs, on machines that have nothing, or npm from elsewhere."

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APT = """#!/bin/bash
echo "$*" >> "$LOG"
if [[ "$*" == *install* && "$*" == *npm* && -n "$NPM_CONFLICTS" ]]; then exit 100; fi
"""


def program(folder, name, text):
    path = folder / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    'has, conflicts, asked',
    [
        ((), '', ['chromium', 'npm']),
        (('npm',), '', ['chromium']),
        (('chromium',), 'yes', ['npm']),
        (('chromium', 'npm'), '', []),
    ],
)
def test_only_what_is_missing_is_installed_and_one_by_one(has, conflicts, asked, tmp_path):
    "Debian's npm and an npm from elsewhere exclude each other; what is there is not asked for, and a refusal ends nothing."
    bin = tmp_path / 'bin'
    bin.mkdir()
    for name in ('bash', 'env', 'dirname'):
        (bin / name).symlink_to(shutil.which(name))
    program(bin, 'apt-get', APT)
    program(bin, 'id', '#!/bin/bash\necho 0\n')
    program(bin, 'make', '#!/bin/bash\necho "make $* $LMCOURSE_REQUIRE_BROWSER" >> "$LOG"\n')
    for name in has:
        program(bin, name, '#!/bin/bash\n')
    log = tmp_path / 'log'
    env = dict(PATH=str(bin), LOG=str(log), NPM_CONFLICTS=conflicts, HOME=str(tmp_path))
    done = subprocess.run(['bash', ROOT / '.ci' / 'run'], env=env, capture_output=True, text=True)
    lines = log.read_text().splitlines()
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in lines if ' install ' in f' {line} '] == asked
    assert lines[-1] == 'make test 1'
