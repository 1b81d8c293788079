"""What this machine needs to reach package registries, for the steps of a build that install packages, and for no layer.

Each setting becomes a file that is lent to a step as a secret: pip.conf, ca-certificates, apt.conf. Paths of this machine in
them are replaced or left out. Must not print a setting: an address may hold a password.
"""

import configparser
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.paths import find_program
from tests.cluster.report import run

SECRETS = Path("/run/secrets")
"""Where a build's step finds them."""
CA_CERTIFICATES, PIP, APT = "ca-certificates", "pip.conf", "apt.conf"
_CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_PIP_FILES = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
_PIP_OPTIONS = (
    "index-url",
    "extra-index-url",
    "trusted-host",
    "proxy",
    "timeout",
    "default-timeout",
    "retries",
    "find-links",
    "no-index",
)
_APT_OPTION = re.compile(
    r'^Acquire::(Check-|(http|https)::(Proxy|No-Cache|Timeout|Pipeline-Depth|Verify-)).*"[^"/]*(//[^"]*)?";$'
)


def write(folder: Path, environment: Mapping[str, str] = os.environ, *, with_apt: bool = False) -> dict[str, Path]:
    """Write the settings that there are into `folder`; returns the files by the secret's name.

    Args:
        folder: a private one; the caller removes it.
        environment: where PIP_* and the variables that name a certificate bundle are looked up.
        with_apt: also apt's, which are of use only where the base is this machine's own distribution.
    """
    found = {}
    if with_apt and find_program("apt-config"):
        found[APT] = _apt(run(["apt-config", "dump", "Acquire"]))
    options = pip_options(environment)
    bundle = _bundle(environment, options.pop("cert", None))
    if bundle is not None:
        found[CA_CERTIFICATES] = bundle.read_text()
        options["cert"] = str(SECRETS / CA_CERTIFICATES)
        if APT in found:
            found[APT] += f'Acquire::https::CaInfo "{SECRETS / CA_CERTIFICATES}";\n'
    if options:
        found[PIP] = "[global]\n" + "".join(f"{name} = {value}\n" for name, value in options.items())
    for name, content in found.items():
        (folder / name).write_text(content)
    return {name: folder / name for name in found}


def pip_options(environment: Mapping[str, str]) -> dict[str, str]:
    """The options of pip that say where packages come from: of its files, then of the environment, as pip itself reads them."""
    options: dict[str, str] = {}
    for name in (*_PIP_FILES, environment.get("PIP_CONFIG_FILE", "")):
        parser = configparser.RawConfigParser()
        if name and parser.read(Path(name).expanduser()):
            for section in ("global", "install"):
                options |= dict(parser.items(section)) if parser.has_section(section) else {}
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            options[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    kept = {name: "\n    ".join(_reachable(options[name])) for name in _PIP_OPTIONS if name in options}
    kept = {name: value for name, value in kept.items() if value}
    return kept | ({"cert": options["cert"]} if "cert" in options else {})


def _reachable(value: str) -> list[str]:
    """The words of a value that mean the same inside a build: no folder of this machine."""
    return [word for word in value.split() if not word.startswith(("/", "~", "file:"))]


def _bundle(environment: Mapping[str, str], named: str | None) -> Path | None:
    """This machine's certificate bundle, where one is named."""
    candidates = [named, *(environment.get(name) for name in _CA_VARIABLES)]
    return next((Path(name) for name in candidates if name and Path(name).is_file()), None)


def _apt(dump: str) -> str:
    """The lines of `apt-config dump` that say how packages are fetched, but for files of this machine."""
    return "".join(f"{line}\n" for line in dump.splitlines() if _APT_OPTION.match(line))
