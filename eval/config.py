"""What the offline evaluator codes, and how."""

from dataclasses import dataclass

MAX_LANES = 4096
PREDICTORS = ("float", "portable")


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
    predictor: str = "float"
    """`float`: the archive decodes on processors that sum as this one does. `portable`: in integers, on every one."""

    online: bool = False
    """Also write the online code of the training corpus as a file, and receive it; takes longer than training."""

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        found = []
        if self.chunk_bytes < 1:
            found.append(f"eval.chunk_bytes={self.chunk_bytes}: must be at least 1")
        if not 1 <= self.lanes <= MAX_LANES:
            found.append(f"eval.lanes={self.lanes}: must be between 1 and {MAX_LANES}")
        if self.max_cache_bytes < 1:
            found.append(f"eval.max_cache_bytes={self.max_cache_bytes}: must be positive")
        if self.predictor not in PREDICTORS:
            found.append(f"eval.predictor={self.predictor}: unknown; use one of {', '.join(PREDICTORS)}")
        return found


@dataclass(kw_only=True, slots=True)
class OnlineConfig:
    """Settings of the online (prequential) code as a file."""

    segment_steps: int = 64
    """Optimizer steps between two digests of the weights. A stopped job goes on from one; each costs about 30 bytes."""

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        if self.segment_steps < 1:
            return [f"online.segment_steps={self.segment_steps}: must be at least 1"]
        return []
