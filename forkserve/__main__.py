"""`python -m forkserve` is the command of that name."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "main.py"), run_name="__main__")
