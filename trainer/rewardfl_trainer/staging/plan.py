"""From requests to files: which files each source means, and where each goes. Fetches nothing but listings."""

import posixpath
import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.staging.folders import check_place, unsafe
from rewardfl_trainer.staging.remote import Remote, RemoteFile
from rewardfl_trainer.staging.sources import WILDCARD, Kind, Request
from rewardfl_trainer.storage_errors import missing_object

DATASET_INDEX = "metadata.csv"
REWARD_MODELS = ("scrfd_10g_bnkps.onnx", "glintr100.onnx")
"""The two networks of antelopev2 that the face reward uses."""

EXTERNAL_DATA_SUFFIXES = ("data", ".bin", ".weight", ".weights")
"""How files with the tensors of an ONNX model beside it are named, after any name; every exporter has its own habit."""

SIDECAR_SUFFIX = ".config.json"
"""`<weights file>.config.json` says what a file holds; it comes along where there is one."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
"""What a folder of a model is searched for, in order of preference: the first that is found is the model."""


@dataclass(frozen=True)
class PlannedFile:
    """A file to fetch, from where, and its place in the cache."""

    file: RemoteFile
    remote: Remote
    place: tuple[str, ...]


@dataclass(frozen=True)
class PlannedSource:
    """What a source consists of.

    Attributes:
        parameter: that names it. The files of a parameter are put into a view together.
        places: of all its files, those that only come along included.
        named: places that its local path is made of: a model's files; for a folder, one file in it.
        above: for a folder, how many names below it the named file lies. 0: the source is its files.
    """

    parameter: str
    places: tuple[tuple[str, ...], ...]
    named: tuple[tuple[str, ...], ...]
    above: int = 0

    def local(self, view: Path) -> str:
        """Return the path of the source (its entry in staged.json) when its files lie in the folder `view`."""
        paths = [view.joinpath(*place) for place in self.named]
        return str(paths[0].parents[self.above - 1]) if self.above else ",".join(map(str, paths))


@dataclass
class Plan:
    """The files to fetch, each once, and what each source (a key of staged.json) consists of."""

    files: dict[tuple[str, ...], PlannedFile] = field(default_factory=dict)
    sources: dict[str, PlannedSource] = field(default_factory=dict)
    _folded: dict[str, tuple[tuple[str, ...], bool]] = field(default_factory=dict)

    def add(self, request: Request, remote: Remote, found: Sequence[RemoteFile], named: Sequence[str]) -> None:
        """Give each file that `find` has found for a request its place, and note what the source consists of.

        Raises:
            RewardFLError: a key is unsafe (exit code 65).
        """
        places = {file.key: self._add_file(file, remote) for file in found}
        above = 0
        if request.kind in (Kind.MODEL, Kind.MODEL_LIST) or (request.kind is Kind.OPTION and named == [request.source.path]):
            for key in named:
                if "," in key:
                    raise unsafe(f"{request.subject}: the key {key!r} has a comma, which separates shards", "Rename the object.")
        else:
            named = named[:1]
            above = len(named[0].removeprefix(_folder_prefix(request)).split("/"))
        here = tuple(places[key] for key in named)
        self.sources[request.text] = PlannedSource(request.parameter, tuple(places.values()), here, above)

    def only(self, places: Set[tuple[str, ...]]) -> "Plan":
        """Return the plan for some of the files."""
        return Plan({place: planned for place, planned in self.files.items() if place in places})

    def views(self) -> dict[str, set[tuple[str, ...]]]:
        """Return the places of the files of each parameter."""
        views: dict[str, set[tuple[str, ...]]] = {}
        for source in self.sources.values():
            views.setdefault(source.parameter, set()).update(source.places)
        return views

    def add_local(self, request: Request) -> None:
        """Check that a source that needs no staging is there.

        Raises:
            RewardFLError: it is not (exit code 66).
        """
        path = Path(request.source.path)
        if not (any(path.parent.glob(path.name)) if WILDCARD.search(path.name) else path.exists()):
            reason = Reason.OBJECT_NOT_FOUND if request.kind is Kind.DATASET else Reason.MODEL_NOT_FOUND
            hint = "Correct the path, or mount the volume that holds it."
            raise RewardFLError(reason, f"{request.subject}: does not exist", hint, ExitCode.MISSING_INPUT)

    def _add_file(self, file: RemoteFile, remote: Remote) -> tuple[str, ...]:
        place = remote.place(file)
        check_place(place, f"{file.request.subject}: {file.key!r}")
        if place not in self.files:
            self._refuse_collision(place, file)
            self.files[place] = PlannedFile(file, remote, place)
        return place

    def _refuse_collision(self, place: tuple[str, ...], file: RemoteFile) -> None:
        """Refuse names that a file system without case would mix up, and a file that is another one's folder."""
        for depth in range(1, len(place) + 1):
            prefix, is_file = place[:depth], depth == len(place)
            folded = "/".join(prefix).casefold()
            other, other_is_file = self._folded.setdefault(folded, (prefix, is_file))
            if other != prefix or other_is_file != is_file:
                raise unsafe(
                    f"{file.request.subject}: {file.key!r} and {'/'.join(other[3:])!r} cannot both be files of one folder",
                    "Rename one of the objects.",
                )


def find(request: Request, remote: Remote) -> tuple[list[RemoteFile], list[str]]:
    """Return the files that a request needs, and the keys of those that it names (the others come along).

    Raises:
        RewardFLError: there are none (exit code 66).
    """
    match request.kind:
        case Kind.DATASET:
            return _whole_folder(request, remote, required=(DATASET_INDEX,))
        case Kind.TOKENIZER:
            return _whole_folder(request, remote, required=())
        case Kind.REWARD:
            return _whole_folder(request, remote, required=REWARD_MODELS, wanted=_is_reward_file)
        case Kind.OPTION:
            return _file_or_folder(request, remote)
        case Kind.MODEL_LIST:
            return _one_file(request, remote)
        case Kind.MODEL:
            return _model_files(request, remote)


def _whole_folder(
    request: Request, remote: Remote, required: Sequence[str], wanted: Callable[[str], bool] | None = None
) -> tuple[list[RemoteFile], list[str]]:
    """Return the files below a folder, those of them that are `wanted` by their name in it."""
    prefix = _folder_prefix(request)
    below = remote.list(request, prefix)
    if not below:
        raise missing_object(request.subject, "nothing is there")
    found = [file for file in below if wanted is None or wanted(file.key.removeprefix(prefix))]
    names = {file.key.removeprefix(prefix) for file in found}
    if missing := [name for name in required if name not in names]:
        raise missing_object(request.subject, f"{' and '.join(missing)} not directly in this folder")
    return found, [file.key for file in found]


def _file_or_folder(request: Request, remote: Remote) -> tuple[list[RemoteFile], list[str]]:
    """Return a file of exactly this name, or else every file below the folder of this name."""
    path = request.source.path
    if path and not path.endswith("/") and not WILDCARD.search(path):
        file = remote.stat(request, path)
        if file is not None:
            return [file], [file.key]
    return _whole_folder(request, remote, required=())


def _one_file(request: Request, remote: Remote) -> tuple[list[RemoteFile], list[str]]:
    file = remote.stat(request, request.source.path)
    if file is None:
        raise missing_object(request.subject)
    return [file], [file.key]


def _model_files(request: Request, remote: Remote) -> tuple[list[RemoteFile], list[str]]:
    """Return the files of one model or shard: a file, a pattern, or a folder."""
    path = request.source.path
    if WILDCARD.search(path):
        listed = remote.list(request, path[: WILDCARD.search(path).start()])  # type: ignore[union-attr] # just searched
        pattern = _glob_pattern(path)
        named = [file for file in listed if pattern.fullmatch(file.key) and file.key.endswith(WEIGHT_SUFFIXES)]
        return _with_sidecars(request, named, listed, "no weights match this pattern")
    if path and not path.endswith("/"):
        file = remote.stat(request, path)
        if file is not None:
            sidecar = remote.stat(request, path + SIDECAR_SUFFIX)
            return [file, *([sidecar] if sidecar else [])], [file.key]
    prefix = _folder_prefix(request)
    listed = remote.list(request, prefix)
    directly = [file for file in listed if "/" not in file.key.removeprefix(prefix)]
    for suffix in WEIGHT_SUFFIXES:
        if named := [file for file in directly if file.key.endswith(suffix)]:
            return _with_sidecars(request, named, listed, "")
    what = f"the folder holds no weights ({', '.join(WEIGHT_SUFFIXES)})" if listed else "neither a file nor a folder"
    raise missing_object(request.subject, what)


def _with_sidecars(
    request: Request, named: Sequence[RemoteFile], listed: Iterable[RemoteFile], otherwise: str
) -> tuple[list[RemoteFile], list[str]]:
    if not named:
        raise missing_object(request.subject, otherwise)
    wanted = {file.key + SIDECAR_SUFFIX for file in named}
    return [*named, *(file for file in listed if file.key in wanted)], [file.key for file in named]


def _folder_prefix(request: Request) -> str:
    """Return the key prefix of the folder that a source means, with or without a closing slash or a pattern; '' for all."""
    path = request.source.path
    wildcard = WILDCARD.search(path)
    folder = path[: wildcard.start()].rpartition("/")[0] if wildcard else path.rstrip("/")
    return f"{folder}/" if folder else ""


def _is_reward_file(name: str) -> bool:
    """Whether a file of the reward folder is one of the two networks or may hold tensors of one."""
    return name in REWARD_MODELS or (not name.endswith(".onnx") and name.endswith(EXTERNAL_DATA_SUFFIXES))


def _glob_pattern(path: str) -> re.Pattern[str]:
    """Return a pattern that matches as a shell does: no wildcard stands for a slash."""
    folder, name = posixpath.split(path)
    pieces = [_segment(part) for part in (*folder.split("/"), name) if part]
    return re.compile("/".join(pieces))


def _segment(text: str) -> str:
    """Translate one part of a path: `*`, `?` and `[...]`."""
    out, index = "", 0
    while index < len(text):
        character, index = text[index], index + 1
        close = text.find("]", index + 1) if character == "[" else -1
        if character == "*":
            out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif close > 0:
            inner = text[index:close].replace("\\", "\\\\")
            out += f"[{'^' + inner[1:] if inner.startswith('!') else inner}]"
            index = close + 1
        else:
            out += re.escape(character)
    return out
