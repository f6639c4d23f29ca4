//go:build tools

// Package prometheus lists the program that `../build` builds from this module: Debian's package
// has no Kubernetes service discovery.
package prometheus

import _ "github.com/prometheus/prometheus/cmd/prometheus"
