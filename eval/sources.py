"""The sources that a receiver of an online code needs: part of the length of the code, and of what must not change."""

from modulefinder import ModuleFinder
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECEIVER = ROOT / "eval" / "online.py"


def receiver_sources() -> list[Path]:
    """All modules of this project that receiving imports, directly or through others, in alphabetical order."""
    finder = ModuleFinder(path=[str(ROOT)])
    finder.run_script(str(RECEIVER))
    return sorted({Path(module.__file__) for module in finder.modules.values() if module.__file__})
