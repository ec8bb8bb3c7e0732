"""The experiments measure what they say: exact copies, planted noise, resuming, and a README that is true.

Runs that take longest are marked slow; that an experiment runs and takes up its rows again is asked of the others too.
"""

from __future__ import annotations

import json
import math
import sys
from itertools import permutations, product
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace import Net, Symmetry, Task, accuracy, curve, line
from weightspace.merging.methods import METHODS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from experiments import (  # noqa: E402
    action,
    alignment,
    asked,
    atlas,
    attention,
    averaged,
    certify,
    colours,
    continual,
    critical,
    descent,
    flat,
    forms,
    freedom,
    generator,
    graph,
    growing,
    images,
    invariant,
    language,
    lineage,
    merging_advice,
    morph,
    narrow,
    nearest,
    nets,
    nuisance,
    prior,
    ratio,
    record,
    relative,
    residual,
    split,
    structure,
    sweep,
    tables,
    tasks,
    texts,
    transformers,
    trust,
    two_part,
    widths,
)

SORTED = [way for way in alignment.WAYS if way not in ("as it is", "matched")]


@pytest.fixture(scope="module")
def family():
    """A network, its group, a permutation of its units, and inputs."""
    torch.manual_seed(0)
    net = Net.of(nets.mlp(40, 48))
    group = Symmetry.of(net, torch.randn(2, 40))
    return net, group, group.sample(seed=1, kinds=("permutation",)), torch.randn(64, 40)


def recovered(family, way, noise):
    net, group, shuffle, x = family
    a, b, back = alignment.together(group, net, shuffle(alignment.noisy(net, noise, seed=2)), way)
    torch.testing.assert_close(a(x), net(x), atol=1e-5, rtol=1e-4)
    return torch.tensor(alignment.in_place(group, back @ shuffle)), a, b


@pytest.mark.parametrize("way", [*SORTED, "matched"])
def test_every_way_recovers_an_exact_copy(family, way):
    share, a, b = recovered(family, way, noise=0.0)
    assert (share == 1).all()
    assert (a - b).norm() < 1e-4 * a.weights.norm()


@pytest.mark.parametrize("way", SORTED)
def test_matching_recovers_where_sorting_fails(family, way):
    assert recovered(family, way, noise=0.2)[0].mean() < 0.5
    assert (recovered(family, "matched", noise=0.2)[0] == 1).all()


def test_a_permutation_is_seen_as_not_in_place(family):
    _, group, shuffle, _ = family
    assert alignment.in_place(group, group.identity()) == [1.0, 1.0, 1.0]
    assert max(alignment.in_place(group, shuffle)) < 0.2


def test_noise_is_in_units_of_the_deviation_of_each_tensor(family):
    net = family[0]
    step = alignment.noisy(net, 0.1, seed=0) - net
    for name, tensor in net.weights.items():
        if tensor.dim() == 2:
            assert float(step[name].std() / tensor.std()) == pytest.approx(0.1, rel=0.1)


def test_ordered_biases_rise_and_keep_their_values():
    bias = torch.randn(50, dtype=torch.float64)
    ordered = nets.Ordered()
    again = ordered(ordered.right_inverse(bias))
    torch.testing.assert_close(again, bias.sort().values)
    assert (ordered(torch.randn(50)).diff() >= 0).all()


def test_fixed_entries_are_the_same_in_every_network_and_are_not_trained():
    x, y = torch.randn(40, 12), torch.randint(10, (40,))
    trained = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = nets.asymmetric(nets.mlp(12, 16))
        for _ in nets.fit(module, x, y, epochs=2, seed=seed):
            pass
        mask = module[3].parametrizations.weight[0].mask.clone()
        trained.append(nets._plain(module)[3].weight.detach())
    assert 0.1 < mask.double().mean() < 0.4
    assert torch.equal(trained[0][mask], trained[1][mask])
    assert (trained[0][~mask] != trained[1][~mask]).all()


def test_an_ensemble_of_one_is_that_network_and_of_two_is_not(family):
    net, _, _, x = family
    other = Net.of(nets.mlp(40, 48))
    task = Task(x, torch.arange(64) % 10)
    alone, both = alignment.ensemble([net], task), alignment.ensemble([net, other], task)
    assert alone["ensemble"] == accuracy(task)(net)
    assert alone["ensemble_loss"] == pytest.approx(float(task(net)), rel=1e-5)
    assert both["ensemble_loss"] != pytest.approx(alone["ensemble_loss"], rel=1e-5)


def test_kernel_alignment_sees_through_rotations_only():
    x = torch.randn(100, 5, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert alignment.kernel_alignment(x, 3 * x @ turn + 1) == pytest.approx(1)
    assert alignment.kernel_alignment(x, torch.randn(100, 5, dtype=torch.float64)) < 0.3


def test_hidden_activations_are_those_of_the_network(family):
    net, _, _, x = family
    last = alignment.hidden(net, Task(x, torch.zeros(64, dtype=torch.int64)))[-1].float()
    torch.testing.assert_close(last @ net.weights["7.weight"].T + net.weights["7.bias"], net(x))


def test_a_low_path_joins_units_that_are_not_aligned(tmp_path):
    """A network and its permuted copy: matching leaves all in place step by step, and nothing end to end."""
    lab = nets.Lab(nets.Size(width=48, epochs=6), cache=tmp_path)
    a = lab.net("mlp", 0)
    group = lab.group(a)
    b = group.sample(seed=1, kinds=("permutation",))(a)
    path = curve(a, b, lab.train, steps=60)
    assert path.barrier(lab.test) < 0.5 * line(a, b).barrier(lab.test)
    walked = alignment.walked(lab, group, [path(k / 3) for k in range(4)])
    assert walked["step"] == 1
    assert walked["ends"] < 0.2


def test_a_run_can_be_taken_up_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(alignment, "QUICK", nets.Size(width=16, epochs=1, tune=1))
    arguments, out = ["widths", "--quick", "--cache", str(tmp_path)], tmp_path / "digits-quick.json"
    assert alignment.main(arguments) == 0
    first = capsys.readouterr().out
    assert "5 rows, 5 to measure" in first and "| half the width |" in first and "refused" in first
    kept = record.Record(out)
    one = kept.rows.pop("widths/untrained/0")
    kept.add("widths/same width/0", kept.rows["widths/same width/0"])
    assert alignment.main(arguments) == 0
    assert "5 rows, 1 to measure" in capsys.readouterr().out
    assert record.Record(out).rows["widths/untrained/0"] == one, "the same seeds give the same numbers"
    kept.forget("widths")
    assert not kept.rows


@pytest.mark.parametrize("arguments", [["nothing"], ["keys", "--data", "nowhere"]])
def test_bad_arguments_are_refused_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        alignment.main(arguments)
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_readme_shows_what_was_measured():
    text, measured = record.README.read_text(), record.Record(record.RESULTS / "alignment.json")
    for name, make in tables.TABLES.items():
        assert record.table(*make(measured)) in text, f"the table {name!r} is out of date"


def test_networks_that_are_kept_are_read_back(tmp_path):
    size = nets.Size(width=16, epochs=1)
    first, again = (nets.Lab(size, cache=tmp_path).net("mlp", 3) for _ in range(2))
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert line(first, nets.Lab(size, cache=tmp_path).net("mlp", 4)).length() > 0


@pytest.mark.slow
def test_invariant_paths_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert invariant.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert "sparsify digits" in seen and "learn digits" in seen
    rows = json.loads(first)
    assert rows["sparsify/digits/0.9/0"]["repaired"] > rows["sparsify/digits/0.9/0"]["one_shot"]
    assert rows["learn/digits/2.0/0"]["drift"] <= 2.0
    assert sum(rows["descend/digits/0.95/0"]["layers"]) > 2 and sum(rows["random/digits/0.95/0"]["layers"]) > 2
    assert invariant.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_continual_learning_runs_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    ways = [way for way in continual.WAYS if way != "invariant path"]
    assert continual.main([*ways, "--quick", "--memories", "50", "--out", str(out)]) == 0
    first = out.read_text()
    assert len(json.loads(first)) == len(ways) and "continual digits to turned digits" in capsys.readouterr().out
    assert continual.main([*ways, "--quick", "--memories", "50", "--out", str(out)]) == 0
    assert out.read_text() == first


@pytest.mark.slow
def test_split_digits_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert split.main(["--quick", "--memory", "20", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert "split digits" in seen and len(json.loads(first)) == len(split.WAYS)
    assert split.main(["--quick", "--memory", "20", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_copies_are_changed_a_little_and_from_the_seed():
    x = torch.zeros(3, 1, 28, 28)
    x[:, :, 10:18, 10:18] = 1.0
    moved = [continual.jitter(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(moved[0], moved[1]) and not torch.equal(moved[0], moved[2])
    assert 0.5 < float(moved[0].sum() / x.sum()) < 1.5 and float((moved[0] - x).abs().max()) > 0.2


def test_experiments_on_forms_run_and_the_readme_shows_what_was_measured(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert forms.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    rows = json.loads(first)
    assert len(rows) == 8 and all(f"forms {name}" in seen for name in ("trained", "projected", "speed"))
    assert rows["train/circulant/0"]["free"] == 2 * (64 + 64) + 650 and rows["train/free/0"]["free"] == 8970
    before, after = rows["project/low-rank:8/0"]["apart"]
    assert after < before
    assert forms.main(["--quick", "--out", str(out)]) == 0 and out.read_text() == first
    found = forms.tables(record.Record(record.RESULTS / "forms.json"), "")
    assert len(found) == 3 and all(table in record.README.read_text() for table in found.values())


@pytest.mark.slow
def test_rooms_experiments_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert freedom.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"{name} digits" in seen for name in freedom.EXPERIMENTS)
    rows = json.loads(first)
    assert rows["commute/digits/0.9/0"]["zeros"] == pytest.approx([0.9, 0.9], abs=1e-3)
    assert rows["spectrum/digits/trained/25/0"]["rank"] == 250
    assert freedom.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_relative_experiments_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert relative.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert "growth digits" in seen and "sweep" in seen
    rows = json.loads(first)
    assert len(rows) == 3 + 4 + 1 + 16
    grown = {way: rows[f"growth/digits/normalised/{way}/all"]["ratio"] for way in ("Fromage", "no factor")}
    assert grown["Fromage"] == [[pytest.approx(1, abs=1e-3)]] * 2
    assert [ratio for (ratio,) in grown["no factor"]] == [
        pytest.approx((1 + r * r) ** 10, rel=1e-3) for r in (0.01, 0.1)
    ]
    assert relative.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_a_stack_is_its_networks():
    """One rate and seed of a stack learns as that network does alone, by torch's own layers."""
    lab = relative.Lab(None, True, [0, 1])
    lab.steps = 5
    stack = relative.Stack(64, 2, lab.seeds, 2)
    relative.taught(lab, stack, "Fromage", (0.1, 0.01))
    torch.manual_seed(1)
    layers = [
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    ]
    alone, (x, y) = torch.nn.Sequential(*layers), lab.train
    draw = torch.Generator().manual_seed(1)

    def loss():
        some = torch.randint(len(x), (relative.BATCH,), generator=draw)
        return torch.nn.functional.cross_entropy(alone(x[some]), y[some])

    sweep.descended([loss], [list(alone.parameters())], "Fromage", 0.01, 5)
    torch.testing.assert_close(stack(x.expand(4, *x.shape))[3], alone(x), atol=1e-5, rtol=1e-4)


def test_the_distance_of_gaussians():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    assert sweep.frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert sweep.frechet(x, x + 1) == pytest.approx(4, rel=1e-6)
    spread = float(x.double().T.cov().trace())
    assert sweep.frechet(x, 3 * x - 2 * x.mean(0)) == pytest.approx(4 * spread, rel=1e-5)


def test_the_best_rate_is_that_of_the_best_median():
    row = {"rates": [0.1, 0.01], "train": [[1.0, 0.1, 0.1], [0.5, 0.6, 0.4]], "test": [[0.9] * 3, [0.3, 0.4, 0.5]]}
    assert relative.best(row) == (0.01, 0.5, [0.5, 0.6, 0.4], 0.4)
    assert sweep.near("mlp", 0.97, 0.98) and not sweep.near("gan", 1.2, 1.0)


def test_the_loss_that_wants_networks_diverse_is_its_formula():
    f = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    y, total = torch.tensor([0, 1, 2, 3, 1]), torch.zeros(())
    for k, label in enumerate(y.tolist()):
        p = f[:, k].softmax(-1)
        rows = torch.cat([p[:, :label], p[:, label + 1 :]], 1)
        rows = rows / rows.norm(dim=1, keepdim=True)
        mean = p.mean(0)
        total = total - p[:, label].log().sum() + 2 * (mean * mean.log()).sum() - torch.logdet(rows @ rows.T) / 2
    assert residual.diverse(f, y).item() == pytest.approx(total.item() / 5, abs=1e-4)
    assert residual.diverse(f, y.flip(0)).item() != pytest.approx(total.item() / 5, abs=1e-2)


@pytest.mark.slow
def test_colours_run_and_can_be_taken_up_again(tmp_path, capsys):
    """Without the slowest kinds of ensembles and prunings, which the other experiments walk too."""
    out, split_ways = tmp_path / "rows.json", ["naive", "held on changed copies", "invariant path"]
    cut = ["cut in one go", "cut along a descent", "random zeros, taught as long"]
    arguments = ["--quick", "--out", str(out), "--only", *split_ways, *cut, "single", "independent"]
    assert colours.main(arguments) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"{name} digits" in seen for name in ("split", "sparsify", "ensembles", "diversity"))
    rows = json.loads(first)
    pruned = [rows[f"sparsify/digits/{way}/0"] for way in cut]
    assert all(row["zeros"] == pytest.approx(0.5, abs=1e-3) for row in pruned)
    assert pruned[2]["layers"] == pytest.approx(pruned[0]["layers"], abs=0.01)
    assert pruned[1]["drift"] < min(pruned[0]["drift"], pruned[2]["drift"])
    single, both = (rows[f"ensembles/digits/{kind}/0"] for kind in ("single", "independent"))
    assert single["clean"] > 0.5 and single["transfer"] == single["white box"]
    assert both["coherence"] < 1 and len(both["layers"]) == 3
    assert colours.main(arguments) == 0
    assert out.read_text() == first


def test_images_are_mirrored_and_moved_and_from_the_seed():
    x = torch.zeros(200, 3, 16, 16)
    x[:, :, 6, 5] = torch.tensor([1.0, 2.0, 3.0])
    moved = [residual.shifted(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(moved[0], moved[1]) and not torch.equal(moved[0], moved[2])
    assert moved[0].sum((2, 3)).unique(dim=0).tolist() == [[1.0, 2.0, 3.0]]
    rows, columns = moved[0][:, 0].nonzero()[:, 1:].T
    assert rows.unique().tolist() == [4, 5, 6, 7, 8]
    assert columns.unique().tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.slow
def test_trust_runs_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    arguments = ["noise", "breakdown", "compress", "clip", "--quick", "--out", str(out)]
    assert trust.main(arguments) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"{name} digits" in seen for name in ("noise", "breakdown", "compress", "clip"))
    rows = json.loads(first)
    assert len(rows) == 2 + 2 + 2 + 2
    row = rows["noise/digits/2/0"]
    assert row["measured"] == sorted(row["measured"]) and row["with_data"][0] <= row["certificate"][0]
    assert rows["compress/digits/quantise 4/0"]["measured"] > 0
    assert trust.main(arguments) == 0
    assert out.read_text() == first


def test_structure_runs_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    arguments = ["--quick", "--out", str(out), "--folder", str(tmp_path / "codes")]
    assert structure.main(arguments) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"\n{name}\n" in seen for name in ("structure digits mlp", "widths digits true"))
    rows = json.loads(first)
    assert len(rows) == 3 + 2 and len(rows["labels/digits mlp/random/0"]["runs"]) == 4
    row = rows["widths/digits/true/4/0"]
    lower, value, block, diagonal = row["bracket"]
    assert lower <= value * (1 + 1e-4) and value <= block * (1 + 1e-4) and block <= diagonal * (1 + 1e-4)
    assert structure.main(arguments) == 0
    assert out.read_text() == first


def test_the_patterns_of_structure_were_measured():
    """Of digits: random labels are learnt below beta = 1 only, true ones above it, and cost three times as much."""
    seen = {
        label: structure.of(record.Record(record.RESULTS / "structure.json"), f"labels/digits mlp/{label}")
        for label in structure.LABELS
    }
    assert seen["random"].collapse < 1 < seen["true"].collapse
    assert seen["random"].best(0.1).kl > 3 * seen["true"].best(0.1).kl
    for s in seen.values():
        c = [s.length(beta) for beta in s.betas]
        slopes = [(b - a) / (y - x) for a, b, x, y in zip(c, c[1:], s.betas, s.betas[1:], strict=False)]
        assert slopes == sorted(slopes, reverse=True)
    below = [beta for beta in seen["random"].betas if beta < seen["random"].collapse]
    assert all(seen["random"].information(b) > seen["true"].information(b) for b in below)


def test_members_asked_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert asked.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"\nasked {name} digits\n" in seen for name in asked.EXPERIMENTS if name != "earlier")
    rows = json.loads(first)
    assert len(rows) == 6 and rows["cost/digits/loss/0"]["within"] >= 0.5
    assert all(0 < row["share"] <= 1 for key, row in rows.items() if not key.startswith("starts"))
    assert asked.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_starts_are_chosen_and_judged_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert nearest.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"\nnearest {name} digits\n" in seen for name in ("regret", "distances", "codes"))
    rows = json.loads(first)
    assert [*rows] == [f"{name}/digits/digits 5-9/0" for name in ("apart", "codes", "one")]
    apart = rows["apart/digits/digits 5-9/0"]
    for way in nearest.WAYS:
        assert sorted(apart[f"{way}, places"])[0] == 0 and apart[f"{way}, passes"] <= apart[f"{way}, said"]
    assert len(apart["losses"]) == len(apart["sources"]) == 4 and "digits 5-9" not in apart["sources"]
    assert nearest.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_a_regret_is_what_the_best_would_have_given():
    row = {"sources": ["a", "b", nearest.FRESH], "losses": [1.0, 2.0, 3.0], "accuracies": [0.5, 0.9, 0.6]}
    row |= {"w, places": [0, 1, 2], "w, values": [0.1, 0.2, 0.3], "w, tied": 1, "w, passes": 10, "w, seconds": 1.0}
    rows = {f"apart/x/t{k}/0": row for k in range(3)}
    _, (chance, mine) = nearest._regrets(rows, ("a random choice", "w"))
    assert mine[1].startswith("40.00 (40.00") and mine[3].startswith("0.00") and mine[4] == "0"
    assert chance[1].startswith("23.33") and chance[3].startswith("1.00") and mine[2].startswith("-16.67")
    assert mine[5].startswith("-0.50") and mine[6].startswith("1.00")


def test_critical_periods_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert critical.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"\n{name} digits\n" in seen for name in (*critical.EXPERIMENTS, "fisher"))
    rows = json.loads(first)
    assert len(rows) == 4 + 6 + 3 and len(rows["removal/digits/blur 4/0+2/0"]["fisher"]) == 5
    assert rows["removal/digits/none/0+0/0"]["fisher"][0] == rows["removal/digits/vertical flip/0+2/0"]["fisher"][0]
    last = "windows/digits/vertical flip/1+1/0"
    out.write_text(json.dumps({key: row for key, row in rows.items() if key != last}))
    assert critical.main(["--quick", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == rows and capsys.readouterr().out.startswith(last)
    assert len(critical.figure(record.Record(out)).data) == 2 + 3


@pytest.mark.slow
def test_language_experiments_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert language.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"{name} made-up words" in seen for name in ("fill", "continual", "graph orders", "graph depth"))
    rows = json.loads(first)
    assert rows["fill/made-up words/layer/0.3/0"]["zeros"] == pytest.approx(0.3, abs=1e-3)
    assert rows["commute/made-up words/0.3/0"]["zeros"] == pytest.approx([0.3, 0.3], abs=1e-3)
    assert rows["graph/made-up words/siyp/0"]["zeros"] == pytest.approx(0.25, abs=1e-3)
    assert len([key for key in rows if key.startswith("graph/")]) == 14
    assert language.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_a_graph_of_networks_holds_all_orders():
    some, every = graph.words(graph.ORDERS, 1), graph.words(["".join(o) for o in permutations("siy")], 3)
    assert len(some) == 38 and len(every) == 364 and {*some} < {*every}
    assert all(word[:-1] in every for word in every if word)


def test_masks_hide_what_is_asked_for():
    made = texts.Texts(None, None, quick=True)
    task, part = made.masked("test", 2), made.parts["plain"][1]
    for x, y in task.batches():
        hidden = x["input_ids"] == made.mask
        assert (hidden.sum(1) == 2).all() and not (y == made.mask).any()
        assert hidden.gather(1, x["places"]).all() and x["attention_mask"].gather(1, x["places"]).all()
        assert (x["input_ids"].scatter(1, x["places"], y)[:, None] == part.ids).all(2).any(1).all()
    assert len(made.one_by_one(len(part.ids))) == int(part.there.sum())


def test_image_functions_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert images.main(["mlp", "vgg", "--quick", "--out", str(out)]) == 0
    first = out.read_text()
    rows = json.loads(first)
    assert set(rows) == {"images/digits/mlp/0", "images/digits/vgg/0"}
    for row in rows.values():
        assert len(row["self_all"]) == len(row["cross"]["2"]) == images.QUICK.epochs
        assert row["old"]["loss"][-1] == pytest.approx(row["old"]["loss_now"][-1], rel=1e-3)
        assert all(m[k] == 1 for k, m in enumerate(row["matrix"])) and 0 < min(row["cross_all"]) < 1
    assert images.main(["mlp", "vgg", "--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_early_over_mid_runs_and_orders(tmp_path):
    out = tmp_path / "rows.json"
    assert ratio.main(["cnn", "--quick", "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text()).values()
    assert len(row["seen"]) == ratio.EPOCHS and row["ratio"] == pytest.approx(
        sum(row["seen"][:15]) / 15 / (sum(row["seen"][15:22]) / 7), rel=1e-4
    )
    assert len(ratio.settings("mlp")) == 96 and len(ratio.settings("cnn")) == 32
    grid = [{"a": a, "b": b} for a in (1, 2) for b in (1, 2, 3)]
    value = [r["a"] - 10 * r["b"] for r in grid]
    assert ratio.granulated(grid, ["a"], value, value) == pytest.approx(1)
    assert ratio.granulated(grid, ["a", "b"], [r["a"] for r in grid], value) == pytest.approx(
        1
    )  # ties within b say nothing
    assert ratio.tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


@pytest.mark.slow
def test_distances_between_tasks_run_and_are_told(tmp_path):
    out = tmp_path / "rows.json"
    assert tasks.main(["digits", "transfer", "--quick", "--out", str(out)]) == 0
    first = out.read_text()
    rows = json.loads(first)
    assert set(rows) == {"digits/one head/0", "transfer/few/0"} and [*tmp_path.iterdir()] == [out]
    found = tasks.tables(record.Record(out))
    assert {*found} == {"tasks digits one head", "tasks digits patterns", "tasks choice", "tasks transfer"}
    assert tasks.main(["digits", "transfer", "--quick", "--out", str(out)]) == 0
    assert out.read_text() == first
    names, row = ("a", "b", "c", "d", "random"), [0, 1, 2, 3, 4]
    assert tasks.order_kept(names, [row] * 5, "abcd") and not tasks.order_kept(names, [row] * 5, "acbd")


@pytest.mark.slow
def test_actions_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert action.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"action {name} digits" in seen for name in ("runs", "reach", "descent", "escape"))
    rows = json.loads(first)
    assert len(rows) == 2 + 2 + 2 + 2 + 1
    small, large = (rows[f"runs/digits/{rate}/0"] for rate in ("0.1", "0.5"))
    assert small["static"] < 0 < small["kinetic"] and small["chord"] < small["kinetic"]
    assert large["losses"][1] < small["losses"][1] < small["losses"][0] == large["losses"][0]
    assert rows["reach/digits/aligned/0"]["distance"] < rows["reach/digits/as they are/0"]["distance"]
    assert action.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_nuisances_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert nuisance.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"nuisance {name} digits" in seen for name in ("defects", "turned", "layers"))
    rows = json.loads(first)
    assert rows["defects/digits/circular/0"]["worst"] < 1e-12 < 0.1 < rows["defects/digits/zeros/0"]["mean"]
    assert rows["defects/digits/p4/0"]["double"] < 1e-12 < rows["defects/digits/p4/0"]["single"] < 1e-6
    right = rows["turned/digits/p4, upright/0"]["right"]
    assert right[0] == right[1] and set(rows["layers/digits/mlp, upright/0"]["nats"]) == {"0", "1", "3", "end"}
    assert nuisance.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_a_run_and_codes_tell_of_inputs_and_nuisances(tmp_path):
    out = tmp_path / "rows.json"
    assert nuisance.main(["history", "emergence", "--quick", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    run = rows["history/digits/mlp/0"]
    assert run["epoch"] == [0, 1] and len(run["trace"]) == len(run["inputs, outputs"]) == 2 and min(run["trace"]) > 0
    codes = [row for key, row in rows.items() if key.startswith("emergence")]
    assert len(codes) == 2 and codes[0]["kl"] > codes[1]["kl"], "beta buys less information"


def test_correlations_over_codes_are_of_ranks_within_seeds():
    names = [f"{what}, {place}" for what in ("inputs", *nuisance.NUISANCES) for place in ("hidden", "outputs")]
    kept = record.Record(Path("nowhere.json"))
    for seed in range(3):
        for k in range(4):  # nats rise with the information of the weights, apart from an offset of every seed
            kept.rows[f"emergence/digits/{k}/{seed}"] = {"kl": 10.0 * k, "trivial": False} | {
                name: k**2 - 9.0 * seed for name in names
            }
        kept.rows[f"emergence/digits/9/{seed}"] = {"kl": 99.0, "trivial": True}
    shown = nuisance.correlations(kept, "digits")
    assert [row[1:] for row in shown] == [["+1.00 ± 0.00", "+9.00 ± 0.00"] * 2] * 4


def test_morphs_run_beside_the_others_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert morph.main(["turned", "bounds", "--quick", "--out", str(out)]) == 0
    first, rows = out.read_text(), json.loads(out.read_text())
    assert rows.pop("bounds/digits/turned, 0.1/0")["t"] <= 1 and rows.pop("bounds/digits/halves, 0.1/0")["t"] <= 1
    assert {key.split("/")[3] for key in rows} == {*morph.WAYS} and "morph accuracy digits" in capsys.readouterr().out
    assert all(row["along"][-1] == row["right"] for row in rows.values())
    assert all(0 <= rows[f"turned/digits/100/{way}/0"]["t"] <= 1 for way in morph.MORPHS)
    assert morph.main(["turned", "bounds", "--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_a_turned_task_is_the_task_at_the_end_and_turned_back_at_the_start():
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    task = morph.turning(Task(x.rot90(1, (-2, -1)), torch.arange(3)))
    assert torch.equal(task(1).example(3), x.rot90(1, (-2, -1)))
    assert torch.allclose(task(0).example(3), x, atol=1e-4)


def test_ways_are_told_beside_fine_tuning_cell_by_cell():
    kept = record.Record(Path("nowhere.json"))
    for n, gain in ((10, 0.02), (100, 0.04)):
        for seed in range(2):
            plain = {"right": 0.5, "loss": 1.0, "along": [0.1, 0.5, 0.4, 0.5, 0.5]}
            kept.rows[f"turned/mnist/{n}/fine-tuned/{seed}"] = plain
            kept.rows[f"turned/mnist/{n}/batches/{seed}"] = plain | {"right": 0.5 + gain, "t": 1.0}
    told = morph.beside(kept, "mnist", "batches")
    assert told[0] == "batches" and told[1].startswith("+3.00 ± ") and told[3:] == [
        "2 of 2", "25% (itself 25%)", "4 of 4"
    ]  # fmt: skip


def test_images_turn_as_they_are_told():
    x = torch.arange(2.0 * 9).view(2, 1, 3, 3)
    generator = torch.Generator().manual_seed(0)
    assert nuisance.turned(x, "upright", generator) is x
    quarters = nuisance.turned(x, "quarter turns", generator)
    assert all(
        any(torch.equal(q, one.rot90(k, (-2, -1))) for k in range(4)) for q, one in zip(quarters, x, strict=True)
    )
    assert not torch.equal(nuisance.turned(x, "any angle", generator), x)


def test_the_readme_shows_what_was_measured_of_nuisances_and_actions():
    text, found = record.README.read_text(), {}
    for name in ("digits", "mnist"):
        found |= action.tables(record.Record(record.RESULTS / "action.json"), name)
        found |= nuisance.tables(record.Record(record.RESULTS / "nuisance.json"), name)
        found |= morph.tables(record.Record(record.RESULTS / "morph.json"), name)
    found |= lineage.tables(record.Record(record.RESULTS / "lineage.json"), None)
    assert found and all(table in text for table in found.values())


def test_the_readme_shows_what_was_measured_of_invariant_paths():
    text = record.README.read_text()
    found = invariant.tables(record.Record(record.RESULTS / "invariant.json"), "mnist")
    found |= continual.tables(record.Record(record.RESULTS / "continual.json"), "mnist to fashion-mnist")
    found |= freedom.tables(record.Record(record.RESULTS / "freedom.json"), "mnist")
    found |= split.tables(record.Record(record.RESULTS / "split.json"), "mnist")
    for name in ("digits", "mnist"):
        found |= relative.tables(record.Record(record.RESULTS / "relative.json"), name)
    found |= colours.tables(record.Record(record.RESULTS / "colours.json"))
    found |= trust.tables(record.Record(record.RESULTS / "trust.json"), "digits")
    found |= language.tables(record.Record(record.RESULTS / "language.json"), "texts")
    found |= images.tables(record.Record(record.RESULTS / "images.json"))
    found |= ratio.tables(record.Record(record.RESULTS / "ratio.json"))
    for name in ("digits", "mnist"):
        found |= structure.tables(record.Record(record.RESULTS / "structure.json"), name)
    for name in ("digits", "fashion-mnist"):
        found |= critical.tables(record.Record(record.RESULTS / "critical.json"), name)
    assert len(found) == 48 and all(table in text for table in found.values())


@pytest.mark.slow
def test_certificates_run_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert certify.main(["--quick", "--out", str(out)]) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    assert all(f"certify {name} digits" in seen for name in ("binary", "families", "taught", "few"))
    rows = json.loads(first)
    assert len(rows) == 1 + 2 + 2
    assert all(row["error"] < row["bound"] <= 1 for row in rows.values())
    assert rows["few/digits/binary, taught .01, 64/0"]["nats"] < 1 < rows["few/digits/binary, fresh, 16/0"]["nats"]
    assert certify.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first


def test_the_readme_shows_what_was_measured_of_certificates():
    text, found = record.README.read_text(), {}
    for name in ("digits", "mnist"):
        found |= certify.tables(record.Record(record.RESULTS / "certify.json"), name)
    assert len(found) == 5 and all(table in text for table in found.values())


def test_the_readme_shows_what_was_measured_of_tasks():
    found = tasks.tables(record.Record(record.RESULTS / "tasks.json"))
    found |= nearest.tables(record.Record(record.RESULTS / "nearest.json"), "images")
    earlier = asked.tables(record.Record(record.RESULTS / "asked.json"), "digits")["asked earlier digits"]
    found["asked earlier digits"] = earlier
    assert len(found) >= 6 and all(table in record.README.read_text() for table in found.values())


def test_priors_run_and_are_told(tmp_path):
    out = tmp_path / "rows.json"
    assert prior.main(["--quick", "--out", str(out)]) == 0
    first = out.read_text()
    row = json.loads(first)["priors/digits/one start/0"]
    own, shared, every, _ = row["nats"]
    assert own <= shared and every <= shared and row["error"] <= row["bound"] <= 1
    assert prior.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first
    found = prior.tables(record.Record(record.RESULTS / "prior.json"), "digits")
    assert len(found) == 1 and all(table in record.README.read_text() for table in found.values())


def test_pairs_of_transformers_keep_their_functions_and_come_nearer(tmp_path):
    out = tmp_path / "rows.json"
    arguments = ["pairs", "--nets", "characters", "--quick", "--out", str(out)]
    assert transformers.main(arguments) == 0
    first = out.read_text()
    rows = {key.split("/")[2]: row for key, row in json.loads(first).items()}
    assert {*rows} == {*transformers.WAYS} and rows["stored"]["changed"] == 0
    assert all(row["changed"] < 1e-3 and row["ends"] == rows["stored"]["ends"] for row in rows.values())
    barriers = {way: row["barrier"] for way, row in rows.items()}
    assert barriers["refined"] < barriers["activations+weights"] and barriers["activations"] < barriers["permutations"]
    assert rows["stored"]["seconds"] == 0 < min(row["seconds"] for way, row in rows.items() if way != "stored")
    assert transformers.main(arguments) == 0
    assert out.read_text() == first
    (shown,) = transformers.tables(record.Record(out), "").values()
    assert shown.count("| characters |") == len(transformers.WAYS)


def test_an_update_is_the_same_in_a_network_of_the_same_orbit():
    """a' - a, carried to b = g a, makes of b a network with the function of a'; as it is, it does not."""
    lab = attention.Lab(quick=True)
    a = ws.Net.of(lab.module("class token", 0).eval())
    lab.net = lambda kind, seed: a
    element = lab.group("class token").sample(seed=1)
    b, tuned = element(a), transformers.learnt(lab, a, transformers.shifted(lab, "inverted", "train").take(200), 0)
    x = lab.task("vit", "test").example(50)
    base, start, end = transformers.updated(element, a, tuned, b)
    torch.testing.assert_close((base + (end - start))(x), tuned(x), atol=1e-3, rtol=1e-3)
    assert ((b + (tuned - a))(x) - tuned(x)).abs().max() > 0.1 < (a(x) - tuned(x)).abs().max()


def test_shifted_tasks_differ_where_they_say():
    lab = attention.Lab(quick=True)
    old = lab.task("vit", "test")
    swapped, inverted = (transformers.shifted(lab, name, "test") for name in transformers.TASKS)
    moved = old.labels() != swapped.labels()
    assert {*old.labels()[moved].tolist()} == {*transformers.SWAPPED} == {*swapped.labels()[moved].tolist()}
    assert bool(moved[torch.isin(old.labels(), torch.tensor(transformers.SWAPPED))].all())
    x, y = old.example(9), inverted.example(9)
    torch.testing.assert_close(x + y, torch.full_like(x, float(x.max())))


@pytest.mark.slow
def test_transformers_run_and_can_be_taken_up_again(tmp_path):
    out = tmp_path / "rows.json"
    arguments = ["--nets", "vit", "characters", "--quick", "--out", str(out)]
    assert transformers.main(arguments) == 0
    first = out.read_text()
    found = transformers.tables(record.Record(out), "")
    assert {*found} == {"transformers pairs", "transformers means", "transformers carried"}
    assert transformers.main(arguments) == 0
    assert out.read_text() == first


def test_the_readme_shows_what_was_measured_of_transformers():
    found = transformers.tables(record.Record(record.RESULTS / "transformers.json"), "")
    assert len(found) == 3 and all(table in record.README.read_text() for table in found.values())


def test_averages_along_a_run_are_measured_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert averaged.main(["--quick", "--out", str(out)]) == 0
    first = out.read_text()
    rows = {key.split("/")[2]: row for key, row in json.loads(first).items()}
    assert {*rows} == {*averaged.WAYS} and all(0 < row["right"] <= 1 for row in rows.values())
    assert all((row["networks"] == averaged.MEMBERS) == way.endswith("ensemble") for way, row in rows.items())
    assert rows["swa"]["right"] > rows["last"]["right"] - 0.05
    assert averaged.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first and "averages digits" in capsys.readouterr().out


def test_the_metrics_of_asam_and_fisher_sam_have_steps_of_their_formulas():
    net, task = ws.demo.example()
    g, w = ws.gradient(task, net), net.weights.flat()
    found = flat.Adaptive().steepest(net, g)
    right = -w.square() * g.flat() / (w.abs() * g.flat()).norm()
    torch.testing.assert_close(found.flat(), right)
    assert flat.Adaptive().norm(net, found) == pytest.approx(1, abs=1e-5)
    found = flat.Diagonal().steepest(net, g).flat()
    turned = g.flat() / (1 + g.flat().square())
    torch.testing.assert_close(found, -turned / (g.flat() @ turned).sqrt())


def test_the_ways_to_flat_minima_take_as_many_gradients(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ws.flows.goals.Learn, "value_and_gradient", _counting(asked))
    task = ws.digits("train").take(20)
    for way in ("plain", "SAM", "mean in a ball", "relative", "ASAM", "Fisher-SAM", "ball of functions"):
        goal, cost = flat.goal_of(way, task, flat.WAYS[way][-1], 0)
        asked.clear()
        ws.flow(flat.Lab(True).start(0), goal, ws.Adam(), steps=12 // cost, size=0.001)
        assert len(asked) == 12, way


def _counting(asked):
    inner = ws.flows.goals.Learn.value_and_gradient

    def counted(goal, net, step):
        asked.append(step)
        return inner(goal, net, step)

    return counted


def test_the_readme_shows_what_was_measured_of_averages_and_flat_minima():
    found = averaged.tables(record.Record(record.RESULTS / "averaged.json"), "digits")
    found |= flat.tables(record.Record(record.RESULTS / "flat.json"), "digits")
    assert len(found) == 3 and all(table in record.README.read_text() for table in found.values())


@pytest.mark.slow
def test_a_pair_of_narrow_networks_is_joined_by_refining_its_scales(tmp_path):
    out = tmp_path / "rows.json"
    assert narrow.main(["--quick", "--out", str(out)]) == 0
    first = out.read_text()
    rows = {key.split("/")[2]: row for key, row in json.loads(first).items()}
    assert {*rows} == {*narrow.WAYS} and rows["stored"]["changed"] == 0
    assert all(row["changed"] < 1e-3 and row["ends"] == rows["stored"]["ends"] for row in rows.values())
    barriers = {way: row["barrier"] for way, row in rows.items()}
    assert barriers["refined, 300 steps"] < barriers["aligned"] < barriers["stored"]
    assert narrow.main(["--quick", "--out", str(out)]) == 0
    assert out.read_text() == first
    (shown,) = narrow.tables(record.Record(out), "").values()
    assert shown.count("15,000") == len(narrow.WAYS)


@pytest.mark.slow
def test_networks_of_two_widths_keep_their_functions_on_the_way_to_one_line(tmp_path):
    out = tmp_path / "rows.json"
    assert widths.main(["--quick", "--out", str(out)]) == 0
    first = out.read_text()
    rows = {key: row for key, row in json.loads(first).items() if key.startswith("pairs/")}
    assert len(rows) == len(widths.KINDS) * len(widths.SHARES) * len(widths.WAYS)
    back = {key: row for key, row in json.loads(first).items() if key.startswith("back/")}
    assert [*back] == [f"back/{kind}/{share}/0" for kind in sorted(widths.KINDS) for share in ("a quarter", "half")]
    assert all(row["changed"] < 1e-3 and 0 <= row["middle"] <= 1 for row in rows.values())
    for share in widths.SHARES:
        any_order, *found = (rows[f"pairs/mlp/{share}/{way}/0"]["barrier"] for way in widths.WAYS)
        assert max(found) < any_order
    assert widths.main(["--quick", "--out", str(out)]) == 0 and out.read_text() == first


def test_lineage_of_a_zoo_is_scored_by_its_history():
    """A planted lineage: one right edge, one reversed, one wrong, one missed; copies stand for one another."""
    zoo = lineage.Zoo()
    net = Net.of(nets.mlp(4, 4))
    a = zoo.add("a", net)
    b = zoo.add("copy", net, a, "copy")
    c, d, e = (zoo.add(name, net, a, "fine-tune") for name in "cde")
    relation = ws.atlas.Relation("fine-tune", 1, 0.9, 0.1, "")
    found = [(a, b, "copy"), (b, c, "fine-tune"), (d, a, "fine-tune"), (c, e, "fine-tune")]
    edges = tuple(ws.atlas.Edge(p, child, kind, relation) for p, child, kind in found)

    class Found:
        averages, siblings = (), ()

    Found.edges = edges
    zoo.shares[e] = {c: 1.0}
    row = lineage.scored(zoo, Found)
    assert (row["true"], row["found"], row["hits"]) == (4, 4, 3) and row["turned"] == 0.5
    assert row["wrong"] == "c > e (fine-tune)" and row["missed"] == "a > e" and row["share error"] == 1.0


@pytest.mark.slow
def test_lineage_runs_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert lineage.main(["mlp", "--quick", "--out", str(out)]) == 0
    first = out.read_text()
    assert "lineage" in capsys.readouterr().out and len(json.loads(first)) == 1
    assert lineage.main(["mlp", "--quick", "--out", str(out)]) == 0 and out.read_text() == first


def test_a_set_of_language_models_is_made_held_and_asked(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert atlas.main(["--quick", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "| compressed, then learnt | 1 |" in said and "| learnt, then compressed | 1 |" in said
    rows = record.Record(out).rows
    best = min((k for k in rows if k.startswith("members/")), key=lambda k: rows[k]["imdb"])
    assert rows[best]["imdb"] == pytest.approx(rows["asked/quick/imdb/0"]["perplexity"], rel=1e-3)
    assert rows["starts/quick/imdb/0"]["steps"]["base"] is not None
    assert [atlas.kind(word) for word in ("", "pp", "pdr", "rp", "prp")] == [
        "", "compressed only", "compressed, then learnt", "learnt, then compressed", "between"
    ]  # fmt: skip


def test_the_generator_of_digits_is_trained_from_its_seed(tmp_path, capsys):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        assert generator.main(["--epochs", "1", "--seed", "3", "--out", str(file)]) == 0
    first, second = (ws.checkpoint.read(file) for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first) and files[0].read_bytes()[:8] != bytes(8)
    one, longer = (float(generator.trained(3, epochs)[1]) for epochs in (1, 8))
    assert longer < one and "nats a picture on test digits" in capsys.readouterr().out


def test_the_readme_shows_what_was_measured_of_merges():
    found = merging_advice.tables(record.Record(record.RESULTS / "merging_advice.json"), "digits")
    assert len(found) == 3 and all(table in record.README.read_text() for table in found.values())


def test_a_threshold_parts_merges_that_work_from_those_that_do_not():
    rows = [{"conflict": [0.1, 0.2, 0.4, None, 0.5], "lost mean": [0.0, 0.01, 0.2, 0.9, 0.3]}]
    at = merging_advice.threshold(rows, "conflict", 0.05)
    assert 0.2 < at < 0.4 and merging_advice.judged(rows, "conflict", at, 0.05) == (1.0, 1.0, 4)


@pytest.mark.slow
@pytest.mark.skipif("tsv_m" not in METHODS, reason="the methods are not there")
def test_merges_are_measured_and_can_be_taken_up_again(tmp_path):
    out = tmp_path / "rows.json"
    assert merging_advice.main(["mlp", "--quick", "--out", str(out)]) == 0
    first = out.read_text()
    (row,) = json.loads(first).values()
    strange = [lost for what, lost in zip(row["what"], row["lost mean"], strict=True) if what == "strangers"]
    assert min(strange) > 0.05 and {*row["size"]} == {2, 3, 6}
    assert merging_advice.main(["mlp", "--quick", "--out", str(out)]) == 0 and out.read_text() == first


def test_outputs_grow_task_by_task_and_the_run_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    ways = ["naive", "null space, new outputs free"]
    arguments = ["split", "--quick", "--ways", *ways, "--out", str(out)]
    assert growing.main(arguments) == 0
    first, seen = out.read_text(), capsys.readouterr().out
    rows = json.loads(first)
    assert len(rows) == 2 * len(ways) and "growing split digits" in seen
    assert all(len(row["class"]) == 5 and row["grown"] < 1e-5 for row in rows.values())
    moved = {way: rows[f"split/digits/task/{way}/0"]["moved"] for way in ways}
    assert moved[ways[1]] < 0.5 * moved["naive"]
    assert growing.main(arguments) == 0 and out.read_text() == first


def test_the_old_rows_stay_when_outputs_grow_and_the_path_holds_them():
    lab = growing.Stage(None, True, "images", "task")
    net = lab.begin(0)
    lab.new = lab.task(lab.train[0])
    lab.over(net, 0, 0)
    grown = lab.grown(net, 1, 0)
    head = list(net.weights)[-2]
    assert torch.equal(grown.weights[head][:10], net.weights[head]) and lab.held == 10 and lab.outputs == 20
    end = growing.path(lab, grown, lab.memories[0], 0)
    x = lab.memories[0].example(20)
    held, free = ((end(x) - grown(x))[:, part].abs().max() for part in (slice(0, 10), slice(10, 20)))
    assert held < 0.5 * free


def test_the_adaptive_coder_is_a_code_and_pays_a_probability_at_a_time():
    """Over all messages of a length the probabilities sum to one; a message costs what its symbols cost one by one."""
    total = sum(math.exp(-two_part.adaptive(torch.tensor(m), 3)) for m in product(range(3), repeat=4))
    assert total == pytest.approx(1)
    counts, nats = [0.5, 0.5, 0.5], 0.0
    for symbol in (0, 0, 2, 0):
        nats -= math.log(counts[symbol] / sum(counts))
        counts[symbol] += 1
    assert two_part.adaptive(torch.tensor([0, 0, 2, 0]), 3) == pytest.approx(nats)


def test_ranks_say_the_labels_and_are_cheap_where_neighbours_know_them():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(10, (120,), generator=g)
    x = torch.eye(10)[y] + 0.05 * torch.randn(120, 10, generator=g)
    ranked = two_part.ranks(x, y)
    other = torch.cat([y[:60], (y[60:] + 1) % 10])
    assert torch.equal(two_part.ranks(x, other)[:60], ranked[:60]), "a decoder knows the labels before, and no more"
    near, far = (two_part.adaptive(r, 10) for r in (ranked, two_part.ranks(torch.randn(120, 10, generator=g), y)))
    assert near < 0.5 * far and two_part.compressed(ranked) < two_part.compressed(y)
    decoded: list[int] = []
    for i in range(20):
        guesses = [int(two_part.ranks(x[: i + 1], torch.tensor([*decoded, c]))[-1]) for c in range(10)]
        assert sorted(guesses) == list(range(10))
        decoded.append(guesses.index(int(ranked[i])))
    assert decoded == y[:20].tolist()


def test_weights_that_did_not_move_cost_next_to_nothing():
    net, task = ws.demo.example()
    code = two_part.quantised(net, net, task)
    assert code["weights"] < 10 and code["loss"] == pytest.approx(two_part.summed(net, task))
    assert two_part.quantised(ws.perturb(net, 0.5, seed=0), net, task)["weights"] < 10, "noise is not worth its code"


def test_two_part_codes_are_measured_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert two_part.main(["growth", "--quick", "--out", str(out)]) == 0
    first = out.read_text()
    rows = json.loads(first)
    assert len(rows) == 2 and "two-part growth digits" in capsys.readouterr().out
    assert all(row["network"] <= row["trivial"] + 0.1 for row in rows.values())
    assert two_part.main(["growth", "--quick", "--out", str(out)]) == 0 and out.read_text() == first


def test_monotone_and_one_valley_are_told_apart():
    assert descent.explained([3, 1, 2, 4], [0.3, 0.1, 0.2, 0.4]) == (1, 1)
    monotone, valley = descent.explained(range(5), [0.4, 0.2, 0.1, 0.2, 0.4])
    assert valley == 1 > monotone
    assert descent.explained(range(5), [0.4, 0.1, 0.4, 0.1, 0.4])[1] < 0.9


def test_least_norm_features_fit_all_labels_and_their_information_is_exact():
    task, _ = descent.Lab(None, True).drawn("features", 0)
    few = ws.Task(task.example(12), torch.cat([y for _, y in task.batches()])[:12])
    net = descent.features(few, 20, 0, 0)
    assert float(few(net)) < 1e-12 < 1e-2 < float(few(descent.features(few, 6, 0, 0)))
    seen = net.module()[:2](few.example(12)).detach()
    w = net.weights["2.weight"].flatten()
    dense = ws.Quadratic(0.0, 2 * seen.T @ seen, w)
    alone = ws.Quadratic(0.0, (2 * seen.T @ seen).diagonal(), w)
    found = ws.information(net, few, blocks=False)
    assert found.value == pytest.approx(dense.kl(float(alone.best_variance()[0])), rel=1e-4)
    other = descent.priors(net, few, None, 0)["correlated"]
    assert other == pytest.approx(dense.kl(float(dense.best_variance()[0])), rel=1e-4) and other < found.value


def test_double_descent_is_measured_and_can_be_taken_up_again(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert descent.main(["--quick", "--out", str(out)]) == 0
    first = out.read_text()
    assert len(json.loads(first)) == 4 and "descent features digits" in capsys.readouterr().out
    assert descent.main(["--quick", "--out", str(out)]) == 0 and out.read_text() == first


def test_the_readme_shows_what_was_measured_of_growing_outputs_and_codes():
    found = growing.tables(record.Record(record.RESULTS / "growing.json"), "mnist")
    found |= two_part.tables(record.Record(record.RESULTS / "two_part.json"), "digits")
    found |= descent.tables(record.Record(record.RESULTS / "descent.json"), "digits")
    assert len(found) == 8 and all(table in record.README.read_text() for table in found.values())
