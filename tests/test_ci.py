"""What CI compares its newest lane with."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

NEWER = Path(__file__).parents[1] / ".ci" / "newer.py"


def test_what_is_installed_in_a_later_release_than_its_pin_is_named(tmp_path):
    pins = tmp_path / "pins.txt"
    torch = version("torch").split("+")[0]  # a pin does not name the build
    pins.write_text(f"# what passed\ntorch=={torch}\ntyper==0.1.0\nno-such==1\npytest==999\n")
    ran = subprocess.run([sys.executable, NEWER, pins], capture_output=True, text=True, check=True)
    assert ran.stdout == f"typer 0.1.0 -> {version('typer')}\n"
