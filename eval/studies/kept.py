"""What a job of a study keeps between two epochs, so that it goes on where it was stopped."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from harness.errors import UsageError
from harness.files import write_file

_WORDS = "words"


class Kept:
    """Tensors and a JSON object in one file of safetensors, replaced in one step."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, tensors: dict[str, Tensor], words: dict) -> None:
        """Replace what is kept."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {name: tensor.contiguous() for name, tensor in tensors.items()}
        write_file(self.path, save(content, {_WORDS: json.dumps(words)}))

    def read(self) -> tuple[dict[str, Tensor], dict] | None:
        """What is kept, None where there is nothing; raises UsageError where it is damaged."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                words = json.loads(file.metadata()[_WORDS])
                return {name: file.get_tensor(name) for name in file.keys()}, words  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            line = " ".join(str(error).split())
            raise UsageError(f"{self.path}: damaged ({line}); remove it to begin that job anew") from None

    def remove(self) -> None:
        """Let go of it, once the result is written."""
        self.path.unlink(missing_ok=True)
