//! A process's memory: nothing stays in it that was freed, its allocations are counted, and freed pages are given back.
//!
//! A secret on its way through a process is in buffers that no type of ours names: of TLS, of HTTP/2, of a message that is
//! encoded, of a `Vec` that outgrew its place. So whatever is freed is overwritten with zeros first. What types wipe
//! themselves (`zeroize`) they wipe all the same: they may be dropped in a program without this allocator.
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

/// The system's allocator, which wipes what is freed, and counts. As `#[global_allocator]` of a program.
pub struct Wiping;

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

/// # Safety
///
/// `ptr` is the start of `length` bytes that may be written.
unsafe fn wipe(ptr: *mut u8, length: usize) {
    // SAFETY: the caller's. A plain `write_bytes` would be left out by the compiler, since nobody reads a freed block.
    unsafe { libc::explicit_bzero(ptr.cast(), length) }
}

// SAFETY: every call goes to `System` with the arguments as they came, or as `realloc` documents; counting allocates
// nothing, and what is wiped is within the block that its caller gives back.
unsafe impl GlobalAlloc for Wiping {
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

    /// Moves always, since the system's would leave a copy behind where it moves.
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller guarantees that `size`, rounded up to the alignment, does not overflow.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the caller guarantees that `size` is not zero.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: both blocks have so many bytes, and are two. The old one is this allocator's.
            unsafe {
                std::ptr::copy_nonoverlapping(ptr, new, layout.size().min(size));
                self.dealloc(ptr, layout);
            }
        }
        new
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the block has as many bytes as its layout says, and is the caller's until it is freed.
        unsafe {
            wipe(ptr, layout.size());
            System.dealloc(ptr, layout);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8; 64] = b"a secret of sixty-four bytes, that is nowhere else in memory ...";

    const LAYOUT: Layout = Layout::new::<[u128; 256]>();
    const AT: usize = 1024;

    /// What is at a place in this process, according to the kernel: for the language the block is gone.
    fn memory_at(place: u64) -> Vec<u8> {
        let mut found = vec![0_u8; SECRET.len()];
        let part = |base: *mut libc::c_void| libc::iovec { iov_base: base, iov_len: SECRET.len() };
        let (here, there) = (part(found.as_mut_ptr().cast()), part(place as *mut libc::c_void));
        // SAFETY: the kernel writes as many bytes into `found` as it has, and answers with an error for a place that is
        // not mapped.
        let read = unsafe { libc::process_vm_readv(libc::getpid(), &here, 1, &there, 1, 0) };
        assert_eq!(usize::try_from(read), Ok(SECRET.len()));
        found
    }

    fn block_with_a_secret() -> *mut u8 {
        // SAFETY: the layout is not empty, and the secret fits behind its start.
        unsafe {
            let block = Wiping.alloc(LAYOUT);
            assert!(!block.is_null());
            std::ptr::copy_nonoverlapping(SECRET.as_ptr(), block.add(AT), SECRET.len());
            block
        }
    }

    #[test]
    fn a_freed_block_and_one_that_was_outgrown_hold_nothing() {
        let block = block_with_a_secret();
        let place = block as u64 + AT as u64;
        assert_eq!(memory_at(place), SECRET);
        // SAFETY: it is this allocator's, and freed once.
        unsafe { Wiping.dealloc(block, LAYOUT) };
        assert_eq!(memory_at(place), [0; 64]);

        let block = block_with_a_secret();
        let place = block as u64 + AT as u64;
        let twice = Layout::new::<[u128; 512]>();
        // SAFETY: the block is this allocator's; what takes its place is freed by the size that it has.
        unsafe {
            let larger = Wiping.realloc(block, LAYOUT, twice.size());
            assert_eq!(std::slice::from_raw_parts(larger.add(AT), SECRET.len()), SECRET);
            Wiping.dealloc(larger, twice);
        }
        assert_eq!(memory_at(place), [0; 64]);
    }
}
