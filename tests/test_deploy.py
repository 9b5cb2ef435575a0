"""The recipes of ``examples/deploy/``: what they are for accepts them, and what they name is there. Trap O17."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from support.under_test import LIMIT

from sockserve.concurrency.prefork.outcomes import Outcome
from sockserve.concurrency.prefork.tally import Figures
from sockserve.run.health import Fleet, metrics
from sockserve.run.options import OPTIONS
from sockserve.run.states import States

RECIPES = pathlib.Path(__file__).parent.parent / "examples" / "deploy"
FLAGS = {option.flag for option in OPTIONS}
NGINX_MODULE = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")
NOTHING = Figures(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, dict.fromkeys(Outcome, 0), 0, 0)


def needs(*files: str) -> pytest.MarkDecorator:
    """Tools of Debian's packages systemd, haproxy, libnginx-mod-stream; in CI a test whose tool is missing fails."""
    missing = [file for file in files if shutil.which(file) is None and not pathlib.Path(file).exists()]
    return pytest.mark.skipif(bool(missing) and os.environ.get("CI") != "true", reason=f"needs {', '.join(missing)}")


def run(*command: str) -> str:
    """What a tool says; it has to be content."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@needs("systemd-analyze")
def test_systemd_knows_all_of_the_units(tmp_path: pathlib.Path) -> None:
    """It is silent, also about unknown keys, at which it does not fail. The service is well shut in."""
    for unit in ("shout.service", "shout.socket"):
        shutil.copy(RECIPES / unit, tmp_path)
    units = [f"{tmp_path}/shout.service", f"{tmp_path}/shout.socket"]
    assert not run("systemd-analyze", "verify", *units)
    told = run("systemd-analyze", "security", "--offline=true", units[0])
    found = re.search(r"exposure level for shout.service: ([\d.]+)", told)
    assert found is not None
    assert float(found[1]) <= 2.0


@needs("haproxy")
def test_haproxy_takes_its_file() -> None:
    """O17: each server has a check beside the agent's."""
    run("haproxy", "-c", "-f", str(RECIPES / "haproxy.cfg"))
    text = (RECIPES / "haproxy.cfg").read_text("utf-8")
    assert re.search(r"default-server check .*agent-check", text)
    assert len(re.findall(r"server \w+ \S+ port \d+ agent-port \d+", text)) == 2


@needs("nginx", str(NGINX_MODULE))
def test_nginx_takes_its_file(tmp_path: pathlib.Path) -> None:
    """With the stream module."""
    run("nginx", "-t", "-e", "stderr", "-c", str(RECIPES / "nginx.conf"), "-g", f"pid {tmp_path}/pid;")


def commands() -> list[list[str]]:
    """Each command line of sockserve in the recipes."""
    found: list[list[str]] = []
    for path in sorted(RECIPES.iterdir()):
        text = path.read_text("utf-8").replace("\\\n", " ")
        found += [shlex.split(line) for line in re.findall(r"(?m)^(?:ExecStart=.*|#   )(sockserve -.*)$", text)]
    found += [each["command"] for document in manifests() for each in containers(document)]
    return found


def manifests() -> list[Any]:
    """The documents for Kubernetes."""
    return list(yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text("utf-8")))


def containers(document: Any) -> list[Any]:
    """Those of a Deployment."""
    template = document["spec"].get("template")
    return [] if template is None else list(template["spec"]["containers"])


def test_the_options_in_them_are_ours() -> None:
    """Each one is in the table."""
    assert len(commands()) >= 4
    for command in commands():
        flags = {word.partition("=")[0] for word in command if word.startswith("--")}
        assert flags <= FLAGS
        assert "--health" in flags


def test_kubernetes_waits_as_long_as_we_may_take() -> None:
    """The grace period covers the lame duck and the drain; the names that documents share are the same."""
    deployment, service = manifests()
    (container,) = containers(deployment)
    words = (word.partition("=") for word in container["command"])
    seconds = {flag: float(value) for flag, _, value in words if flag in ("--lame-duck", "--drain-timeout")}
    pod = deployment["spec"]["template"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > sum(seconds.values())
    probes = container["readinessProbe"], container["livenessProbe"]
    assert [probe["httpGet"]["path"] for probe in probes] == ["/ready", "/live"]
    ports = {port["name"] for port in container["ports"]}
    assert {probe["httpGet"]["port"] for probe in probes} | {service["spec"]["ports"][0]["targetPort"]} == ports
    assert service["spec"]["selector"] == pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]


def test_the_alerts_name_metrics_that_there_are() -> None:
    """With values of their labels that there are."""
    told = metrics(Fleet.of(States(), lambda: NOTHING))
    rules = yaml.safe_load((RECIPES / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
    scrape = yaml.safe_load((RECIPES / "prometheus.yml").read_text("utf-8"))
    assert scrape["rule_files"] == ["alerts.yml"]
    assert scrape["scrape_configs"][0]["metrics_path"] == "/metrics"
    names = {name for rule in rules for name in re.findall(r"sockserve_\w+", rule["expr"])}
    assert len(names) >= 5
    assert all(f"# TYPE {name} " in told for name in names)
    for rule in rules:
        for label, value in re.findall(r'(\w+)!?="(\w+)"', rule["expr"]):
            assert f'{label}="{value}"' in told
