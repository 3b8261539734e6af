"""Pipeline files: all mistakes at once, with file and line, before anything runs."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from volflow.engine.run_options import RunOptions
from volflow.errors import InvalidInput, InvalidPipeline
from volflow.jobs.pipeline.document import Mistakes, Scalar, node_of, parse_document, plain_of
from volflow.jobs.pipeline.functions import called
from volflow.jobs.pipeline.operations import OPERATIONS
from volflow.jobs.pipeline.pipeline_file import read_pipeline
from volflow.jobs.pipeline.schema import pipeline_schema
from volflow.jobs.pipeline.variables import filled

GOOD = """\
variables:
  input:
  folder: .
  size: 16
memory: 1GiB
steps:
  - name: scan
    convert:
      source: ${input}
      out: ${folder}/scan.zarr
      chunk: ${size}
      labels: false
  - name: segment
    predict:
      volume: {t1: "${folder}/scan.zarr", flair: "${folder}/scan.zarr"}
      model: torch.nn:Identity
      out: ${folder}/seg.zarr
      overlap: 0.25
      patch: [16, 16, 8]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a scan, which is the current one."""
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", np.zeros((8, 8, 8), "uint8"))
    return tmp_path


@pytest.fixture
def mistakes_of(here):
    """What is wrong with a pipeline of this text, as lines."""

    def read(text, **values):
        (here / "p.yaml").write_text(text)
        with pytest.raises(InvalidPipeline) as refused:
            read_pipeline("p.yaml", values)
        assert refused.value.exit_code == 2
        return str(refused.value).splitlines()

    return read


def steps(*lines):
    return "\n".join(["steps:", *lines])


def test_a_good_file_is_read(here):
    (here / "p.yaml").write_text(GOOD)
    file = read_pipeline("p.yaml", {"input": here / "scan.npy", "size": (16, 8, 8)})
    scan, segment = file.steps
    assert scan.settings == {
        "source": str(here / "scan.npy"), "out": "./scan.zarr", "chunk": (16, 8, 8), "labels": False
    }  # fmt: skip
    assert segment.settings["volume"] == {"t1": "./scan.zarr", "flair": "./scan.zarr"}
    assert segment.settings["patch"] == (16, 16, 8)
    assert (segment.settings["overlap"], segment.place) == (0.25, "p.yaml:14")
    assert segment.inputs == ("./scan.zarr", "torch.nn:Identity")
    assert segment.outputs == ("./seg.zarr",)
    assert file.everywhere == {"memory": "1GiB"}
    assert file.record == here / "seg.zarr.run.jsonl"


def test_all_mistakes_are_said_at_once_with_their_lines(mistakes_of):
    text = GOOD.replace("overlap:", "ovrlap:").replace("8]", "8, 4]").replace("false", "perhaps")
    text = text.replace("torch.nn", "${modl}").replace("memory: 1GiB", "memry: 1GiB")
    assert mistakes_of(text, inptu="scan.npy") == [
        "p.yaml:2: there is no variable 'inptu'; did you mean 'input'?",
        "p.yaml:2: variable 'input' has no value; give it: --set input=…",
        "p.yaml:5: a pipeline has no 'memry'; did you mean 'memory'?",
        "p.yaml:12: convert: labels must be true or false, given 'perhaps'",
        "p.yaml:16: there is no variable 'modl'; there are input, folder, size",
        "p.yaml:18: predict has no setting 'ovrlap'; did you mean 'overlap'?",
        "p.yaml:19: predict: patch must be a whole number or a list of 3 whole numbers, given"
        " [16, 16, 8, 4]",
    ]


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        (["  - convert: {source: scan.npy, out: a.zarr}"], 2, "step 1 has no name; write - name:"),
        (["  - name: a"], 2, "step 1 has no operation; write"),
        (["  - scan"], 2, "step 1 is no mapping"),
        (["  - {name: a, convret: {}}"], 2, "no operation 'convret'; did you mean 'convert'?, or"),
        (["  - {name: a, convert: {out: a.zarr}}"], 2, "convert needs source: A file or folder"),
        (["  - {name: a, convert: }"], 2, "convert needs source"),
        (["  - {name: a, convert: scan.npy}"], 2, "convert takes settings by name"),
        (["  - name: a", "    verify: {path: a}", "    pyramid: {volume: a}"], 2, "2 operations"),
        (["  - {name: a, verify: {path: gone.zarr}}"], 2, "gone.zarr does not exist, and no step"),
        (["  - name: a", "    name: b", "    verify: {path: scan.npy}"], 3, "given twice"),
        (["  - name: a", "    verify: {path: !!python/object/apply:os.getcwd []}"], 3, "tags such"),
        (["  - name: a", "    verify: &x", "      <<: *x"], 4, "a name must be a plain text"),
        (["  - {name: a, math:sqrd: {}}"], 2, "math has no function 'sqrd'; did you mean 'sqrt'?"),
        (["  - {name: a, no.such:f: {}}"], 2, "importing 'no.such' failed"),
        (["  - {name: a"], 2, "this is no YAML"),
        (["  - {name: a, convert: {source: scan.npy, out: a.zarr, chunk: '8,8'}}"], 2, "number or"),
        (["  - {name: a, convert: {source: scan.npy, out: no/a.zarr}}"], 2, "folder no does not"),
    ],
)  # fmt: skip
def test_mistakes(mistakes_of, lines, line, said):
    found = mistakes_of(steps(*lines))
    assert any(one.startswith(f"p.yaml:{line}: ") and said in one for one in found), found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a pipeline is a mapping with steps"),
        ("[1, 2]", "a pipeline is a mapping with steps"),
        ("steps: []", "a pipeline needs steps"),
        ("memory: 4GiB", "a pipeline needs steps"),
        ("variables: 3\n" + steps("  - {name: a, verify: {path: scan.npy}}"), "names with their"),
        ("variables: {cluster: a}\n" + steps("  - {name: a, verify: {path: b}}"), "option of run"),
        (
            "variables: {a: '${b}', b: '${a}'}\n" + steps("  - {name: a, verify: {path: '${a}'}}"),
            "in a circle: a → b → a",
        ),
        (steps("  - {name: a, verify: {path: scan.npy}}"), "add record: PATH"),
        ("memory: [1, 2]\n" + steps("  - {name: a, verify: {path: b}}"), "memory must be a text"),
    ],
)  # fmt: skip
def test_mistakes_of_the_whole_file(mistakes_of, text, said):
    found = mistakes_of(text)
    assert any(said in one for one in found), found


def test_two_steps_share_neither_name_nor_output(mistakes_of):
    one = "  - {name: a, convert: {source: scan.npy, out: a.zarr}}"
    assert mistakes_of(steps(one, one)) == [
        "p.yaml:3: two steps are named 'a', the first in line 2",
        "p.yaml:3: a.zarr is written by the step in line 2, too",
    ]


def test_aliases_that_multiply_are_refused_soon(mistakes_of):
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    assert "more than" in mistakes_of("\n".join(lines))[0]
    assert "more than" in mistakes_of("steps: &a [*a]")[0]


def test_a_file_that_is_none_is_refused(here):
    with pytest.raises(InvalidInput, match=r"gone.yaml does not exist; check the path"):
        read_pipeline("gone.yaml", {})
    (here / "p.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="no text in UTF-8"):
        read_pipeline("p.yaml", {})


def test_text_is_text_where_only_text_is_wanted(here):
    (here / "007").mkdir()
    text = steps("  - name: a", "    convert: {source: scan.npy, out: '${d}/a.zarr', chunk: '8'}")
    (here / "p.yaml").write_text("variables: {d: 007}\nrecord: 12\n" + text)
    file = read_pipeline("p.yaml", {})
    assert file.steps[0].settings == {"source": "scan.npy", "out": "007/a.zarr", "chunk": 8}
    assert file.record == here / "12"


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text("ab/.${}", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner),
    max_leaves=8,
)


@given(plain)
def test_what_is_read_is_what_yaml_says(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("yaml") / "p.yaml"
    path.write_text(yaml.safe_dump({"value": value}))
    mistakes = Mistakes("p.yaml")
    assert plain_of(parse_document(path, mistakes)) == {"value": value}
    assert mistakes.found == []


@given(st.lists(st.sampled_from(["${a}", "$${a}", "${b}", "x", "/"]), min_size=2))
def test_variables_are_filled_in_as_text(parts):
    values = {"a": Scalar("007"), "b": node_of("s p")}
    mistakes = Mistakes("p.yaml")
    meant = {"${a}": "007", "$${a}": "${a}", "${b}": "s p"}
    got = filled(Scalar("".join(parts)), values, mistakes)
    assert got.text == "".join(meant.get(part, part) for part in parts)
    assert mistakes.found == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_settings_are_what_the_function_takes(name):
    """A file can say all that the call can, but for what only Python has."""
    operation = OPERATIONS[name]
    taken = set(inspect.signature(called(operation.call)).parameters)
    if name == "preview":  # which takes its options object's fields
        assert taken == {"volume", "out", "options"}
        return
    # A step is waited for, so that its driver need not be elsewhere.
    of_python = {"progress", "resume", "detach"} | (
        {"normalize", "activation"} if name == "verify" else set()
    )
    assert taken - of_python == operation.settings.keys()
    assert operation.reads | operation.writes <= operation.settings.keys()


class TestSchema:
    def test_the_file_beside_the_pipelines_is_true(self, root):
        kept = (root / "pipelines" / "pipeline.schema.json").read_text()
        made = json.dumps(pipeline_schema(), indent=2) + "\n"
        assert kept == made, "volflow run --schema > pipelines/pipeline.schema.json"

    def test_it_is_a_schema(self):
        jsonschema.Draft202012Validator.check_schema(pipeline_schema())

    def test_it_takes_the_good_file_and_names_what_is_wrong(self):
        check = jsonschema.Draft202012Validator(pipeline_schema())
        good = yaml.safe_load(GOOD)
        assert list(check.iter_errors(good)) == []
        for right, wrong in (
            ("overlap", "ovrlap"),
            ("name", "nam"),
            ("0.25", "true"),
            ("out", "o"),
        ):
            assert list(check.iter_errors(yaml.safe_load(GOOD.replace(right, wrong))))

    def test_every_shipped_pipeline_names_and_keeps_it(self, root):
        check = jsonschema.Draft202012Validator(pipeline_schema())
        files = [*(root / "pipelines").glob("*.yaml")]
        shipped = [file for file in files if "\nsteps:" in file.read_text()]
        assert shipped
        for file in shipped:
            text = file.read_text()
            assert text.startswith("# yaml-language-server: $schema=pipeline.schema.json\n")
            assert list(check.iter_errors(yaml.safe_load(text))) == []

    def test_it_offers_the_options_of_every_run_at_the_top(self):
        top = pipeline_schema()["properties"].keys()
        shared = {one.name for one in fields(RunOptions)} - {"progress"}
        assert top == shared | {"variables", "record", "steps"}
