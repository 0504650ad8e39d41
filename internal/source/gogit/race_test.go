//go:build race

package gogit_test

// The race detector takes memory of its own.
const raceEnabled = true
