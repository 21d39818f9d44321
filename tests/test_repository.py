"""The repository: required files exist, requirements agree, scripts parse."""

from __future__ import annotations

import ast
import re
import shutil
import stat
import subprocess
import sys
from importlib import metadata

import pytest

from tests.helpers import ROOT

REQUIRED = [
    "training/matryoshka_nli.py",
    "training/hybrid_training.py",
    "training/utils/__init__.py",
    "training/utils/data_loading.py",
    "training/utils/model_utils.py",
    "evaluation/evaluate_mteb.py",
    "evaluation/evaluate_sts.py",
    "evaluation/utils/__init__.py",
    "evaluation/utils/evaluation_utils.py",
    "configs/training_config.json",
    "configs/eval_config.json",
    "scripts/run_training.sh",
    "scripts/run_evaluation.sh",
    "scripts/quickstart.sh",
    "scripts/run_tests.sh",
    "requirements.txt",
    "environment.yml",
    "LICENSE",
    "README.md",
    "CITATION.cff",
    ".ci/run",
    "data/sample/nli_groups.jsonl",
    "data/sample/sts_pairs.jsonl",
]
SHELL = sorted([*(ROOT / "scripts").glob("*.sh"), ROOT / ".ci/run"])
SOURCES = sorted(
    p for folder in ("common", "training", "evaluation", "benchmarks") for p in (ROOT / folder).rglob("*.py")
)
# distributions by the name they are imported as, where the two differ
IMPORTED_AS = {"sklearn": "scikit-learn", "yaml": "pyyaml"}


def requirements(name: str = "requirements.txt") -> dict[str, str]:
    """Names and version bounds of a requirements file."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?(.*)", line) for line in lines if line]
    assert all(found)
    return {match[1].lower(): match[2] for match in found}


@pytest.mark.parametrize("name", REQUIRED)
def test_the_file_is_there(name):
    assert (ROOT / name).is_file()
    assert (ROOT / name).stat().st_size > 20


def test_the_licence_is_mit():
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_versions_have_upper_bounds_and_torch_is_pinned():
    found = requirements()
    assert found["torch"] == "==2.13.0"
    for name, bounds in (
        found | requirements("requirements-export.txt") | requirements("requirements-search.txt")
    ).items():
        assert re.search(r"==|<\d", bounds), f"{name}{bounds} has no upper bound"
    assert {"transformers", "sentence-transformers", "datasets", "mteb"} <= set(found)


def test_what_is_installed_is_what_is_asked_for():
    from packaging.requirements import Requirement

    lines = [line for path in ROOT.glob("requirements*.txt") for line in path.read_text().splitlines()]
    for line in lines:
        if not line.startswith("-r ") and line.split("#")[0].strip():
            wanted = Requirement(line.split("#")[0])
            version = metadata.version(wanted.name)
            assert wanted.specifier.contains(version), f"{wanted} but {version} is installed"


def test_the_environment_is_python_and_the_requirements():
    lines = [line.strip() for line in (ROOT / "environment.yml").read_text().splitlines() if line.strip()]
    listed = lines[lines.index("dependencies:") + 1 :]
    assert [re.sub(r"[=<>].*", "", line.removeprefix("- ")) for line in listed] == [
        "python",
        "pip",
        "pip:",
        "-r requirements.txt",
    ]
    assert "- -r requirements.txt" in lines
    version = re.search(r"python\s*[=<>]+\s*3\.(\d+)", " ".join(listed))
    assert version and int(version[1]) >= 11


def test_every_package_that_is_imported_is_required():
    required = {
        name
        for file in ("requirements.txt", "requirements-export.txt", "requirements-search.txt")
        for name in requirements(file)
    }
    own = {"common", "training", "evaluation", "benchmarks", "tests"}
    # installed as dependencies of required packages
    along = {"huggingface_hub", "tokenizers", "safetensors", "accelerate", "tqdm", "sklearn", "jinja2"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {n.split(".")[0] for n in names} - own - along - set(sys.stdlib_module_names):
                wanted = IMPORTED_AS.get(name, name).replace("_", "-").lower()
                assert wanted in required, f"{path.relative_to(ROOT)} imports {name}, which requirements.txt lacks"


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_scripts_parse_and_stop_at_the_first_error(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "set -euo pipefail" in path.read_text()


def test_ci_can_be_run():
    assert (ROOT / ".ci/run").stat().st_mode & stat.S_IXUSR


def test_two_utils_packages_import_in_one_session():
    import evaluation.utils.evaluation_utils as of_evaluation
    import training.utils.model_utils as of_training

    assert of_evaluation.__file__ == str(ROOT / "evaluation/utils/evaluation_utils.py")
    assert of_training.__file__ == str(ROOT / "training/utils/model_utils.py")


def test_evaluation_does_not_import_training():
    for path in (ROOT / "evaluation").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) training\b", path.read_text(encoding="utf-8"), re.M), path


@pytest.mark.parametrize("path", sorted((ROOT / "tests").glob("*.py")), ids=lambda path: path.name)
def test_tests_import_from_tests_only_what_is_there_to_be_shared(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        else:
            continue
        for name in imported:
            assert not re.match(r"tests\.(test_|conftest)", name), (
                f"line {node.lineno} imports {name}: use tests/helpers.py"
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sources_do_no_work_on_import_and_say_what_they_are(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no docstring"
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If)
    for node in tree.body[1:]:
        assert isinstance(node, allowed), f"line {node.lineno}"


def test_results_and_outputs_are_ignored_but_the_reference():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def ignored(name):
        return subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode == 0

    assert all(
        map(ignored, ("results/summary.csv", "output/x/final/model.safetensors", ".venv/x", "results/x/run.json"))
    )
    assert not any(map(ignored, ("results/reference/x.json", "results/LOG.md", "data/sample/nli_groups.jsonl")))


@pytest.mark.parametrize("script", ["training/matryoshka_nli.py", "evaluation/evaluate_mteb.py"])
def test_scripts_run_with_m_from_the_root_and_as_files_from_anywhere(script, tmp_path):
    module = script.removesuffix(".py").replace("/", ".")
    for args, cwd in (([str(ROOT / script)], tmp_path), (["-m", module], ROOT)):
        done = subprocess.run([sys.executable, *args, "--help"], cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "--model_name" in done.stdout


def test_the_titles_of_the_log_end_with_a_verdict_and_its_lines_wrap():
    lines = (ROOT / "results/LOG.md").read_text(encoding="utf-8").splitlines()
    titles = [line for line in lines if line.startswith("## ")]
    assert titles and [t for t in titles if not re.fullmatch(r"## \d{4}-\d\d-\d\d: .+ \([^()]+\)", t)] == []
    assert titles == sorted(titles, key=lambda title: title[3:13], reverse=True)
    assert [line for line in lines if len(line) > 125 and not line.startswith(("|", "    "))] == []
