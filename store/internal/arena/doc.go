// Package arena keeps many small pieces of bytes outside of the Go heap, addressed by 32-bit references, so that
// neither the garbage collector nor the pacing of its cycles sees them. It knows nothing of what the bytes mean.
//
// Memory comes from the system in chunks, is cut into pages, and each page into cells of one size class:
//
//	chunk   64 KiB … 4 MiB, doubling, so that a store with little in it stays small; of huge pages once there is much
//	  ├ page  64 KiB, or 256 KiB for cells over 2 KiB: cells of one class, a bitmap of those in use beside it
//	  │   ┌──────┬──────┬──────┬───┬──────┐
//	  │   │cell 0│cell 1│cell 2│ … │      │   classes are steps of 4 bytes up to 512, then of at most 1/64
//	  │   └──────┴──────┴──────┴───┴──────┘
//	  └ page …
//
//	Ref  31              12 11         0
//	    ├──────────────────┼────────────┤
//	    │ page, from 1     │ cell       │    0 is no reference
//	    └──────────────────┴────────────┘
//
// A page is touched from its start on, and what nobody touched takes no memory. A page that became empty serves the next class
// in need; beyond a small reserve its memory is given back to the system at once and its addresses are kept.
//
// # Compaction
//
// Deletes and changing sizes leave holes. Once a class has more free cells than a page and 1/128 of its cells, its emptiest page is
// to be vacated: NextMove names a cell of it, the owner of the bytes copies them to a cell from Alloc (which never
// lies in that page), puts the new reference wherever it kept the old one, and frees the old cell. So compaction goes in steps
// as small as the owner wants, and ends when no class has too many holes. A cell that must stay is left by SkipMove.
//
// # Goroutines
//
// None of its own and no lock: everything that changes an Arena is serialised by the caller, against Bytes too. A Reader is a
// copy of the page directory: its owner may read cells that are in use, and that nobody frees, writes or moves, without any lock.
package arena
