"""Means weighted by data: dense Fisher information, inputs caught by hooks, least squares, state and frozen weights."""

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace import merging
from weightspace.merging import weighing
from weightspace.net.errors import WeightspaceError

DOUBLE = torch.float64


def mlp(seed, bias=True):
    torch.manual_seed(seed)
    return ws.Net.of(nn.Sequential(nn.Linear(4, 5, bias), nn.Tanh(), nn.Linear(5, 3, bias)).double())


def cnn(seed):
    torch.manual_seed(seed)
    layers = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)
    return ws.Net.of(nn.Sequential(*layers).double())


def task(seed, shape=(4,), n=30, batch=7):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=DOUBLE)
    return ws.Task(x, torch.arange(n) % 3, batch=batch)


def test_importances_are_the_mean_of_squared_slopes_over_examples_and_labels():
    net, data = mlp(0), task(1)
    total = net.weights.zeros()
    for x in data.example(30):
        leaf = net.at(net.weights.map(lambda w: w.clone().requires_grad_()))
        logs = leaf(x[None]).log_softmax(-1)[0]
        for log in logs:
            slopes = torch.autograd.grad(log, list(leaf.weights.values()), retain_graph=True)
            found = ws.Weights(dict(zip(net.weights, slopes, strict=True)))
            total = total + float(log.detach().exp()) * found.map(torch.square)
    assert float((merging.importances(net, data) - total / 30).norm() / total.norm()) < 1e-9
    drawn = merging.importances(net, data, 400, seed=3)
    assert 1e-6 < float((drawn - total / 30).norm() / (total / 30).norm()) < 0.2


def caught(net, data):
    """What the layers of a module are given, by hooks."""
    module, given = net.module(), {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(lambda layer, args, out, name=name: given.setdefault(name, []).append(args[0]))
    with torch.no_grad():
        for x, _ in data.batches():
            module(x)
    return {f"{name}.weight": torch.cat(parts) for name, parts in given.items()}


@pytest.mark.parametrize("bias", [True, False])
def test_inner_products_are_those_of_the_inputs_that_hooks_see(bias):
    net, data = mlp(0, bias), task(1)
    found, inputs = merging.inner_products(net, data), caught(net, data)
    assert found.keys() == inputs.keys()
    for name, x in inputs.items():
        assert torch.allclose(found[name], x.mT @ x / 30, atol=1e-12)


def test_inner_products_of_a_convolution_are_those_of_its_patches():
    net, data = cnn(0), task(1, (2, 4, 4))
    found, inputs = merging.inner_products(net, data), caught(net, data)
    patches = torch.nn.functional.unfold(inputs["0.weight"], 3, padding=1).mT.reshape(-1, 18)
    assert torch.allclose(found["0.weight"], patches.mT @ patches / 30, atol=1e-12)


def test_a_fisher_mean_is_that_of_the_importances():
    nets, tasks = [mlp(0), mlp(1)], [task(1), task(2)]
    found, weights = merging.fisher_mean(nets, tasks, [1.0, 3.0]), (1.0, 3.0)
    f = [a * merging.importances(net, data).flat() for a, net, data in zip(weights, nets, tasks, strict=True)]
    wanted = sum(x * net.weights.flat() for x, net in zip(f, nets, strict=True)) / (f[0] + f[1])
    assert torch.allclose(found.weights.flat(), wanted, atol=1e-12)
    back = merging.fisher_mean(nets[::-1], tasks[::-1], weights[::-1])
    assert torch.allclose(found.weights.flat(), back.weights.flat(), atol=1e-12)


def test_regmean_solves_the_least_squares_of_every_layer():
    """Of one linear layer with all inner products: the teachers' outputs on the inputs of both, fitted at once."""
    nets = [ws.Net.of(nn.Linear(4, 3, bias=False).double()) for _ in range(2)]
    tasks = [task(1, n=6), task(2, n=6)]
    found = merging.regmean(nets, tasks, alpha=1.0)
    x = torch.cat([data.example(6) for data in tasks])
    y = torch.cat([data.outputs(net) for net, data in zip(nets, tasks, strict=True)])
    assert torch.allclose(found.weights["weight"], torch.linalg.lstsq(x, y).solution.mT, atol=1e-9)


def test_regmean_is_the_mean_where_inputs_are_the_same_or_do_not_count():
    nets, data = [mlp(0), mlp(0) + 0.1 * mlp(0).weights.randn(1)], task(1)
    same = merging.regmean(nets, [data, data], alpha=1.0)
    mean = nets[0].lerp(nets[1], 0.5)
    assert torch.allclose(same.weights["0.weight"], mean.weights["0.weight"], atol=1e-9)
    assert torch.allclose(same.weights["0.bias"], mean.weights["0.bias"])
    other = merging.regmean(nets, [data, task(2)], alpha=0.5)
    assert not torch.allclose(other.weights["0.weight"], mean.weights["0.weight"], atol=1e-3)


def test_columns_that_no_input_reaches_are_the_mean():
    nets, data = [mlp(0), mlp(1)], [task(1), task(2)]
    silent = [each.mapped(lambda x: x * torch.tensor([1.0, 1, 1, 0])) for each in data]
    found = merging.regmean(nets, silent)
    mean = nets[0].lerp(nets[1], 0.5)
    assert torch.allclose(found.weights["0.weight"][:, 3], mean.weights["0.weight"][:, 3], atol=1e-12)


@pytest.mark.parametrize("merge", [merging.fisher_mean, merging.regmean])
def test_the_mean_of_copies_is_the_network(merge):
    net = cnn(0)
    found = merge([net, net], [task(1, (2, 4, 4)), task(2, (2, 4, 4))])
    assert float((found - net).norm()) < 1e-9
    assert float((found.state - net.state).norm()) < 1e-12


@pytest.mark.parametrize("merge", [merging.fisher_mean, merging.regmean])
def test_one_task_for_each_network(merge):
    with pytest.raises(WeightspaceError, match="1 tasks for 2 networks"):
        merge([mlp(0), mlp(1)], [task(1)])


def test_a_planted_error_is_caught(monkeypatch):
    monkeypatch.setattr(weighing, "moments", lambda net, data: [])
    nets = [ws.Net.of(nn.Linear(4, 3, bias=False).double()) for _ in range(2)]
    found = merging.regmean(nets, [task(1), task(2)])
    assert torch.allclose(found.weights["weight"], nets[0].lerp(nets[1], 0.5).weights["weight"])


# ------------------------------------------------------------- networks in memory


def test_statistics_are_averaged_whatever_the_method_does():
    """A variance that differences were added to could be negative; the network would answer NaN."""
    nets = [cnn(0), cnn(1)]
    nets[1].state["1.running_var"].fill_(3.0)
    steep = {"scale": -2.0}
    found = merging.merged_net(nets, merging.Recipe("task_arithmetic", options=steep), cnn(2))
    assert torch.allclose(found.state["1.running_var"], torch.full((3,), 2.0, dtype=DOUBLE))
    for weights, variance in ((None, 2.0), ([3.0, 1.0], 1.5), ([1.0, -1.0], 2.0), ([{"*": 0.0}, {"*": 1.0}], 3.0)):
        found = merging.merged_net(nets, merging.Recipe("task_arithmetic", weights, steep), cnn(2))
        assert torch.allclose(found.state["1.running_var"], torch.full((3,), variance, dtype=DOUBLE)), weights
    alone = merging.merged_net([nets[1]], merging.Recipe("task_arithmetic"), cnn(2))
    assert all(torch.allclose(alone.tensors[name], tensor) for name, tensor in nets[1].tensors.items())


@pytest.mark.parametrize("name", ["linear", "slerp", "task_arithmetic", "ties", "della", "karcher", "iso_c"])
@pytest.mark.parametrize("frozen", [False, True])
def test_networks_in_memory_are_merged_as_their_files(name, frozen, tmp_path):
    """Also where weights are frozen, which a file does not say."""
    nets = [cnn(0), cnn(1), cnn(2)]
    nets[1].state["1.running_var"].fill_(3.0)
    if frozen:
        module = nets[0].module()
        module[0].weight.requires_grad_(False)
        nets[0] = ws.Net.of(module)
    paths = [tmp_path / f"{k}.safetensors" for k in range(3)]
    for net, path in zip(nets, paths, strict=True):
        ws.checkpoint.save(net.tensors, path)
    base = nets[2] if merging.methods.method(name).base != "unused" else None
    recipe = merging.Recipe(name, seed=3)
    written = ws.merge(paths[:2], recipe, base=paths[2] if base else None)
    for found in (merging.merged_net(nets[:2], recipe, base), ws.merge(nets[:2], recipe, base=base)):
        assert found.tensors.keys() == written.keys()
        assert all(torch.equal(found.tensors[key], tensor) for key, tensor in written.items())


def test_the_network_is_that_of_its_tensors():
    """The same recipe, tensor by tensor, and in the dtype of the first network."""
    nets, base = [mlp(0).to(torch.bfloat16), mlp(1)], mlp(2)
    recipe = merging.Recipe("ties", weights=[1.0, {"0.": 0.5, "*": 2.0}], options={"density": 0.4})
    found = merging.merged_net(nets, recipe, base)
    assert found.dtype == torch.bfloat16
    name = "2.weight"
    part = merging.part.Part(name, torch.Size([3, 5]), [(n.weights, name) for n in nets], (base.weights, name))
    alone = merging.recipe.merged(part, recipe, 1.0)
    assert torch.equal(found.weights[name], alone.bfloat16())


def test_bad_networks_are_named():
    nets = [mlp(0), mlp(1)]
    nets[1].weights["2.bias"][0] = float("nan")
    with pytest.raises(WeightspaceError, match=r"'2.bias' of parent 2"):
        merging.merged_net(nets, merging.Recipe())
    with pytest.raises(WeightspaceError, match="give it as base"):
        merging.merged_net([mlp(0)], merging.Recipe("ties"))
    with pytest.raises(ws.net.ArchitectureMismatch):
        merging.merged_net([mlp(0), cnn(0)], merging.Recipe())
    with pytest.raises(WeightspaceError, match="give those of each"):
        merging.merged_net([mlp(0), mlp(1)], merging.Recipe("fisher"), beside=[mlp(0).weights])
