"""A content that is not what its checksum says never enters the cache, whoever keeps the checksum: real SeaweedFS."""

import hashlib
import random
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from awscrt import checksums

from rewardfl_api.errors import Reason
from rewardfl_trainer.staging.stage import stage
from tests.integration.fault_proxy import Exchange, fault_proxy
from tests.integration.staging.buckets import (
    LOW,
    SHARD_BYTES,
    VAE,
    Bucket,
    configuration,
    content_at,
    failure_of,
    put_in_parts,
    whole_files,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 5 * 2**20
"""The least that a part of an upload may have, but for the last."""


@pytest.mark.parametrize("times", [1, 1000])
def test_content_that_is_damaged_on_its_way_is_noticed_by_its_checksum(tmp_path: Path, bucket: Bucket, times: int) -> None:
    left = iter(range(times))

    def damage(exchange: Exchange) -> None:
        if exchange.is_content and exchange.key == VAE and next(left, None) is not None:
            exchange.body = exchange.body[:-1] + b"\xff"

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.after.append(damage)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        if times == 1:
            assert content_at(stage(config)[f"s3://{bucket.name}/{VAE}"]) == bucket.content[VAE]
        else:
            assert failure_of(config).reason is Reason.STAGED_FILE_CORRUPT
            assert Path(VAE).name not in whole_files(config)


@pytest.mark.parametrize("right", [True, False])
def test_content_is_compared_with_a_manifest_in_its_folder(tmp_path: Path, bucket: Bucket, right: bool) -> None:
    put_in_parts(bucket, bytes(SHARD_BYTES))
    content = bytes(SHARD_BYTES) if right else bytes(SHARD_BYTES - 1) + b"1"
    bucket.put(f"{Path(LOW).parent}/SHA256SUMS", f"{hashlib.sha256(content).hexdigest()}  {Path(LOW).name}\n".encode())
    config = configuration(tmp_path, bucket, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})

    if right:
        assert content_at(stage(config)[f"s3://{bucket.name}/{LOW}"]) == content
    else:
        assert failure_of(config).reason is Reason.STAGED_FILE_CORRUPT


def _put_in_parts_with_a_checksum(bucket: Bucket, body: bytes) -> None:
    """Upload the shard in two parts with a CRC-64/NVME of the whole, as `aws s3 cp` does it by itself."""

    def crc(content: bytes) -> str:
        return b64encode(checksums.crc64nvme(content).to_bytes(8, "big")).decode()

    client, where = bucket.client, {"Bucket": bucket.name, "Key": LOW}
    upload = {
        **where,
        "UploadId": client.create_multipart_upload(**where, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT")[
            "UploadId"
        ],
    }
    parts: list[CompletedPartTypeDef] = []
    for number, part in enumerate((body[:PART_BYTES], body[PART_BYTES:]), start=1):
        sent = client.upload_part(**upload, PartNumber=number, Body=part, ChecksumCRC64NVME=crc(part))
        parts.append({"PartNumber": number, "ETag": sent["ETag"], "ChecksumCRC64NVME": crc(part)})
    client.complete_multipart_upload(
        **upload, MultipartUpload={"Parts": parts}, ChecksumCRC64NVME=crc(body), ChecksumType="FULL_OBJECT"
    )
    bucket.content[LOW] = body


@pytest.mark.parametrize("damaged", [False, True])
def test_an_object_in_parts_is_compared_with_the_checksum_of_the_whole_that_the_service_keeps(
    tmp_path: Path, bucket: Bucket, damaged: bool
) -> None:
    _put_in_parts_with_a_checksum(bucket, random.Random(6).randbytes(SHARD_BYTES))

    def damage(exchange: Exchange) -> None:
        if damaged and exchange.is_content and exchange.key == LOW:
            exchange.body = exchange.body[:-1] + bytes([exchange.body[-1] ^ 1])

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.after.append(damage)
        config = configuration(tmp_path, bucket, proxy.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
        if damaged:
            assert failure_of(config).reason is Reason.STAGED_FILE_CORRUPT
        else:
            assert content_at(stage(config)[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]


def test_the_etag_of_an_encrypted_object_is_not_taken_for_its_checksum(tmp_path: Path, bucket: Bucket) -> None:
    def encrypt(exchange: Exchange) -> None:
        if exchange.key == VAE:
            kept = [(name, value) for name, value in exchange.answer_headers if not name.lower().startswith("x-amz-checksum")]
            exchange.answer_headers = [*kept, ("x-amz-server-side-encryption", "aws:kms")]
            exchange.body = bytes(byte ^ 1 for byte in exchange.body)

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.after.append(encrypt)
        local = stage(configuration(tmp_path, bucket, proxy.endpoint))

    assert content_at(local[f"s3://{bucket.name}/{VAE}"]) == bytes(byte ^ 1 for byte in bucket.content[VAE])
