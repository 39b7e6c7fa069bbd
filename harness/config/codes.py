"""What the offline evaluator and the online code do, and how."""

import re
from dataclasses import dataclass, field

MAX_LANES = 4096
PREDICTORS = ("float", "portable")
DEVICES = ("auto", "cpu", "cuda")
# Tables of its positions are made by exact arithmetic, one after another.
MAX_PORTABLE_CHUNK = 1 << 16
EXPERTS = ("uniform", "frequencies", "ngram", "network")
MAX_ORDER = 6
MAX_CHECKPOINTS = 256
MAX_MODELS = 16


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
    device: str = "auto"
    """Who predicts: `cpu`, `cuda` (all GPUs), or `auto`: GPUs where there are some, and 20 M parameters or more."""
    ideal: bool = False
    """Write no file: weights are coded, the text counts as the sum of its ideal code lengths. For sweeps."""
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
        if self.predictor == "portable" and self.chunk_bytes > MAX_PORTABLE_CHUNK:
            limit = f"must be at most {MAX_PORTABLE_CHUNK} with eval.predictor=portable"
            found.append(f"eval.chunk_bytes={self.chunk_bytes}: {limit}")
        if self.device not in DEVICES:
            found.append(f"eval.device={self.device}: unknown; use one of {', '.join(DEVICES)}")
        return found


@dataclass(kw_only=True, slots=True)
class OnlineConfig:
    """Settings of the online (prequential) code: who predicts, and the file."""

    experts: list[str] = field(default_factory=list)
    """Who predicts beside the transformer: `uniform`, `frequencies`, `ngram` and `network`, which mixes all of them.

    With any of them the code is a Bayesian mixture over all, which may switch from one to another at every symbol.
    """
    models: list[str] = field(default_factory=list)
    """More transformers that learn and predict, as WIDTHxLAYERSxHEADS."""
    ngram_order: int = 6
    """Longest context of `ngram`, in bytes; words and matches come with it."""
    ema: float = 0.0
    """Decay of the running mean of the weights, by step, that predicts in place of the weights; 0 is none."""
    calibrate: bool = False
    """Scale logits by a temperature that is learnt from new batches after they are coded."""
    checkpoints: int = 1
    """Self-switch: batches are coded with the best of so many states of the weights, the current one among them."""
    checkpoint_steps: int = 16
    """Steps between such states."""
    segment_steps: int = 64
    """Optimizer steps between two digests of the weights. A stopped job goes on from one; each costs about 30 bytes."""

    @property
    def trains_plainly(self) -> bool:
        """Whether the code is the sum of the training losses: the weights predict, and nothing else."""
        return not (self.experts or self.models or self.ema or self.calibrate or self.checkpoints > 1)

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        found = []
        for name in self.experts:
            if name not in EXPERTS:
                found.append(f"online.experts={name}: unknown; use some of {', '.join(EXPERTS)}")
        if len(set(self.experts)) < len(self.experts):
            found.append(f"online.experts={self.experts}: each can be named once")
        if "network" in self.experts and not (self.models or "ngram" in self.experts):
            found.append("online.experts=network: has nothing to mix; name ngram too, or online.models")
        if len(self.models) > MAX_MODELS:
            found.append(f"online.models: names {len(self.models)}; must be at most {MAX_MODELS}")
        for shape in self.models[:MAX_MODELS]:
            if not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,3}x[1-9]\d{0,3}", shape):
                found.append(f"online.models={shape}: must look like 64x2x1 (WIDTHxLAYERSxHEADS)")
        if not 1 <= self.ngram_order <= MAX_ORDER:
            found.append(f"online.ngram_order={self.ngram_order}: must be between 1 and {MAX_ORDER}")
        if not 0 <= self.ema < 1:
            found.append(f"online.ema={self.ema}: must be in [0, 1)")
        if not 1 <= self.checkpoints <= MAX_CHECKPOINTS:
            found.append(f"online.checkpoints={self.checkpoints}: must be between 1 and {MAX_CHECKPOINTS}")
        for key in ("checkpoint_steps", "segment_steps"):
            if getattr(self, key) < 1:
                found.append(f"online.{key}={getattr(self, key)}: must be at least 1")
        return found
