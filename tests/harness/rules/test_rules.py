"""Every rule is what its formula says, whatever is elementwise around it."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import harness.rules.rule as rule_module
from harness.backends.base import all_partitions, load_local_state, local_state, reset
from harness.backends.ddp import DDPBackend
from harness.machine.ranks import Ranks
from harness.model.transformer import ModelConfig, Transformer
from harness.optim.optimizer import Optimizer, OptimizerConfig, mark_parameters, parameter_groups, torch_parts
from harness.rules.config import RuleConfig, make_rule
from harness.rules.minimax import FPP, PMMP
from harness.rules.rule import Rule
from tests.support.ranks import Ranks as Processes

ALPHA, BETA, L2, RHO, U = 0.02, 5.0, 0.03, 0.7, 0.4
SETTINGS = {
    "rl1": {},
    "drr": {"beta": BETA, "l2": L2},
    "pmmp": {"start_u": U},
    "fpp": {"start_u": U},
    "admm": {"rho": RHO},
}
PAIRS = (("adamw", "adam"), ("adamw", "decoupled"), ("muon", "decoupled"))
BETAS = [0.9, 0.95]
TOKENS = 1000


def make(kind: str, coupling: str = "adam", **more: float) -> Rule:
    return make_rule(
        RuleConfig(kind=kind, coupling=coupling, **{"alpha": ALPHA, **SETTINGS[kind], **more}), BETAS, TOKENS
    )


def make_model() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(architecture="published", width=16, layers=1, heads=2, context=8), 11)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.double()


def loss_of(model: Transformer) -> Tensor:
    return model(torch.arange(8)[None]).square().mean()


def touched(model: Transformer) -> list[Tensor]:
    return [p for p in model.parameters() if p.dim() >= 2]


def trained_by_rule(
    kind: str, steps: int, optimizer: str = "adamw", coupling: str = "adam", layer_normalisation: bool = False
) -> tuple:
    """Model, optimizer and backend after some steps with a rule."""
    model, backend = make_model(), DDPBackend(Ranks(0, 1, torch.device("cpu")))
    mark_parameters(model, RuleConfig(kind=kind, layer_normalisation=layer_normalisation))
    one = Optimizer(model, OptimizerConfig(kind=optimizer, betas=BETAS), make(kind, coupling), torch_parts)
    backend.prepare(model, one)
    for _ in range(steps):
        loss_of(model).backward()
        one.step()
    return model, one, backend


class ByAutograd:
    """The same problem with every force taken by autograd, every variable stepped by PyTorch's own Adam."""

    def __init__(self, kind: str, layer_normalisation: bool = False):
        self.kind, self.model = kind, make_model()
        self.theta = touched(self.model)
        total = sum(p.numel() for p in self.theta)
        self.scales = [total / p.numel() / len(self.theta) for p in self.theta] if layer_normalisation else []
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, betas=BETAS, weight_decay=0.0)
        self.w = [p.detach().clone().requires_grad_() for p in self.theta]
        self.gamma = [torch.ones_like(p).requires_grad_() for p in self.theta]
        self.u = [torch.full_like(p, U).requires_grad_() for p in self.theta]
        players = [{"params": self.w + self.gamma}, {"params": self.u, "maximize": True}]
        self.players = torch.optim.Adam(players, lr=3e-3, betas=BETAS)
        self.history = []
        self.z, self.v = ([torch.zeros_like(p) for p in self.theta] for _ in "zv")

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.players.zero_grad()
        (loss_of(self.model) + getattr(self, self.kind)()).backward()
        self.optimizer.step()
        if self.kind in ("pmmp", "fpp"):
            self.players.step()
            with torch.no_grad():
                for gamma in self.gamma:
                    gamma.clamp_(0, 1)

    def rl1(self) -> Tensor:
        return ALPHA * sum(p.abs().sum() for p in self.theta)

    def drr(self) -> Tensor:
        scales = self.scales or [1.0] * len(self.theta)
        own = zip(scales, self.theta, strict=True)
        return sum(s * ALPHA * (1 - torch.exp(-BETA * p.abs())).sum() + L2 * p.square().sum() for s, p in own)

    def pmmp(self) -> Tensor:
        return sum(map(game, self.theta, self.w, self.gamma, self.u))

    def fpp(self) -> Tensor:
        now = [[t.detach().clone() for t in player] for player in (self.theta, self.w, self.gamma, self.u)]
        self.history.append(now)
        theta, w, gamma, u = (
            [torch.stack([then[i][j] for then in self.history]).mean(dim=0) for j in range(len(self.theta))]
            for i in range(4)
        )
        # Each side plays against the mean of the other; what a side does not own has no gradient.
        first = sum(map(game, self.theta, self.w, self.gamma, u))
        return first + sum(map(game, theta, w, gamma, self.u))

    def admm(self) -> Tensor:
        with torch.no_grad():
            for p, z, v in zip(self.theta, self.z, self.v, strict=True):
                total = p + v
                z.copy_(torch.where(total.square() > 2 * ALPHA / RHO, total, 0.0))
                v.add_(p - z)
        return sum(RHO / 2 * (p - z + v).square().sum() for p, z, v in zip(self.theta, self.z, self.v, strict=True))


def game(theta: Tensor, w: Tensor, gamma: Tensor, u: Tensor) -> Tensor:
    """What PMMP plays for, without the loss."""
    return ALPHA * gamma.sum() + (u * (theta - w * gamma).square()).sum() + (u * w.square() * gamma * (1 - gamma)).sum()


@pytest.mark.parametrize(("kind", "normalised"), [*((kind, False) for kind in SETTINGS), ("drr", True)])
def test_a_rule_in_the_optimizer_is_its_formula_by_autograd(kind, normalised, monkeypatch):
    monkeypatch.setattr(rule_module, "PIECE_ELEMENTS", 37)
    model, optimizer, _ = trained_by_rule(kind, 25, layer_normalisation=normalised)
    other = ByAutograd(kind, normalised)
    for _ in range(25):
        other.step()
    for p, q in zip(model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)
    states = [state for _, state in all_partitions(optimizer) if "rule_steps" in state]
    assert len(states) == len(other.theta)
    for index, state in enumerate(states):
        if kind in ("pmmp", "fpp"):
            expected = torch.stack([player[index].detach().flatten() for player in (other.w, other.gamma, other.u)])
            torch.testing.assert_close(state["rule_players"], expected, rtol=0, atol=1e-10)
            assert expected[1].min() < 1 and expected[2].max() > U
        if kind == "admm":
            torch.testing.assert_close(state["rule_z"][0], other.z[index].flatten(), rtol=0, atol=1e-10)
            torch.testing.assert_close(state["rule_v"][0], other.v[index].flatten(), rtol=0, atol=1e-10)


WEIGHTS = torch.tensor([0.5, -0.5, 0.001, -0.001, 0.0])


def shrunk(rule: Rule, rate: float, times: int = 1) -> tuple[Tensor, dict]:
    weights, state = WEIGHTS.clone(), {}
    for _ in range(times):
        rule.apply(weights, state, rate, 1.0)
    return weights, state


def test_decoupled_rl1_is_the_proximal_step_and_makes_exact_zeros():
    weights, _ = shrunk(make("rl1", "decoupled", alpha=0.1), 0.05)
    torch.testing.assert_close(weights[:2], torch.tensor([0.495, -0.495]))
    assert torch.equal(weights[2:], torch.zeros(3))


def test_decoupled_drr_pulls_small_weights_harder_and_makes_exact_zeros():
    weights, _ = shrunk(make("drr", "decoupled", alpha=0.1, l2=0.0), 0.05)
    pull = 0.05 * 0.1 * BETA * torch.exp(torch.tensor(-BETA * 0.5))
    torch.testing.assert_close(weights[:2], torch.tensor([0.5 - pull, pull - 0.5]))
    assert torch.equal(weights[2:], torch.zeros(3))
    decayed, _ = shrunk(make("drr", "decoupled", alpha=0.1, l2=2.0), 0.05)
    torch.testing.assert_close(decayed, weights / (1 + 2 * 2.0 * 0.05))


@pytest.mark.parametrize("kind", ["pmmp", "fpp"])
def test_decoupled_minimax_minimises_its_own_part_of_the_implicit_step(kind):
    # min over theta of (theta - theta_0)^2 / (2 rate) + u (theta - w gamma)^2; at the start w gamma is theta_0.
    rule, state = make(kind, "decoupled", start_u=3.0), {}
    weights = WEIGHTS.clone()
    rule.apply(weights, state, 0.05, 1.0)
    torch.testing.assert_close(weights, WEIGHTS, rtol=0, atol=1e-6)
    state["rule_players"][0] = 0.2
    w, gamma, u = state["rule_players"].clone()
    theta_0 = weights.clone()
    rule.apply(weights, state, 0.05, 1.0)
    u = state["rule_means"][2] if kind == "fpp" else u
    slope = (weights - theta_0) / 0.05 + 2 * u * (weights - w * gamma)
    torch.testing.assert_close(slope, torch.zeros(5), rtol=0, atol=1e-4)


def test_decoupled_admm_pulls_to_what_is_above_the_threshold_and_else_to_zero():
    # sqrt(2 * 0.02 / 0.7) is 0.24: halves stay, thousandths go.
    weights, state = shrunk(make("admm", "decoupled"), 0.05, times=200)
    torch.testing.assert_close(weights[:2], WEIGHTS[:2])
    assert weights[2:].abs().max() < 1e-4
    assert torch.equal(state["rule_z"][0, 2:], torch.zeros(3))


@pytest.mark.parametrize(("optimizer", "coupling"), PAIRS)
@pytest.mark.parametrize("kind", SETTINGS)
def test_what_a_rule_keeps_survives_saving_bit_by_bit_and_a_reset_forgets_it(kind, optimizer, coupling):
    model, one, backend = trained_by_rule(kind, 3, optimizer, coupling)
    twin, other, its_backend = trained_by_rule(kind, 1, optimizer, coupling)
    file = io.BytesIO()
    torch.save(local_state(backend, one), file)
    file.seek(0)
    load_local_state(its_backend, other, torch.load(file, weights_only=True))
    for _ in range(2):
        for m, o in ((model, one), (twin, other)):
            loss_of(m).backward()
            o.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    start = {name: p.detach() for name, p in make_model().named_parameters()}
    reset(backend, one, start)
    assert not any(key.startswith("rule_") for _, state in all_partitions(one) for key in state)
    for _ in range(3):
        loss_of(model).backward()
        one.step()
    fresh, _, _ = trained_by_rule(kind, 3, optimizer, coupling)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize("kind", SETTINGS)
def test_pieces_change_nothing(kind, monkeypatch):
    whole, _, _ = trained_by_rule(kind, 3)
    monkeypatch.setattr(rule_module, "PIECE_ELEMENTS", 50)
    pieces, _, _ = trained_by_rule(kind, 3)
    for p, q in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-15)


def test_gamma_stays_between_0_and_1():
    for kind, rule_class in (("pmmp", PMMP), ("fpp", FPP)):
        rule = make(kind, "decoupled", alpha=50.0)
        assert isinstance(rule, rule_class)
        _, state = shrunk(rule, 0.5, times=30)
        assert state["rule_players"][1].min() == 0 and state["rule_players"][1].max() <= 1


def test_a_rule_rests_during_its_warmup_and_rises_over_its_ramp():
    config = RuleConfig(kind="rl1", alpha=1.0, warmup=0.2, ramp=0.4)
    strengths = [config.strength((step + 1) / 10) for step in range(10)]
    assert strengths == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    at_once = replace(config, ramp=0.0)
    assert [at_once.strength((step + 1) / 10) for step in range(10)] == [0, 0] + [1] * 8
    rule = make("pmmp", "decoupled")
    rule.strength = 0.0
    weights, state = shrunk(rule, 0.05)
    assert torch.equal(weights, WEIGHTS) and not state


def test_bits_per_weight_are_nats_over_the_tokens_of_the_text():
    rule = make_rule(RuleConfig(kind="drr", coupling="adam", bits_per_weight=10.0), BETAS, 1_000_000)
    assert rule.alpha == pytest.approx(6.931471805599453e-06, rel=1e-12)


def test_tensors_are_a_setting_and_layers_may_share_the_strength_evenly():
    model = make_model()
    mark_parameters(
        model, RuleConfig(tensors=["embedding", "vectors"], layer_normalisation=True, kind="drr", alpha=1.0)
    )
    touched_names = {name for name, p in model.named_parameters() if p.is_regularised}
    vectors = {name for name, p in model.named_parameters() if p.dim() == 1}
    assert touched_names == vectors | {"embed.weight"} and len(vectors) > 3
    weights = sum(p.numel() for name, p in model.named_parameters() if name in touched_names)
    for group in parameter_groups(model, OptimizerConfig(kind="adamw")):
        for p in group["params"]:
            if group["regularised"]:
                assert group["alpha_scale"] == pytest.approx(weights / p.numel() / len(touched_names))


def test_every_bad_value_is_named_at_once():
    config = RuleConfig(
        kind="l0", alpha=-1, beta=0, rho=-1, l2=-1, start_u=float("nan"), warmup=1, ramp=2, coupling="x", tensors=["x"]
    )
    lines = config.problems()
    keys = ["kind", "coupling", "alpha", "l2", "start_u", "beta", "rho", "ramp", "warmup", "tensors"]
    assert {line.partition("=")[0] for line in lines} == {f"rule.{key}" for key in keys}
    both = RuleConfig(kind="drr", alpha=1.0, bits_per_weight=3.0).problems()
    assert len(both) == 2 and all(line.startswith("rule.bits_per_weight=3.0:") for line in both)
    assert RuleConfig(kind="pmmp").problems() == ["rule.alpha=0: pmmp needs a positive strength, or set rule.kind=none"]
    assert len(RuleConfig(kind="rl1", alpha=1.0, l2=0.1, layer_normalisation=True).problems()) == 2
    for kind, other in {"rl1": "beta", "drr": "rho", "admm": "start_u"}.items():
        (line,) = RuleConfig(**{"kind": kind, "alpha": 1.0, other: 7.0}).problems()
        assert line.startswith(f"rule.{other}=7.0: is for rule.kind=") and line.endswith(f", not {kind}")
    assert not RuleConfig(kind="none", alpha=1.0, beta=7.0, start_u=1.0).problems()
    for kind in SETTINGS:
        (line,) = RuleConfig(kind=kind, bits_per_weight=3.0).problems()
        assert "with rule.coupling=decoupled strengths are in updates of a weight, not nats" in line
        assert not RuleConfig(kind=kind, bits_per_weight=3.0, coupling="adam").problems()
    (line,) = RuleConfig(kind="rl1", alpha=1.0, warmup=0.5, ramp=0.6).problems()
    assert line.startswith("rule.ramp=0.6: with rule.warmup=0.5 the strength would never reach")


def test_weights_and_state_are_the_same_on_all_ranks_after_50_steps():
    """Two processes with other data each; every rule, with each optimizer and coupling that go together."""
    jobs = {
        f"{kind} {coupling} {optimizer}": {
            "rule.kind": kind,
            "rule.coupling": coupling,
            "rule.alpha": ALPHA,
            "optimizer.kind": optimizer,
        }
        for kind in SETTINGS
        for optimizer, coupling in PAIRS
    }
    with Processes(2, Path(), program=["-m", "tests.support.rule_ranks", json.dumps(jobs)]) as job:
        outputs = job.wait()
    assert all(status == 0 for status, _, _ in outputs), outputs
    found = [json.loads(line) for line in outputs[0][1].splitlines()]
    assert [record["name"] for record in found] == list(jobs)
    for record in found:
        first, second = record["ranks"]
        assert first == second, record["name"]
        assert record["moved"] > 0.01 and record["kept"]
    assert len({record["ranks"][0]["weights"] for record in found}) == len(jobs)
