package main_test

import (
	"fmt"
	"os"
	"testing"
)

// counted tells how much a test went through. `go test` says nothing of tests
// that pass: where RECONF_TEST_COUNTS names a file, it is told there too, and
// .ci/test prints that.
func counted(t *testing.T, format string, args ...any) {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	t.Log(line)
	path := os.Getenv("RECONF_TEST_COUNTS")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(f, "%s: %s\n", t.Name(), line); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
