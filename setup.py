"""The packages, found rather than listed: the folders at the top are imported as `tokenrt.<folder>`, see docs/decisions/0002."""

from setuptools import find_packages, setup

FOLDERS = ("export", "passes", "perf", "plugins", "targets")

setup(
    packages=[
        *find_packages(include=["tokenrt", "tokenrt.*"]),
        *(
            f"tokenrt.{found}"
            for folder in FOLDERS
            for found in find_packages(include=[folder, f"{folder}.*"])
        ),
    ],
    package_dir={"tokenrt": "tokenrt", **{f"tokenrt.{folder}": folder for folder in FOLDERS}},
)
