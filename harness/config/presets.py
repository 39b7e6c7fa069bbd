"""Files that come with the product, and configurations that are known by name."""

import importlib.util
from pathlib import Path


def product_folder(name: str) -> Path:
    """Find a folder of files that come with the product: at the root of a clone, or in the installed package."""
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").exists():
        return root / name
    spec = importlib.util.find_spec("codelength")
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) / name if places else root / name


def preset_names() -> list[str]:
    """List the names of the configurations that come with the product, in alphabetical order."""
    return sorted(path.stem for path in product_folder("configs").glob("*.yaml"))


def preset_path(text: str | Path) -> Path:
    """Find the file of a configuration: a path as it is, or the preset of that name.

    A word that is neither stays as it is, so that reading it says that there is no such file.
    """
    path = Path(text)
    if path.is_file() or path.suffix or path.name != str(text):
        return path
    preset = product_folder("configs") / f"{text}.yaml"
    return preset if preset.exists() else path
