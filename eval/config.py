"""What the offline evaluator codes, and how."""

from dataclasses import dataclass

MAX_LANES = 4096


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Settings of the offline (two-part) code."""

    split: str = "heldout"
    """The text to code: `heldout`, `train`, or the path of any file."""
    chunk_bytes: int = 512
    """Bytes per chunk; chunks share no context. At most model.context."""
    lanes: int = 64
    """Chunks that one fixed-shape predictor block codes side by side."""
    max_cache_bytes: int = 2_000_000_000
    """Memory for keys and values; bounds the number of blocks that step together."""

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        found = []
        if self.chunk_bytes < 1:
            found.append(f"eval.chunk_bytes={self.chunk_bytes}: must be at least 1")
        if not 1 <= self.lanes <= MAX_LANES:
            found.append(f"eval.lanes={self.lanes}: must be between 1 and {MAX_LANES}")
        if self.max_cache_bytes < 1:
            found.append(f"eval.max_cache_bytes={self.max_cache_bytes}: must be positive")
        return found
