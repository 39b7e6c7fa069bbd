"""Which rule makes weights sparse in the main phase: its configuration, and the rule itself."""

from dataclasses import dataclass, field, fields, replace

from torch import Tensor

from harness.bounds import bound_problems, bounded
from harness.rules.rule import Rule
from harness.units import nats_from_bits

SPARSE_RULES = ("rl1", "drr", "pmmp", "fpp", "admm")
RULES = ("none", *SPARSE_RULES, "variational")
COUPLINGS = ("adam", "decoupled")
_NOT_NEGATIVE, _POSITIVE = "must be finite and not negative", "must be finite and positive"
_FRACTION = "must be between 0 and 1 (a share of the main phase)"
TENSORS = ("embedding", "matrices", "head", "vectors")
RULE_MODULES = {
    **dict.fromkeys(("rl1", "drr"), "harness.rules.penalties"),
    **dict.fromkeys(("pmmp", "fpp"), "harness.rules.minimax"),
    "admm": "harness.rules.admm",
    "variational": "harness.rules.variational",
}
"""Where each rule is: imported when it is asked for, so that a receiver's program has the one that it needs."""


@dataclass(kw_only=True, slots=True)
class RuleConfig:
    """Settings of the sparsity rule of the main phase."""

    kind: str = bounded("none", choices=RULES)
    """`none`, `rl1`, `drr`, `pmmp`, `fpp`, `admm`, or `variational`: a Gaussian over every weight is charged its KL."""
    alpha: float = bounded(0.0, least=0, words=_NOT_NEGATIVE)
    """Strength: `adam` in nats of the mean loss per unit of the penalty; `decoupled` in usual updates of a weight.

    A decoupled rule never meets the loss, only updates. For rl1 alpha is the pull on a weight, for drr alpha beta is
    that on a weight near 0. For pmmp and fpp it is the price of gamma, for admm it sets the threshold
    sqrt(2 alpha / rho), both in the unit in which the pull on theta is one: nats or updates.
    """
    bits_per_weight: float = bounded(0.0, least=0, words=_NOT_NEGATIVE)
    """Another way to say alpha, with `adam`: what a weight costs in the two-part code; bits ln 2 / training tokens."""
    beta: float = bounded(5.0, above=0, words=_POSITIVE)
    """drr: steepness of exp(-beta |weight|)."""
    l2: float = bounded(0.0, least=0, words=_NOT_NEGATIVE)
    """drr: strength of an additional sum of squares (DRR-O)."""
    layer_normalisation: bool = False
    """drr: alpha times all weights / weights of the tensor / number of tensors (DRR-O)."""
    start_u: float = bounded(0.0, least=0, words=_NOT_NEGATIVE)
    """pmmp, fpp: first value of u, the price of weight - w gamma."""
    rho: float = bounded(1.0, above=0, words=_POSITIVE)
    """admm: price of the distance from the sparse vector."""
    prior: float = bounded(0.1, above=0, words=_POSITIVE)
    """variational: standard deviation of the prior of each weight."""
    warmup: float = bounded(0.0, least=0, most=1, words=_FRACTION)
    """Fraction of the main phase during which the rule rests."""
    ramp: float = bounded(0.0, least=0, most=1, words=_FRACTION)
    """Fraction of the main phase over which the strength then rises linearly from 0."""
    coupling: str = bounded("decoupled", choices=COUPLINGS)
    """`adam` or `decoupled`; matrices trained by Muon need `decoupled`."""
    tensors: list[str] = field(default_factory=lambda: ["embedding", "matrices", "head"])
    """What rules and pruning touch; `vectors` are norms and biases. A variational code charges all of them."""

    @property
    def tensors_kept(self) -> int:
        """Numbers that the rule keeps for each weight."""
        rule = make_rule(replace(self, alpha=1.0, bits_per_weight=0.0), [0.9, 0.95], 1)
        return sum(rule.kept.values()) if rule else 0

    @property
    def touched(self) -> list[str]:
        """Which of TENSORS the rule acts on."""
        return list(TENSORS) if self.kind == "variational" else self.tensors

    def strength(self, done: float) -> float:
        """Compute the factor on alpha in a step after which a fraction `done` of the main phase is over."""
        if done <= self.warmup:
            return 0.0
        if done >= self.warmup + self.ramp:
            return 1.0
        return (done - self.warmup) / self.ramp

    def problems(self) -> list[str]:
        """Every bad value, a line each."""
        problems = bound_problems(self, "rule.")
        if self.warmup >= 1:
            problems.append(f"rule.warmup={self.warmup}: the rule would never act; use less than 1 or rule.kind=none")
        elif self.ramp <= 1 < self.warmup + self.ramp:
            problems.append(
                f"rule.ramp={self.ramp}: with rule.warmup={self.warmup} the strength would never reach rule.alpha; "
                "both together must be at most 1"
            )
        if not self.tensors or len(set(self.tensors)) < len(self.tensors) or not set(self.tensors) <= set(TENSORS):
            problems.append(f"rule.tensors={self.tensors}: must name some of {', '.join(TENSORS)}, each once")
        return problems + self._strength_problems()

    def _strength_problems(self) -> list[str]:
        problems = []
        if self.kind == "variational":
            if self.alpha or self.bits_per_weight:
                problems.append("rule.kind=variational: its strength is one over the tokens; leave out rule.alpha")
        elif self.kind != "none" and not (self.alpha or self.bits_per_weight):
            problems.append(f"rule.alpha=0: {self.kind} needs a positive strength, or set rule.kind=none")
        if self.alpha and self.bits_per_weight:
            problems.append(
                f"rule.bits_per_weight={self.bits_per_weight}: rule.alpha={self.alpha} says the strength too; set one "
                "of them to 0"
            )
        if self.bits_per_weight and self.coupling == "decoupled":
            problems.append(
                f"rule.bits_per_weight={self.bits_per_weight}: with rule.coupling=decoupled strengths are in updates "
                "of a weight, not nats; use rule.coupling=adam or rule.alpha"
            )
        defaults = {f.name: f.default for f in fields(self)}
        of_drr = {"beta": ("drr",), "l2": ("drr",), "layer_normalisation": ("drr",)}
        own = {**of_drr, "start_u": ("pmmp", "fpp"), "rho": ("admm",), "prior": ("variational",)}
        for key, kinds in own.items():
            # `none` switches off whatever a configuration has set.
            if getattr(self, key) != defaults[key] and self.kind not in ("none", *kinds):
                problems.append(
                    f"rule.{key}={getattr(self, key)}: is for rule.kind={' or '.join(kinds)}, not {self.kind}"
                )
        return problems


def make_rule(config: RuleConfig, betas: list[float], num_tokens: int, seed: int = 0) -> Rule | None:
    """Make the rule that `config` names, or None, for a text of `num_tokens`, AdamW with `betas`, and its noise."""
    if config.kind == "none":
        return None
    if config.kind == "variational":
        from harness.rules.variational import Variational

        return Variational(config.prior, max(1, num_tokens), seed, (betas[0], betas[1]))
    alpha = config.alpha or nats_from_bits(config.bits_per_weight) / max(1, num_tokens)
    if config.kind in ("rl1", "drr"):
        from harness.rules.penalties import DRR, RL1

        is_drr = config.kind == "drr"
        return DRR(alpha, config.coupling, config.beta, config.l2) if is_drr else RL1(alpha, config.coupling)
    if config.kind in ("pmmp", "fpp"):
        from harness.rules.minimax import FPP, PMMP

        kind = PMMP if config.kind == "pmmp" else FPP
        return kind(alpha, config.coupling, config.start_u, (betas[0], betas[1]))
    from harness.rules.admm import L0ADMM

    return L0ADMM(alpha, config.coupling, config.rho)


def kind_of_tensor(name: str, parameter: Tensor) -> str:
    """Tell which of TENSORS a parameter of the model is."""
    if parameter.dim() < 2:
        return "vectors"
    return {"embed": "embedding", "head": "head"}.get(name.partition(".")[0], "matrices")
