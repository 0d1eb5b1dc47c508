// Package faultfs is a file system in memory that breaks as it is told. Tests mount it
// below a store, or below the real binary, and look what is left.
//
// It sits below the kernel's file-system interface (FUSE) rather than behind one of Go's:
// so the code under test is the code that runs elsewhere, bbolt, which wants a real file and
// maps it into memory, included, and nothing can bypass it. It knows of every file what was
// written and what was synced, and of every directory which names were. From that it makes
//
//   - what a kill leaves: everything that was done, nothing of what was not;
//   - what a power cut leaves: everything that was synced, and any subset of what was not: of
//     writes (in sectors), of sizes, of names;
//   - what a broken or full disk does: operations that fail, or write half of their bytes.
//     After a failed sync of a file some of its changes never reach the disk, while reading
//     shows them, and later syncs succeed: that is what Linux does.
//
// It is stricter than any real file system: syncing a file does not sync its name, and
// names of one directory reach the disk in any order.
//
// The file system runs in a process of its own, since a process that maps a file which it
// serves itself can come to wait for itself. It is the test's own binary, started again:
// TestMain begins with Child.
//
// An Image is the same for disks: it knows nothing of files, and a real file system is put
// on it, whose journal and whose order of writes decide what a power cut leaves.
package faultfs
