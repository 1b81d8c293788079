"""Sets up the process: caches that may be written to, threads, rank, device and the process group. Reads the configuration only.

`prepare` has to run before anything heavy is imported: DeepSpeed, DiffSynth and Triton look at these variables on import.
"""

import logging
import os
import socket
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from rewardfl_api.trainer_config import TrainerConfig

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long ranks wait for each other: rank 0 may upload a large checkpoint meanwhile."""

CACHE_VARIABLES = {
    "HF_HOME": "huggingface",
    "MODELSCOPE_CACHE": "modelscope",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TORCH_HOME": "torch",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "xdg",
}
"""Where libraries write caches, and the folder that each gets below `<work_dir>/caches`."""

FIXED_VARIABLES = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
"""The trainer downloads nothing: staging has done that. Tokenizers must not fork threads of their own."""

SINGLE_PROCESS = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
"""What torchrun sets, for a run without it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Process:
    """This process among all."""

    rank: int
    world_size: int
    device: torch.device
    node: int = 0
    """Number of the pod: its processes share disks, other pods may have disks of their own."""

    @property
    def is_main(self) -> bool:
        """Whether this process reports, logs and writes."""
        return self.rank == 0


def prepare(config: TrainerConfig) -> None:
    """Set what libraries read on import. Values that are already set stay."""
    work_dir = Path(config.work_dir)
    for name, folder in CACHE_VARIABLES.items():
        os.environ.setdefault(name, str(work_dir / "caches" / folder))
    for name, value in FIXED_VARIABLES.items():
        os.environ.setdefault(name, value)
    home = Path(os.environ.get("HOME", "/"))
    if not os.access(home, os.W_OK):
        os.environ["HOME"] = str(work_dir)
    os.environ.setdefault("LOGNAME", "rewardfl")  # a user id without a name has no other
    os.environ.setdefault("DS_ACCELERATOR", config.device)


def prepare_logging(rank: int) -> None:
    """Log the main rank from INFO on, the others from WARNING on. The handler is our own: libraries silence the root's."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("rewardfl_trainer")
    package.handlers = [handler]
    package.propagate = False
    package.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    # DeepSpeed uses collectives by names that torch has replaced.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def threads_per_process() -> int:
    """Return the threads that this process may compute with: OMP_NUM_THREADS, or its share of the CPUs it may use."""
    if named := os.environ.get("OMP_NUM_THREADS"):
        return max(1, int(named))
    available = min(len(os.sched_getaffinity(0)), _cgroup_cpus())
    return max(1, int(available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _cgroup_cpus() -> float:
    """Return the CPU limit of the container; infinite without one."""
    for quota_file, period_file in (
        (Path("/sys/fs/cgroup/cpu.max"), None),
        (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
    ):
        try:
            words = quota_file.read_text().split()
            period = words[1] if period_file is None else period_file.read_text()
        except (OSError, IndexError):
            continue
        if words[0] not in ("max", "-1"):
            return int(words[0]) / int(period)
    return float("inf")


def join_process_group(config: TrainerConfig) -> Process:
    """Meet the other ranks and return this process.

    torchrun says who we are; without it the process is alone. nccl on GPUs, gloo on CPUs.
    """
    _become_single_process()
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    torch.set_num_threads(threads_per_process())
    import deepspeed  # noqa: PLC0415 - takes seconds, and reads what `prepare` sets

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if config.device == "cuda":
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
    else:
        # DeepSpeed would compile its shared-memory collectives with a C++ compiler at start; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        device = torch.device("cpu")
    backend = "nccl" if config.device == "cuda" else "gloo"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=COLLECTIVE_TIMEOUT)
    return Process(rank, torch.distributed.get_world_size(), device, int(os.environ.get("GROUP_RANK", "0")))


def _become_single_process() -> None:
    """Set what torchrun would, where it was not used."""
    if "RANK" in os.environ:
        return
    os.environ.update(SINGLE_PROCESS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
