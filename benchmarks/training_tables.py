"""Tables of what ``training.py`` has measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
# What ``plan`` says may be off by, and what was aimed at.
OFF, SECONDS_OFF, FLAT = 0.10, 0.30, 0.05
OF_CHECKPOINT, OF_FIRST, KEPT, PRECISE = 2.0, 1.3, 0.6, 2.0


def tables(rows: Sequence[Row]) -> str:
    """All tables for which there is something."""
    found = []
    for part in ("sizes", "plane"):
        found += steps(part, [row for row in rows if row["case"]["part"] == part])
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row["case"]["kind"], []).append(row)
    for kind, table in (("kept", kept), ("speed", speed), ("projection", projection),
                        ("precision", precision)):  # fmt: skip
        done = [row for row in by_kind.get(kind, []) if "failed" not in row]
        if done:
            found += table(done)
    lost = [row for row in rows if "failed" in row]
    if lost:
        found += ["### failed", ""]
        found += [f"- {row['case']}: {' '.join(row['failed'].split())[-400:]}" for row in lost]
    return "\n".join(found)


def grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    rule = "|" + "---|" * len(heads)
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(line)} |" for line in lines), ""]


def steps(part: str, rows: Sequence[Row]) -> list[str]:
    """Steps over volumes of growing size: what they took, and what the plan said."""
    kinds = {kind: [r for r in rows if r["case"]["kind"] == kind]
             for kind in ("rate", "in_memory", "step")}  # fmt: skip
    done = [row for row in kinds["step"] if "plan" in row]
    if not any(kinds.values()):
        return []
    bounds = {_size(row): row["bound_cpu_s"] for row in kinds["rate"] if "bound_cpu_s" in row}
    case = next(iter(kinds["step"] or rows))["case"]
    memory = f", memory {case['memory']}" if "memory" in case else ""
    what = f"### {part}: {case['net']} norm" if part == "sizes" else f"### {part}: batch norm"
    lines = [
        f"{what}, {'/'.join(map(str, case['features']))}{memory}, {case['threads']} threads",
        "",
    ]
    measured = [_taken(row, bounds) for row in (*kinds["in_memory"], *kinds["step"])]
    heads = ("size", "how", "growth MiB", "of it private", "wall s", "CPU s", "µs CPU / voxel",
             "bound, CPU s", "CPU / bound", "attempts")  # fmt: skip
    lines += grid(heads, sorted(measured, key=lambda line: int(line[0].split("×")[0])))
    if done:
        lines += ["Beside the plan (measured, planned, and their ratio):", ""]
        heads = ("size", "passes", "blocks", "growth MiB", "disk GiB", "written GiB", "asked GiB",
                 "wall s", "from the disk GiB", "to the disk GiB")  # fmt: skip
        lines += grid(heads, [_planned(row) for row in done])
    for row in kinds["rate"][:1]:
        if "gflop_per_cpu_s" in row:
            lines.append(f"- best convolution: {row['gflop_per_cpu_s']:.0f} GFLOP per CPU second")
    return [*lines, *goals(done, kinds["in_memory"]), ""]


def _size(row: Row) -> str:
    return "×".join(map(str, row["case"]["sides"]))


def _taken(row: Row, bounds: dict[str, float]) -> list[str]:
    case, size = row["case"], _size(row)
    how = "out of core"
    if case["kind"] == "in_memory":
        how = "checkpoint" if case["checkpointed"] else "plain"
    if "growth_bytes" not in row or "failed" in row:
        told = row.get("refused") or "failed"
        return [size, how, f"not run: {told}", *[""] * 7]
    voxels, bound = 1.0, bounds.get(size, float("nan"))
    for side in case["sides"]:
        voxels *= side
    return [
        size, how, _mib(row["growth_bytes"]), _mib(row["anonymous_bytes"]),
        f"{row['wall_s']:.1f}", f"{row['cpu_s']:.1f}", f"{1e6 * row['cpu_s'] / voxels:.2f}",
        f"{bound:.1f}", f"{row['cpu_s'] / bound:.2f}", f"{row['attempts']}",
    ]  # fmt: skip


def _planned(row: Row) -> list[str]:
    plan, blocks = row["plan"], []
    for step in plan["passes"]:
        blocks.append("×".join(map(str, step["block"])))
    pairs = (
        (row["growth_bytes"] / 2**20, plan["peak_bytes"] / 2**20, 0),
        (row["disk_bytes"] / 2**30, plan["disk_bytes"] / 2**30, 2),
        (row["written_bytes"] / 2**30, plan["written_bytes"] / 2**30, 2),
        (row["asked_bytes"] / 2**30, plan["read_bytes"] / 2**30, 2),
        (row["wall_s"], plan["forward_s"] + plan["backward_s"], 1),
    )
    cells = [f"{a:.{n}f}, {b:.{n}f}, {a / b:.2f}" for a, b, n in pairs]
    cells += [_gib(row[name]) for name in ("from_disk_bytes", "to_disk_bytes")]
    return [_size(row), str(len(blocks)), ", ".join(dict.fromkeys(blocks)), *cells]


def goals(done: Sequence[Row], beside: Sequence[Row]) -> list[str]:
    """What was aimed at, as lines of a list."""
    lines = []
    for row in done:
        for other in beside:
            if (
                other["case"].get("checkpointed")
                and _size(other) == _size(row)
                and "cpu_s" in other
            ):
                for name in ("cpu_s", "wall_s"):
                    ratio = row[name] / other[name]
                    lines.append(
                        _judged(f"{_size(row)}: {name[:-2]} / checkpointing", ratio, OF_CHECKPOINT)
                    )
    first = next((row for row in done if row["case"]["sides"][0] >= 256), None)
    if first is not None and first is not done[-1]:
        grown = done[-1]["growth_bytes"] / first["growth_bytes"]
        lines.append(
            f"- growth at {_size(done[-1])} / at {_size(first)}: {grown:.2f}, goal 1 ± {FLAT}"
        )
        voxels = [1.0, 1.0]
        for at, row in enumerate((first, done[-1])):
            for side in row["case"]["sides"]:
                voxels[at] *= side
        slower = done[-1]["cpu_s"] / voxels[1] / (first["cpu_s"] / voxels[0])
        lines.append(
            _judged(f"CPU per voxel at {_size(done[-1])} / at {_size(first)}", slower, OF_FIRST)
        )
    return lines


def kept(rows: Sequence[Row]) -> list[str]:
    heads = ("norm", "side", "processes", "plain saves MiB", "kept MiB, the most", "of total / N",
             "projected / kept", "saved at once backward MiB", "growth MiB",
             "planned peak MiB", "sent MiB", "closed form MiB")  # fmt: skip
    lines = []
    for row in rows:
        case, most = row["case"], max(row["kept_bytes"])
        lines.append([
            case["norm"], f"{case['side']}³", str(case["count"]), _mib(row["total_bytes"]), _mib(most),
            f"{most * case['count'] / row['total_bytes']:.2f}",
            f"{max(row['projected_bytes']) / most:.3f}", _mib(max(row["saved_bytes"])),
            _mib(row["growth_bytes"]), _mib(row["peak_bytes"]),
            f"{row['sent_bytes'] / 2**20:.2f}", f"{row['closed_form_bytes'] / 2**20:.2f}",
        ])  # fmt: skip
    worst = max(max(r["kept_bytes"]) * r["case"]["count"] / r["total_bytes"] for r in rows)
    equal = all(row["sent_bytes"] == row["closed_form_bytes"] for row in rows)
    return [
        "### ranks: what is kept and sent", "", *grid(heads, lines),
        _judged("kept / (total / N)", worst, KEPT),
        f"- bytes sent are those of the closed form: {'yes' if equal else 'no'}", "",
    ]  # fmt: skip


def speed(rows: Sequence[Row]) -> list[str]:
    heads = ("norm", "side", "1 process × 2 threads, s", "2 processes × 1 thread, s", "ratio of steps/s",
             "CPU s", "CPU s of both")  # fmt: skip
    lines = [
        [
            row["case"]["norm"], f"{row['case']['side']}³",
            f"{row['one_s']:.2f} ± {row['one_span_s'] / 2:.2f}",
            f"{row['divided_s']:.2f} ± {row['divided_span_s'] / 2:.2f}",
            f"{row['one_s'] / row['divided_s']:.2f}",
            f"{row['one_cpu_s']:.1f}", f"{row['divided_cpu_s']:.1f}",
        ]
        for row in rows
    ]  # fmt: skip
    told = "Plain autograd in one process, whole.step in two; in turns, medians."
    return ["### ranks: seconds of a step", "", told, "", *grid(heads, lines)]


def projection(rows: Sequence[Row]) -> list[str]:
    """What each process would keep, and send in a step."""
    counts = rows[0]["case"]["counts"]
    heads = ["norm", "side", "dtype", "plain autograd saves GiB", *(f"N = {n}" for n in counts)]
    lines = [
        [row["case"]["norm"], f"{row['case']['side']}³", dtype, _gib(row[dtype]["plain_bytes"]),
         *(f"{_gib(r['kept_bytes'])}, {_gib(r['peak_bytes'])} ({_gib(r['sent_bytes'])})" for r in row[dtype]["rows"])]
        for row in rows for dtype in ("float32", "bfloat16")
    ]  # fmt: skip
    told = (
        "GiB that each of N processes keeps between forward and backward, and needs at most, beside"
        " weights and libraries (and sends in a step, on average)."
    )
    worst = max(
        r["kept_bytes"] * n / row[dtype]["plain_bytes"]
        for row in rows for dtype in ("float32", "bfloat16")
        for n, r in zip(counts, row[dtype]["rows"], strict=True)
    )  # fmt: skip
    judged = _judged("projected, kept / (plain / N)", worst, KEPT)
    return ["### ranks: larger volumes, projected", "", told, "", *grid(heads, lines), judged, ""]


def precision(rows: Sequence[Row]) -> list[str]:
    heads = ("norm", "side", "passes", "plain, worst", "ours, worst", "plain, together",
             "ours, together", "plain, loss", "ours, loss")  # fmt: skip
    names = (
        "plain_worst",
        "ours_worst",
        "plain_together",
        "ours_together",
        "plain_loss",
        "ours_loss",
    )
    nets = [
        row["case"]["norm"] + ("" if row["case"].get("kinks", True) else ", smooth") for row in rows
    ]
    lines = [
        [net, f"{row['case']['side']}³", str(row["passes"]),
         *(f"{row[name]:.1e}" for name in names)]
        for net, row in zip(nets, rows, strict=True)
    ]  # fmt: skip
    told = [
        _judged(f"{net}: ours / plain, {what}",
                row[f"ours_{what}"] / row[f"plain_{what}"], PRECISE)
        for net, row in zip(nets, rows, strict=True) for what in ("worst", "together")
    ]  # fmt: skip
    return ["### float32: errors against float64", "", *grid(heads, lines), *told, ""]


def _judged(name: str, ratio: float, goal: float) -> str:
    return f"- {name}: {ratio:.2f}, goal ≤ {goal:g} {'met' if ratio <= goal else 'missed'}"


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f}" if size >= 2**20 else f"{size / 2**20:.2f}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g}"
