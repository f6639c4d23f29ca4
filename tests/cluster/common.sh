# shellcheck shell=bash disable=SC2034
# Shared by the scripts of this folder: names, paths, and access to the running cluster. Sourced.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)

# One machine can run several clusters: each has a name, and all of its resources contain that name.
cluster=${NARU_CLUSTER:-naru}
[[ $cluster =~ ^[a-z][a-z0-9]{0,7}$ ]] || { echo "NARU_CLUSTER: at most 8 lower-case letters and digits" >&2; exit 2; }
export NARU_CLUSTER=$cluster

output=$repository/target/cluster # Naru's images, and the logs of clusters that are down
state=/tmp/naru-cluster-$cluster  # what a running cluster has on disk
control=$cluster-cp               # the network namespace of the control plane
nodes=(1 2)                       # node n is called "n$n", in the network namespace "$cluster-n$n"
api=10.200.0.254                  # the API server's address

# System administration programs may be missing in a user's PATH.
export PATH=$PATH:/usr/sbin:/sbin

die() { printf 'tests/cluster/%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

need_root() { [[ $EUID == 0 ]] || die "this needs root: it enters the cluster's namespaces"; }

need_cluster() {
  need_root
  [[ -e $state/up && -e /run/netns/$control ]] || die "no cluster is up: tests/cluster/up starts one"
}

# in_cluster PROGRAM [ARGUMENT…]: runs a program where it can reach the API server. Its own files
# (caches, plugin folders) are written to the state directory.
in_cluster() {
  local program=$1
  shift
  nsenter --net="/run/netns/$control" env KUBECONFIG="$state/pki/admin.kubeconfig" KUBECACHEDIR="$state/home/kube" \
    HELM_CACHE_HOME="$state/home/cache" HELM_CONFIG_HOME="$state/home/config" HELM_DATA_HOME="$state/home/data" \
    "$state/bin/$program" "$@"
}

# node_init N: the process id of a node's first process, whose namespaces are the node's.
node_init() {
  local pid
  for pid in $(ip netns pids "$cluster-n$1"); do
    # The process has two ids: the host's and, in the node, 1.
    if [[ $(sed -n 's/^NSpid:\t[0-9]*\t//p' "/proc/$pid/status" 2> /dev/null) == 1 ]]; then
      echo "$pid"
      return
    fi
  done
  die "node n$1 does not run; its logs are in $(readlink -f "$state/log")"
}

# in_node N PROGRAM [ARGUMENT…]: runs a program in all namespaces of a node.
in_node() {
  local pid
  pid=$(node_init "$1")
  nsenter -t "$pid" -a "${@:2}"
}
