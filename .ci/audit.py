"""Looks the locked requirements up in a database of known vulnerabilities; says loudly when it could not."""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

DATABASE = os.environ.get("AUDIT_URL", "https://api.osv.dev/v1/querybatch")
SECONDS = 20
LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def main(lock: Path) -> int:
    """Print what is known about each package; 1 if anything is, 0 also if the database was not reached."""
    packages = LOCKED.findall(lock.read_text())
    queries = [{"package": {"name": name, "ecosystem": "PyPI"}, "version": version} for name, version in packages]
    try:
        results = ask({"queries": queries})["results"]
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"!!! NOT AUDITED: the database of vulnerabilities was not reached ({error})\n")
        return 0
    found = [
        f"{name} {version}: {', '.join(one['id'] for one in result['vulns'])}"
        for (name, version), result in zip(packages, results, strict=True)
        if result.get("vulns")
    ]
    sys.stdout.write(("\n".join(found) or f"{len(packages)} locked packages: no known vulnerability") + "\n")
    return 1 if found else 0


def ask(question: Any) -> Any:
    """Send JSON, and give the JSON of the answer. Raises OSError, ValueError."""
    request = urllib.request.Request(  # noqa: S310 - the address is ours
        DATABASE, json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
