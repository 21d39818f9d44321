"""The README shows the numbers of results/reference/, and commands that exist."""

from __future__ import annotations

import json
import re
import shlex
import statistics
import subprocess
import sys

import pandas as pd
import pytest

from benchmarks.options_page import PAGE, options_page
from benchmarks.recipe_plots import PUBLISHED
from benchmarks.recipes import DIMS
from benchmarks.update_readme import BLOCK, DOCUMENTS, table_of, updated
from evaluation.utils.analysis.recommendation import ERROR
from tests.helpers import ROOT

README, ARABIC = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ar.md"))


def test_the_arabic_readme_has_the_commands_and_numbers_of_the_english_one():
    commands = [line.strip() for line in ARABIC.splitlines() if line.startswith("    ")]
    assert len(commands) > 5
    known = {line.split(" #")[0].strip() for line in README.splitlines() if line.startswith("    ")}
    assert set(commands) <= known
    outside = BLOCK.sub("", ARABIC)
    numbers = set(re.findall(r"(?<![\w./])\d[\d.]*\d", outside))
    assert numbers and numbers <= set(re.findall(r"\d[\d.]*\d", README)), "numbers that README.md does not have"
    assert BLOCK.findall(ARABIC) == ["results/reference/multilingual/headline.md"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_are_those_of_the_reference_results(path):
    text = path.read_text(encoding="utf-8")
    assert BLOCK.findall(text)
    assert updated(text) == text, "run python benchmarks/update_readme.py"


def test_the_page_of_options_is_what_the_classes_and_the_files_of_defaults_say():
    page = options_page()
    assert PAGE.read_text(encoding="utf-8") == page, "run python benchmarks/update_readme.py"
    for file in ("training", "eval", "export", "mining"):
        defaults = json.loads((ROOT / f"configs/{file}_config.json").read_text(encoding="utf-8"))
        for key, value in defaults.items():
            [line, *_] = re.findall(rf"^\| `{key}`.*\|$", page, re.MULTILINE)
            if isinstance(value, (bool, int, float)):
                assert f"| `{json.dumps(value)}` |" in page[page.index("## ") :] and line
    assert re.search(r"^\| `scale` .*\| mnrl, gist, cosent, angle \|", page, re.MULTILINE)


# of the text under the table in the section "Results"
FIRST_WORDS = "The last three rows are models trained here; their scores are means over three seeds"


def test_the_numbers_of_the_text_under_the_results_are_those_of_the_record():
    text = " ".join(README[README.index(FIRST_WORDS) : README.index("## Files")].split())
    record = json.loads((ROOT / "results/reference/multilingual/recipes.json").read_text(encoding="utf-8"))
    ours = ("multilingual", "multilingual-all")

    def score(name: str, subset: str, dim: int) -> float:
        return 100 * record["scores"][name][subset][str(dim)]["value"]

    assert all(len(record["per_seed"][name]) == 3 for name in ("e5-nli", *ours))
    gains = [score(name, "en-ar", dim) - score("e5", "en-ar", dim) for dim in (384, 64) for name in ours]
    assert "by {:.0f} and {:.0f} points at 384 dimensions and by {:.0f} and {:.0f} at 64".format(*gains) in text
    costs = [score("e5", "en-en", 64) - score(name, "en-en", 64) for name in ours]
    costs.append(score("e5", "ar-ar", 64) - score("multilingual", "ar-ar", 64))
    said = "they score {:.1f} and {:.1f} points below the 4-bit model on en-en, and `multilingual.json` scores {:.1f} below it on ar-ar"
    assert said.format(*costs) in text
    minutes = [sum(run["wall_time_s"] for run in record["runs"][name]) / 60 / 3 for name in ours]
    assert "{:.0f} and {:.0f} minutes".format(*minutes) in text
    best = max(row["en-ar"] for row in PUBLISHED.values())
    assert "remain below those of the best published models" in text and score("multilingual-all", "en-ar", 384) < best
    published = pd.read_csv(ROOT / "evaluation/published_results.csv").query(
        "model == 'intfloat/multilingual-e5-small'"
    )
    [again] = published[(published["task"] == "STS17") & (published["subset"] == "en-en")].itertuples()
    version, other = ".".join(again.mteb_version.split(".")[:2]), f"{100 * again.cosine_spearman:.1f}"
    assert f"With mteb {version}, the published en-en score is {other}, as high as the copy's." in text
    assert other == f"{score('e5', 'en-en', 384):.1f}"
    known = {f"{number:.0f}" for number in (*gains, *minutes)} | {"384", "64", "4", version, other}
    known |= {f"{cost:.1f}" for cost in costs}
    assert set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\))", text)) <= known, "a number that nothing here traces"


def speeds() -> set[str]:
    """Check what the README says of the speed and the memory of training, and return its numbers."""
    numbers, memory = [], []
    for folder, kind in (("minilm", "ours fp32"), ("minilm", "ours"), ("h200", "ours")):
        path = ROOT / f"results/reference/throughput-{folder}/throughput.json"
        runs = json.loads(path.read_text(encoding="utf-8"))["results"]
        for key, ratios in (("triplets_per_s", numbers), ("peak_memory_gib", memory)):
            ours, plain = ([run[key] for run in runs if run["run"] == name] for name in (kind, "plain"))
            ratios.append(statistics.median(a / b for a, b in zip(ours, plain, strict=True)))
    shown = [f"{ratio:.1f}" for ratio in numbers]
    text = " ".join(re.sub(r" \(\[[^)]*\)\)", "", " ".join(README.split())).split())
    said = "all-MiniLM-L6-v2 trains {} times as fast on a CPU in float32 and {} times in bfloat16, and distilroberta-base {} times as fast on an H200 GPU in bfloat16. All three runs need about a quarter of the memory"
    assert said.format(*shown) in text and all(0.2 < ratio < 0.3 for ratio in memory)
    return set(shown)


def test_all_other_numbers_of_the_readme_are_those_of_the_configuration_and_the_code():
    text = BLOCK.sub("", README[: README.index(FIRST_WORDS)] + README[README.index("## Files") :])
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("    ", "|")))
    text = re.sub(r"`[^`]*`|<img[^>]*>|\[Kusupati[^\]]*\]\([^)]*\)|\]\([^)]*\)", "", text)
    defaults = {
        name: json.loads((ROOT / f"configs/{name}_config.json").read_text(encoding="utf-8"))
        for name in ("training", "eval")
    }
    python = re.search(r"python=([\d.]+)", (ROOT / "environment.yml").read_text(encoding="utf-8"))[1]
    known = {str(dim) for dim in defaults["training"]["matryoshka_dims"]}
    known |= {str(max(DIMS)), "100"}  # the width of the models in the first table, and the factor of its scores
    known |= {python, f"{defaults['eval']['max_loss']:g}", f"{100 * (1 - ERROR):.0f}"} | speeds()
    numbers = set(re.findall(r"(?<![\w.-])\d+(?:\.\d+)?", text))
    assert numbers and numbers <= known


MEASURED = {  # the config of each recipe: its record, and its row there
    "multilingual": ("multilingual", "multilingual"),
    "crosslingual": ("recipes", "tatoeba-alone"),
    "hybrid_arabert": ("recipes", "hybrid"),
    "gate_arabert": ("multilingual", "e5-gate"),
    "static": ("recipes", "static"),
}


def rows_of_commands(readme: str) -> list[tuple[str, str, str]]:
    """The script, the configuration and the score of each row of the table of commands."""
    row = r"^\| (?:`|<code dir=\"ltr\">)python (\S+) --config configs/(\w+)\.json(?:`|</code>) \|.*\| (.*) \|$"
    return re.findall(row, readme, re.MULTILINE)


def test_the_arabic_readme_has_the_same_scores_next_to_the_commands():
    assert rows_of_commands(ARABIC) == rows_of_commands(README)


def test_the_scores_next_to_the_commands_are_those_of_the_records():
    rows = rows_of_commands(README)
    shown = {name: score for _, name, score in rows if score != "–"}
    assert len(rows) == 6 and set(shown) == set(MEASURED)
    for name, (folder, row) in MEASURED.items():
        path = ROOT / f"results/reference/{folder}/recipes.json"
        scores = json.loads(path.read_text(encoding="utf-8"))["scores"][row]
        assert shown[name] == ", ".join(f"{100 * scores['mean'][dim]['value']:.1f}" for dim in ("384", "64"))


def test_the_quick_start_takes_about_a_minute():
    folder = ROOT / "results/reference/quickstart"
    lift, scoring = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("lift.json", "run.json"))
    seconds = (
        lift["wall_time_s"] / len(lift["config"]["seeds"]) + scoring["wall_time_s"]
    )  # one training run, one evaluation
    assert "the rest takes about a minute" in " ".join(README.split()) and 30 < seconds < 75


def test_a_changed_table_would_be_noticed():
    name = BLOCK.search(README)[1]
    row = next(line for line in table_of(name).splitlines() if line.startswith("| ") and any(c.isdigit() for c in line))
    assert row in README and updated(README.replace(row, row.replace("| ", "| 1", 1))) == README


def links() -> list[tuple[str, str]]:
    """Every document, and a file that it links to."""
    pattern = re.compile(r"\]\((?!http)([^)#]+)\)")
    return [
        (str(path.relative_to(ROOT)), link)
        for path in (*DOCUMENTS, ROOT / "docs/models.md")
        for link in pattern.findall(BLOCK.sub("", path.read_text(encoding="utf-8")))
    ]


@pytest.mark.parametrize(("document", "link"), links())
def test_links_lead_somewhere(document, link):
    assert ((ROOT / document).parent / link).exists()


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for line in README.splitlines() if line.startswith("    python ")]
    return [line for line in lines if line]


@pytest.mark.parametrize("command", commands())
def test_the_commands_have_flags_that_exist(command):
    """Each flag that the README uses is one that the script's --help explains, and each configuration file that it names exists."""
    script, *words = shlex.split(command)[1:]
    shown = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word)}\b", shown.stdout), word
        if word.startswith("configs/"):
            assert (ROOT / word).exists()
