# shellcheck shell=bash disable=SC2034,SC2154
# The output folders of `build`: each name has a hash of its inputs. Sourced after common.sh.

kubernetes_version=v1.37.2
kubernetes_minor=37
kubernetes_flags="-s -w -X k8s.io/component-base/version.gitVersion=$kubernetes_version"
kubernetes_flags+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$kubernetes_minor"
kubernetes_programs=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl helm coredns)
gateway_api_version=v1.7.0
gateway_api_sum=h1:duVnm7nO6oXfMMUWfcDoBph47CYR/ME3NGxccOVglaY= # as go.sum would have it

# hash_of TEXT FILE…: the hash of the text and of the files' content.
hash_of() {
  local text=$1
  shift
  { printf '%s\n' "$text"; cat "$@"; } | sha256sum | cut -c1-12
}
# Or the version that will be installed: at the first build there is none yet.
go_version=$(go version 2> /dev/null || echo "go version go1.27.3 linux/amd64")
kubernetes=$cache/kubernetes-$(hash_of "$kubernetes_flags ${kubernetes_programs[*]} $go_version" "$here"/kubernetes/*)
prometheus_flags="-s -w"
prometheus_tags=remove_all_sd,enable_kubernetes_sd,netgo # of all kinds of service discovery, one
prometheus=$cache/prometheus-$(hash_of "$prometheus_flags $prometheus_tags $go_version" "$here"/prometheus/*)
images=$cache/images-$(hash_of "$(basename "$kubernetes")" "$here/pause.c" "$here/build" "$repository/deploy/images/image.py")
gateway_api=$cache/gateway-api-$gateway_api_version
