//go:build tools

// Package echo names the programs of the suite's own image, so that go.mod has what they need.
package echo

import (
	_ "istio.io/istio/pkg/test/echo/cmd/client"
	_ "istio.io/istio/pkg/test/echo/cmd/server"
)
