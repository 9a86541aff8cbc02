"""Print what is installed in a later release than the pin that CI last passed with: NAME PIN -> RELEASE."""

import sys
from importlib import metadata
from pathlib import Path

from packaging.version import Version

for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
    name, pinned, pin = line.partition("==")
    if not pinned or line.startswith("#"):
        continue
    try:
        installed = Version(metadata.version(name))
    except metadata.PackageNotFoundError:
        continue
    if Version(installed.public) > Version(pin):  # without a build's name, as in 2.13.0+cpu
        print(f"{name} {pin} -> {installed}")
