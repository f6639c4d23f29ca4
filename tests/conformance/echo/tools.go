//go:build tools

// Package echo lists the programs of the suite's own image, so that go.mod has their dependencies.
package echo

import (
	_ "istio.io/istio/pkg/test/echo/cmd/client"
	_ "istio.io/istio/pkg/test/echo/cmd/server"
)
