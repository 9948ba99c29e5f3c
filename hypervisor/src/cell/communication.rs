//! The hypervisor's side of a communication region.
//!
//! The page belongs to the hypervisor's pool and the cell writes to it at will: every read is one atomic access of one
//! word, copied, and any value is possible.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gaol_abi::communication::{
    CellState, CommunicationRegion, Console, DMA_OFFSET, DMA_UNPROTECTED, DmaHeader, DmaRange,
    FLAG_DEBUG_PUTC_ACTIVE, FLAG_DEBUG_PUTC_PERMITTED, HEARTBEAT_OFFSET, Message, REVISION, Reply,
    SIGNATURE,
};

use gaol_abi::config::{MEMORY_DMA, MemoryRegion};

use crate::device::pci::function::Mastering;
use crate::memory::address::HostPhysical;
use crate::region;

/// A cell's communication region.
#[derive(Clone, Copy, Debug)]
pub struct Communication {
    frame: HostPhysical,
}

/// What the region says about the machine.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// CPUs of the cell.
    pub cpus: u16,
    /// Frequency of the time stamp counter.
    pub tsc_khz: u32,
    /// Frequency of the APIC timer.
    pub apic_khz: u32,
    /// Port of the power management timer.
    pub pm_timer_port: u16,
    /// The cell may print.
    pub console: bool,
    /// Address of PCI configuration space in memory, 0: none.
    pub pci_configuration: u64,
    /// How PCI functions of the cell find its memory; `None`: none of them may be bus master.
    pub dma: Option<Mastering>,
}

impl Communication {
    /// The region in a frame of the pool.
    #[must_use]
    pub const fn new(frame: HostPhysical) -> Self {
        Self { frame }
    }

    /// The frame.
    #[must_use]
    pub const fn frame(&self) -> HostPhysical {
        self.frame
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        let at = region::address_of(self.frame).wrapping_add(offset as u64);
        // SAFETY: an aligned word of a frame that this cell's region keeps; only accessed atomically by us.
        unsafe { AtomicU32::from_ptr(at as *mut u32) }
    }

    /// Clears the region and fills it for a start of the cell with these regions.
    pub fn start<'r>(&self, facts: &Facts, regions: impl Iterator<Item = &'r MemoryRegion>) {
        region::fill_frame(self.frame, 0);
        let flags = if facts.console {
            FLAG_DEBUG_PUTC_PERMITTED | FLAG_DEBUG_PUTC_ACTIVE
        } else {
            0
        };
        let content = CommunicationRegion {
            signature: SIGNATURE,
            revision: REVISION,
            cell_state: CellState::Running.0,
            msg_to_cell: Message::None.0,
            reply_from_cell: Reply::None.0,
            flags,
            console: Console {
                address: 0,
                size: 0,
                kind: 0,
                flags: 0,
                divider: 0,
                gate_number: 0,
                clock_register: 0,
            },
            pci_mmconfig_base: facts.pci_configuration,
            pm_timer_address: facts.pm_timer_port,
            num_cpus: facts.cpus,
            tsc_khz: facts.tsc_khz,
            apic_khz: facts.apic_khz,
            reserved: 0,
        };
        // SAFETY: the frame is ours and the cell does not run.
        unsafe {
            (region::address_of(self.frame) as *mut CommunicationRegion).write_volatile(content)
        };
        if let Some(dma) = facts.dma {
            self.tell_dma(dma, regions.filter(|region| region.flags & MEMORY_DMA != 0));
        }
    }

    /// Tells where PCI functions of the cell find its memory. The cell does not run.
    fn tell_dma<'r>(&self, dma: Mastering, regions: impl Iterator<Item = &'r MemoryRegion>) {
        let first = DMA_OFFSET.wrapping_add(size_of::<DmaHeader>());
        let places = (first..4096).step_by(size_of::<DmaRange>());
        let mut count = 0u32;
        let is_unprotected = dma == Mastering::Unprotected;
        for (offset, region) in places.zip(regions) {
            let device = if is_unprotected {
                region.physical
            } else {
                region.guest
            };
            self.tell(offset, region.guest);
            self.tell(offset.wrapping_add(8), device);
            self.tell(offset.wrapping_add(16), region.size);
            count = count.wrapping_add(1);
        }
        let flags = if is_unprotected { DMA_UNPROTECTED } else { 0 };
        self.tell(DMA_OFFSET, u64::from(count) | u64::from(flags) << 32);
    }

    fn tell(&self, offset: usize, value: u64) {
        for (at, half) in [
            (offset, value as u32),
            (offset.wrapping_add(4), (value >> 32) as u32),
        ] {
            self.word(at).store(half, Ordering::Relaxed);
        }
    }

    /// The state that the cell claims to be in.
    #[must_use]
    pub fn state(&self) -> CellState {
        CellState(
            self.word(offset_of!(CommunicationRegion, cell_state))
                .load(Ordering::Acquire),
        )
    }

    /// Overrides the cell's state.
    pub fn set_state(&self, state: CellState) {
        self.word(offset_of!(CommunicationRegion, cell_state))
            .store(state.0, Ordering::Release);
    }

    /// Sends a message; the reply is cleared before.
    pub fn send(&self, message: Message) {
        self.word(offset_of!(CommunicationRegion, reply_from_cell))
            .store(Reply::None.0, Ordering::Release);
        self.word(offset_of!(CommunicationRegion, msg_to_cell))
            .store(message.0, Ordering::Release);
    }

    /// The message that stands there: the last one that was sent, or what the cell has made of it.
    #[must_use]
    pub fn message(&self) -> Message {
        Message(
            self.word(offset_of!(CommunicationRegion, msg_to_cell))
                .load(Ordering::Acquire),
        )
    }

    /// The cell's heartbeat.
    #[must_use]
    pub fn heartbeat(&self) -> u64 {
        let at = region::address_of(self.frame).wrapping_add(HEARTBEAT_OFFSET as u64);
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(at as *mut u64) }.load(Ordering::Acquire)
    }

    /// The cell's reply.
    #[must_use]
    pub fn reply(&self) -> Reply {
        Reply(
            self.word(offset_of!(CommunicationRegion, reply_from_cell))
                .load(Ordering::Acquire),
        )
    }
}
