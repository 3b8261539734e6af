"""Windows fetched from their owners, gradients given back, and sums, between real processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from process_group import processes

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.partition.exchange import gathering
from volflow.partition.exchange.agreement import agree, installed
from volflow.partition.exchange.division import Division
from volflow.partition.exchange.moving import Exchange
from volflow.partition.exchange.routes import carried_bytes, routes_of
from volflow.partition.graph import Graph, Node, Window
from volflow.partition.segments import core

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with processes(4, tmp_path_factory.mktemp("group")) as found:
        yield found


def shrunk(sizes, dtypes):
    """A graph whose nodes halve in turn; nothing in it is computed."""
    nodes, dims = [], (None, None, *range(len(sizes)))
    for n, dtype in enumerate(dtypes):
        shape = (1, 2 + n, *(max(1, size >> n) for size in sizes))
        nodes.append(Node("", "", (), (), None, shape, dims, dtype))
    return Graph(len(sizes), tuple(nodes), {"": len(nodes) - 1}, torch.device("cpu"))


def values(graph, number):
    """Small whole numbers, which all dtypes add exactly."""
    node = graph.nodes[number]
    generator = torch.Generator().manual_seed(number)
    return torch.randint(-4, 5, node.shape, generator=generator).to(node.dtype)


def at(box):
    return (..., *box.slices())


def case(seed, ranks):
    """Sizes, bounds and windows, anywhere: wider than shares, empty, far away."""
    random = np.random.default_rng(seed)
    ndim = int(random.integers(1, 4))
    sizes = tuple(int(n) for n in random.integers(1, 12, ndim))
    parts = [1] * ndim
    for factor in {2: [2], 3: [3], 4: [2, 2]}[ranks]:
        parts[int(random.integers(ndim))] *= factor
    bounds = tuple(
        (0, *sorted(random.integers(0, n + 1, k - 1).tolist()), n)
        for n, k in zip(sizes, parts, strict=True)
    )
    graph = shrunk(sizes, [DTYPES[int(n)] for n in random.integers(0, 4, 3)])

    def window(number):
        ends = [sorted(random.integers(0, n + 1, 2).tolist()) for n in graph.sizes(number)]
        return Roi(tuple(a for a, _ in ends), tuple(b for _, b in ends))

    owned = {n: tuple(core(graph, n, b) for b in Division(bounds).boxes) for n in range(3)}
    wanted = {n: tuple(window(n) for _ in range(ranks)) for n in range(3)}
    return graph, owned, wanted


def moved(peers, seeds):
    """Check what this process gets for each seed; return bytes sent and the bits of sums."""
    result = []
    for seed in seeds:
        graph, owned, wanted = case(seed, len(peers))
        exchange, before = Exchange(graph, peers, owned, wanted), peers.sent_bytes
        whole = {n: values(graph, n) for n in range(3)}
        rooms = {n: exchange.room(n) for n in range(3)}
        shares = {n: share for n, (_, share) in rooms.items()}
        for n, share in shares.items():
            share.values.copy_(whole[n][at(owned[n][peers.rank])])
        windows = {n: window for n, (window, _) in rooms.items()}
        exchange.fetch(windows, shares)
        for n, window in windows.items():
            assert window.box == wanted[n][peers.rank]
            assert torch.equal(window.values, whole[n][at(window.box)])
        forward = peers.sent_bytes - before
        gradients = {n: Window(w.values * (1 + peers.rank), w.box) for n, w in windows.items()}
        sums = exchange.given_back(range(3), gradients)
        for n, total in sums.items():
            weights = torch.zeros(whole[n].shape, dtype=whole[n].dtype)
            for rank, box in enumerate(wanted[n]):
                weights[at(box)] += 1 + rank
            total = total.values
            assert total.dtype == whole[n].dtype
            assert torch.equal(total, (whole[n] * weights)[at(owned[n][peers.rank])])
        back = peers.sent_bytes - before - forward
        routes = [r for n in range(3) for r in routes_of(n, owned[n], wanted[n])]
        result.append((forward, back, carried_bytes(graph, routes)))
    return result


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_windows_come_from_their_owners_and_gradients_go_back(group, ranks):
    found = group.run(ranks, moved, range(40))
    for forward_and_back in zip(*found, strict=True):
        forward, back, closed = zip(*forward_and_back, strict=True)
        assert sum(forward) == sum(back) == closed[0]
        assert len(set(closed)) == 1


def summed(peers, length):
    generator = torch.Generator().manual_seed(peers.rank)
    mine = torch.randn(length, dtype=torch.float64, generator=generator) * 10.0**peers.rank
    rows = peers.gathered(mine)
    total = torch.zeros(length, dtype=torch.float64)
    for row in rows:
        total += row
    assert torch.equal(rows[peers.rank], mine)
    return total, peers.summed(mine)


@pytest.mark.parametrize("length", [0, 1, 7, 4099])
def test_sums_are_taken_in_rank_order(group, length):
    for expected, found in group.run(3, summed, length):
        assert torch.equal(expected, found)


def summed_by_name(peers, shapes):
    generator = torch.Generator().manual_seed(peers.rank)
    mine = {
        n: torch.randn(shape, dtype=torch.float64, generator=generator)
        for n, shape in shapes.items()
        if n != 2 and (n or peers.rank)
    }
    given = dict(mine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathering, "PIECE", 5)  # of 14 numbers
        found = gathering.summed_over(peers, shapes, given)
    assert not given
    rows = gathering.rows_of(peers, shapes, mine)
    return found, {n: gathering.added([row[n] for row in rows]) for n in shapes}


def test_sums_in_pieces_leave_out_what_no_process_has(group):
    for found, expected in group.run(3, summed_by_name, {0: (3, 2), 1: (4,), 2: (1,), 3: (3,)}):
        assert sorted(found) == [0, 1, 3]
        assert all(torch.equal(found[n], expected[n]) for n in found)


def disagreeing(peers, facts):
    with pytest.raises(InvalidInput) as caught:
        agree(peers, facts[peers.rank])
    agree(peers, {"seed": "1", **installed()})
    return str(caught.value)


def test_processes_that_disagree_are_all_told_what_differs_between_whom(group):
    same = {"the shape": "(8, 8)"}
    facts = [{"the seed": "1"} | same, {"the seed": "2"} | same, {"the seed": "1"} | same, same]
    said = group.run(4, disagreeing, facts)
    assert set(said) == {
        "processes that work together must run the same, but the seed is 1 on ranks 0, 2 and 2 on"
        " rank 1 and missing on rank 3; start all with the same program, files and arguments"
    }
