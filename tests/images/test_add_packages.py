"""How the trainer image's packages are installed, as far as no image is needed for it."""

import os
import subprocess
from pathlib import Path

from docker import add_packages
from tests.cluster.paths import REPOSITORY


def test_uv_is_told_what_pips_configuration_says_of_the_way_to_packages() -> None:
    pip = {
        "index-url": "https://one.example/simple",
        "extra-index-url": "https://two.example/simple\n    https://three.example/simple",
        "find-links": "https://four.example/a\nhttps://four.example/b",
        "trusted-host": "one.example",
        "timeout": "180",
        "proxy": "http://proxy.example:3128",
        "cert": "/run/secrets/ca-certificates",
        "no-index": "true",
    }
    assert add_packages.uv_environment(pip) == {
        "UV_DEFAULT_INDEX": "https://one.example/simple",
        "UV_INDEX": "https://two.example/simple https://three.example/simple",
        "UV_FIND_LINKS": "https://four.example/a,https://four.example/b",
        "UV_INSECURE_HOST": "one.example",
        "UV_HTTP_TIMEOUT": "180",
        "HTTP_PROXY": "http://proxy.example:3128",
        "HTTPS_PROXY": "http://proxy.example:3128",
        "SSL_CERT_FILE": "/run/secrets/ca-certificates",
    }
    assert add_packages.uv_environment({}) == {}


def test_only_what_a_layer_adds_is_found_new(tmp_path: Path) -> None:
    for name in ("of-a-layer-below", "added"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").touch()
    for path in (tmp_path / "of-a-layer-below" / "module.py", tmp_path / "of-a-layer-below"):
        os.utime(path, (0, 0))
    assert sorted(add_packages.newer_than_epoch(tmp_path)) == [str(tmp_path / "added"), str(tmp_path / "added" / "module.py")]


def test_a_file_that_is_no_python_of_this_version_does_not_stop_the_others(tmp_path: Path) -> None:
    for name, text in (("template", "def {{ name }}(): pass"), ("module", "answer = 42")):
        (tmp_path / f"{name}.py").write_text(text)
        add_packages.compile_source(str(tmp_path / f"{name}.py"))
    [compiled] = (tmp_path / "__pycache__").iterdir()
    assert compiled.name.startswith("module.")
    assert compiled.read_bytes()[4:8] == b"\1\0\0\0", "unchecked hash (PEP 552)"


def test_every_locked_package_belongs_to_one_layer(tmp_path: Path) -> None:
    dockerfile = (REPOSITORY / "docker" / "trainer.Dockerfile").read_text()
    _, _, rest = dockerfile.partition("RUN cd /requirements && ")
    command = rest.partition("\n\n")[0].replace("\\\n", "")
    lock = (REPOSITORY / "requirements" / "trainer.txt").read_text()
    (tmp_path / "trainer.txt").write_text(lock)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    parts = {name: (tmp_path / f"{name}.txt").read_text() for name in ("cuda", "torch", "others")}
    packages = [line for line in lock.splitlines() if line and not line.startswith("#")]
    assert sorted(packages) == sorted(line for part in parts.values() for line in part.splitlines())
    assert "nvidia-cudnn" in parts["cuda"]
    assert "torch==" in parts["torch"]
    assert "deepspeed==" in parts["others"]
