"""Metrics of a real server over HTTP: what they are, who may have them, and that nothing hangs."""

import json
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.service import Certificates, channel_for, client_for
from tests.test_tidy import ROOT
from worker_service import metrics
from worker_service.client import CallError
from worker_service.errors import ConfigurationError
from worker_service.server import Server

DASHBOARD = ROOT / "docs" / "grafana-dashboard.json"
ROW = re.compile(r"^\| `(\w+)` \| (\w+) \|(.*?)\| (.+) \|$", re.MULTILINE)


@contextmanager
def serving(certificates: Certificates) -> Iterator[tuple[Server, str]]:
    with Server(replace(certificates.settings(), metrics="127.0.0.1:0")) as server:
        assert server.metrics is not None
        yield server, f"http://127.0.0.1:{server.metrics.port}/metrics"


def connected(server: Server) -> "closing[socket.socket]":
    assert server.metrics is not None
    return closing(socket.create_connection(("127.0.0.1", server.metrics.port)))


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - a loopback address
        text: str = answer.read().decode()
    return text


def families(text: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Return the type and the labels of each metric, by the name in expressions."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = frozenset(label for sample in family.samples for label in sample.labels)
        found[name] = (family.type, labels)
    return found


@pytest.fixture
def scraped(certificates: Certificates) -> str:
    with (
        serving(certificates) as (server, url),
        client_for(server.address, certificates.admin) as client,
    ):
        client.start("true")
        with pytest.raises(CallError, match="/no/such/program"):
            client.start("/no/such/program")
        return scrape(url)


def test_page_lists_each_metric_with_its_type_and_labels(scraped: str) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    listed = {
        name: (kind, frozenset(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _ in ROW.findall(page)
    }
    assert listed == families(scraped)


def test_each_expression_of_the_dashboard_uses_a_metric_and_labels_that_exist(scraped: str) -> None:
    known = families(scraped)
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    assert len(expressions) >= 10
    for expression in expressions:
        used = re.findall(r"\b(?:jobworker|process)_\w+", expression)
        assert used, expression
        assert set(used) <= set(known), expression
        allowed = {"job", "instance"}.union(*(known[name][1] for name in used))
        labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", expression)
        labels += [
            each for by in re.findall(r"by \(([^)]*)\)", expression) for each in by.split(", ")
        ]
        assert set(labels) <= allowed, expression
    everything = " ".join(expressions)
    own = {name for name in known if name.startswith("jobworker_")}
    assert own == {name for name in own if re.search(rf"\b{name}\b", everything)}


def test_rpcs_that_a_client_makes_up_are_counted_as_one(certificates: Certificates) -> None:
    with (
        serving(certificates) as (server, url),
        channel_for(server.address, certificates.admin) as channel,
    ):
        for number in range(3):
            call: Any = channel.unary_unary(f"/jobworker.v1.JobWorker/Made{number}")
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=20)
        scraped = scrape(url)
    assert 'jobworker_calls_total{code="UNIMPLEMENTED",rpc="other"} 3.0\n' in scraped
    assert "Made" not in scraped


def test_stalled_and_dripping_clients_are_cut_off_and_the_next_is_served(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "ANSWER_MAX_S", 0.3)
    with (
        serving(certificates) as (server, url),
        connected(server) as slow,
    ):
        slow.sendall(b"GET /metrics HTTP/1.0\r\nX-Slow: ")
        started_s = time.monotonic()
        assert "jobworker_jobs" in scrape(url)  # waits for the stalled one's end
        assert time.monotonic() - started_s < 5
        slow.settimeout(5)
        assert slow.recv(1) == b""


def test_request_that_is_too_large_is_refused(certificates: Certificates) -> None:
    with serving(certificates) as (_, url):
        with pytest.raises(urllib.error.HTTPError) as refused:
            scrape(f"{url}?{'x' * 70_000}")
        refused.value.close()
        assert refused.value.code == 414
        assert "jobworker_jobs" in scrape(url)


def test_stop_does_not_wait_for_a_client_that_stalls(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "ANSWER_MAX_S", 60.0)
    with (
        serving(certificates) as (server, _),
        connected(server) as slow,
    ):
        slow.sendall(b"GET ")
        started_s = time.monotonic()
        assert server.stop(grace_s=0)
        assert time.monotonic() - started_s < metrics.ANSWER_MAX_S
        assert not [each for each in threading.enumerate() if each.name == "metrics"]


def test_port_in_use_is_named_at_the_start(certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=f"cannot listen on {address}: Address al"):
            Server(replace(certificates.settings(), metrics=address))


def test_missing_extra_is_named_at_the_start(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "worker_service.metrics")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'jobworker\[metrics\]'"):
        Server(replace(certificates.settings(), metrics="127.0.0.1:0"))
