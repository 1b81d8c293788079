"""`make gpu-packages`: the locked packages that a GPU machine lacks which has torch and no network, packed for its Python.

With torch, transformers and their like already there, these are what the trainer imports beside them.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from itertools import takewhile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ARCHIVE = REPOSITORY / ".gpu-packages" / "site.tar.xz"
LOCK = REPOSITORY / "requirements" / "dev.txt"
PYTHON_VERSION = "3.12"
MAX_MANYLINUX = 28
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(17, MAX_MANYLINUX + 1)] + ["manylinux2014_x86_64"]

WHEELS = (
    "annotated-types",
    "av",
    "boto3",
    "botocore",
    "cffi",
    "cryptography",
    "diffsynth",
    "ftfy",
    "hjson",
    "jmespath",
    "modelscope",
    "modelscope-hub",
    "onnx2torch",
    "pycparser",
    "pydantic",
    "pydantic-core",
    "pytest-asyncio",
    "s3transfer",
    "typing-inspection",
    "wcwidth",
)
SOURCES = ("deepspeed",)
"""Has no wheel; what is built from it is Python alone."""


def main() -> None:
    """Fetch, build and pack."""
    parser = argparse.ArgumentParser(prog="make gpu-packages", description=__doc__)
    parser.add_argument("--python-version", default=PYTHON_VERSION, help="of the machine; default %(default)s")
    version = parser.parse_args().python_version
    platforms = [argument for name in PLATFORMS for argument in ("--platform", name)]
    binary = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version, *platforms]
    with tempfile.TemporaryDirectory() as scratch:
        wheels, site = Path(scratch) / "wheels", Path(scratch) / "site"
        pip("download", *binary, "-d", str(wheels), names=WHEELS)
        pip("wheel", "-w", str(wheels), names=SOURCES)
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as content:  # pip would not install for another Python than its own
                content.extractall(site)
        ARCHIVE.parent.mkdir(exist_ok=True)
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            archive.add(site, ".", filter=without_other_services)
    print(f"{ARCHIVE.relative_to(REPOSITORY)}: {ARCHIVE.stat().st_size / 1e6:.0f} MB, for Python {version}")


def without_other_services(file: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what botocore knows of services other than S3: 14 MB."""
    parts = Path(file.name).parts
    return None if parts[:2] == ("botocore", "data") and len(parts) > 3 and parts[2] != "s3" else file


def pip(*arguments: str, names: tuple[str, ...] = ()) -> None:
    """Run pip, for the locked versions of `names` with their hashes."""
    command, *rest = arguments
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(locked(name) for name in names))
        file.flush()
        chosen = ["--require-hashes", "-r", file.name] if names else []
        quiet = ["-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([sys.executable, "-m", "pip", command, *quiet, *rest, *chosen], check=True)


def locked(name: str) -> str:
    """Return the lock's lines of a package: its version for the newest Python, and the hashes."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    start = max(number for number, line in enumerate(lines) if line.startswith(f"{name}=="))
    version = lines[start].split(" ")[0].removeprefix(f"{name}==")
    hashes = [line.strip(" \\") for line in takewhile(lambda line: line.startswith("    --hash"), lines[start + 1 :])]
    return f"{name}=={version} {' '.join(hashes)}"


if __name__ == "__main__":
    main()
