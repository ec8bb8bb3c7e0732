"""A small atlas to serve, and questions to a server that runs in this process."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from fastapi.testclient import TestClient

import weightspace as ws
from weightspace.demo import digits_cnn
from weightspace.net.model import fresh
from weightspace.net.net import Net
from weightspace.web.app import application
from weightspace.web.guard import Rules
from weightspace.web.served import Served

MARKUP = "<img src=x onerror=alert(1)>"
TOKEN = "a-token-of-the-tests-0123"
HOW = {"arch": "weightspace.demo:digits_cnn(width=4)", "example": "2x1x8x8"}


def filled(folder):
    """Three families of two, one network with a name that is markup, and one of another architecture."""
    with ws.Atlas(folder) as atlas:
        for seed in range(3):
            net = fresh(Net.of(digits_cnn(width=4)), seed)
            net = net + 0.3 * net.weights.randn(seed)
            atlas.add(net, name=f"seed {seed}", tags=["sweep"], facts={"lr": 0.1}, **HOW)
            atlas.add(ws.perturb(net, 0.05, seed=seed), name=f"tuned {seed}", parents=[f"seed {seed}"], **HOW)
        atlas.add(ws.perturb(net, 0.1, seed=9), name=MARKUP, tags=["<b>"], **HOW)
        atlas.add({"w": torch.ones(4, 4)}, name="alone")
    return folder


class Client:
    """Calls of the API with the token: (status, answer)."""

    def __init__(self, client):
        self.client = client

    def get(self, path):
        answer = self.client.get(path)
        return answer.status_code, answer.json()

    def post(self, path, value=None, body=None):
        kind = "application/json" if body is None else "application/octet-stream"
        body = json.dumps(value).encode() if body is None else body
        answer = self.client.post(path, content=body, headers={"content-type": kind})
        return answer.status_code, answer.json()

    def delete(self, path):
        answer = self.client.delete(path)
        return answer.status_code, answer.json()

    def ids(self):
        """The id of every network by its name."""
        return {row["name"]: row["id"] for row in self.get("/api/atlas/networks")[1]["networks"]}


@contextmanager
def serving(reports, atlas=None, **more):
    """A server in this process."""
    served = Served(Path(reports), None if atlas is None else str(atlas), **more)
    app = application(served, Rules(TOKEN, frozenset(["127.0.0.1:1"])))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url="http://127.0.0.1:1", headers=headers, raise_server_exceptions=False) as client:
        yield Client(client)


def in_a_loop(work):
    """What a coroutine returns, in a thread of its own: playwright leaves a loop running in that of the tests."""
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, work).result()
