"""The checksums of a content, and which of a service's headers announce one."""

import hashlib
import zlib
from base64 import b64encode
from pathlib import Path

import pytest

from rewardfl_trainer.cpus import usable_cpus
from rewardfl_trainer.staging.manifests import parse
from rewardfl_trainer.staging.remote import Digest, DigestKind
from rewardfl_trainer.staging.s3 import announced
from rewardfl_trainer.staging.sums import Sums

CONTENT = b"what a git blob, an object and a shard have in common"
MD5 = hashlib.md5(CONTENT).hexdigest()


def sums_of(*digests: Digest) -> Sums:
    sums = Sums(len(CONTENT), digests)
    sums.update(memoryview(CONTENT[:10]))
    sums.update(memoryview(CONTENT[10:]))
    return sums


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("sha256", hashlib.sha256(CONTENT).hexdigest()),
        ("sha1", hashlib.sha1(CONTENT).hexdigest()),
        ("md5", MD5),
        ("crc32", zlib.crc32(CONTENT).to_bytes(4, "big").hex()),
        ("git-sha1", hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()),
    ],
)
def test_a_wrong_checksum_is_told_from_a_right_one(kind: DigestKind, value: str) -> None:
    assert sums_of(Digest(kind, value)).wrong() == []
    assert sums_of(Digest(kind, value.replace(value[0], "f" if value[0] != "f" else "0"))).wrong() == [kind]


@pytest.mark.parametrize(("kind", "check"), [("crc32", "cbf43926"), ("crc32c", "e3069283"), ("crc64nvme", "ae8b14860a799888")])
def test_a_crc_is_that_of_the_catalogue_of_crcs(kind: DigestKind, check: str) -> None:
    """The check values of https://reveng.sourceforge.io/crc-catalogue/ are those of the nine digits."""
    sums = Sums(9, [Digest(kind, check)])
    for piece in (b"1", b"2345678", b"", b"9"):
        sums.update(memoryview(piece))
    assert sums.wrong() == []


def test_the_sha256_is_there_whatever_was_announced() -> None:
    assert sums_of().sha256 == sums_of(Digest("md5", MD5)).sha256 == hashlib.sha256(CONTENT).hexdigest()


def base64(value: bytes) -> str:
    return b64encode(value).decode()


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"etag": f'"{MD5}"'}, [Digest("md5", MD5)]),
        ({"etag": f'"{MD5}-3"'}, []),
        ({"etag": f'"{MD5}"', "x-amz-server-side-encryption": "aws:kms"}, []),
        ({"etag": f'"{MD5}"', "x-amz-server-side-encryption-customer-algorithm": "AES256"}, []),
        ({"etag": f'"{MD5}"', "x-amz-checksum-crc32": base64(b"abcd")}, [Digest("crc32", b"abcd".hex())]),
        ({"x-amz-checksum-crc32": base64(b"abcd") + "-8"}, []),
        ({"x-amz-checksum-crc32": base64(b"abcd"), "x-amz-checksum-type": "COMPOSITE"}, []),
        ({"x-amz-checksum-crc32": base64(b"abcd"), "x-amz-checksum-type": "FULL_OBJECT"}, [Digest("crc32", b"abcd".hex())]),
        (
            {"x-amz-checksum-crc32": base64(b"abcd"), "x-amz-checksum-sha256": base64(b"s" * 32)},
            [Digest("sha256", (b"s" * 32).hex())],
        ),
        (
            {"x-amz-checksum-crc64nvme": base64(b"12345678"), "x-amz-checksum-type": "FULL_OBJECT", "etag": f'"{MD5}-3"'},
            [Digest("crc64nvme", b"12345678".hex())],
        ),
        ({"x-amz-checksum-crc32c": base64(b"1234"), "etag": f'"{MD5}"'}, [Digest("crc32c", b"1234".hex())]),
        ({"x-amz-checksum-of-the-future": base64(b"1234"), "etag": f'"{MD5}"'}, [Digest("md5", MD5)]),
        ({"x-amz-checksum-sha256": "not base64!", "etag": f'"{MD5}"'}, [Digest("md5", MD5)]),
    ],
)
def test_only_what_is_certain_to_be_a_checksum_of_the_whole_object_is_taken_for_one(
    headers: dict[str, str], found: list[Digest]
) -> None:
    assert announced(headers) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{sum}  a.bin", ["a.bin"]),
        ("{sum} *a.bin", ["a.bin"]),
        ("{sum}  ./one two ü.bin", ["one two ü.bin"]),
        ("\\{sum}  a\\\\b\\nc", ["a\\b\nc"]),
        ("{SUM}  a.bin", ["a.bin"]),
        ("{sum} a.bin", []),
        ("abc  a.bin", []),
        ("# {sum}  a.bin", []),
        ("", []),
    ],
)
def test_a_manifest_is_read_as_sha256sum_writes_it(line: str, found: list[str]) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    text = line.replace("{sum}", digest).replace("{SUM}", digest.upper())

    assert parse(f"{'0' * 64}  other\n{text}\n") == {"other": "0" * 64, **dict.fromkeys(found, digest)}


@pytest.mark.parametrize(("quota", "cpus"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None), ("", None)])
def test_a_quota_of_the_control_group_bounds_the_cpus(tmp_path: Path, quota: str, cpus: int | None) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    everything = usable_cpus(tmp_path / "none")

    assert usable_cpus(tmp_path / "cpu.max") == min(everything, cpus or everything)
