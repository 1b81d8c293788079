"""Turns what boto3 raises into errors that name the parameter, the URI and a remedy. Never shows a key or a signature."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3.exceptions
import botocore.exceptions as botocore

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.upload_checksums import DAMAGED_CODES

HTTP_BAD_REQUEST = 400
HTTP_UNAUTHORIZED = 401
HTTP_FORBIDDEN = 403
HTTP_NOT_FOUND = 404
HTTP_PRECONDITION_FAILED = 412
HTTP_RANGE_NOT_SATISFIABLE = 416
HTTP_TOO_MANY_REQUESTS = 429
HTTP_SERVER_ERROR = 500

_DENIED_CODES = frozenset(
    {
        "AccessDenied", "AllAccessDisabled", "AccountProblem", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId",
        "InvalidSecurity", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired",
    }
)  # fmt: skip
_REGION_CODES = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"})
_BUSY_CODES = frozenset({"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling", "TooManyRequests"})
_MISSING_BUCKET_CODES = frozenset({"NoSuchBucket", "InvalidBucketName"})
_MISSING_KEY_CODES = frozenset({"NoSuchKey", "NoSuchVersion", "404", "NotFound"})

_NO_CREDENTIALS = (
    botocore.NoCredentialsError,
    botocore.PartialCredentialsError,
    botocore.CredentialRetrievalError,
    botocore.ProfileNotFound,
    botocore.TokenRetrievalError,
    botocore.UnauthorizedSSOTokenError,
)
_CREDENTIALS_HINT = "Check the Secret that storage.credentials_secret_name names, and the bucket's policy."


class ObjectChangedError(Exception):
    """An object is no longer the one that was listed: its ETag or size differs."""


@contextmanager
def storage_errors(parameter: str, uri: str, endpoint: str) -> Iterator[None]:
    """Raise boto3's errors in the block as RewardFLError.

    Args:
        parameter: what the user has to change, e.g. `dataset`.
        uri: its value, or the object within it that is being touched.
        endpoint: URL of the service, for the message.

    Raises:
        RewardFLError: bucket or object missing (exit code 66), refused (78), unavailable after all retries (69).
        ObjectChangedError: the object was replaced since it was listed (If-Match failed).
    """
    try:
        yield
    except (botocore.BotoCoreError, botocore.ClientError, boto3.exceptions.Boto3Error) as error:
        raise translate(error, f"{parameter}={uri}", endpoint) from error


def translate(error: Exception, subject: str, endpoint: str) -> Exception:
    """Return the error that `error` is for a user; `subject` is `parameter=uri`."""
    if isinstance(error, boto3.exceptions.Boto3Error):
        inner = error.__cause__ or error.__context__
        return translate(inner, subject, endpoint) if isinstance(inner, Exception) else unavailable(subject, endpoint, error)
    if isinstance(error, botocore.ClientError):
        return _of_response(error, subject, endpoint)
    if isinstance(error, _NO_CREDENTIALS):
        return _denied(subject, endpoint, f"no usable credentials ({type(error).__name__})")
    if isinstance(error, botocore.ParamValidationError | botocore.InvalidRegionError):
        return RewardFLError(Reason.BAD_CONFIGURATION, f"{subject}: {error}", "Correct the URI.", ExitCode.BAD_CONFIGURATION)
    return unavailable(subject, endpoint, error)


def status_of(error: botocore.ClientError) -> int:
    """Return the HTTP status of the answer; 0 when there is none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: botocore.ClientError) -> str:
    """Return S3's error code, e.g. NoSuchKey; the status for an answer without a body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def missing_object(subject: str, what: str = "does not exist") -> RewardFLError:
    """Return the error for an object, or everything below a folder, that is not there."""
    return RewardFLError(
        Reason.OBJECT_NOT_FOUND, f"{subject}: {what}", "Check the URI, and upload what is missing.", ExitCode.MISSING_INPUT
    )


def missing_bucket(subject: str, endpoint: str) -> RewardFLError:
    """Return the error for a bucket that is not there."""
    return RewardFLError(
        Reason.BUCKET_NOT_FOUND,
        f"{subject}: the bucket does not exist at {endpoint}",
        "Create the bucket, or correct the URI or storage.endpoint.",
        ExitCode.MISSING_INPUT,
    )


def _of_response(error: botocore.ClientError, subject: str, endpoint: str) -> Exception:  # noqa: PLR0911 - one line a case
    status, code = status_of(error), code_of(error)
    if code in _MISSING_BUCKET_CODES:
        return missing_bucket(subject, endpoint)
    if code in _MISSING_KEY_CODES or status == HTTP_NOT_FOUND:
        return missing_object(subject)
    if status in (HTTP_PRECONDITION_FAILED, HTTP_RANGE_NOT_SATISFIABLE):
        return ObjectChangedError(subject)
    if code in DAMAGED_CODES:
        return unavailable(subject, endpoint, f"what was sent arrived damaged: {code} (HTTP {status})")
    if code in _BUSY_CODES or status >= HTTP_SERVER_ERROR or status == HTTP_TOO_MANY_REQUESTS:
        return unavailable(subject, endpoint, f"{code or 'error'} (HTTP {status})")
    if code in _REGION_CODES:
        return RewardFLError(
            Reason.BAD_CONFIGURATION,
            f"{subject}: {endpoint} says that the bucket is in another region ({code})",
            "Set storage.region to the bucket's region.",
            ExitCode.BAD_CONFIGURATION,
        )
    if code in _DENIED_CODES or status in (HTTP_UNAUTHORIZED, HTTP_FORBIDDEN, HTTP_BAD_REQUEST):
        return _denied(subject, endpoint, f"{code or 'refused'} (HTTP {status})")
    return unavailable(subject, endpoint, f"unexpected answer {code} (HTTP {status})")


def _denied(subject: str, endpoint: str, why: str) -> RewardFLError:
    hint = "Set the pod's clock right." if "RequestTimeTooSkewed" in why else _CREDENTIALS_HINT
    message = f"{subject}: {endpoint} refuses access: {why}"
    return RewardFLError(Reason.STORAGE_ACCESS_DENIED, message, hint, ExitCode.BAD_CONFIGURATION)


def unavailable(subject: str, endpoint: str, why: object) -> RewardFLError:
    """Return the error for a service that does not do what it is asked; `why` is an exception or the reason in words."""
    hint = "Check storage.endpoint and the network between the cluster and it."
    if isinstance(why, botocore.SSLError):
        hint = "Check the certificate of storage.endpoint; name a private authority's bundle in AWS_CA_BUNDLE."
    text = type(why).__name__ if isinstance(why, Exception) else str(why)
    message = f"{subject}: {endpoint} cannot be used, also after retries: {text}"
    return RewardFLError(Reason.STORAGE_UNAVAILABLE, message, hint, ExitCode.UNAVAILABLE)
