"""The examples in docstrings run, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import warnings

import pytest
from public_calls import public_files

import weightspace as ws

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FILES = sorted(
    module.name
    for module in pkgutil.walk_packages(ws.__path__, "weightspace.")
    if not module.ispkg and module.name.split(".")[1] not in ("cli", "__main__")
)
# no example yet: constructors and contexts that are shown in the class or function that uses them
WITHOUT: set[str] = set()


def examples(file):
    """Every docstring of a file with an example; doctest itself would not find what `public` wraps."""
    module, parser = importlib.import_module(file), doctest.DocTestParser()
    own = {name: o for name, o in vars(module).items() if getattr(o, "__module__", "") == file}
    for name, thing in [*own.items()]:
        inside = vars(thing).items() if inspect.isclass(thing) else ()
        own |= {
            f"{name}.{k}": getattr(m, "__func__", getattr(m, "fget", m)) for k, m in inside if not k.startswith("_")
        }
    docs = {"": module.__doc__} | {name: getattr(thing, "__doc__", None) for name, thing in own.items()}
    tests = [
        parser.get_doctest(doc, {}, f"{file}.{name}", file, 0) for name, doc in docs.items() if isinstance(doc, str)
    ]
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("file", FILES)
def test_examples_run(file):
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for test in examples(file):
            runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


def test_every_public_function_has_an_example():
    bare = set()
    for file, (module, names) in public_files().items():
        for name in names:
            member = getattr(module, name)
            if inspect.isfunction(member) and ">>>" not in (member.__doc__ or ""):
                bare.add(f"{file}.{name}")
    assert bare == WITHOUT, (sorted(bare - WITHOUT)[:10], sorted(WITHOUT - bare)[:10])


def test_a_wrong_example_is_seen():
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    runner.run(parser.get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0), out=lambda text: None)
    assert runner.failures == 1
