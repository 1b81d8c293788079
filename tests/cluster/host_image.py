"""An image that holds no programs and the pod patch that lends it the machine's: pods run this checkout's Python at once.

For tests and the demo alone; the product's own images come from docker/. Everything is mounted read-only, at the path
that it has on the machine. A private home folder (mode 0700) above a mounted path is no obstacle to other users, because
the container runtime makes the mount point's parents anew, inside the container.
"""

import stat
import sys
from pathlib import Path
from typing import Any

from .build import PAUSE
from .images import Layer, write_archive
from .paths import REPOSITORY
from .report import ClusterError

HOST_IMAGE = "localhost/rewardfl/host:local"
USER_ID = 65532

# Top-level folders that are links into /usr on most systems, and so links in the image too.
_MAYBE_LINKS = ("/bin", "/sbin", "/lib", "/lib64")
_SYSTEM_FOLDERS = ("/usr", "/etc/ssl", "/etc/alternatives")
_SOURCE_FOLDERS = ("crds", "operator", "trainer")
_PATH = "/usr/local/bin:/usr/bin:/bin"


def write_host_image(path: Path) -> None:
    """Write the image's docker-archive tar: empty folders, the pause program, and a user 65532 whose home is /tmp."""
    layer = Layer()
    for folder in ("usr", "etc", "etc/ssl", "etc/alternatives", "dev", "proc", "sys", "run", "var"):
        layer.folder(folder)
    layer.folder("tmp", 0o1777)
    for name in _MAYBE_LINKS:
        if Path(name).is_symlink():
            layer.link(name[1:], str(Path(name).readlink()))
        else:
            layer.folder(name[1:])
    layer.file("etc/passwd", f"root:x:0:0::/root:/bin/sh\nnonroot:x:{USER_ID}:{USER_ID}::/tmp:/bin/sh\n".encode())
    layer.file("etc/group", f"root:x:0:\nnonroot:x:{USER_ID}:\n".encode())
    layer.file("etc/nsswitch.conf", b"hosts: files dns\n")
    layer.file("pause", Path(PAUSE.program("pause")).read_bytes(), 0o755)
    write_archive(path, HOST_IMAGE, layer.to_bytes(), ["/pause"])


def host_image_pod_patch() -> dict[str, list[dict[str, Any]]]:
    """What a pod of the host image needs to run this checkout: `volumes` of the pod, `volumeMounts` and `env` of a container.

    Raises:
        ClusterError: the pods' user could not read the checkout or its Python environment.
    """
    mounts = [(f"machine-{number}", str(folder)) for number, folder in enumerate(_folders())]
    python_path = ":".join(str(REPOSITORY / folder) for folder in _SOURCE_FOLDERS)
    return {
        "volumes": [{"name": name, "hostPath": {"path": folder, "type": "Directory"}} for name, folder in mounts],
        "volumeMounts": [{"name": name, "mountPath": folder, "readOnly": True} for name, folder in mounts],
        "env": [
            {"name": "PATH", "value": f"{Path(sys.prefix) / 'bin'}:{_PATH}"},
            {"name": "PYTHONPATH", "value": python_path},
            {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
        ],
    }


def _folders() -> list[Path]:
    """The machine's folders to mount, none of them inside another one."""
    links = [Path(name) for name in _MAYBE_LINKS if Path(name).is_dir() and not Path(name).is_symlink()]
    system = [Path(name) for name in _SYSTEM_FOLDERS if Path(name).is_dir()]
    own = [REPOSITORY, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    for folder in own:
        _require_readable_by_all(folder)
    candidates = sorted({*links, *system, *own})
    return [folder for folder in candidates if not any(other in folder.parents for other in candidates)]


def _require_readable_by_all(folder: Path) -> None:
    wanted = stat.S_IROTH | stat.S_IXOTH
    if folder.stat().st_mode & wanted != wanted:
        raise ClusterError(f"{folder} is not readable by the pods' user {USER_ID}: run `chmod -R o+rX {folder}`")
