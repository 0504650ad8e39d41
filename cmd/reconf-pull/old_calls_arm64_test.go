package main_test

// old are the calls that older architectures have.
var old map[uint64]string
