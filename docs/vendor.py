"""What the pages need from npm to be read with no network: formulas (MathJax), and widgets that move (require.js,
Jupyter's html-manager)."""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import anywidget

# npm package and version: {file in it: (name on the site, SHA-256 of what was looked at)}
FILES = {
    'mathjax@3.2.2': {
        'es5/tex-svg.js': ('tex-svg.js', 'd4295dc33744836935c1399feece5159577b34c5c8ffb9f1c6324cd82e03a882')
    },
    'requirejs@2.3.8': {
        'require.js': ('require.js', 'c1fc6b1d53af7522f78d664922abb32acac64ed0ecccb8f907f1e6fc7262563a')
    },
    '@jupyter-widgets/html-manager@1.0.15': {
        'dist/embed-amd.js': ('embed-amd.js', 'ca87dff57c70ffb2658794fde0eab0e27e5f5472a1f5df7ab2b08e1039fc4b72')
    },
}
FONTS = ('.woff2',)  # of the icons on widgets' buttons; embed-amd.js looks for them beside itself


class VendorError(Exception):
    "A file cannot be had: the message says which, why and what to do."


def _fetch(
    package: str,  # name@version
    folder: Path,  # where the archive is put
) -> Path:  # the archive
    "One package as npm's own client brings it."
    npm = shutil.which('npm')
    if not npm:
        raise VendorError('npm is not installed (it comes with Node.js)')
    try:
        r = subprocess.run(
            [
                npm,
                'pack',
                package,
                '--json',
                '--pack-destination',
                folder,
                '--fetch-retries=1',
                '--fetch-timeout=20000',
            ],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        raise VendorError(f'npm did not bring {package} within two minutes') from None
    if r.returncode:
        raise VendorError(f'npm could not bring {package} (is there a network?)')
    return folder / json.loads(r.stdout)[0]['filename']


def _unpack(archive: Path, files: dict, folder: Path):
    "The wanted files of a package, checked, and its fonts."
    with tarfile.open(archive) as tar:
        for m in tar.getmembers():
            inside = m.name.partition('/')[2]
            name, digest = files.get(inside, (Path(inside).name, None))
            if inside not in files and not inside.endswith(FONTS):
                continue
            data = tar.extractfile(m).read()
            if digest and hashlib.sha256(data).hexdigest() != digest:
                raise VendorError(
                    f'{inside} of {archive.name} is not the file that was looked at: its SHA-256 differs from the one'
                    ' in docs/vendor.py'
                )
            (folder / name).write_bytes(data)


def vendor(
    folder: Path,  # where the files lie afterwards; what is already there is kept
):
    "Brings what is missing; raises `VendorError` where that is impossible."
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(anywidget.__file__).parent / 'nbextension' / 'index.js', folder / 'anywidget.js')
    missing = [p for p, files in FILES.items() if not all((folder / name).exists() for name, _ in files.values())]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as temp:
        for package in missing:
            _unpack(_fetch(package, Path(temp)), FILES[package], folder)
