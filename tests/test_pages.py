"""The numbers in the README and the docs are those that the benchmarks wrote."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_tables_are_up_to_date():
    run = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "page.py", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_links_in_the_pages_lead_somewhere():
    import re

    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "meshes" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists() or (page.parent / f"{target}.md").exists(), (
                    f"{page.name} links to {target}, which does not exist"
                )
