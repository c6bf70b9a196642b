"""Run the demos as a user does and collect their reports, times included.

python benchmarks/demos.py [--quick] [--only NAME]    the others keep their last numbers

A table takes rows of one state of `spon` only.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import RESULTS, arguments, write

from spon import Dataset

ROOT = Path(__file__).resolve().parent.parent


def state():
    """Digest of the sources of `spon`, which all demos share."""
    sources = sorted((ROOT / "spon").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def measure(demo, quick):
    """Run one demo from nothing; its own data and checkpoints are removed first."""
    code = state()
    out = ROOT / "demos" / "output" / (f"{demo.stem}_quick" if quick else demo.stem)
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, demo, *(["--quick"] if quick else [])], check=True, cwd=ROOT)
    total = time.perf_counter() - start
    last = (out / "training.csv").read_text().splitlines()[-1]
    training = float(last.rsplit(",", 1)[1])
    data = Dataset.load(out / "train.h5")
    (signature,) = data.output_signatures.values()
    source = demo.read_text()
    return {
        "demo": demo.stem,
        "code": code,
        "dofs": signature.dim,
        "samples": len(data),
        "epochs": int(re.search(r"epochs=2 if QUICK else (\d+)", source).group(1)),
        "total_seconds": total,
        "training_seconds": training,
        "data_seconds": total - training,
        "report": json.loads((out / "report.json").read_text()),
    }


def main():
    """Run all demos and write the JSON."""
    options = arguments(__doc__, "--only")
    known = {}
    if options.only:
        last = json.loads((RESULTS / f"demos{'-quick' if options.quick else ''}.json").read_text())
        known = {r["demo"]: r for r in last["results"] if r["demo"] != options.only}
    results = [
        known[demo.stem] if demo.stem in known else measure(demo, options.quick)
        for demo in sorted((ROOT / "demos").glob("*.py"))
        # those that train one network on one set of samples
        if all(part in demo.read_text() for part in ("spon.report(", "train.h5", "training.csv"))
    ]
    write("demos", results, {"command": "python demos/NAME.py"}, options.output, options.quick)


if __name__ == "__main__":
    main()
