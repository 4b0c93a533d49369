"""The attack in CONTRIBUTING.md works as it stands: it keeps the contract, and a file in the package is all it takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

GUIDE = Path(__file__).parent.parent / "CONTRIBUTING.md"


def test_an_attack_in_thirty_lines(tmp_path: Path) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len([line for line in example.splitlines() if line.strip()]) <= 30
    (tmp_path / "ring.py").write_text(example, encoding="utf-8")
    code = f"""
import tomosec.attacks
tomosec.attacks.__path__.append({str(tmp_path)!r})   # as if the file were in src/tomosec/attacks
from tomosec.cli import main
from tomosec.component import parse_component
from tomosec.testing import check_attack
check_attack(parse_component("attack", {{"kind": "ring", "position": 0.5}}))
assert main(["list", "attacks"]) == 0
"""
    wide = os.environ | {"COLUMNS": "200"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=wide)
    assert ended.returncode == 0, ended.stderr
    assert "One detector bin that reads too high." in ended.stdout


def test_the_guide_stays_short() -> None:
    assert len(GUIDE.read_text(encoding="utf-8").splitlines()) < 60
