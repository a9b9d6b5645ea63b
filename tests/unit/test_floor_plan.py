"""Who may import whom (DESIGN.md, section 3), read off the syntax tree; and that importing does nothing."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT) for name in ("pipelines", "serve") for path in (ROOT / name).rglob("*.py"))
SPINE_HTTP = {"http", "fastapi", "starlette", "uvicorn", "flask", "aiohttp", "socketserver", "wsgiref", "tornado"}

# room → the rooms whose modules it may import besides its own
ALLOWED = {
    "pipelines.ner": set(),
    "pipelines.corpus": {"pipelines.ner"},
    "pipelines.evaluation": {"pipelines.ner"},
    "pipelines.planning": {"pipelines.ner"},
    "pipelines.training": {"pipelines.ner", "pipelines.evaluation"},
    "pipelines.compression": {"pipelines.ner", "pipelines.evaluation", "pipelines.training"},
    "pipelines.tuning": {"pipelines.ner", "pipelines.evaluation", "pipelines.training", "pipelines.planning"},
    "serve": {"pipelines.ner", "pipelines.planning", "pipelines.cluster"},
}
# room → packages that it must not import, and the modules that may
FORBIDDEN = {
    "pipelines.ner": ({"ray", "datasets", "pyarrow", "jsonargparse", "rich"} | SPINE_HTTP, set()),
    "pipelines.corpus": (SPINE_HTTP, set()),
    "pipelines.evaluation": ({"ray"} | SPINE_HTTP, set()),
    "pipelines.planning": ({"ray"} | SPINE_HTTP, {"pipelines.planning.running_cluster"}),
    "pipelines.training": (
        {"ray"} | SPINE_HTTP,
        {"pipelines.training.notices", "pipelines.training.trainer", "pipelines.training.resources"},
    ),
    "pipelines.compression": ({"ray"} | SPINE_HTTP, set()),
    "pipelines.tuning": (SPINE_HTTP, set()),
}
FRAME = {
    "pipelines.__main__": {"pipelines.job", "pipelines.run_record"},
    "pipelines.cluster": {"pipelines.ner"},
    "pipelines.settings": {"pipelines.ner"},
    "pipelines.job": {"pipelines.ner", "pipelines.settings"},
    "pipelines.replacement": {"pipelines.settings"},
    "pipelines.folders": {"pipelines.ner", "pipelines.settings", "pipelines.job", "pipelines.replacement"},
    "pipelines.run_record": {"pipelines.ner", "pipelines.job", "pipelines.folders"},
    "pipelines.runs": {
        "pipelines.ner",
        "pipelines.corpus",
        "pipelines.evaluation",
        "pipelines.training",
        "pipelines.cluster",
        "pipelines.folders",
        "pipelines.run_record",
    },
    "pipelines.encoder_folder": {"pipelines.ner", "pipelines.evaluation", "pipelines.training"},
    "pipelines.pretraining_report": {
        "pipelines.ner",
        "pipelines.corpus",
        "pipelines.evaluation",
        "pipelines.training",
        "pipelines.job",
        "pipelines.folders",
        "pipelines.terminal",
    },
    "pipelines.hub": {"pipelines.ner"},
    "pipelines.shipping": {"pipelines.ner"},
    "pipelines.job_client": {"pipelines.ner", "pipelines.cluster", "pipelines.job"},
    "pipelines.trackers": set(),
    "pipelines.tracking": {
        "pipelines.ner",
        "pipelines.training",
        "pipelines.folders",
        "pipelines.job",
        "pipelines.trackers",
    },
    "pipelines.comparison": {"pipelines.evaluation", "pipelines.planning"},
    "pipelines.endpoint_checks": {
        "pipelines.ner",
        "pipelines.planning",
        "pipelines.cluster",
        "pipelines.settings",
        "serve",
    },
    "pipelines.calibrating": {"pipelines.cluster", "pipelines.planning", "pipelines.training"},
    "pipelines.planned_corpus": {
        "pipelines.ner",
        "pipelines.corpus",
        "pipelines.planning",
        "pipelines.resources",
        "pipelines.job",
        "pipelines.settings",
    },
    "pipelines.plan_view": {"pipelines.planning", "pipelines.job"},
    "pipelines.resources": {
        "pipelines.ner",
        "pipelines.corpus",
        "pipelines.planning",
        "pipelines.training",
        "pipelines.job",
    },
    "pipelines.compression_inputs": {
        "pipelines.ner",
        "pipelines.corpus",
        "pipelines.compression",
        "pipelines.job",
        "pipelines.run_record",
        "pipelines.runs",
        "pipelines.terminal",
    },
    "pipelines.bundle_figures": {"pipelines.ner", "pipelines.corpus", "pipelines.compression"},
    "pipelines.variants": {
        "pipelines.bundle_figures",
        "pipelines.ner",
        "pipelines.corpus",
        "pipelines.evaluation",
        "pipelines.training",
        "pipelines.compression",
        "pipelines.cluster",
        "pipelines.folders",
        "pipelines.job",
        "pipelines.replacement",
        "pipelines.run_record",
        "pipelines.runs",
        "pipelines.terminal",
    },
    "pipelines.terminal": {"pipelines.ner", "pipelines.corpus", "pipelines.evaluation", "pipelines.job"},
    "pipelines.search_view": {"pipelines.job", "pipelines.terminal"},
    "pipelines.search_results": {
        "pipelines.ner",
        "pipelines.corpus",
        "pipelines.evaluation",
        "pipelines.tuning",
        "pipelines.folders",
        "pipelines.search_view",
        "pipelines.trial_jobs",
        "pipelines.tuned_presets",
    },
    "pipelines.trial_jobs": {
        "pipelines.ner",
        "pipelines.corpus",
        "pipelines.training",
        "pipelines.tuning",
        "pipelines.runs",
        "pipelines.run_record",
    },
    "pipelines.tuned_presets": {
        "pipelines.ner",
        "pipelines.corpus",
        "pipelines.tuning",
        "pipelines.trial_jobs",
        "pipelines.folders",
    },
}
VAGUE = re.compile(r"(^|_)(utils?|helpers?|common|misc|managers?)($|_)")


def name_module(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_room(module: str) -> str:
    """`pipelines.ner.crf` → `pipelines.ner`; a door or a module of the frame is its own room."""
    parts = module.split(".")
    return "serve" if parts[0] == "serve" else ".".join(parts[:2])


@cache
def parse(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), filename=str(file))


def list_imports(file: Path) -> list[tuple[int, str]]:
    """Every module that a file imports, also inside functions; `from a import b` as `a.b` where that is a module."""
    found = []
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found += [(node.lineno, _resolve(module, alias.name)) for alias in node.names]
    return found


def _resolve(module: str, name: str) -> str:
    below = ROOT.joinpath(*module.split("."), name)
    return f"{module}.{name}" if below.is_dir() or below.with_suffix(".py").is_file() else module


def is_ours(module: str) -> bool:
    return module.split(".")[0] in ("pipelines", "serve")


def is_door(module: str) -> bool:
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return module.count(".") == 1 and module.startswith("pipelines.") and module not in FRAME and file.is_file()


every_file = pytest.mark.parametrize("file", FILES, ids=str)


def test_the_doors_and_rooms_are_found():
    modules = {name_module(file) for file in FILES}
    assert {
        "pipelines.train",
        "pipelines.pretrain",
        "pipelines.prepare",
        "pipelines.evaluate",
        "pipelines.predict",
    } <= modules
    assert {module for module in modules if is_door(module)}.isdisjoint(FRAME)
    assert {"pipelines.ner", "pipelines.corpus", "pipelines.evaluation", "pipelines.training"} <= modules


def test_every_folder_is_a_room_of_the_floor_plan():
    folders = {f"pipelines.{file.parts[1]}" for file in FILES if file.parts[0] == "pipelines" and len(file.parts) > 2}
    assert folders <= ALLOWED.keys()


@every_file
def test_room_imports_only_what_the_floor_plan_allows(file):
    module = name_module(file)
    room = find_room(module)
    if is_door(module):
        wrong = [one for one in list_imports(file) if is_door(one[1]) and one[1] != module]
    else:
        allowed = ALLOWED.get(room, FRAME.get(room, set())) | {room}
        wrong = [one for one in list_imports(file) if is_ours(one[1]) and find_room(one[1]) not in allowed]
    assert wrong == []


@every_file
def test_room_keeps_out_of_packages_that_are_not_its_business(file):
    module = name_module(file)
    forbidden, exempt = FORBIDDEN.get(find_room(module), (set(), set()))
    wrong = [one for one in list_imports(file) if one[1].split(".")[0] in forbidden]
    assert wrong == [] or module in exempt


def test_training_knows_ray_in_the_trainer_and_its_resources_alone():
    users = {
        name_module(file)
        for file in FILES
        if file.parts[1] == "training" and any(one.split(".")[0] == "ray" for _, one in list_imports(file))
    }
    assert users == FORBIDDEN["pipelines.training"][1]


def test_only_cluster_calls_ray_init():
    callers = {
        name_module(file)
        for file in FILES
        for node in ast.walk(parse(file))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ray.init", "init")
    }
    assert callers == {"pipelines.cluster"}


@every_file
def test_imports_are_absolute(file):
    relative = [node.lineno for node in ast.walk(parse(file)) if isinstance(node, ast.ImportFrom) and node.level]
    assert relative == []


@pytest.mark.parametrize("file", [file for file in FILES if file.name == "__init__.py"], ids=str)
def test_init_holds_a_docstring_and_nothing_else(file):
    tree = parse(file)
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


def test_every_folder_with_modules_is_a_package():
    folders = {file.parent for file in FILES}
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()] == []


@every_file
def test_names_are_neither_vague_nor_those_of_the_standard_library(file):
    names = {part.removesuffix(".py") for part in file.parts}
    assert not [name for name in names if VAGUE.search(name)]
    assert not (names - {"__init__", "__main__"}) & sys.stdlib_module_names


def run_python(code: str) -> dict[str, list[str]]:
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=600
    )
    assert found.stdout.count("\n") == 1, found.stdout
    return json.loads(found.stdout)


def test_importing_ner_takes_neither_ray_nor_any_other_room():
    modules = [name_module(file) for file in FILES if file.parts[:2] == ("pipelines", "ner")]
    code = f"""
import importlib, json, sys
for name in {modules}:
    importlib.import_module(name)
print(json.dumps({{"loaded": sorted(sys.modules)}}))
"""
    loaded = run_python(code)["loaded"]
    assert set(modules) <= set(loaded)
    assert [one for one in loaded if one.split(".")[0] == "ray"] == []
    assert {one for one in loaded if one.startswith("pipelines.")} == set(modules) - {"pipelines"}


def test_importing_a_module_changes_no_environment_no_folder_no_thread_and_prints_nothing():
    """What the libraries change when they are imported is not ours: they are imported first."""
    modules = [name_module(file) for file in FILES if file.name != "__main__.py"]
    outside = sorted({one for file in FILES for _, one in list_imports(file) if not is_ours(one)})
    code = f"""
import contextlib, importlib, json, logging, os, sys, threading
for name in {outside}:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
def look():
    handlers = [repr(one) for one in logging.getLogger().handlers]
    threads = sorted(one.name for one in threading.enumerate())
    return [dict(os.environ), os.getcwd(), handlers, threads, len(os.listdir())]
before = look()
for name in {modules}:
    importlib.import_module(name)
after = look()
ray = sys.modules["ray"]
changed = [repr((a, b)) for a, b in zip(before, after) if a != b]
print(json.dumps({{"changed": changed, "initialized": [1] * ray.is_initialized()}}))
"""
    assert run_python(code) == {"changed": [], "initialized": []}
