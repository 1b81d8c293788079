"""The order in which files are fetched: that in which the trainer needs them. Pure.

The trainer looks at tokenizer, reward models and dataset before it loads a network of the model: what is wrong with them shows
soonest, and they are small. Then come the models, the smaller ones first: text encoder and VAE make the conditions of the first
phase and are smaller than the DiTs, of which the high-noise one, listed first, makes the leading steps before the other one is
trained.
"""

from collections import defaultdict
from collections.abc import Iterable

from rewardfl_trainer.staging.plan import PlannedFile
from rewardfl_trainer.staging.sources import Kind, Request

ORDER = (Kind.MODEL_LIST, Kind.TOKENIZER, Kind.REWARD, Kind.OPTION, Kind.DATASET, Kind.MODEL)


def needed_first(files: Iterable[PlannedFile]) -> list[PlannedFile]:
    """Return the files in the order in which they are needed; those of one source stay as they are."""
    planned = list(files)
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    for item in planned:
        sizes[_model(item.file.request)] += item.file.size

    def need(item: PlannedFile) -> tuple[int, int]:
        request = item.file.request
        return ORDER.index(request.kind), sizes[_model(request)] if request.kind is Kind.MODEL else 0

    return sorted(planned, key=need)


def _model(request: Request) -> tuple[str, str]:
    """Return what is the same for all shards of a model: an entry of a list is a model, and so is one `id:pattern`."""
    return request.parameter, "" if request.parameter.endswith("]") else request.text
