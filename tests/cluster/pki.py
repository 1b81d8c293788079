"""A certificate authority for one cluster's life, and the kubeconfigs that it makes possible.

Keys never leave the state folder.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from .paths import program
from .report import run

_DAYS = "365"
_OPENSSL_CONFIGURATION = """
[req]
distinguished_name = name
[name]
"""


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, as PEM files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class SigningKey:
    """A public and a private key without a certificate, as PEM files."""

    public: Path
    private: Path


class Authority:
    """Issues certificates into `folder`. A certificate's CN is the user's name to Kubernetes, its O the user's group."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self._folder = folder
        self._configuration = folder / "openssl.cnf"
        self._configuration.write_text(_OPENSSL_CONFIGURATION)
        extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
        self.root = self._issue("ca", "/CN=rewardfl-local", extensions)

    def server(self, name: str, hosts: Sequence[str | IPv4Address]) -> KeyPair:
        """A certificate for a server that is reached by these names and addresses; it also works as a client's."""
        names = ",".join(f"IP:{host}" if isinstance(host, IPv4Address) else f"DNS:{host}" for host in hosts)
        extensions = [f"subjectAltName={names}", "extendedKeyUsage=serverAuth,clientAuth"]
        return self._issue(name, f"/CN={name}", extensions, authority=self.root)

    def client(self, user: str, group: str = "") -> KeyPair:
        """A certificate that the API server takes for `user` of `group`."""
        subject = f"/O={group}/CN={user}" if group else f"/CN={user}"
        return self._issue(user.replace(":", "-"), subject, ["extendedKeyUsage=clientAuth"], authority=self.root)

    def signing_key(self, name: str) -> SigningKey:
        """A pair of bare keys, for signing and checking service account tokens."""
        pair = SigningKey(self._folder / f"{name}.pub", self._folder / f"{name}.key")
        openssl = program("openssl")
        run([openssl, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", str(pair.private)])
        run([openssl, "pkey", "-in", str(pair.private), "-pubout", "-out", str(pair.public)])
        return pair

    def kubeconfig(self, path: Path, server: str, user: KeyPair) -> Path:
        """Write a self-contained kubeconfig (JSON is YAML) for `user` at `server`, readable by its owner alone."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(_kubeconfig(server, _base64(self.root.certificate), user), indent=1))
        return path

    def _issue(self, name: str, subject: str, extensions: Sequence[str], authority: KeyPair | None = None) -> KeyPair:
        pair = KeyPair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        command = [program("openssl"), "req", "-x509", "-config", str(self._configuration), "-days", _DAYS, "-subj", subject]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
        command += ["-out", str(pair.certificate), "-keyout", str(pair.key)]
        for extension in extensions:
            command += ["-addext", extension]
        if authority is not None:
            command += ["-CA", str(authority.certificate), "-CAkey", str(authority.key)]
        run(command)
        return pair


def _kubeconfig(server: str, authority: str, user: KeyPair) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "rewardfl-local", "cluster": {"server": server, "certificate-authority-data": authority}}],
        "users": [
            {
                "name": "user",
                "user": {"client-certificate-data": _base64(user.certificate), "client-key-data": _base64(user.key)},
            }
        ],
        "contexts": [{"name": "rewardfl-local", "context": {"cluster": "rewardfl-local", "user": "user"}}],
        "current-context": "rewardfl-local",
    }


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
