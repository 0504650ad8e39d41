// Package butane turns Butane documents into Ignition configs.
//
// Its one rule: Butane never sees a fleet repo, only a private directory with
// the files that a document refers to, and large ones as placeholders; whatever
// Butane and Ignition say about a document becomes a finding with its line.
package butane
