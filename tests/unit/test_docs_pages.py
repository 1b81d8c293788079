"""What the pages show is real: manifests are valid, commands and options exist, names of functions are defined where they say.

The rules that the pages follow are in CONTRIBUTING.md.
"""

import ast
import copy
import json
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import pytest
import typer
import yaml

from rewardfl_api.cli.app import app
from rewardfl_api.job import API_VERSION, KIND
from rewardfl_api.spec import RewardFLJobSpec
from rewardfl_api.status import ConditionType
from rewardfl_api.training import TrainingParameters
from rewardfl_api.validation import problems_of
from rewardfl_trainer.tiny.spec import DIT_KWARGS
from tests.cluster.paths import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())

FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
OTHER_FILE = re.compile(r"# \S+\.(yaml|yml|json)\b")
INLINE = re.compile(r"`([^`\n]+)`")
CODE_LINK = re.compile(r"\[`(?P<name>[\w.]+)(?:\(\))?`\]\((?P<target>[^)#]+\.py)\)")
PAGE_NAME = re.compile(r"docs/[\w/-]+\.md")
END_OF_COMMAND = re.compile(r"\s#|\s?[|>;&]|\s+or:?\s|,\s|\.\.\.")
SPEC_FIELDS = {field.alias or name for name, field in RewardFLJobSpec.model_fields.items()}
PARAMETERS = {field.alias or name for name, field in TrainingParameters.model_fields.items()}
SMALLEST: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "face"},
    "spec": {
        "dataset": "s3://data/faces/",
        "output": "s3://results/faces/",
        "training": {
            "modelPaths": ["s3://models/all/"],
            "tokenizerPath": "s3://models/umt5/",
            "rewardModelPath": "s3://models/antelopev2/",
            "trainableModels": "dit2",
            "loraBaseModel": "dit2",
            "minTimestepBoundary": 0.9,
        },
    },
}


def blocks(page: Path, kind: str) -> list[str]:
    """Return the fenced blocks of a kind."""
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(block["text"]) for block in found if block["kind"] == kind]


def code_lines(page: Path) -> list[str]:
    """Return the lines of fenced and indented blocks, continued ones joined, and what stands between backticks."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = [line for block in FENCE.finditer(text) for line in block["text"].splitlines()]
    prose = FENCE.sub("", text)
    indented = [line for line in prose.splitlines() if line.startswith("    ")]
    return [line.strip() for line in (*fenced, *indented, *INLINE.findall(prose))]


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the mappings of `change` merged into it."""
    result = copy.deepcopy(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def job_of(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the RewardFLJob that a document is, or is part of; None for manifests of other kinds."""
    if "apiVersion" in document:
        return document if document.get("kind") == KIND else None
    if "spec" in document:
        return merged(SMALLEST, document)
    for fields, part in ((SPEC_FIELDS, lambda: {"spec": document}), (PARAMETERS, lambda: {"spec": {"training": document}})):
        if document.keys() <= fields:
            return merged(SMALLEST, part())
    raise AssertionError(f"neither a manifest nor part of a RewardFLJob (see CONTRIBUTING.md): {sorted(document)}")


@EACH_PAGE
def test_every_manifest_on_a_page_is_valid(page: Path) -> None:
    for block in blocks(page, "yaml"):
        if OTHER_FILE.match(block):
            continue
        for document in yaml.safe_load_all(block):
            job = job_of(document)
            assert job is None or problems_of(job) == []


def test_the_smallest_job_is_valid_and_what_is_neither_manifest_nor_part_of_a_job_is_found() -> None:
    assert problems_of(SMALLEST) == []
    assert problems_of(job_of({"learningRat": 1} | {"spec": {"training": {"learningRat": 1}}}) or {}) != []
    with pytest.raises(AssertionError, match="neither a manifest"):
        job_of({"learningRat": 1})


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each `rewardfl` command on a page."""
    for line in code_lines(page):
        match = re.match(r"(?:\$ )?(?:kubectl )?rewardfl (?P<rest>[a-z][a-z-]*(?: .*)?)$", line)
        if match is None:
            continue
        words = shlex.split(END_OF_COMMAND.split(match["rest"])[0], posix=True)
        if words and not words[0].endswith(":"):
            yield words


def unknown_parts(words: list[str]) -> list[str]:
    """Return the command or the options of it that the program does not have."""
    command: Any = typer.main.get_command(app)
    rest = list(words)
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            return rest[:1]
        command = command.commands[rest.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    options = [word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"]
    return [option for option in options if option not in known]


@EACH_PAGE
def test_every_command_on_a_page_exists_with_its_options(page: Path) -> None:
    assert [(words, wrong) for words in commands(page) if (wrong := unknown_parts(words))] == []


def test_commands_are_found_and_wrong_ones_are_told() -> None:
    assert len(list(commands(DOCS / "cli.md"))) > 20
    assert unknown_parts(["report", "a", "--output=b", "--colour"]) == ["--colour"]
    assert unknown_parts(["cache", "prune", "--all"]) == []
    assert unknown_parts(["train"]) == ["train"]


@EACH_PAGE
def test_every_make_target_on_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {match[1] for line in code_lines(page) if (match := re.match(r"make ([a-z][a-z-]*)(?:\s|$)", line))}
    assert named - targets == set()


@EACH_PAGE
def test_every_value_of_the_chart_that_a_page_sets_exists(page: Path) -> None:
    values = yaml.safe_load((REPOSITORY / "charts" / "rewardfl" / "values.yaml").read_text(encoding="utf-8"))
    commands_of_others = re.compile(r"helm \w+ (?!rewardfl)\S+")
    lines = [line for line in code_lines(page) if not commands_of_others.match(line)]
    named = {name for line in lines for name in re.findall(r"--set '?([a-zA-Z.]+)=", line)}
    assert {name for name in named if not _has(values, name.split("."))} == set()


def _has(values: Any, path: list[str]) -> bool:
    return not path or (isinstance(values, dict) and path[0] in values and _has(values[path[0]], path[1:]))


@EACH_PAGE
def test_a_name_that_leads_to_a_python_file_is_defined_there(page: Path) -> None:
    for link in CODE_LINK.finditer(page.read_text(encoding="utf-8")):
        file = (page.parent / link["target"]).resolve()
        name = link["name"].removesuffix(".py").rpartition(".")[2]
        assert name in {file.stem, file.parent.name} | defined(file), link[0]


def defined(file: Path) -> set[str]:
    """Return the names of the functions, classes and methods of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, kinds)}


def test_the_benchmarks_at_a_glance_are_those_of_the_pages() -> None:
    text = (DOCS / "benchmarks" / "index.md").read_text(encoding="utf-8")
    operator, staging, trainer = (
        json.loads((DOCS / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("operator", "staging", "trainer")
    )
    wanted = [
        f"all objects there | {operator['children_seconds']:.0f} s",
        f"most memory | {operator['rss_mb']:.0f} MB",
        f"which verifies nothing | {staging['small_vs_s5cmd']:.2f}",
        f"large files, the same | {staging['large_vs_s5cmd']:.2f}",
        f"throughput to boto3 | {staging['large_vs_boto3']:.2f}",
        f"everything in the cache | {staging['warm_start_seconds']:.2f} s",
        f"straightforward form to ours | {trainer['step_time_ratio']:.2f}",
        f"with offload | {trainer['a14b_peak_gb']:.0f} GB; {trainer['a14b_peak_gb_offload']:.0f} GB",
        f"`klSteps: sampled` | {trainer['flops_ratio_kl_all']:.2f}; {trainer['flops_ratio_kl_sampled']:.2f}",
    ]
    assert [figure for figure in wanted if figure not in text] == []


def test_the_sidecar_that_is_shown_is_one_of_the_tiny_family() -> None:
    (block,) = blocks(DOCS / "tiny-models.md", "json")
    assert json.loads(block) == {"model_name": "wan_video_dit", "extra_kwargs": DIT_KWARGS}


def test_every_page_that_code_and_charts_point_to_exists() -> None:
    kept = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split(
        "\0"
    )
    files = [REPOSITORY / name for name in kept if name.endswith((".py", ".yaml", ".tpl", ".txt", ".md", "file", ".toml"))]
    named = {name for file in files if file.is_file() for name in PAGE_NAME.findall(file.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert {name for name in named if not (REPOSITORY / name).is_file()} == set()


def rows(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    text = page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_every_type_of_condition_is_explained() -> None:
    assert [INLINE.findall(first)[0] for first, *_ in rows(DOCS / "operations.md", "Conditions")] == list(get_args(ConditionType))


def test_the_operators_rights_are_told_as_the_chart_gives_them() -> None:
    template = (REPOSITORY / "charts" / "rewardfl" / "templates" / "_helpers.tpl").read_text(encoding="utf-8")
    rules = yaml.safe_load(template.partition('define "rewardfl.rules" -}}')[2].partition("{{- end")[0])
    given = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    told = {
        (resource, verb)
        for resources, verbs in rows(DOCS / "security.md", "The operator's rights")
        for resource in INLINE.findall(resources)
        for verb in re.sub(r"\([^)]*\)|;|, its own.*| of its own", ",", verbs).replace(",", " ").split()
    }
    leases = {("leases", verb) for verb in ("create", "get", "update")}
    assert told == given | leases


def test_the_first_job_is_part_of_the_example_and_says_what_it_needs() -> None:
    example = REPOSITORY / "examples" / "rewardfljob-one-gpu.yaml"
    (block,) = blocks(DOCS / "start.md", "yaml")
    shown, whole = yaml.safe_load(block), yaml.safe_load(example.read_text(encoding="utf-8"))
    assert merged(whole, shown) == whole
    needed = re.search(r"estimate: ([\d.]+ GB) of each GPU", example.read_text(encoding="utf-8"))
    assert needed is not None
    assert f"a GPU needs {needed[1]} as it is set" in (DOCS / "start.md").read_text(encoding="utf-8")
