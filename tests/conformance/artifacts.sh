# shellcheck shell=bash disable=SC2034,SC2154
# The output paths of `build`, each with a hash of its inputs. Sourced after tests/cluster/common.sh
# and provide.sh.

source "$repository/tests/cluster/artifacts.sh"
suite_go=$cache/go/bin/go
conformance=$cache/conformance-$(hash_of "" "$repository"/tests/conformance/{build,suite/*,echo/*})
