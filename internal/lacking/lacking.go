// Package lacking ends a test for want of something on this machine.
//
// Its one rule: what is left out is said aloud, and in CI nothing is left out.
package lacking

import (
	"fmt"
	"os"
	"testing"
)

// Skip skips the test and says why; with CI in the environment it fails it.
func Skip(tb testing.TB, format string, args ...any) {
	tb.Helper()
	why := fmt.Sprintf(format, args...) + " (.ci/packages installs what is needed)"
	if os.Getenv("CI") != "" {
		tb.Fatal(why)
	}
	fmt.Fprintf(os.Stderr, "%s: LEFT OUT: %s\n", tb.Name(), why)
	tb.Skip(why)
}
