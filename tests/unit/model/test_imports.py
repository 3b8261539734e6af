"""Which modules and packages a model's code imports, found without importing any."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import types
import zipfile
from pathlib import Path

import pytest
import torch

from volflow.model.digest import identity_of
from volflow.model.imports import code_of
from volflow.model.loaded import unlike_file


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes modules that can be imported; what was imported is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(paths=(), **modules):
        for name, text in {**dict(paths), **modules}.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def names(*roots):
    return list(code_of(roots).modules)


@pytest.mark.parametrize(
    "text",
    [
        "import vf_far",
        "import vf_far as far, json",
        "from vf_far import value",
        "from vf_far import *",
        "def forward(image):\n    import vf_far",
        "try:\n    from vf_far import value\nexcept ImportError:\n    value = 1",
        "class A:\n    async def f(self):\n        with x:\n            import vf_far",
        "import importlib\nfar = importlib.import_module('vf_far')",
        "far = __import__('vf_far')",
        "if TYPE_CHECKING:\n    import vf_other\nelse:\n    import vf_far",
    ],
)
def test_an_import_is_found_wherever_it_stands(write, text):
    write(vf_net=text, vf_far="value = 1", vf_other="")
    assert names("vf_net") == ["vf_far", "vf_net"]
    assert not {"vf_net", "vf_far"} & set(sys.modules)


def test_imports_are_followed_and_circles_end(write):
    write(vf_a="import vf_b", vf_b="import vf_c", vf_c="import vf_a", vf_d="")
    assert names("vf_a") == ["vf_a", "vf_b", "vf_c"]


def test_packages_are_followed_with_what_importing_them_runs(write):
    write(
        {
            "vf_pkg/__init__": "from .base import Base",
            "vf_pkg/base": "from . import sizes",
            "vf_pkg/sizes": "",
            "vf_pkg/other": "",
            "vf_pkg/nets/__init__": "",
            "vf_pkg/nets/unet": "from ..base import Base\nfrom .blocks.conv import Conv",
            "vf_pkg/nets/blocks/__init__": "",
            "vf_pkg/nets/blocks/conv": "from ..... import beyond\nfrom ...base import nothing",
        }
    )
    assert names("vf_pkg.nets.unet") == [
        "vf_pkg", "vf_pkg.base", "vf_pkg.nets", "vf_pkg.nets.blocks",
        "vf_pkg.nets.blocks.conv", "vf_pkg.nets.unet", "vf_pkg.sizes",
    ]  # fmt: skip


def test_packages_without_init_are_found_before_and_after_they_are_imported(write):
    write(
        {
            "vf_space/deep/net": "from . import near\nimport vf_space.other",
            "vf_space/deep/near": "",
            "vf_space/other": "",
        }
    )
    found = code_of(["vf_space.deep.net"])
    assert list(found.modules) == ["vf_space.deep.near", "vf_space.deep.net", "vf_space.other"]
    importlib.import_module("vf_space.deep.net")
    assert code_of(["vf_space.deep.net"]) == found


@pytest.mark.parametrize(
    "name", ["", "no.such", "json", "sys", "__main__", "volflow.model", "os.p"]
)
def test_what_is_no_users_code_adds_nothing(name):
    code = code_of([name])
    assert not code.modules
    assert not code.packages


@pytest.mark.slow
def test_installed_packages_count_by_their_version(write):
    write(vf_net="import torch.nn.functional as F\nimport numpy, yaml\nfrom torch import nn, gone")
    versions = code_of(["vf_net"]).packages
    assert versions["torch"] == torch.__version__
    assert set(versions) == {"torch", "numpy", "PyYAML"}


def test_a_package_installed_into_a_folder_of_its_own_counts_by_its_version(write, tmp_path):
    write({"vf_lib/__init__": "import vf_lib.part", "vf_lib/part": ""}, vf_net="import vf_lib")
    records = tmp_path / "vf_lib-1.2.dist-info"
    records.mkdir()
    (records / "METADATA").write_text("Metadata-Version: 2.1\nName: vf-lib\nVersion: 1.2\n")
    (records / "RECORD").write_text("vf_lib/__init__.py,,\nvf_lib/part.py,,\n")
    code = code_of(["vf_net"])
    assert code.packages == {"vf-lib": "1.2"}
    # It lies beside, and no record speaks of it.
    assert list(code.modules) == ["vf_net"]


def test_an_editable_install_is_the_users_code(write, tmp_path, monkeypatch):
    place = tmp_path / "src" / "vf_own"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("")

    class Finder:
        """As setuptools installs one for ``pip install -e``."""

        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "vf_own":
                return importlib.util.spec_from_file_location(name, place / "__init__.py")
            if name == "vf_broken":
                raise RuntimeError(name)
            return None

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    write(vf_net="import vf_own, vf_broken")
    assert names("vf_net") == ["vf_net", "vf_own"]


def test_one_byte_of_any_of_them_counts(write):
    write(vf_net="import vf_far", vf_far="value = 1")
    before = code_of(["vf_net"])
    write(vf_far="value = 2")
    after = code_of(["vf_net"])
    changed = {name for name in before.modules if before.modules[name] != after.modules[name]}
    assert changed == {"vf_far"}


def test_compiled_modules_count_by_their_bytes(write, tmp_path):
    write(vf_net="from vf_fast import run")
    library = tmp_path / f"vf_fast{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    library.write_bytes(b"\x7fELF one")
    importlib.invalidate_caches()
    before = code_of(["vf_net"])
    assert list(before.modules) == ["vf_fast", "vf_net"]
    library.write_bytes(b"\x7fELF two")
    assert code_of(["vf_net"]).modules["vf_fast"] != before.modules["vf_fast"]


@pytest.mark.parametrize("text", ["def f(:", "print 'two'", "\0", "x = 1\n" + "(" * 300])
def test_files_that_are_no_python_count_by_their_bytes(write, text):
    write(vf_net="import vf_far", vf_far=text)
    assert names("vf_net") == ["vf_far", "vf_net"]


def test_modules_in_an_archive_count(write, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("vf_zipped.py", "import vf_far")
    monkeypatch.syspath_prepend(str(tmp_path / "code.zip"))
    write(vf_far="")
    assert names("vf_zipped") == ["vf_far", "vf_zipped"]


def test_modules_made_by_hand_are_no_obstacle(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "vf_hand", types.ModuleType("vf_hand"))
    monkeypatch.setitem(sys.modules, "vf_none", None)
    write(vf_net="import vf_hand.inner, vf_none")
    assert names("vf_net") == ["vf_net"]


def test_a_file_edited_after_its_import_does_not_vouch_for_the_old_code(write, tmp_path):
    old = """
        import functools
        RATE = 2
        def double(x): return x * 2
        class Net:
            @property
            def rate(self): return 2
            @staticmethod
            @functools.lru_cache
            def table(n): return [{'a', 'b'} for _ in range(n)]
        """
    write(vf_net=old)
    written = code_of(["vf_net"])
    module = importlib.import_module("vf_net")
    assert code_of(["vf_net"]) == written
    assert unlike_file(module, Path(module.__file__).read_bytes()) == b""
    changes = {"x * 2": "x * 3", "RATE = 2": "RATE = 3", "self): return 2": "self): return 3",
               "'b'": "'c'"}  # fmt: skip
    for before, after in changes.items():
        write(vf_net=old.replace(before, after))
        stale = code_of(["vf_net"])
        assert unlike_file(module, Path(module.__file__).read_bytes())
        sys.modules.pop("vf_net")
        fresh = code_of(["vf_net"])
        sys.modules["vf_net"] = module
        assert len({code.modules["vf_net"] for code in (written, stale, fresh)}) == 3
    write(vf_net=old.replace("import", "# A word on it.\n        import"))
    assert unlike_file(module, Path(module.__file__).read_bytes()) == b""


class TestIdentity:
    def test_of_a_module_the_class_its_bases_and_its_layers_count(self, write):
        write(
            vf_base="from torch import nn\nclass Base(nn.Module): pass",
            vf_layer="from torch import nn\nclass Layer(nn.Module): pass",
            vf_net="""
                import vf_base
                class Net(vf_base.Base): pass
                """,
        )
        net = importlib.import_module("vf_net").Net()
        net.inner = torch.nn.Sequential(importlib.import_module("vf_layer").Layer())
        code = identity_of(net)[1]
        assert list(code.modules) == ["vf_base", "vf_layer", "vf_net"]
        assert list(code.packages) == ["torch"]

    def test_of_a_function_what_it_names_counts(self, write):
        write(
            vf_far="def far(x): return x",
            vf_net="from vf_far import far\ndef net(x): return far(x)",
        )
        net = importlib.import_module("vf_net").net
        assert list(identity_of(net)[1].modules) == ["vf_far", "vf_net"]
        assert list(identity_of(lambda x: net(x))[1].modules)[-2:] == ["vf_far", "vf_net"]

    def test_hooks_count(self, write):
        write(vf_hook="def hook(module, args, out): return out * 2")
        net, plain = torch.nn.ReLU(), torch.nn.ReLU()
        net.register_forward_hook(importlib.import_module("vf_hook").hook)
        digest, code = identity_of(net)
        assert list(code.modules) == ["vf_hook"]
        assert digest != identity_of(plain)[0]

    @pytest.mark.slow
    def test_a_script_counts_by_what_its_model_uses(self, write, tmp_path):
        """Its other lines, such as the call of predict itself, may change."""
        write(vf_far="def far(x): return x")
        script = """
            import sys, torch, vf_far
            from vf_far import far
            from volflow.model.digest import identity_of
            TABLE = [1, 2]
            class Inner:
                step = 3
                def run(self, x): return x
            class Net(torch.nn.Module):
                size = 4
                def forward(self, x):
                    import vf_late
                    return Inner().run(vf_far.far(x)) * TABLE[0]
            digest, code = identity_of(Net())
            print(digest, *code.modules, *code.packages)
            """
        write(vf_late="")
        changes = (
            ("TABLE = [1, 2]", "TABLE = [1, 3]"),
            ("step = 3", "step = 4"),
            ("x): return x", "x): 0"),
        )
        texts = [script, *(script.replace(*change) for change in changes)]
        texts.append(script.replace("size = 4", "size = 5"))
        texts.append(script.replace("print(", "print() or print("))
        code = "import sys, runpy\nfor p in sys.argv[1:]: runpy.run_path(p, run_name='__main__')"
        paths = []
        for number, text in enumerate(texts):
            paths.append(tmp_path / f"script{number}.py")
            paths[-1].write_text(textwrap.dedent(text))
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True,
            check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        lines = [line.split() for line in done.stdout.split("\n") if line]
        assert {tuple(rest) for _, *rest in lines} == {("vf_far", "vf_late", "torch")}
        digests = [digest for digest, *_ in lines]
        assert digests[-1] == digests[0]
        assert len(set(digests)) == len(texts) - 1


def test_what_scripts_and_traces_compute_counts():
    class Times(torch.nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, image):
            return image * self.factor

    two, three = (torch.fx.symbolic_trace(Times(factor)) for factor in (2, 3))
    assert identity_of(two)[0] != identity_of(three)[0]
