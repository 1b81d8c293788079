"""What of a machine's settings is lent to a build."""

from pathlib import Path

import pytest

from docker import base, settings
from docker.tools import Tool
from tests.cluster.report import ClusterError


@pytest.fixture(autouse=True)
def _no_files_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "_PIP_FILES", ())


def test_the_environment_overrides_the_file_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://one.example/simple\ntimeout = 5\n")
    found = settings.pip_options({"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_INDEX_URL": "https://two.example/simple"})
    assert found == {"index-url": "https://two.example/simple", "timeout": "5"}


def test_folders_of_this_machine_are_left_out(tmp_path: Path) -> None:
    assert settings.pip_options({"PIP_FIND_LINKS": "/opt/wheels"}) == {}
    assert settings.pip_options({"PIP_FIND_LINKS": "/opt/wheels https://one.example/"}) == {"find-links": "https://one.example/"}


def test_the_certificate_bundle_is_lent_under_the_name_that_pip_is_told(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("certificates")
    lent = settings.write(tmp_path, {"SSL_CERT_FILE": str(bundle)})
    assert lent["ca-certificates"].read_text() == "certificates"
    assert lent["pip.conf"].read_text() == "[global]\ncert = /run/secrets/ca-certificates\n"


def test_a_machine_without_settings_lends_nothing(tmp_path: Path) -> None:
    assert settings.write(tmp_path, {}) == {}


def test_of_apts_options_those_stay_that_say_how_packages_are_fetched() -> None:
    kept = 'Acquire::http::Proxy "http://proxy.example:3128";\nAcquire::Check-Valid-Until "false";\n'
    dump = f'Acquire "";\n{kept}Acquire::https::CaInfo "/etc/own.pem";\nAcquire::cdrom::mount "/media/cdrom/";\n'
    assert settings._apt(dump) == kept


def test_an_interrupted_debootstrap_is_not_taken_for_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(base, "ensure_programs", lambda _packages: None)

    def interrupted(command: list[str], **_: object) -> str:
        if command[0].endswith("debootstrap"):
            Path(command[-2]).mkdir()
            raise ClusterError("interrupted")
        return ""

    monkeypatch.setattr(base, "run", interrupted)
    monkeypatch.setattr(base, "program", lambda name: name)
    with pytest.raises(ClusterError, match="interrupted"):
        base.ensure(Tool("buildah"))
    assert list(tmp_path.iterdir()) == []
