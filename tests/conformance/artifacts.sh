# shellcheck shell=bash disable=SC2034,SC2154
# The suite and the image of its apps: the recipe, and the entry in the cache. Sourced after
# tests/cluster/common.sh, with `suite` as this folder.
source "$here/artifacts.sh"

build_conformance() {
  own_go # the suite requires a newer one than the cluster
  cd "$suite/suite"
  CGO_ENABLED=0 go test -c -mod=readonly -trimpath -ldflags '-s -w' -o "$1/conformance.test" .
  # The image name of the suite's manifests, which are not changed.
  local manifests image
  manifests=$(go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api/conformance)/mesh/manifests.yaml
  image=$(sed -n 's/^ *image: *//p' "$manifests" | sort -u)
  local root=$1/root
  mkdir -p "$root/usr/local/bin" "$root/tmp"
  (cd "$suite/echo" && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags '-s -w' -o "$root/usr/local/bin/" \
    istio.io/istio/pkg/test/echo/cmd/client istio.io/istio/pkg/test/echo/cmd/server)
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -keyout "$root/cert.key" -out "$root/cert.crt" \
    -subj /CN=echo -addext subjectAltName=DNS:echo 2> /dev/null
  python3 "$image_writer" "$root" "$1/echo.tar" "$image" --entrypoint /usr/local/bin/server
  rm -rf "$root"
}

conformance=$(entry conformance build_conformance "$(basename "$go")" "$suite"/suite/* "$suite"/echo/* "$image_writer")
