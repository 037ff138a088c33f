"Read everything that changes between projects from settings.ini; pyproject.toml holds the rest."

from configparser import ConfigParser

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
s = parser["DEFAULT"]
setup(
    name=s["lib_name"],
    version=s["version"],
    description=s["description"],
    license=s["license"],
    python_requires=f">={s['min_python']}",
    keywords=s["keywords"].split(),
    packages=find_packages(include=["lmcourse*"]),
    package_data={
        "lmcourse": [
            "py.typed",
            "*.mplstyle",
            "csrc/*",
            "records/*.json",
            "records/*/*",
            "records/*/*/*",
            "static/*",
            "pretrained/*",
            "campaigns/*",
        ]
    },
    install_requires=s["requirements"].split(),
    extras_require={k: s[f"{k}_requirements"].split() for k in ("lab", "dev")},
    entry_points={"console_scripts": s["console_scripts"].split()},
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
)
