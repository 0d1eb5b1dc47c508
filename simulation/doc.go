// Package simulation runs a store below its gateway with clients that do everything that
// clients do, and disks, a bucket and a machine that fail in every way that they can, and
// compares every answer with a model that is a few maps.
//
// All decisions come from a seed. Goroutines and disks have a timing of their own, so one
// seed does not always take the same course; it takes similar ones.
//
// A run is a repository with random settings that lives several times. In each life some
// clients upload, download and misbehave (clients.go), while faults come and go and an
// operator looks after the store (events.go). A life ends well, by a kill, or by a
// power cut; then files may be lost or damaged (between.go). What holds:
//
//   - an answer of 200 is right, byte for byte, with its headers;
//   - what was acknowledged is there for good, unless damage was done to it, and is then
//     healed by uploading it again;
//   - what was not acknowledged is there as a whole, or not at all;
//   - what cannot be reached is never "not found", and reachable again afterwards;
//   - only a broken disk fails an upload;
//   - a check finds what was damaged, and nothing else.
//
// Each run has a process of its own: it leaves nothing behind, and can be told to end.
package simulation
