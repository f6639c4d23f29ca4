//go:build tools

// Package prometheus names the program that `../build` builds from this module: Debian's has no Kubernetes service discovery.
package prometheus

import _ "github.com/prometheus/prometheus/cmd/prometheus"
