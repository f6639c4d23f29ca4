// kubectl is a program of its own: the tests call it thousands of times, and in the one binary half
// of the time of a call is the start of the other programs' packages.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

func main() { os.Exit(cli.Run(kubectl.NewDefaultKubectlCommand())) }
