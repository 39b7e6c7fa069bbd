"""DeepSpeed's ZeRO: optimizer state (stage 1), gradients (2) and weights (3) shared out among the ranks.

Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models". DeepSpeed gets the
process group, the optimizer and every setting from here; its own launcher, optimizers and checkpoints are not used.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.backends.base import BackendConfig
from harness.errors import RunFailure, UsageError
from harness.machine.ranks import Ranks, init_process_group
from harness.optim.muon import orthogonalised
from harness.optim.optimizer import Optimizer, OptimizerConfig, Ruled, torch_parts

# The iteration of DeepSpeed's Muon that is replaced by this project's.
OURS = "standard"
# Elements that are reduced or gathered in one piece, where a block has no more. DeepSpeed's default is 500 million, and
# it allocates as many.
BUCKET_ELEMENTS = 1 << 24


class DeepSpeedBackend:
    """An engine of DeepSpeed at one of its ZeRO stages."""

    packages = ("torch", "deepspeed")

    def __init__(
        self,
        ranks: Ranks,
        config: BackendConfig,
        clip_norm: float | None,
        micro_batch: int,
        muon_dtype: torch.dtype = torch.float32,
    ):
        """`micro_batch` is in sequences; `muon_dtype` is that in which Muon's updates are made orthogonal.

        Raises UsageError where DeepSpeed is not installed.
        """
        self.ranks, self.config, self.clip_norm, self.micro_batch = ranks, config, clip_norm, micro_batch
        self.muon_dtype = muon_dtype
        self.is_sharded, self.owns_group, self.is_unlaunched = config.zero_stage > 0, False, False
        self.deepspeed = import_deepspeed(ranks.device)

    def make_parts(self, groups: list[dict], config: OptimizerConfig) -> list[Ruled]:
        """Make a single optimizer, as an engine needs it: AdamW, or DeepSpeed's Muon with an AdamW of its own."""
        if config.kind == "adamw":
            return torch_parts(groups, config)
        for group in groups:
            for p in group["params"]:
                p.use_muon = group["muon"]
            group |= {"use_muon": group["muon"], "lr": group["peak"]}
            if group["muon"]:
                group |= {"momentum": config.muon_momentum, "ns_method": OURS}
            else:
                group |= {"betas": tuple(config.betas), "eps": 1e-8}
        return [_ruled_muon(self.muon_dtype)(groups)]

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Take model and optimizer; the weights of rank 0 become those of all ranks.

        Raises RunFailure where DeepSpeed runs another stage than the one that it was told to.
        """
        self.model, self.optimizer = model, optimizer
        self.owns_group = not dist.is_initialized()
        if self.owns_group:
            timeout = self.config.timeout_seconds
            init_process_group(self.ranks.device, timeout, store=dist.HashStore(), rank=0, world_size=1)
        total, block = (
            sum(p.numel() for p in module.parameters()) for module in (model, model.get_submodule("blocks.0"))
        )
        on_gpu = self.ranks.device.type == "cuda"
        settings = engine_settings(self.config, self.clip_norm, self.micro_batch, bucket_elements(total, block), on_gpu)
        # It asks the environment at every step; a process that nobody has launched is the only one of its machine.
        self.is_unlaunched = "LOCAL_RANK" not in os.environ
        os.environ.setdefault("LOCAL_RANK", "0")
        self.engine, *_ = self.deepspeed.initialize(
            model=model, optimizer=optimizer.parts[0], config=settings, dist_init_required=False
        )
        self.module: nn.Module = self.engine
        stage, wanted = self.engine.zero_optimization_stage(), self.config.zero_stage
        if int(stage) != wanted:
            raise RunFailure(
                f"backend.zero_stage={wanted}: DeepSpeed runs stage {int(stage)}; try another version of it"
            )

    def backward(self, compute_loss: Callable[[nn.Module], Tensor], last: bool) -> None:
        """Accumulate the gradient of `compute_loss(module)`; average over ranks with the `last` one of a step."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(compute_loss(self.engine), scale_wrt_gas=False)

    def step(self) -> None:
        """Take one optimizer step on the averaged gradients."""
        self.engine.step()

    @contextmanager
    def partitions(self) -> Iterator[None]:
        """Stage 3 puts a partition into its group only while it is stepped; here all of them are."""
        if self.config.zero_stage < 3:
            yield
            return
        zero = self.engine.optimizer
        part, *_ = self.optimizer.parts
        for group in part.param_groups:
            group["params"] = []
        for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
            part.param_groups[zero.sub_group_to_group_id[index]]["params"].append(flat)
        try:
            yield
        finally:
            for group in part.param_groups:
                group["params"] = []

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The float32 weights, gathered from the partitions."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, p in self.model.named_parameters():
            with torch.no_grad():
                full = safe_get_full_fp32_param(p) if self.config.zero_stage else p
            yield name, full.detach()

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        """Replace the weights of partitions and module."""
        if self.config.zero_stage:
            from deepspeed.utils import safe_set_full_fp32_param

            for name, p in self.model.named_parameters():
                safe_set_full_fp32_param(p, weights[name])
        self._set_module(weights.items())

    def refresh(self) -> None:
        """Make the module's weights those of the partitions."""
        if self.config.zero_stage:
            self._set_module(self.weights())

    def count_nonzeros(self) -> int:
        """Number of weights that are not zero; padding is zero."""
        with self.partitions():
            groups = self.optimizer.parts[0].param_groups
            nonzeros = int(torch.stack([p.count_nonzero() for group in groups for p in group["params"]]).sum())
        return int(self.ranks.sum(nonzeros)[0]) if self.config.zero_stage else nonzeros

    def close(self) -> None:
        """End what one process needed for DeepSpeed alone; it may go on to other work."""
        if self.owns_group and dist.is_initialized():
            self.deepspeed.comm.destroy_process_group()
        if self.is_unlaunched:
            os.environ.pop("LOCAL_RANK", None)

    @torch.no_grad()
    def _set_module(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        named = dict(self.model.named_parameters())
        for name, full in weights:
            if self.config.zero_stage < 3:
                named[name].copy_(full)
                continue
            with self.deepspeed.zero.GatheredParameters([named[name]], modifier_rank=0):
                if self.ranks.is_first:
                    named[name].copy_(full)


def bucket_elements(total: int, block: int) -> int:
    """Choose how many elements are reduced or gathered at a time, of `total` weights, `block` in each block."""
    return min(total, max(BUCKET_ELEMENTS, block))


def engine_settings(
    config: BackendConfig, clip_norm: float | None, micro_batch: int, bucket: int, on_gpu: bool
) -> dict:
    """Make DeepSpeed's configuration; it ignores keys that it does not know, so all of them come from here.

    `bucket` is in elements.
    """
    zero: dict[str, object] = {"stage": config.zero_stage}
    if config.zero_stage:
        zero |= {"overlap_comm": config.overlap and on_gpu, "contiguous_gradients": True}
        zero |= {"reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if config.zero_stage == 3:
        # Muon's stage 3 wants whole gradients. Weights of any size are shared out: small ones too.
        zero |= {"reduce_scatter": False, "stage3_param_persistence_threshold": 0}
        # Gathered weights go again once a layer is done with them; on a GPU those of the next one come meanwhile.
        zero |= {"stage3_max_live_parameters": 2 * bucket if on_gpu else bucket, "stage3_prefetch_bucket_size": bucket}
        zero |= {"stage3_max_reuse_distance": 0}
    if config.offload_optimizer:
        zero |= {"offload_optimizer": {"device": "cpu"}}
    settings: dict[str, object] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": clip_norm or 0.0,
        "steps_per_print": 2**62,
    }
    if config.bf16_weights:
        settings["bf16"] = {"enabled": True}
    return settings


def import_deepspeed(device: torch.device) -> ModuleType:
    """Import DeepSpeed for this kind of device: quiet, and without anything that it would compile.

    Raises UsageError where it is not installed.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # It calls collectives by the names that PyTorch is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    try:
        import deepspeed
    except ImportError:
        raise UsageError(
            "backend.name=deepspeed: DeepSpeed is not installed; pip install 'codelength[deepspeed]', or use "
            "backend.name=ddp"
        ) from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # On a CPU the first start would compile a shared-memory all-reduce (90 s with g++ and ninja); gloo's gives the same
    # bits. And its Muon compiles through torch.compile: run as written, it needs no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.compiler.set_stance("force_eager")
    return deepspeed


def _ruled_muon(dtype: torch.dtype) -> type:
    """DeepSpeed's Muon with this project's iteration: its own is in bf16 also where processors emulate it."""
    from deepspeed.runtime.zero.muon import original_muon
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    def iteration(gradient: Tensor, steps: int) -> Tensor:
        # DeepSpeed views it flat.
        return orthogonalised(gradient, dtype).contiguous()

    original_muon.zeropower_via_newtonschulz5 = iteration

    class RuledMuonWithAuxAdam(Ruled, MuonWithAuxAdam):  # type: ignore[misc]
        """DeepSpeed's Muon and AdamW in one optimizer, with a rule."""

    return RuledMuonWithAuxAdam
