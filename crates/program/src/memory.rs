//! What a process that runs for years takes of memory: it counts its allocations, and gives back what it freed.
//!
//! glibc gives each thread an arena of its own, up to eight for each core, and keeps in each what was freed there.
//! Threads that come and go leave them half empty: a Coordinator had 700 MB resident of which it used 125.
//! Measured against other allocators in docs/performance.md.
#![expect(unsafe_code, reason = "an allocator cannot be written, nor glibc's be set, without")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

/// The system's allocator, which counts. As `#[global_allocator]` of a program.
pub struct Counting;

/// Each thread adds its count in steps of this many, so that threads do not wait for one another.
const STEP: u64 = 64;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static NOT_ADDED: Cell<u64> = const { Cell::new(0) };
}

/// Number of allocations since the start, up to a few per thread.
pub fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

fn count() {
    // Fails in a thread that is ending; what it allocates then is not counted.
    let _ = NOT_ADDED.try_with(|mine| {
        let counted = mine.get() + 1;
        if counted < STEP {
            mine.set(counted);
        } else {
            mine.set(0);
            ALLOCATIONS.fetch_add(counted, Ordering::Relaxed);
        }
    });
}

// SAFETY: every call goes to `System` with the arguments as they came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(ptr, layout, size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// To be called first in `main`: all threads share two arenas.
pub fn few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number in the allocator; any thread may do so at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives freed pages back to the kernel. Takes milliseconds, during which allocations of other threads wait.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: looks through the allocator's own lists, under its own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
