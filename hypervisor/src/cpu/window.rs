//! Windows: the only way by which the hypervisor touches memory that is not its own.
//!
//! A window is a page of the CPU's private mapping that leads to one guest page for the moment of use. What is read
//! through it is copied out at once; no reference into guest memory ever exists.

use core::arch::asm;

use super::private;
use crate::memory::address::HostPhysical;
use crate::processor;
use crate::region;

/// Number of 4 KiB windows.
pub const COUNT: u64 = 4;

/// Index of the first window's entry in its page table.
const FIRST_ENTRY: u64 = (private::WINDOWS >> 12) & 0x1ff;
/// Index of the large window's entry in its page directory.
const LARGE_ENTRY: u64 = (private::LARGE_WINDOW >> 21) & 0x1ff;

const PRESENT_WRITABLE_NX: u64 = 0x8000_0000_0000_0003;
const ACCESSED_DIRTY: u64 = 0x60;
const LARGE: u64 = 0x80;
/// PWT and PCD: uncacheable by the PAT as it is at reset, which is the hypervisor's.
const UNCACHEABLE: u64 = 0x18;

/// A CPU's windows.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// Virtual address of the first window's page-table entry.
    entries: u64,
    /// Virtual address of the large window's page-directory entry.
    large_entry: u64,
}

impl Windows {
    /// The windows of the private table whose page table and page directory (of [`super::PRIVATE_BASE`]) these are.
    #[must_use]
    pub fn new(page_table: HostPhysical, page_directory: HostPhysical) -> Self {
        Self {
            entries: region::address_of(page_table).wrapping_add(FIRST_ENTRY.wrapping_mul(8)),
            large_entry: region::address_of(page_directory)
                .wrapping_add(LARGE_ENTRY.wrapping_mul(8)),
        }
    }

    /// Opens window `index` on the page that holds `physical`; returns the virtual address of that byte.
    #[inline]
    fn open(&self, index: u64, physical: HostPhysical) -> u64 {
        self.open_as(index, physical, 0)
    }

    /// As [`Self::open`], with more bits in the page-table entry.
    #[inline(always)]
    fn open_as(&self, index: u64, physical: HostPhysical, bits: u64) -> u64 {
        let value = (physical.as_u64() & 0x000f_ffff_ffff_f000)
            | PRESENT_WRITABLE_NX
            | ACCESSED_DIRTY
            | bits;
        self.lead(index, value) | (physical.as_u64() & 0xfff)
    }

    /// Has window `index` lead where `value` says, a page-table entry; returns its virtual address.
    #[inline(always)]
    fn lead(&self, index: u64, value: u64) -> u64 {
        let index = index & (COUNT - 1);
        let entry = self.entries.wrapping_add(index.wrapping_mul(8));
        let at = private::WINDOWS.wrapping_add(index << 12);
        // SAFETY: `entry` is this CPU's own page-table entry for the window, which nothing but this type maps; it lies in
        // a frame of the pool that the region's linear map covers. What was read through the window was copied out.
        unsafe { (entry as *mut u64).write_volatile(value) };
        processor::invalidate_page(at);
        at
    }

    /// Closes the small windows: they lead nowhere until they are opened again. The large one is closed after each use.
    pub fn close(&self) {
        for index in 0..COUNT {
            self.lead(index, 0);
        }
    }

    /// Reads the aligned 8 bytes at `physical`.
    #[inline(always)]
    #[must_use]
    pub fn read_u64(&self, physical: HostPhysical) -> u64 {
        // SAFETY: the window maps the page; the access is aligned and volatile, and any bit pattern is a u64.
        unsafe { ((self.open(0, physical) & !7) as *const u64).read_volatile() }
    }

    /// Reads the aligned 4 bytes at `physical`.
    #[must_use]
    pub fn read_u32(&self, physical: HostPhysical) -> u32 {
        // SAFETY: as in `read_u64`.
        unsafe { ((self.open(0, physical) & !3) as *const u32).read_volatile() }
    }

    /// Copies bytes out of guest memory, as far as the page reaches. Returns how many.
    pub fn read(&self, physical: HostPhysical, target: &mut [u8]) -> usize {
        let at = self.open(1, physical);
        let room = 4096usize.saturating_sub((at & 0xfff) as usize);
        let mut copied: usize = 0;
        for byte in target.iter_mut().take(room) {
            // SAFETY: inside the page that the window maps.
            *byte = unsafe { (at.wrapping_add(copied as u64) as *const u8).read_volatile() };
            copied = copied.wrapping_add(1);
        }
        copied
    }

    /// 16 bytes at `physical`, the first the lowest. They lie in one page.
    #[inline(always)]
    #[must_use]
    pub fn read_16(&self, physical: HostPhysical) -> u128 {
        // SAFETY: the caller asks for 16 bytes inside the page; unaligned reads are fine on x86, any pattern is valid.
        unsafe { (self.open(1, physical) as *const u128).read_unaligned() }
    }

    /// Reads `width` (1, 2, 4 or 8) bytes of registers at `physical`, in one access. They lie in one page.
    #[must_use]
    pub fn read_device(&self, physical: HostPhysical, width: u8) -> u64 {
        read_at(self.open_as(2, physical, UNCACHEABLE), width)
    }

    /// Writes the low `width` (1, 2, 4 or 8) bytes of `value` to registers at `physical`, in one access. They lie in one
    /// page.
    pub fn write_device(&self, physical: HostPhysical, width: u8, value: u64) {
        write_at(self.open_as(2, physical, UNCACHEABLE), width, value);
    }

    /// As [`Self::read_device`], of memory.
    #[must_use]
    pub fn read_memory(&self, physical: HostPhysical, width: u8) -> u64 {
        read_at(self.open(2, physical), width)
    }

    /// As [`Self::write_device`], of memory.
    pub fn write_memory(&self, physical: HostPhysical, width: u8, value: u64) {
        write_at(self.open(2, physical), width, value);
    }

    /// Fills `bytes` bytes at `physical` with zeroes; both multiples of 4096 and inside one 2 MiB page.
    pub fn clear(&self, physical: HostPhysical, bytes: u64) {
        let base = physical.as_u64() & !0x1f_ffff;
        let value = base | PRESENT_WRITABLE_NX | ACCESSED_DIRTY | LARGE;
        let offset = physical.as_u64() & 0x1f_ffff;
        let bytes = bytes.min(0x20_0000u64.wrapping_sub(offset));
        // SAFETY: the entry is this CPU's own for the large window; the bytes lie inside the 2 MiB that it maps and belong
        // to a stopped cell, so nothing of the hypervisor is overwritten.
        unsafe {
            (self.large_entry as *mut u64).write_volatile(value);
            processor::invalidate_page(private::LARGE_WINDOW);
            asm!(
                "rep stosq",
                inout("rcx") bytes / 8 => _,
                inout("rdi") private::LARGE_WINDOW.wrapping_add(offset) => _,
                in("rax") 0u64,
                options(nostack, preserves_flags)
            );
            (self.large_entry as *mut u64).write_volatile(0);
        }
        processor::invalidate_page(private::LARGE_WINDOW);
    }

    /// Writes the aligned 8 bytes at `physical`, in a page that the hypervisor owns but does not map.
    pub fn write_u64(&self, physical: HostPhysical, value: u64) {
        // SAFETY: the window maps the page, which belongs to the caller (a frame of this CPU's use of the extension).
        unsafe { ((self.open(0, physical) & !7) as *mut u64).write_volatile(value) };
    }

    /// Writes the start of the page at `physical` (the trampoline's page).
    pub fn write(&self, physical: HostPhysical, source: &[u8]) {
        let at = self.open(1, physical) & !0xfff;
        // SAFETY: no more than the page that the window maps; the caller owns it for the moment.
        unsafe {
            core::ptr::copy_nonoverlapping(source.as_ptr(), at as *mut u8, source.len().min(4096))
        };
    }

    /// Copies a whole page out.
    pub fn read_page(&self, physical: HostPhysical, target: &mut [u8; 4096]) {
        let at = self.open(1, physical) & !0xfff;
        // SAFETY: a whole page that the window maps.
        unsafe {
            core::ptr::copy_nonoverlapping(at as *const u8, target.as_mut_ptr(), target.len())
        };
    }
}

/// Reads `width` bytes through the window that `at` lies in, by one instruction.
#[inline(never)]
fn read_at(at: u64, width: u8) -> u64 {
    let value: u64;
    // SAFETY: inside the page that the window maps, which its owner may read; whether that has an effect is between the
    // owner and the device. Aligned or not, and no reference is made.
    unsafe {
        match width {
            1 => {
                asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags));
            }
            2 => {
                asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags));
            }
            4 => {
                asm!("mov {0:e}, [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags));
            }
            _ => {
                asm!("mov {0}, [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags));
            }
        }
    }
    value
}

/// Writes the low `width` bytes of `value` through the window that `at` lies in, by one instruction.
#[inline(never)]
fn write_at(at: u64, width: u8, value: u64) {
    // SAFETY: inside the page that the window maps, which its owner may write to and the hypervisor does not use.
    unsafe {
        match width {
            1 => {
                asm!("mov [{1}], {0}", in(reg_byte) value as u8, in(reg) at, options(nostack, preserves_flags));
            }
            2 => {
                asm!("mov [{1}], {0:x}", in(reg) value, in(reg) at, options(nostack, preserves_flags));
            }
            4 => {
                asm!("mov [{1}], {0:e}", in(reg) value, in(reg) at, options(nostack, preserves_flags));
            }
            _ => {
                asm!("mov [{1}], {0}", in(reg) value, in(reg) at, options(nostack, preserves_flags));
            }
        }
    }
}
