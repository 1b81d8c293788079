"""How far staging is, written for people: by the command line and the client alike. Asks nobody."""

from collections.abc import Iterator

from .progress import StagedFile, StagingProgress
from .text import duration, plural, size

NAME_WIDTH = 60


def summary(staging: StagingProgress) -> str:
    """Return bytes, share, rate, time left, files and what was in the cache already, in one line."""
    done, total, rate = staging.bytes_done, staging.bytes_total, staging.bytes_per_second
    percent = f" ({100 * done // total}%)" if total else ""
    parts = [f"{size(done)} of {size(total)}{percent} at {size(rate)}/s"]
    if (seconds := seconds_left(staging)) is not None:
        parts.append(f"{duration(seconds)} left")
    parts.append(files(staging))
    return ", ".join(part for part in parts if part)


def files(staging: StagingProgress) -> str:
    """Return how many files are there; nothing where an older trainer does not say."""
    if not staging.files_total:
        return ""
    cached = f" ({staging.files_cached} cached, {size(staging.bytes_cached)})" if staging.files_cached else ""
    return f"{staging.files_done} of {plural(staging.files_total, 'file')}{cached}"


def seconds_left(staging: StagingProgress) -> float | None:
    """Return the seconds until everything is there at the present rate; None while nothing comes, or all is there."""
    left = staging.bytes_total - staging.bytes_done
    return left / staging.bytes_per_second if left > 0 and staging.bytes_per_second >= 1 else None


def table_of_files(staging: StagingProgress) -> Iterator[str]:
    """Yield a line for each of the largest files, and one for the rest."""
    for file in staging.files:
        yield f"{file.state:<8}  {_bytes(file):>20}  {file.name}"
    if (rest := staging.files_total - len(staging.files)) > 0 and staging.files:
        yield f"and {plural(rest, 'smaller file')}"


def under_way(staging: StagingProgress) -> list[StagedFile]:
    """Return the files that are being fetched just now."""
    return [file for file in staging.files if file.state == "fetching"]


def short_name(file: StagedFile) -> str:
    """Return the end of a file's name."""
    return file.name if len(file.name) <= NAME_WIDTH else f"…{file.name[1 - NAME_WIDTH :]}"


def _bytes(file: StagedFile) -> str:
    done, total = size(file.bytes_done), size(file.bytes_total)
    return f"{done} of {total}" if file.state == "fetching" else total
