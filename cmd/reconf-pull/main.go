// Command reconf-pull makes a running host what its Butane file in a git repo
// says.
package main

import (
	"os"

	"github.com/reconf-pull/reconf-pull/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdout, os.Stderr))
}
