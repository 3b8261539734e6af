"""Cases are what a pattern, a folder or a table says; what is missing or twice there is named."""

from __future__ import annotations

import json
import math
import string

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import volflow as vf
from volflow.errors import InvalidInput
from volflow.jobs.batch.case_record import batch_dir


@pytest.fixture
def touched(tmp_path, monkeypatch):
    """Makes empty files in the folder where the test runs: nothing opens them."""
    monkeypatch.chdir(tmp_path)

    def touch(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return touch


class TestPatterns:
    def test_each_match_is_a_case(self, touched):
        touched("in/b.nii.gz", "in/a.nii.gz", "in/a.nii", "in/c.txt", "in/.d.nii.gz")
        assert vf.find_cases("in/{case}.nii.gz") == {
            "a": {"image": "in/a.nii.gz"},
            "b": {"image": "in/b.nii.gz"},
        }

    def test_channels_are_found_together(self, touched):
        touched("in/p1_t1.npy", "in/p1_flair.npy", "in/p2_t1.npy", "in/p2_flair.npy")
        by_keyword = vf.find_cases(t1="in/{case}_t1.npy", flair="in/{case}_flair.npy")
        assert by_keyword["p2"] == {"t1": "in/p2_t1.npy", "flair": "in/p2_flair.npy"}
        assert vf.find_cases({"t1": "in/{case}_t1.npy", "flair": "in/{case}_flair.npy"}) == (
            by_keyword
        )

    def test_a_case_may_be_a_folder_and_stand_twice(self, touched):
        touched("in/p1/p1.npy", "in/p2/p1.npy", "in/p3/p3.npy")
        assert list(vf.find_cases("in/{case}/{case}.npy")) == ["p1", "p3"]
        assert list(vf.find_cases("in/{case}/p1.npy")) == ["p1", "p2"]

    def test_signs_of_a_shell_mean_themselves(self, touched):
        touched("in/[x]*p1.npy", "in/xp2.npy")
        assert vf.find_cases("in/[x]*{case}.npy") == {"p1": {"image": "in/[x]*p1.npy"}}

    def test_a_missing_channel_is_named_with_its_cases(self, touched):
        touched("p1_t1.npy", "p1_flair.npy", "p2_t1.npy", "p3_flair.npy")
        with pytest.raises(InvalidInput, match=r"missing: t1 of p3; flair of p2; add their files"):
            vf.find_cases(t1="{case}_t1.npy", flair="{case}_flair.npy")

    def test_nothing_found_says_what_was_looked_for(self, touched):
        folder = touched("in/a.nii")
        with pytest.raises(InvalidInput) as refused:
            vf.find_cases("in/{case}.nii.gz")
        assert str(refused.value) == (
            f"no case was found: nothing matches in/{{case}}.nii.gz (looked in {folder}/in); check"
            " the pattern, in quotes"
        )

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("in/scan.nii.gz", r"neither a pattern with \{case\}, a folder nor a table"),
            ({"t1": "in/{case}.npy", "t2": "in/b.npy"}, r"in/b.npy has no \{case\} in it"),
            (None, "needs a pattern such as"),
        ],
    )
    def test_what_is_no_source_is_refused(self, touched, source, message):
        touched("in/a.npy")
        with pytest.raises(InvalidInput, match=message):
            vf.find_cases(source)

    def test_a_name_that_no_file_can_have_is_refused(self, touched):
        touched("p\n1.npy")
        with pytest.raises(InvalidInput, match=r"'p\\n1' cannot be; use names that are printed"):
            vf.find_cases("{case}.npy")

    @given(
        st.lists(
            st.text(
                string.ascii_letters + string.digits + "-_ é[]*?", min_size=1, max_size=8
            ).filter(str.strip),
            min_size=1, max_size=6, unique=True,
        )
    )  # fmt: skip
    def test_finds_the_names_that_were_written(self, tmp_path_factory, names):
        folder = tmp_path_factory.mktemp("in")
        for name in names:
            (folder / f"x{name}_t1.npy").touch()
        found = vf.find_cases(f"{folder}/x{{case}}_t1.npy")
        assert sorted(found) == sorted(names)


class TestFolders:
    def test_of_volumes(self, touched):
        folder = touched("a.nii.gz", "b.npy", "a.nii.gz.volflow/export.json", "notes.txt")
        assert vf.find_cases(folder) == {
            "a": {"image": str(folder / "a.nii.gz")},
            "b": {"image": str(folder / "b.npy")},
        }

    def test_of_images_and_labels(self, touched):
        """A case is what has an image, as real folders are untidy."""
        folder = touched("images/a.npy", "images/b.npy", "labels/a.npy", "labels/c.npy")
        assert vf.find_cases(folder) == {
            "a": {"image": str(folder / "images/a.npy"), "label": str(folder / "labels/a.npy")},
            "b": {"image": str(folder / "images/b.npy")},
        }

    def test_of_the_decathlon(self, touched):
        folder = touched("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b.nii.gz")
        (folder / "dataset.json").write_text(json.dumps({"modality": {"0": "MRI"}}))
        found = vf.find_cases(folder)
        assert {case: sorted(volumes) for case, volumes in found.items()} == {
            "a": ["image", "label"],
            "b": ["image"],
        }

    def test_of_nnu_net(self, touched):
        files = [f"imagesTr/p{p}_000{c}.nii.gz" for p in (1, 2) for c in (0, 1)]
        folder = touched(*files, "labelsTr/p1.nii.gz", "labelsTr/p2.nii.gz")
        (folder / "dataset.json").write_text('{"channel_names": {"0": "T1", "1": "FLAIR"}}')
        found = vf.find_cases(folder)
        assert list(found["p1"]) == ["T1", "FLAIR", "label"]
        assert found["p2"]["FLAIR"] == str(folder / "imagesTr/p2_0001.nii.gz")
        assert list(vf.find_cases(folder / "imagesTr")) == ["p1", "p2"]

    def test_of_nnu_net_in_its_first_version(self, touched):
        folder = touched("imagesTr/p1_0000.npy", "imagesTr/p1_0001.npy", "labelsTr/p1.npy")
        (folder / "dataset.json").write_text('{"modality": {"0": "T1", "1": "FLAIR"}}')
        assert list(vf.find_cases(folder)["p1"]) == ["T1", "FLAIR", "label"]

    def test_a_modality_in_words_names_no_channels(self, touched):
        folder = touched("images/a.npy")
        (folder / "dataset.json").write_text('{"modality": "CT"}')
        assert list(vf.find_cases(folder)) == ["a"]

    def test_the_images_for_training_bring_their_labels(self, touched):
        folder = touched("imagesTr/a.npy", "labelsTr/a.npy", "imagesTs/b.npy")
        assert vf.find_cases(folder / "imagesTr") == {
            "a": {"image": str(folder / "imagesTr/a.npy"), "label": str(folder / "labelsTr/a.npy")}
        }

    def test_each_case_a_folder(self, touched):
        folder = touched("c/p1/label.npy", "c/p1/image.npy", "c/p1/t2.npy", "c/p2/image.npy") / "c"
        found = vf.find_cases(folder)
        assert list(found) == ["p1", "p2"]
        assert list(found["p1"]) == ["image", "t2", "label"]

    def test_of_nnu_net_with_a_channel_missing(self, touched):
        folder = touched("imagesTr/p1_0000.npy", "imagesTr/p1_0001.npy", "imagesTr/p2_0000.npy")
        (folder / "dataset.json").write_text('{"channel_names": {"0": "T1", "1": "FLAIR"}}')
        with pytest.raises(InvalidInput, match="missing: FLAIR of p2"):
            vf.find_cases(folder)

    @pytest.mark.parametrize("text", ['{"channel_names": ["T1"]}', "[1]", "{"])
    def test_a_damaged_description_is_named(self, touched, text):
        folder = touched("imagesTr/p1_0000.npy")
        (folder / "dataset.json").write_text(text)
        with pytest.raises(InvalidInput, match=r"dataset.json cannot be read as the description"):
            vf.find_cases(folder)

    def test_equal_names_are_refused(self, touched):
        folder = touched("images/a.npy", "images/a.nii.gz")
        with pytest.raises(InvalidInput, match=r"must differ, but .* holds a.nii.gz and a.npy"):
            vf.find_cases(folder)
        folder = touched("d/imagesTr/a.npy", "d/imagesTs/a.npy") / "d"
        with pytest.raises(InvalidInput, match=r"must differ, but a of .* is there twice"):
            vf.find_cases(folder)

    def test_without_a_volume_is_refused(self, touched):
        folder = touched("in/notes.txt") / "in"
        with pytest.raises(InvalidInput, match=r"no case was found in .*/in: looked for .nii.gz"):
            vf.find_cases(folder)


class TestTables:
    @pytest.fixture
    def table(self, touched):
        def write(text, name="t/cases.csv"):
            path = touched(name) / name
            path.write_text(text, encoding="utf-8-sig")
            return path

        return write

    def test_paths_are_relative_to_the_table(self, table):
        path = table("case,t1,flair\np2,a/x.npy,/abs/y.npy\np1,s3://b/x.zarr,z.npy\n\n")
        found = vf.find_cases(path)
        assert list(found) == ["p2", "p1"]
        assert found["p2"] == {"t1": str(path.parent / "a/x.npy"), "flair": "/abs/y.npy"}
        assert found["p1"]["t1"] == "s3://b/x.zarr"

    def test_tabs(self, table):
        for name in ("t.tsv", "T.TSV"):
            assert list(vf.find_cases(table("case\timage\na,b\tc.npy\n", name))) == ["a,b"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("name,t1\na,b\n", 'needs a column "case" and one for each channel'),
            ("case\na\n", 'needs a column "case" and one for each channel'),
            ("", "its first line has none"),
            ("case,t1\n", "has no line below its heads"),
            ("case,t1\na,b,c\n", "line 2 of .* has 3 columns, expected 2"),
            ("case,t1\na,b\na,c\n", "line 3 of .* has 'a' again"),
            ("case,t1,t2\na,b,\n", "missing: t2 of a"),
            ("case,t1\na/b,c.npy\n", "'a/b' cannot be"),
            ("case,t1\n..,c.npy\n", r"'\.\.' cannot be"),
            ("case,age\na,4\n", r"has only values \(age\), .*; give it a column of paths"),
            ("case,sex,t1\na,M,scan\n", r"has only values \(sex, t1\), and no file of such a name"),
            (
                "case,t1,age\na,a.npy,4\nb,b.npy,\nc,c.npy,old\nd,d.npy,5\n",
                r"age of case c is 'old' in .*cases\.csv, and a number elsewhere, such as 4",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, table, text, message):
        with pytest.raises(InvalidInput, match=message):
            vf.find_cases(table(text))

    def test_columns_of_numbers_are_values(self, table):
        path = table("case,image,age,dose,n,m\na,a.npy,45,0.5,1,x.npy\nb,b.npy,61,,-2,7\n")
        (path.parent / "1").mkdir()
        (a, b) = vf.find_cases(path).values()
        assert (a["age"], b["age"], a["dose"]) == (45, 61, 0.5)
        assert math.isnan(b["dose"])
        assert (a["n"], b["m"]) == (str(path.parent / "1"), str(path.parent / "7"))

    def test_numbers_reach_batches_and_no_network(self, table):
        path = table("case,image,age\na,a.npy,45\nb,b.npy,61\n")
        for name in "ab":
            np.save(path.with_name(f"{name}.npy"), np.ones((8, 8, 8), "float32"))
        stream = vf.PatchStream(path, vf.GridSampler(8))
        (batch,) = stream.loader(2)
        assert batch["age"].tolist() == [45, 61]
        net = torch.nn.Conv3d(1, 1, 1)
        out = str(path.with_name("{case}.zarr"))
        assert vf.predict_cases(path, net, out, patch=8, progress=False).ok

    def test_columns_of_texts_are_values(self, table):
        path = table(
            "case,t1,sex,site,label,part\n"
            "a,a.npy,M,site A,one,arm\nb,b.npy,F,,two,leg.zarr\nc,c.npy,F,St Gallen,one,x/y\n"
        )
        found = vf.find_cases(path)
        assert [(one["sex"], one["site"]) for one in found.values()] == [
            ("M", "site A"), ("F", ""), ("F", "St Gallen"),
        ]  # fmt: skip
        # What is called a label, or where any cell ends like a file, is a path.
        assert found["a"]["label"] == str(path.parent / "one")
        assert found["a"]["part"] == str(path.parent / "arm")
        (path.parent / "F").mkdir()
        assert vf.find_cases(path)["a"]["sex"] == str(path.parent / "M")

    def test_texts_reach_batches_and_no_network(self, table, monkeypatch):
        path = table("case,image,sex\na,a.npy,M\nb,b.npy,F\n")
        for name in "ab":
            np.save(path.with_name(f"{name}.npy"), np.ones((8, 8, 8), "float32"))
        (batch,) = vf.PatchStream(path, vf.GridSampler(8)).loader(2)
        assert batch["sex"] == ["M", "F"]
        out = str(path.with_name("{case}.zarr"))
        net = torch.nn.Conv3d(1, 1, 1)
        assert vf.predict_cases(path, net, out, patch=8, progress=False).ok
        # Found once, they stay values where a folder happens to have their name.
        found = vf.find_cases(path)
        monkeypatch.chdir(path.parent)
        (path.parent / "M").mkdir()
        assert vf.PatchStream([found["a"]], vf.GridSampler(8)).cases[0].values == {"sex": "M"}

    def test_of_paths_those_that_are_not_there_are_reported(self, table):
        path = table("case,image,t2\na,a.npy,one\nb,b.npy,two\n")
        for name in ("a.npy", "b.npy"):
            np.save(path.with_name(name), np.ones((8, 8, 8), "float32"))
        (path.parent / "one").mkdir()
        faults = vf.check_cases(path)
        assert "b" in faults.names
        assert "two" in str(faults)

    def test_what_is_not_text_is_refused(self, touched):
        path = touched("t.csv") / "t.csv"
        path.write_bytes(b"case,t1\n\xff\xfe\n")
        with pytest.raises(InvalidInput, match="not a table of text in UTF-8"):
            vf.find_cases(path)

    def test_one_that_is_not_there(self, touched):
        touched("x")
        with pytest.raises(InvalidInput, match=r"t.csv cannot be read: no such file"):
            vf.find_cases("t.csv")


def test_patches_are_drawn_from_what_was_found(tmp_path):
    """The same cases serve training."""
    for name in ("a", "b"):
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
            np.save(tmp_path / folder / f"{name}.npy", np.ones((8, 9, 10), "uint8"))
    opened = vf.open_cases(vf.find_cases(tmp_path))
    assert [case.name for case in opened] == ["a", "b"]
    assert list(opened[0].sources) == ["image", "label"]


def test_the_record_lies_beside_the_results():
    assert batch_dir("/o/{case}.zarr").name == "{case}.zarr.volflow"
    assert batch_dir("/o/{case}/{case}.zarr").name == "{case}_{case}.zarr.volflow"
