"""Installs the locked packages of one file into /opt/rewardfl, as the trainer's image holds them. Runs in its build.

uv unpacks packages while they arrive, several at a time, beside their place and links them there: nothing is written twice, and
no archive is kept. It reads no pip.conf, so what that says of this machine's way to the packages is told to it. All files get one
time, and bytecode that nobody compares with times, so that the layer is the same whenever it is made.
"""

import compileall
import configparser
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

ENVIRONMENT = Path("/opt/rewardfl")
_UNPACKED = ENVIRONMENT.parent / ".packages"
_PIP_CONFIGURATION = Path("/run/secrets/pip.conf")
_VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX",),
    "extra-index-url": ("UV_INDEX",),
    "find-links": ("UV_FIND_LINKS",),
    "trusted-host": ("UV_INSECURE_HOST",),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
    "retries": ("UV_HTTP_RETRIES",),
    "proxy": ("HTTP_PROXY", "HTTPS_PROXY"),
    "cert": ("SSL_CERT_FILE",),
}
"""What uv calls the options of pip."""
_COMMA_SEPARATED = ("UV_FIND_LINKS",)
# kubernetes' modules of models are imported one by one as they are used; their bytecode would be 48 MB.
_WITHOUT_BYTECODE = re.compile(r"/kubernetes/(aio/)?client/(models|api)/")
_FILES_AT_ONCE = 50


def main(requirements: str) -> None:
    """Install what the file names."""
    install(requirements)
    written = newer_than_epoch(ENVIRONMENT / "lib")
    sources = [path for path in written if path.endswith(".py") and not _WITHOUT_BYTECODE.search(path)]
    with ProcessPoolExecutor(initializer=partial(warnings.simplefilter, "ignore")) as pool:
        list(pool.map(compile_source, sources, chunksize=_FILES_AT_ONCE))
    for path in [*newer_than_epoch(ENVIRONMENT), str(ENVIRONMENT), str(ENVIRONMENT.parent)]:
        os.utime(path, (0, 0), follow_symlinks=False)


def install(requirements: str) -> None:
    """Let uv install the file's packages, and nothing that they depend on: the lock file names all."""
    _UNPACKED.mkdir()
    lent = configparser.RawConfigParser()
    lent.read(_PIP_CONFIGURATION)
    pip = dict(lent["global"]) if lent.has_section("global") else {}
    environment = os.environ | {
        **uv_environment(pip),
        "UV_CACHE_DIR": str(_UNPACKED),
        "TMPDIR": str(_UNPACKED),  # it leaves lock files there
        # DeepSpeed comes as source: it is built with the installer's locked setuptools, and without any of its operations.
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "DS_ACCELERATOR": "cpu",
        "DS_BUILD_OPS": "0",
    }
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--python", str(ENVIRONMENT / "bin" / "python")]
    strict = ["--no-config", "--no-deps", "--require-hashes", "--no-build-isolation", "--link-mode", "hardlink", "--no-progress"]
    strict += ["--no-index"] if "no-index" in pip else []
    subprocess.run([*uv, *strict, "--requirements", requirements], env=environment, check=True)
    shutil.rmtree(_UNPACKED)
    (ENVIRONMENT / ".lock").unlink(missing_ok=True)


def uv_environment(pip: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that tells uv what these options tell pip. Lists stand in several lines there."""
    found: dict[str, str] = {}
    for option, names in _VARIABLES.items():
        for name in names if option in pip else ():
            found[name] = ("," if name in _COMMA_SEPARATED else " ").join(pip[option].split())
    return found


def newer_than_epoch(folder: Path) -> Iterator[str]:
    """Yield what has another time than what the layers below have."""
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = str(Path(root, name))
            if os.lstat(path).st_mtime_ns > 0:
                yield path


def compile_source(path: str) -> None:
    """Compile a module. Some files, such as templates and modules for a newer Python, cannot be; nobody imports those."""
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_file(path, quiet=2, force=True, invalidation_mode=unchecked)


if __name__ == "__main__":
    main(sys.argv[1])
