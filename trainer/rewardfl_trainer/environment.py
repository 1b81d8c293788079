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

from rewardfl_api.errors import Reason, RewardFLError
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

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where torch's allocators look for settings; read at their first use."""

ALLOCATOR_SETTINGS = "expandable_segments:True,pinned_max_round_threshold_mb:1"
"""On a GPU: segments that grow instead of many that do not fit together, and pinned memory as large as what lies in it. Without
the latter every buffer is rounded up to a power of two: 256 MB for the 194 MB of a block's input at A14B's size."""

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

    @property
    def is_first_of_node(self) -> bool:
        """Whether this process does what is done once a pod. torchrun numbers the processes of each."""
        return os.environ.get("LOCAL_RANK", "0") == "0"


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
    if config.device == "cuda" and not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        os.environ[ALLOCATOR_VARIABLES[0]] = ALLOCATOR_SETTINGS


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

    Raises:
        RewardFLError: there is no GPU for this process (TrainerFailed: another node may have one).
    """
    _become_single_process()
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    torch.set_num_threads(threads_per_process())
    device = _own_gpu(local_rank) if config.device == "cuda" else torch.device("cpu")
    import deepspeed  # noqa: PLC0415 - takes seconds, and reads what `prepare` sets

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if config.device != "cuda":
        # DeepSpeed would compile its shared-memory collectives with a C++ compiler at start; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if config.device == "cuda" else "gloo"
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False, timeout=COLLECTIVE_TIMEOUT)
    return Process(rank, torch.distributed.get_world_size(), device, int(os.environ.get("GROUP_RANK", "0")))


def _own_gpu(local_rank: int) -> torch.device:
    """Return this process's GPU, made the current one."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank >= count:
        raise RewardFLError(
            Reason.TRAINER_FAILED,
            f"device=cuda: process {local_rank} of this pod has no GPU: torch {torch.__version__} sees {count}.",
            "See that the pod asks for as many GPUs as spec.gpusPerNode says, and that the node's driver is as new as CUDA "
            f"{torch.version.cuda} needs (nvidia-smi).",
        )
    torch.cuda.set_device(local_rank)
    # fp32 means fp32 in convolutions too: the face networks' scores, and all of training with dtype fp32.
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", local_rank)


def _become_single_process() -> None:
    """Set what torchrun would, where it was not used."""
    if "RANK" in os.environ:
        return
    os.environ.update(SINGLE_PROCESS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
