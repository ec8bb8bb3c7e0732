"""The benchmarks run: tiny training, one pair, no peers; and what they measure is right where the answer is known."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import nn

import weightspace as ws

ROOT = Path(__file__).parent.parent


@pytest.fixture
def load(monkeypatch):
    """A module of the benchmarks, on networks small enough for a test."""
    monkeypatch.syspath_prepend(str(ROOT))
    zoo = importlib.import_module("benchmarks.zoo")
    monkeypatch.setitem(zoo.NETS, "small", lambda: zoo.mlp(16))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def test_align_measures_and_keeps_other_rows(load, tmp_path):
    align, measure = load("align"), load("measure")
    older = [{"net": name, "pair": [0, 1], "method": "ours"} for name in ("mlp", "small")]
    measure.keep("align", older, tmp_path)
    given = {"pairs": 1, "repeats": 1, "with_peers": False, "each_matcher": False, "cache": tmp_path, "epochs": 1}
    rows = align.run(["small"], results=tmp_path, **given)
    by = {row.method: row for row in rows}
    assert set(by) == {"naive", "ours"} and all(row.preserved for row in rows)
    assert by["ours"].barrier <= by["naive"].barrier + 1e-3
    kept = json.loads((tmp_path / "align.json").read_text())
    assert [row["net"] for row in kept] == ["mlp", "small", "small"]
    assert "| `small` (1 pairs) |" in align.summary(kept[1:])


def test_a_changed_function_is_seen(load):
    align, measure = load("align"), load("measure")
    torch.manual_seed(0)
    modules = tuple(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)) for _ in range(2))
    pair = align.Pair("small", (0, 1), modules)
    spoilt = pair.b + 0.1 * pair.b.weights.randn(0)
    row = pair.row("peer", measure.in_turns({"peer": lambda: spoilt}, 1)["peer"])
    assert row.change > align.PRESERVED and not row.preserved


def test_what_a_contestant_raises_is_its_result(load):
    def fail():
        raise AssertionError("no graph\nmore")

    runs = load("measure").in_turns({"peer": fail, "ours": lambda: 1}, 2)
    assert runs["peer"].error == "AssertionError: no graph" and not runs["peer"].wall
    assert runs["ours"].value == 1 and len(runs["ours"].wall) == 2


def test_copies_merge_into_what_they_were(load, tmp_path):
    merge, zoo = load("merge"), load("zoo")
    module = zoo.load("small", 0, tmp_path, epochs=4)
    group = ws.Symmetry.of(module, ws.digits("train").example(2))
    modules = [group.sample(seed, ("permutation",))(ws.Net.of(module)).module() for seed in range(3)]
    row = merge.one("small", (0, 1, 2), modules, with_peers=False)
    assert row.ours == row.ours_no_data == row.ensemble == pytest.approx(row.single)
    assert row.naive < row.single
    assert "ensemble" in merge.summary([asdict(row)])


def test_planted_units_come_back_without_noise_and_not_from_another_network(load, tmp_path):
    planted, zoo = load("planted"), load("zoo")
    (row,) = planted.run(["small"], seeds=1, share=0.0, cache=tmp_path, epochs=1, results=tmp_path)
    assert row.recovered == 1.0 and row.kinds == "permutation x scale"
    net = ws.Net.of(zoo.load("small", 0, tmp_path, 1))
    assert planted.plant("small", net, ws.digits("train").example(2), 0, share=100.0).recovered < 0.5


def test_both_assignments_reach_one_objective(load, tmp_path):
    assignment, zoo = load("assignment"), load("zoo")
    a, b = (ws.Net.of(zoo.load("small", seed, tmp_path, 1)) for seed in (0, 1))
    row = assignment.compare("small", (0, 1), a, b, repeats=1)
    assert row.ours == pytest.approx(row.plain, rel=1e-6) and row.assignments > 0


def test_a_peer_that_is_not_installed_is_named(load, monkeypatch):
    peers = load("peers")
    for variable in peers.FOLDERS.values():
        monkeypatch.delenv(variable, raising=False)
    assert not peers.available("rebasin")
    with pytest.raises(FileNotFoundError, match="WEIGHTSPACE_PEERS_SINKHORN"):
        peers.sinkhorn(nn.Linear(2, 2), nn.Linear(2, 2), torch.zeros(1, 2))


def test_a_step_is_as_good_as_the_explicit_one(load, tmp_path, monkeypatch):
    steps = load("steps")
    monkeypatch.setattr(
        steps, "lenet", lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10))
    )
    monkeypatch.setattr(steps, "trained", lambda task: ws.Net.of(steps.lenet()))
    (row,) = steps.run([6], 1, None, tmp_path)
    assert abs(row.gap) < 1e-5 and row.krylov_gap < 0.05 and row.product > 0


def test_a_step_of_the_path_is_timed_beside_one_that_rehearses(load, tmp_path):
    continual, table = load("continual"), load("__main__")
    (row,) = continual.run(["MLP 196-200-200-10"], [10], 1, tmp_path, 2)
    assert row.path > 0 and row.over_whole > 0 and row.drift < continual.BUDGET
    kept = json.loads((tmp_path / "continual.json").read_text())
    assert (
        "| MLP 196-200-200-10 | 10 |" in table._TABLES["continual"](kept)
        and len(table._TARGETS["continual"](kept)) == 1
    )


def test_a_flow_is_timed_beside_the_loop_that_it_equals(load, tmp_path):
    flow, table = load("flow"), load("__main__")
    (row,) = flow.run(["LeNet-300-100"], 4, 2, tmp_path)
    assert row.apart < 1e-3 and row.weights == 266_610 and row.ratio > 0
    assert "| LeNet-300-100 | 266,610 |" in table._TABLES["flow"](json.loads((tmp_path / "flow.json").read_text()))


def test_steps_of_optimisers_are_timed_in_turns(load, tmp_path):
    optim, table = load("optim"), load("__main__")
    found = optim.run(2, (8, 16, 4), 1 << 16, tmp_path)
    assert {row["name"] for row in found["rows"]} >= {"SGD, foreach", "Fromage"}
    assert all(row["milliseconds"] >= row["fastest"] > 0 for row in found["rows"]) and found["norm"]["ours"] < 1e-6
    assert "| Fromage |" in optim.summary(found)
    row = {"name": "Fromage", "over_sgd": 2.4, "published": 1.7}
    made = table._optim({"rows": [row], "norm": {"ours": 2e-6}})
    assert [reached for *_, reached in made] == [False, True, False]


def test_operator_norms_are_timed_beside_all_singular_values(load, tmp_path):
    spectral, table = load("spectral"), load("__main__")
    rows = spectral.run(1, 48, 22, tmp_path)
    assert [row["matrix"] for row in rows] == ["Gaussian", "trained"] and "| trained |" in spectral.summary(rows)
    assert all(-1e-4 < row["norm_error"] < 1e-6 < row["bound_error"] < 1e-2 for row in rows)
    good = {"norm_ratio": 30.0, "norm_error": 1e-5, "bound_ratio": 30.0, "bound_error": 1e-3}
    assert [reached for *_, reached in table._spectral([good])] == [True, True]
    for name, bad in (("norm_ratio", 3.0), ("norm_error", -1e-3)):
        assert [reached for *_, reached in table._spectral([good, good | {name: bad}])] == [False, True]


def test_cka_is_timed_beside_a_peer_that_may_be_missing(load, tmp_path, monkeypatch):
    representation, peers, table = load("representation"), load("peers"), load("__main__")
    monkeypatch.delenv(peers.FOLDERS["cka"], raising=False)
    rows = representation.run(1, ((80, 120), (90, 20)), tmp_path)
    assert all(row["error"] < 1e-6 and row["ratio"] is None for row in rows) and not table._representation(rows)
    assert "| 80 x 120 | - |" in representation.summary(rows)
    (tmp_path / "peer").mkdir()
    monkeypatch.setenv(peers.FOLDERS["cka"], str(tmp_path / "peer"))
    monkeypatch.setattr(peers, "linear_cka", lambda x, y: 0.5)
    (row,) = representation.run(1, ((80, 120),), tmp_path)
    assert row["peer_error"] == pytest.approx(abs(0.5 / row["cka"] - 1)) and row["ratio"] > 0
    made = [{**row, "ratio": ratio, "error": error} for ratio, error in ((2.1, 1e-8), (1.9, 1e-8), (2.1, 1e-5))]
    assert [reached for *_, reached in table._representation(made)] == [True, False, False]


def test_curvature_is_timed_beside_peers_that_may_be_missing(load, tmp_path, monkeypatch):
    curvature, peers, table = load("curvature"), load("peers"), load("__main__")
    monkeypatch.delenv(peers.FOLDERS["curvlinops"], raising=False)
    monkeypatch.setitem(curvature.NETS, "mlp64", ("small", lambda: curvature.mlp(64, 2, 10)))
    rows = curvature.run(1, ["mlp64"], 40, 2, tmp_path)
    by = {row["what"]: row for row in rows}
    assert set(by) == set(curvature.WHAT) and not table._curvature(rows)
    assert all(by[what]["error"] < 1e-5 for what in ("product", "columns", "diagonal", "top"))
    assert by["trace"]["error"] < 0.5 and by["logdet"]["products"] == by["logdet"]["weights"]
    assert all(row["memory"] > 0 and row["ours"] > 0 for row in rows) and "| small | all |" in curvature.summary(rows)
    (tmp_path / "peer").mkdir()
    monkeypatch.setenv(peers.FOLDERS["curvlinops"], str(tmp_path / "peer"))
    wrong = torch.ones(by["product"]["weights"])
    monkeypatch.setattr(peers, "curvature", lambda *_: torch.eye(len(wrong)))
    monkeypatch.setattr(peers, "hutchpp", lambda *_: 1.0)
    monkeypatch.setattr(peers, "largest", lambda *_: torch.ones(10))
    monkeypatch.setattr(peers, "diagonal", lambda *_, **__: wrong)
    found = {row["what"]: row for row in curvature.run(1, ["mlp64"], 40, 2, tmp_path)}
    assert found["diagonal"]["peer_error"] > 0.1 and found["product"]["ratio"] > 0
    made = [{**found["product"], "ratio": r, "error": e} for r, e in ((2.1, 1e-7), (1.9, 1e-7), (2.1, 1e-4))]
    assert [reached for *_, reached in table._curvature(made)] == [True, False, False]


def test_paths_are_compared_recorded_and_streamed(load):
    paths, table = load("paths"), load("__main__")
    rows = paths.pairs(1, 60, 300)
    assert [row["name"] for row in rows][:2] == ["ours", "ours, public operations"]
    assert all(row["wrong"] < 1e-6 and row["seconds"] > 0 for row in rows)
    found = {"pairs": rows, "record": paths.record(1, 4, 2), "stream": paths.stream(40, 16, 8)}
    assert found["stream"]["units"] == 1024 and "40 images x 1,024 units" in paths.summary(found)
    reached = {what: good for what, _, _, good in table._paths(found)}
    assert len(reached) == 6 and reached[".. without integer kernels, over float32 products"] in (True, False)
    slow = {"name": "ours", "wrong": 0.0, "rows": 99.0, "gemm": 2.9}
    both = [slow, slow | {"name": "ours, public operations", "gemm": 0.5}]
    assert [good for *_, good in table._paths({"pairs": both})] == [False] * 3
    assert not table._paths({"record": {"share": 0.1, "bits": 1.06}})[0][-1]


def test_copies_under_the_group_are_one_point(load, tmp_path):
    orbits, table = load("orbits"), load("__main__")
    (row,) = orbits.run(["mlp"], 1, tmp_path)
    assert max(row[column] for column in orbits.COLUMNS) < 1e-5 and row["strangers"] == 0 and row["elements"] > 1
    kept = json.loads((tmp_path / "orbits.json").read_text())
    kept.append({"net": "other", "group": "", "elements": 2, "refused": "too many | units", "seconds": 0.1})
    made = table._TABLES["orbits"](kept)
    assert f"| {row['elements']} of {row['elements']} |" in made and made.endswith("| - | too many / units |")
    net = ws.Net.of(nn.Linear(2, 2))
    assert orbits.apart(net, net.at(2 * net.weights)) == pytest.approx(1)
    assert orbits.change(net, net.at(2 * net.weights), torch.ones(1, 2)) == pytest.approx(1)


def test_a_catalogue_is_filled_and_asked(load, tmp_path):
    catalogue, table = load("catalogue"), load("__main__")
    found = catalogue.run(12, 60, 5, tmp_path)
    assert [row["pairs"] for row in found["stores"]] == [60] * len(found["stores"])
    assert found["added"]["networks"] == 12 and found["added"]["seconds"] > 0
    assert "60 pairs written, SQLite" in catalogue.summary(found) and "12 networks of" in catalogue.summary(found)
    slow = {"stores": [found["stores"][0] | {"processor": 11.0, "milliseconds": 2.0}]}
    assert [good for *_, good in table._catalogue(slow)] == [False, False]


def test_the_readme_shows_what_was_measured(load):
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for name, table in load("__main__").tables().items():
        assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in text, f"run python -m benchmarks --write: {name}"


def test_a_missed_target_is_said(load):
    table = load("__main__")
    row = {"net": "cnn", "method": "ours", "barrier": 0.9, "ratio": None}
    assert table._align([row]) == [("barrier of `cnn`", "<= 0.03", "0.9000", False)]
    assert not table._memory([{"layers": 1, "size": 100.0, "share": 3.0}])[0][-1]


def test_reading_is_timed_against_depth_and_weighed(load, tmp_path, monkeypatch):
    reading, table = load("reading"), load("__main__")
    monkeypatch.setitem(reading.NETS, "loop", (1, reading.NETS["loop"][1]))
    (row,) = reading.run(["loop"], 1, tmp_path)
    assert row["depth"] == 1 and len(row["seconds"]) == 2 and row["ratio"] > 0
    part = {"seconds": 21.0, "share": 2.5}
    large = {"net": "bert", "axes": 1, "size": 4e6, **part, "align": part, "compare": part | {"share": 4.1}}
    rows = [row | {"ratio": 4.6}, large]
    assert [good for *_, good in table._reading(rows)] == [False, False, True, True, False]
    assert "| BERT, 1M weights | 21.0 | - | - | 2.50 |" in reading.summary(rows)


def test_architectures_without_weights_are_read_and_a_slow_one_is_said(load):
    reading, table, quick = load("reading"), load("__main__"), load("quick")
    row = {"net": "llama-7b", "axes": 97, "weights": 6_738_415_616, "seconds": 3.5, "megabytes": 20.0}
    rows = [row, row | {"seconds": 8.5}, row | {"megabytes": 501.0}]
    assert [good for *_, good in table._reading(rows)] == [True, False, False]
    assert "| `llama-7b`, 6,738M weights on the meta device, 97 axes | 3.5 |" in reading.summary([row])
    assert [(line.value, line.better) for line in quick._reading([row], 0.5)] == [(7.0, "lower")]


@pytest.mark.slow  # a process loads transformers
def test_an_architecture_on_the_meta_device_is_read_in_a_process(load):
    pytest.importorskip("transformers")
    row = load("reading").on_meta("resnet-50")
    assert row["axes"] == 37 and 23e6 < row["weights"] < 26e6 and 0 < row["megabytes"] < 500 and row["seconds"] > 0


@pytest.mark.slow  # processes load torch
def test_jobs_measure_two_processes(load, tmp_path):
    jobs = load("jobs")
    jobs.measured(4, 2, 2, 1, tmp_path)
    (row,) = json.loads((tmp_path / "jobs.json").read_text())
    assert row["same"] and row["speed"] > 0 and row["each"] < row["started"]
    assert "| 2 | 4 |" in jobs.summary([row])


def test_merges_of_files_are_compared_and_a_slow_one_is_said(load, tmp_path):
    merging, table = load("merging"), load("__main__")
    linear, slerp = merging.CASES[0], merging.CASES[-1]
    ours = {"seconds": 4.0, "wall": 3.0, "processor": 2.0, "peak": 4e8}
    turns = [{"copy": ours | {"wall": 2.0}, linear.name: {"ours": ours, "theirs": {"seconds": 8.0, "peak": 2e8}}}]
    rows = [
        merging.row(linear, turns, 10**9, 0.5) | {"apart": 1e-5},
        merging.row(slerp, turns, 10**9, 0.5) | {"apart": 2},
    ]
    assert rows[0]["rate"] == pytest.approx(1.0) and rows[0]["seconds_ratio"] == 2 and rows[0]["peak_ratio"] == 0.5
    assert [good for *_, good in table._merging(rows)] == [True, False, False]
    assert "| 100 % | 4.0 | 400 | 8.0 | 200 | 2.0 | 0.5 | 1e-05 |" in merging.summary(rows)
    paths = merging.made(tmp_path, 1, 0.0, torch.float32)
    assert merging.apart(paths[0], paths[0], paths) == 0
    assert 1 < merging.apart(paths[0], paths[1], paths) < 2**9


@pytest.mark.slow  # processes load torch
def test_merges_of_files_are_timed(load, tmp_path, monkeypatch):
    merging = load("merging")
    monkeypatch.setattr(merging, "CASES", merging.CASES[::5])
    timed, other = merging.run(0.0, 1, 1, None, tmp_path)
    assert timed["rate"] > 0 and timed["peak"] > 1e8 and timed["seconds"] > timed["wall"] > 0
    assert json.loads((tmp_path / "merging.json").read_text()) == [timed, other] and timed["apart"] is None


def test_maps_counts_what_it_did(load, tmp_path):
    maps = load("maps")
    found = maps.run(10, 3, 1.0, tmp_path)
    assert found["large"]["right"] >= 7 and found["large"]["possible"] == 8 and found["strange"]["edges"] == 0
    assert found["read"]["sketched"] > 0 and "10 networks added" in maps.summary(found)


def test_one_pass_over_the_files_gives_the_distances_of_all_pairs(load, tmp_path):
    gram, table = load("gram"), load("__main__")
    (row,) = gram.run(0.2, 1, (7,), tmp_path)
    assert row["n"] == 7 and row["error"] < 1e-5 < row["plain"] and row["rate"] > 0 and row["ratio"] > 0
    assert "| 7 | 0.00 |" in table._TABLES["gram"]([row])
    paths = gram.written(tmp_path, 3, 0.2)
    assert gram.by_pairs(paths, [(0, 1)])[0] == pytest.approx(float(gram.one_pass(paths).distances[0, 1]), rel=1e-4)


def test_the_playground_is_timed(load, tmp_path):
    playground, table = load("playground"), load("__main__")
    (row,) = playground.run(2, 1, ((1, 2),), tmp_path)
    assert row.frame > 0 and row.kilobytes > 4.8 and {*row.messages} == {*playground.MESSAGES}
    kept = json.loads((tmp_path / "playground.json").read_text())
    assert table._TABLES["playground"](kept).count("| 1 x 2 | 3 |") == 1
    assert playground.least(kept, 1, 2) == pytest.approx(row.rate)
    assert math.isnan(playground.least(kept, 9, 9))
    assert [line[1] for line in table._playground(kept)] == ["> 30", "<= 2 s"]


@pytest.mark.slow  # two servers and a browser
def test_the_web_view_is_timed_and_a_slow_map_is_said(load, tmp_path, monkeypatch):
    web, table = load("web"), load("__main__")
    monkeypatch.setattr(web, "PAGES", ("/",))
    if shutil.which("chromium") is None and shutil.which("chromium-browser") is None:
        pytest.skip("chromium is not installed; apt-get install chromium")
    with ThreadPoolExecutor(1) as apart:  # a browser of other tests may have its loop in this thread
        found = apart.submit(web.run, [], 1, 0.3, tmp_path, [(40, 60)]).result()
    ((home,), (row,)) = found["pages"], found["maps"]
    assert found["start"] > 0 and home["paint"] > 0 and home["bytes"] > 10_000 and home["requests"] > 3
    assert row["first"] > 0 and row["pan"] > 0 and row["work"] > 0 and row["bytes"] > 10_000
    page = {"page": "/atlas", "paint": 400.0, "load": 900.0, "bytes": 2e6, "requests": 9}
    found = {
        "start": 3.5,
        "pages": [page],
        "maps": [row | {"first": 1.0, "pan": 21.0}, row | {"first": 2.0, "pan": 9.0}],
    }
    assert [good for *_, good in table._web(found)] == [False, True, True, False]
    assert "| page `/atlas` | 0.40 s | 2.00 MB in 9 | - | - | - |" in web.summary(found)


@pytest.mark.slow  # processes load torch
def test_commands_are_timed_beside_their_imports(load, tmp_path):
    commands, table = load("commands"), load("__main__")
    rows = {row["command"]: row for row in commands.run(["compare --example", "--help"], 1, tmp_path)}
    assert [*rows] == [commands.TORCH, commands.EXPORT, "--help", "compare --example"]
    assert rows["--help"]["over_torch"] < 0.5 and rows["compare --example"]["over_export"] > 0.8
    assert "| `--help` |" in table._TABLES["commands"](json.loads((tmp_path / "commands.json").read_text()))


def test_a_slow_command_is_said_and_a_failing_one_is_named(load, tmp_path, monkeypatch):
    commands, table = load("commands"), load("__main__")
    row = {"command": "compare --data", "over_export": 2.0}
    assert [good for *_, good in table._commands([row, row | {"over_export": 1.9}, row | {"command": "align"}])] == [
        False,
        True,
    ]
    monkeypatch.setitem(commands.COMMANDS, "wrong", ["-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="wrong ended with 3"):
        commands.spent("wrong", tmp_path)


TABLE = [
    {"part": "flow", "line": "slow", "ratio": 2.0, "better": "lower", "date": "2026-01-01"},
    {"part": "flow", "line": "gain", "ratio": 4.0, "better": "higher", "date": "2026-01-01"},
]


@pytest.mark.parametrize(
    ("slow", "gain", "runs", "regressed"),
    [
        (2.4, 3.3, 0, []),  # within a quarter
        (1.0, 40.0, 0, []),  # better
        (2.6, 4.0, 2, ["slow was 2 and is 2.6, lower is better"]),
        (2.0, 3.0, 2, ["gain was 4 and is 3, higher is better"]),
        (3.0, 1.0, 2, ["slow", "gain"]),
    ],
)
def test_a_ratio_that_is_a_quarter_worse_is_a_regression_in_its_direction(load, slow, gain, runs, regressed):
    quick = load("quick")
    lines, again = [quick.Line("slow", slow, "lower"), quick.Line("gain", gain, "higher")], []

    def more():
        again.append(1)
        return lines

    said = quick.judged(TABLE, "flow", lines, more)
    assert len(again) == runs and len(said) == len(regressed)
    assert all(line.startswith("worse: flow: ") and what in line for what, line in zip(regressed, said, strict=True))


def test_noise_is_measured_again_and_what_is_missing_or_new_is_said(load):
    quick = load("quick")
    noisy = iter([[quick.Line("slow", 2.9, "lower")], [quick.Line("slow", 2.1, "lower")]])
    first = [quick.Line("slow", 3.0, "lower"), quick.Line("peer", None, "higher", "cka"), quick.Line("x", 1.0, "lower")]
    said = quick.judged(TABLE, "flow", first, lambda: next(noisy))
    assert said == [
        "missing: flow: gain is in the table and was not measured",
        "skipped: flow: peer (cka is not installed)",
        "new: flow: x is 1, and not in the table",
    ]
    assert quick.worse(TABLE[0], quick.Line("slow", 0.0, "lower")) == 0
    assert math.isinf(quick.worse(TABLE[1], quick.Line("gain", 0.0, "higher")))


def test_the_whole_benchmark_resumes_fails_on_a_planted_regression_and_accepts(load, tmp_path, monkeypatch):
    quick, measure = load("quick"), load("measure")
    results, scratch, said, ran = tmp_path / "results", tmp_path / "scratch", [], []
    value = {"flow": 2.0, "optim": 1.0}

    def measured(part, folder):
        ran.append(part.name)
        if value[part.name] is None:
            raise KeyboardInterrupt
        if value[part.name] < 0:
            raise RuntimeError("no memory")
        return [quick.Line("slow", value[part.name], "lower")]

    monkeypatch.setattr(quick, "measured", measured)
    monkeypatch.setattr(quick, "source", lambda: "this code")
    monkeypatch.setattr(quick, "PARTS", {name: quick.PARTS[name] for name in ("optim", "flow")})

    def go(**options):
        said.clear(), ran.clear()
        return quick.run(results=results, scratch=scratch, say=said.append, **options)

    assert go(accept=True) == 0 and ran == ["optim", "flow"]
    table = measure.kept("table", results)
    assert [row["part"] for row in table["rows"]] == ["optim", "flow"] and "torch" in table["machine"]
    assert any("rules (three quarters of an hour" in line for line in said)
    assert any("cka" in line for line in said if line.startswith("skipped: what is compared with"))
    value["flow"] = None
    with pytest.raises(KeyboardInterrupt):
        go()
    value["flow"] = 3.0  # planted
    assert go() == 1 and ran == ["flow"] * 3 and "worse: flow: slow was 2 and is 3" in said[-1]
    assert measure.kept("table", results) == table
    assert go() == 1 and ran == ["optim", "flow", "flow", "flow"]
    assert go(accept=True) == 0 and not ran  # of the run that has ended
    assert go() == 0 and "no ratio is more than 25% worse" in said[-1]
    value["optim"] = -1.0
    assert go(names=["optim"]) == 1 and "failed: optim: RuntimeError: no memory" in said[-1]
    value["optim"] = 0.5
    assert go(fresh=True, minutes=0.1) == 0 and not ran and any("no time left" in line for line in said)
    assert "| flow | slow | 3 | lower |" in quick.summary(measure.kept("table", results))
