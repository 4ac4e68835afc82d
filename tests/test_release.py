"""What surrounds a release: its number, its description, the jobs, the forms for issues."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import yaml

import snn_dropout as sd

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = (ROOT / ".ci" / "run").read_text()
STAGES = re.search(r"^stages=\((.*)\)$", COMMANDS, re.M)[1].split()
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"


def test_the_number_is_the_same_everywhere():
    changes = (ROOT / "CHANGELOG.md").read_text()
    number, day = re.search(r"^## (\d\S*) - (\d{4}-\d\d-\d\d)$", changes, re.M).groups()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert number == sd.__version__ == str(citation["version"])
    assert day == str(citation["date-released"])
    assert PROJECT["license"] == citation["license"]


def test_versions_that_are_named_are_those_that_are_tested():
    tested = re.search(r"^for version in (.*); do$", COMMANDS, re.M)[1].split()
    named = [
        kind.split(" :: ")[-1]
        for kind in PROJECT["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", kind)
    ]
    assert named == tested
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_the_licence_is_said_once():
    """Beside the expression a classifier is an error for those who receive a release."""
    assert not [kind for kind in PROJECT["classifiers"] if kind.startswith("License")]


def test_every_stage_is_there_and_runs():
    for stage in STAGES:
        assert COMMANDS.count(f"\n{stage}() {{\n") == 1


def test_a_stage_that_is_not_there_is_refused_before_anything_runs():
    run = subprocess.run(
        [shutil.which("bash"), ROOT / ".ci" / "run", "docs", "doc"],
        capture_output=True,
        text=True,
        env={"PATH": ""},  # no other program can be found
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr == f"there is no stage 'doc', but: {' '.join(STAGES)}\n"


def test_the_jobs_share_out_all_stages_and_do_nothing_else():
    (workflow,) = (ROOT / ".github" / "workflows").glob("*.y*ml")
    (job,) = yaml.safe_load(workflow.read_text())["jobs"].values()
    rows = job["strategy"]["matrix"]["include"]
    shared = [stage for row in rows for stage in row["stages"].split()]
    assert sorted(shared) == sorted(STAGES)
    assert [step["run"] for step in job["steps"] if "run" in step] == [
        ".ci/run ${{ matrix.stages }}"
    ]
    tested = re.search(r"^for version in (.*); do$", COMMANDS, re.M)[1].split()
    assert {row["python"] for row in rows} == set(tested)


def test_the_forms_for_issues_can_be_filled_in():
    forms = {form.stem: yaml.safe_load(form.read_text()) for form in FORMS.glob("*.yml")}
    assert forms.pop("config") == {"blank_issues_enabled": True}
    assert sorted(forms) == ["bug", "feature"]
    for form in forms.values():
        assert form.keys() == {"name", "description", "labels", "body"}
        names = [part["id"] for part in form["body"]]
        assert len(set(names)) == len(names)
        for part in form["body"]:
            assert part["type"] in ("textarea", "input", "dropdown")
            assert part["attributes"]["label"]
            assert ("options" in part["attributes"]) == (part["type"] == "dropdown")


def test_a_bug_is_told_with_what_it_takes_to_see_it():
    bug = yaml.safe_load((FORMS / "bug.yml").read_text())
    required = {
        part["id"] for part in bug["body"] if part.get("validations", {}).get("required")
    }
    assert required >= {"versions", "shapes", "step_mode", "loop", "expected"}
