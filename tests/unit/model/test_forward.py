"""One forward: outputs by name, flips, dropped axes, memory, one at a time."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tests import nets
from volflow.errors import InvalidInput
from volflow.model import forward as module
from volflow.model.device import pick_device
from volflow.model.forward import Forward, torch_threads
from volflow.model.resident import ModelPlugin, forward_lock, held, made_once, resident
from volflow.model.trial import probe


@pytest.fixture
def forward_of():
    """Makes forwards of modules, which are known as long as the test runs."""
    plugins = []

    def make(net, patch=(4, 4, 4), channels=1, **options):
        plugin = ModelPlugin(net, f"digest {len(plugins)}")
        plugin.setup(None)
        plugins.append(plugin)
        return Forward(plugin.digest, patch, channels, **options)

    yield make
    for plugin in plugins:
        plugin.teardown(None)


@pytest.fixture
def batch():
    return torch.randn(6, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls():
    nets.calls.clear()
    return nets.calls


class WritesIntoItsInput(nn.Module):
    def forward(self, batch):
        return batch.mul_(2) + 0


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, batch):
        return self.value


class TestOutputs:
    def test_a_lone_tensor_has_no_name(self, forward_of, batch):
        outputs = forward_of(nn.Identity())(batch)
        assert list(outputs) == [""]
        assert torch.equal(outputs[""], batch)

    def test_dicts_and_tuples_have_names(self, forward_of, batch):
        one, other = nets.random_net(), nets.random_net(seed=1)
        assert list(forward_of(nets.Named(one, other))(batch)) == ["seg", "edge"]
        assert list(forward_of(nets.Paired(one, other))(batch)) == ["output0", "output1"]

    @pytest.mark.parametrize("value", [None, "text", {}, (), {"a": 1}, [torch.zeros(1), None]])
    def test_what_is_no_tensor_is_refused(self, forward_of, batch, value):
        with pytest.raises(InvalidInput, match="the model must return a tensor, or a dict or"):
            forward_of(Returns(value))(batch)

    @pytest.mark.parametrize("name", ["a/b", "..", ".", "../a", "a b", "/etc", "a\\b"])
    def test_names_that_are_no_folder_are_refused(self, forward_of, name):
        forward = forward_of(Returns({name: torch.zeros(1, 1, 4, 4, 4)}))
        with pytest.raises(InvalidInput, match="cannot name a folder; use letters, digits"):
            probe(forward, 1, 2**30, 1)

    def test_scores_have_the_dtype_of_the_blend(self, forward_of, batch):
        half = Returns(torch.zeros(6, 1, 4, 4, 4, dtype=torch.bfloat16))
        assert forward_of(half)(batch)[""].dtype == torch.float32
        assert forward_of(half, dtype="float64")(batch)[""].dtype == torch.float64


class TestFloat16:
    """What a CPU emulates slowly, a GPU does in the same way."""

    @pytest.fixture
    def batch(self):
        """Of six patches the third and the last overflow when they are multiplied."""
        batch = torch.rand(6, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        batch[2, 0, 1, 1, 1], batch[5, 0, 3, 0, 0] = 30.0, -30.0
        return batch

    @pytest.fixture
    def net(self):
        net = nn.Conv3d(1, 2, 1, bias=False)
        nn.init.constant_(net.weight, 3000.0)
        return net

    def test_only_patches_that_overflow_are_those_of_float32(self, forward_of, batch, net):
        exact = forward_of(net)(batch)[""]
        found = forward_of(net, precision="float16")(batch)[""]
        assert found.dtype == torch.float32
        assert found.isfinite().all()
        same = [torch.equal(a, b) for a, b in zip(found, exact, strict=True)]
        assert same == [False, False, True, False, False, True]
        torch.testing.assert_close(found, exact, rtol=2e-3, atol=0)

    @pytest.mark.parametrize("flips", [(0,), (0, 1, 2)])
    def test_flipped_copies_and_slices_too(self, forward_of, batch, net, flips):
        found, exact = (
            forward_of(net, flips=flips, precision=precision)(batch)[""]
            for precision in ("float16", "float32")
        )
        torch.testing.assert_close(found, exact, rtol=2e-3, atol=0)

    def test_a_patch_does_not_depend_on_its_neighbours(self, forward_of, batch, net):
        forward = forward_of(net, precision="float16")
        alone = torch.cat([forward(one)[""] for one in batch.split(1)])
        assert torch.equal(forward(batch)[""], alone)

    def test_every_output_counts(self, forward_of, batch, net):
        found = forward_of(nets.Named(nn.Identity(), net), precision="float16")(batch)
        assert torch.equal(found["seg"], batch)
        assert found["edge"].isfinite().all()

    def test_a_model_may_write_into_its_input_and_keep_its_output(self, forward_of, batch, net):
        writing = nn.Sequential(WritesIntoItsInput(), net)
        expected = forward_of(writing)(batch.clone())[""]
        found = forward_of(writing, precision="float16")(batch)[""]
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=0)

    def test_what_float32_cannot_hold_stays_as_it_is(self, forward_of, batch, net):
        batch[0, 0, 0, 0, 0] = torch.nan
        found = forward_of(net, precision="float16")(batch)[""]
        assert found.isnan().sum() == 2  # of the voxel, in two channels
        assert not found.isinf().any()

    def test_the_trial_runs_a_patch_in_float32_for_its_memory(self, forward_of, monkeypatch):
        monkeypatch.setattr(module, "has_float16", lambda: True)
        seen = []

        class Noting(nn.Module):
            def forward(self, batch):
                seen.append((len(batch), torch.is_autocast_enabled("cpu")))
                return batch

        probe(forward_of(Noting(), precision="float16"), 4, 2**30, 1)
        assert seen[-2:] == [(4, True), (1, False)]


class TestFlips:
    @pytest.mark.parametrize("flips", [(2,), (0, 1), (0, 1, 2)])
    def test_are_averaged_over_all_mirrored_copies(self, forward_of, batch, flips):
        net = nets.random_net()
        chosen = [
            [a for n, a in enumerate(flips) if bits >> n & 1] for bits in range(2 ** len(flips))
        ]
        with torch.no_grad():
            expected = sum(nets.mirrored(net, batch, axes) for axes in chosen) / len(chosen)
        found = forward_of(net, flips=flips)(batch)[""]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    def test_do_not_see_what_a_model_writes_into_its_input(self, forward_of, batch):
        expected = 2 * batch.clone()
        found = forward_of(WritesIntoItsInput(), flips=(0, 1, 2))(batch)[""]
        torch.testing.assert_close(found, expected)


class TestSlices:
    @pytest.mark.parametrize("patch", [(1, 4, 5), (4, 1, 5), (4, 5, 1)])
    def test_the_axis_of_one_is_dropped_and_put_back(self, forward_of, patch):
        shapes = []

        class Flat(nn.Module):
            def forward(self, batch):
                shapes.append(tuple(batch.shape))
                return batch

        data = torch.rand(2, 1, *patch)
        assert torch.equal(forward_of(Flat(), patch)(data)[""], data)
        assert shapes == [(2, 1, *(side for side in patch if side != 1))]


class TestMemory:
    @pytest.mark.parametrize(("most", "size"), [(6, 6), (4, 3), (3, 3), (2, 1), (1, 1)])
    def test_a_batch_is_halved_until_it_fits(self, forward_of, batch, calls, most, size):
        forward = forward_of(nets.Greedy(nn.Identity(), most))
        outputs, found = forward.run_with_oom_retry(batch, 6)
        assert found == size
        assert torch.equal(outputs[""], batch)
        assert calls == [size] * (6 // size)

    def test_other_errors_come_through(self, forward_of, batch):
        with pytest.raises(ArithmeticError, match="too bright"):
            forward_of(nets.Breaking(-99)).run_with_oom_retry(batch, 6)

    def test_a_single_patch_that_does_not_fit_is_refused(self, forward_of, batch):
        with pytest.raises(InvalidInput, match=r"one patch of \(4, 4, 4\) does not fit in the mem"):
            forward_of(nets.Greedy(nn.Identity(), 0)).run_with_oom_retry(batch, 6)

    @pytest.mark.parametrize(
        "words", ["DefaultCPUAllocator: can't allocate memory", "out of memory"]
    )
    def test_every_way_of_saying_so_counts(self, forward_of, batch, words):
        class Wordy(nn.Module):
            def forward(self, batch):
                if len(batch) > 2:
                    raise RuntimeError(words)
                return batch

        assert forward_of(Wordy()).run_with_oom_retry(batch, 6)[1] == 1


class TestProbe:
    def test_finds_shapes_scale_and_batch(self, forward_of):
        net = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.AvgPool3d((1, 2, 4)))
        found = probe(forward_of(net, (8, 8, 8), device="auto"), None, 2**32, 1)
        (output,) = found.outputs
        assert (output.name, output.channels, output.scale) == ("", 3, (1, 2, 4))
        assert found.batch_size == 64
        assert found.precision == "float32"

    def test_a_loop_over_cases_tries_twice(self, forward_of):
        """The first time torch takes what it keeps, which the peak of the second shows."""
        sizes = []

        class Counting(nn.Module):
            def forward(self, batch):
                sizes.append(len(batch))
                return batch

        forward = forward_of(Counting(), device="cpu")
        peaks = [probe(forward, 2, 2**32, 1).peak_bytes for _ in range(4)]
        assert sizes == [2, 2]
        assert peaks[1] == peaks[2] == peaks[3] <= peaks[0]
        probe(forward, 3, 2**32, 1)
        probe(forward_of(Counting(), device="cpu"), 3, 2**32, 1)  # another digest
        assert sizes == [2, 2, 3, 3]

    def test_a_large_patch_is_a_batch_of_its_own(self, forward_of):
        assert probe(forward_of(nn.Identity(), (64, 64, 64)), None, 2**32, 1).batch_size == 1
        assert probe(forward_of(nn.Identity(), (32, 32, 32)), None, 2**32, 1).batch_size == 8

    def test_what_is_asked_for_is_kept(self, forward_of):
        assert probe(forward_of(nn.Identity()), 7, 2**32, 1).batch_size == 7
        greedy = nets.Greedy(nn.Identity(), 2, always=True)
        assert probe(forward_of(greedy), 7, 2**32, 1).batch_size == 7

    def test_what_does_not_fit_is_not_taken(self, forward_of):
        greedy = nets.Greedy(nn.Identity(), 5, always=True)
        assert probe(forward_of(greedy), None, 2**32, 1).batch_size == 4

    @pytest.mark.parametrize(
        "error", [KeyError("mask"), AttributeError("no such layer"), ArithmeticError("no"),
                  RuntimeError("mat1 and mat2 shapes\ncannot be multiplied")],
    )  # fmt: skip
    def test_any_failure_is_one_line(self, forward_of, error):
        class Fails(nn.Module):
            def forward(self, batch):
                raise error

        with pytest.raises(InvalidInput, match="the model does not take a batch of shape") as told:
            probe(forward_of(Fails()), None, 2**32, 1)
        assert "\n" not in str(told.value)


class TestDevices:
    def test_are_picked_by_name(self):
        assert pick_device("cpu").type == "cpu"
        expected = "cuda" if torch.cuda.is_available() else "cpu"
        assert pick_device("auto").type == expected

    @pytest.mark.parametrize("name", ["toaster", "cuda:99", ""])
    def test_others_are_refused(self, name):
        with pytest.raises(InvalidInput, match=f"device '{name}' cannot be used here: "):
            pick_device(name)

    def test_all_gpus_have_one_lock_as_their_arithmetic_is_that_of_the_process(self):
        assert forward_lock(torch.device("cuda")) is forward_lock(torch.device("cuda:0"))
        assert forward_lock(torch.device("cuda:1")) is forward_lock(torch.device("cuda:0"))
        assert forward_lock(torch.device("cpu")) is not forward_lock(torch.device("cuda"))

    def test_one_forward_at_a_time(self, forward_of):
        now, most = [], [0]

        class Watched(nn.Module):
            def forward(self, batch):
                now.append(1)
                most[0] = max(most[0], len(now))
                threading.Event().wait(0.01)
                now.pop()
                return batch

        forward = forward_of(Watched())
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(forward, [torch.ones(1, 1, 4, 4, 4)] * 16))
        assert most == [1]


class TestResident:
    def test_a_model_stays_while_any_run_needs_it(self):
        net = nn.Identity()
        first, second = ModelPlugin(net, "shared"), ModelPlugin(net, "shared")
        first.setup(None)
        second.setup(None)
        first.teardown(None)
        assert resident("shared", torch.device("cpu")) is net
        second.teardown(None)
        with pytest.raises(KeyError):
            resident("shared", torch.device("cpu"))

    def test_what_is_made_of_it_goes_with_it(self):
        plugin, made = ModelPlugin(nn.Identity(), "made of"), []

        def make():
            made.append(1)
            return len(made)

        for last in (1, 2):
            with held(plugin):
                assert [made_once("made of", "key", make) for _ in range(3)] == [last] * 3

    def test_what_is_made_when_the_last_run_ends_is_not_kept(self):
        plugin, kept = ModelPlugin(nn.Identity(), "ends"), object()

        def make():
            plugin.teardown()
            return kept

        plugin.setup()
        assert made_once("ends", "graph", make) is kept
        with held(plugin):
            assert made_once("ends", "graph", list) == []

    def test_its_trials_are_remembered_for_the_next_case(self):
        net, tried = nn.Identity(), []
        net.register_forward_hook(lambda *given: tried.append(1))
        for _ in range(4):
            with held(ModelPlugin(net, "tried")):
                probe(Forward("tried", (4, 4, 4), 1), 1, 2**32, 1)
        assert len(tried) == 2

    def test_it_travels_with_its_weights(self):
        net = nets.random_net()
        copy = pickle.loads(pickle.dumps(ModelPlugin(net, "digest")))
        assert copy.digest == "digest"
        for a, b in zip(copy.module.parameters(), net.parameters(), strict=True):
            assert torch.equal(a, b)


def test_threads_are_put_back_even_after_an_error():
    def fails():
        with torch_threads(before + 1):
            seen.append(torch.get_num_threads())
            raise ZeroDivisionError

    before, seen = torch.get_num_threads(), []
    with pytest.raises(ZeroDivisionError):
        fails()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
