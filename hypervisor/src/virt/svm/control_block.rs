//! Definitions of SVM: the control block (VMCB), its bits, and the MSRs of the extension.
//!
//! AMD64 Architecture Programmer's Manual, volume 2, "VMCB Layout". No hardware: a block is memory that the processor reads
//! and writes at VMRUN, VMSAVE, VMLOAD and exits, and nobody at any other time. Its fields are cells, since everybody who
//! looks at the block of a CPU shares it.
//!
//! Invariant: each field is at the manual's offset, which the compiler checks.
#![forbid(unsafe_code)]

use core::cell::Cell;
use core::mem::offset_of;

use bitflags::bitflags;

use crate::processor::descriptor::{ACCESS_UNUSABLE, Segment};

/// MSRs of the extension.
pub mod msr {
    pub use crate::processor::msr::VM_CR;
    /// VM_HSAVE_PA: where VMRUN saves the host's state.
    pub const HOST_SAVE: u32 = 0xc001_0117;
}

/// EFER: secure virtual machine enable.
pub const EFER_SVME: u64 = 1 << 12;
/// VM_CR: an INIT is an exception (#SX) once it may be taken.
pub const VM_CR_REDIRECT_INIT: u64 = 1 << 1;
/// VM_CR: EFER.SVME can't be written any more.
pub const VM_CR_LOCK: u64 = 1 << 3;
/// VM_CR: EFER.SVME can't be set.
pub const VM_CR_DISABLED: u64 = 1 << 4;

bitflags! {
    /// What of the third vector of intercepts ("VMCB Layout, Control Area", offset 0xc) is used.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Intercepts3: u32 {
        /// NMI.
        const NMI = 1 << 1;
        /// INIT.
        const INIT = 1 << 3;
        /// Writes to CR0 that change other bits than TS and MP.
        const CR0_SELECTIVE_WRITE = 1 << 5;
        /// RDPMC.
        const RDPMC = 1 << 15;
        /// CPUID.
        const CPUID = 1 << 18;
        /// IRET.
        const IRET = 1 << 20;
        /// INVD.
        const INVD = 1 << 22;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// IN and OUT, by the map of ports.
        const PORTS = 1 << 27;
        /// RDMSR and WRMSR, by the map of MSRs.
        const MSRS = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// Shutdown.
        const SHUTDOWN = 1 << 31;
    }

    /// The fourth vector, offset 0x10.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Intercepts4: u32 {
        /// VMRUN.
        const VMRUN = 1;
        /// VMMCALL.
        const VMMCALL = 1 << 1;
        /// VMLOAD.
        const VMLOAD = 1 << 2;
        /// VMSAVE.
        const VMSAVE = 1 << 3;
        /// STGI.
        const STGI = 1 << 4;
        /// CLGI.
        const CLGI = 1 << 5;
        /// SKINIT.
        const SKINIT = 1 << 6;
        /// WBINVD.
        const WBINVD = 1 << 9;
        /// XSETBV.
        const XSETBV = 1 << 13;
    }

    /// Parts of the block that the processor may take from its cache ("VMCB Clean Bits"). RIP, RSP, RAX, RFLAGS, the event,
    /// the shadow and the TLB control are read at each VMRUN.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Clean: u32 {
        /// Intercepts, and the offset of the time stamp counter.
        const INTERCEPTS = 1;
        /// Addresses of the permission maps.
        const PERMISSION_MAPS = 1 << 1;
        /// ASID.
        const ASID = 1 << 2;
        /// Virtual interrupts.
        const VIRTUAL_INTERRUPTS = 1 << 3;
        /// Nested paging, and the PAT of the guest.
        const NESTED_PAGING = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CONTROL_REGISTERS = 1 << 5;
        /// DR6, DR7.
        const DEBUG_REGISTERS = 1 << 6;
        /// GDTR, IDTR.
        const TABLES = 1 << 7;
        /// CS, DS, SS, ES, and the privilege level.
        const SEGMENTS = 1 << 8;
        /// CR2.
        const CR2 = 1 << 9;
    }

    /// What the hypervisor remembers of a guest in its block.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Notes: u32 {
        /// An NMI was delivered and its handler has not ended: NMIs are held back.
        const NMI_MASKED = 1;
        /// The handler's IRET has left the guest at [`Own::iret`], and is still to be carried out.
        const AT_IRET = 1 << 1;
        /// The trap flag is the hypervisor's: the guest does one instruction.
        const STEPPING = 1 << 2;
        /// The guest had set the trap flag itself.
        const OWN_TRAP_FLAG = 1 << 3;
        /// The guest had DR6.BS set before.
        const OWN_STEP_STATUS = 1 << 4;
        /// The exit is the end of [`Self::STEPPING`].
        const STEPPED = 1 << 5;
        /// The guest halts until the hypervisor wakes it: it is not entered.
        const PARKED = 1 << 6;
        /// The processor tells where the next instruction is.
        const NEXT_RIP = 1 << 7;
        /// The processor decodes accesses to control registers.
        const DECODES = 1 << 8;
    }
}

impl Notes {
    /// What is forgotten when another guest is loaded.
    pub const OF_THE_GUEST: Self = Self::NMI_MASKED
        .union(Self::AT_IRET)
        .union(Self::STEPPING)
        .union(Self::STEPPED)
        .union(Self::PARKED);
}

/// Intercepts of writes to a control register, in the first vector (offset 0).
#[must_use]
pub const fn writes_control_register(number: u32) -> u32 {
    1u32.wrapping_shl(number.wrapping_add(16))
}

/// TLB_CONTROL: all entries of all address spaces.
pub const FLUSH_ALL: u32 = 1;
/// TLB_CONTROL: all entries of this guest.
pub const FLUSH_GUEST: u32 = 3;
/// NP_ENABLE: nested paging.
pub const NESTED_PAGING: u64 = 1;
/// Beside NP_ENABLE: the guest may broadcast invalidations of its own address space.
pub const BROADCAST_INVALIDATION: u64 = 1 << 7;
/// INTERRUPT_SHADOW: the guest takes no interrupt before its next instruction has ended.
pub const INTERRUPT_SHADOW: u64 = 1;

/// An event to be delivered, or one whose delivery was interrupted: EVENTINJ and EXITINTINFO.
pub mod event {
    /// There is one.
    pub const VALID: u64 = 1 << 31;
    /// It has an error code, in bits 63:32.
    pub const ERROR_CODE: u64 = 1 << 11;
    /// Where the type is.
    pub const TYPE_SHIFT: u32 = 8;
    /// An interrupt of the APIC.
    pub const EXTERNAL: u64 = 0;
    /// NMI.
    pub const NMI: u64 = 2;
    /// An exception.
    pub const EXCEPTION: u64 = 3;
    /// INT n.
    pub const SOFTWARE: u64 = 4;
}

/// A segment register.
#[repr(C)]
#[derive(Debug, Default)]
pub struct BlockSegment {
    selector: Cell<u16>,
    attributes: Cell<u16>,
    limit: Cell<u32>,
    base: Cell<u64>,
}

/// Attributes: present.
const PRESENT: u16 = 1 << 7;

impl BlockSegment {
    /// In the form that both vendors share.
    #[must_use]
    pub fn get(&self) -> Segment {
        let attributes = u32::from(self.attributes.get());
        let rights = attributes & 0xff | (attributes & 0xf00) << 4;
        let usable = attributes & u32::from(PRESENT) != 0;
        Segment {
            selector: self.selector.get(),
            base: self.base.get(),
            limit: self.limit.get(),
            access_rights: if usable { rights } else { ACCESS_UNUSABLE },
        }
    }

    /// From the form that both vendors share. An unusable segment is one that is not present.
    pub fn set(&self, segment: &Segment) {
        let rights = segment.access_rights;
        let attributes = if rights & ACCESS_UNUSABLE != 0 {
            0
        } else {
            rights & 0xff | (rights >> 4) & 0xf00
        };
        self.selector.set(segment.selector);
        self.attributes.set(attributes as u16);
        self.limit.set(segment.limit);
        self.base.set(segment.base);
    }

    /// Where it begins.
    #[must_use]
    pub fn base(&self) -> u64 {
        self.base.get()
    }

    /// Its attributes: bits 7:0 and 11:8 are bits 47:40 and 55:52 of the descriptor.
    #[inline(always)]
    #[must_use]
    pub fn attributes(&self) -> u16 {
        self.attributes.get()
    }

    /// A descriptor table has base and limit only.
    pub fn set_table(&self, base: u64, limit: u32) {
        self.base.set(base);
        self.limit.set(limit);
    }

    /// Limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.get()
    }
}

/// What the hypervisor keeps in the bytes of the block that are set apart for it ("Reserved for Host usage").
#[repr(C)]
#[derive(Debug)]
pub struct Own {
    /// [`Notes`].
    pub notes: Cell<u32>,
    /// TLB_CONTROL that drops the guest's entries: what the processor has.
    pub flush: Cell<u32>,
    /// RIP of an IRET that is still to be carried out.
    pub iret: Cell<u64>,
    /// Bits of EFER that the processor has and a guest may set.
    pub allowed_efer: Cell<u64>,
    reserved: [u8; 8],
}

/// The control block.
#[repr(C, align(4096))]
#[derive(Debug)]
#[allow(missing_docs, reason = "the names are the manual's")]
pub struct ControlBlock {
    pub control_registers: Cell<u32>,
    pub debug_registers: Cell<u32>,
    pub exceptions: Cell<u32>,
    pub intercepts3: Cell<u32>,
    pub intercepts4: Cell<u32>,
    pub intercepts5: Cell<u32>,
    reserved_18: [u8; 0x28],
    pub port_map: Cell<u64>,
    pub msr_map: Cell<u64>,
    pub tsc_offset: Cell<u64>,
    pub asid: Cell<u32>,
    pub tlb_control: Cell<u32>,
    pub virtual_interrupts: Cell<u64>,
    pub interrupt_shadow: Cell<u64>,
    pub exit_code: Cell<u64>,
    pub exit_info1: Cell<u64>,
    pub exit_info2: Cell<u64>,
    pub exit_event: Cell<u64>,
    pub nested_control: Cell<u64>,
    reserved_98: [u8; 0x10],
    pub event: Cell<u64>,
    pub nested_root: Cell<u64>,
    pub virtual_extensions: Cell<u64>,
    pub clean: Cell<u32>,
    reserved_c4: [u8; 4],
    pub next_rip: Cell<u64>,
    pub fetched_count: Cell<u8>,
    pub fetched: [Cell<u8>; 15],
    reserved_e0: [u8; 0x300],
    pub own: Own,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [BlockSegment; 6],
    pub gdtr: BlockSegment,
    pub ldtr: BlockSegment,
    pub idtr: BlockSegment,
    pub tr: BlockSegment,
    reserved_4a0: [u8; 0x2b],
    pub privilege_level: Cell<u8>,
    reserved_4cc: [u8; 4],
    pub efer: Cell<u64>,
    reserved_4d8: [u8; 0x70],
    pub cr4: Cell<u64>,
    pub cr3: Cell<u64>,
    pub cr0: Cell<u64>,
    pub dr7: Cell<u64>,
    pub dr6: Cell<u64>,
    pub rflags: Cell<u64>,
    pub rip: Cell<u64>,
    reserved_580: [u8; 0x58],
    pub rsp: Cell<u64>,
    reserved_5e0: [u8; 0x18],
    pub rax: Cell<u64>,
    pub star: Cell<u64>,
    pub lstar: Cell<u64>,
    pub cstar: Cell<u64>,
    pub fmask: Cell<u64>,
    pub kernel_gs_base: Cell<u64>,
    /// CS, ESP, EIP.
    pub sysenter: [Cell<u64>; 3],
    pub cr2: Cell<u64>,
    reserved_648: [u8; 0x20],
    pub pat: Cell<u64>,
    reserved_670: [u8; 0x990],
}

/// The manual's offsets.
const _: () = {
    assert!(size_of::<ControlBlock>() == 0x1000);
    assert!(size_of::<BlockSegment>() == 16 && size_of::<Own>() == 32);
    assert!(offset_of!(ControlBlock, intercepts3) == 0x00c);
    assert!(offset_of!(ControlBlock, port_map) == 0x040);
    assert!(offset_of!(ControlBlock, msr_map) == 0x048);
    assert!(offset_of!(ControlBlock, asid) == 0x058);
    assert!(offset_of!(ControlBlock, tlb_control) == 0x05c);
    assert!(offset_of!(ControlBlock, virtual_interrupts) == 0x060);
    assert!(offset_of!(ControlBlock, interrupt_shadow) == 0x068);
    assert!(offset_of!(ControlBlock, exit_code) == 0x070);
    assert!(offset_of!(ControlBlock, exit_event) == 0x088);
    assert!(offset_of!(ControlBlock, nested_control) == 0x090);
    assert!(offset_of!(ControlBlock, event) == 0x0a8);
    assert!(offset_of!(ControlBlock, nested_root) == 0x0b0);
    assert!(offset_of!(ControlBlock, clean) == 0x0c0);
    assert!(offset_of!(ControlBlock, next_rip) == 0x0c8);
    assert!(offset_of!(ControlBlock, fetched_count) == 0x0d0);
    assert!(offset_of!(ControlBlock, own) == 0x3e0);
    assert!(offset_of!(ControlBlock, segments) == 0x400);
    assert!(offset_of!(ControlBlock, gdtr) == 0x460);
    assert!(offset_of!(ControlBlock, ldtr) == 0x470);
    assert!(offset_of!(ControlBlock, idtr) == 0x480);
    assert!(offset_of!(ControlBlock, tr) == 0x490);
    assert!(offset_of!(ControlBlock, privilege_level) == 0x4cb);
    assert!(offset_of!(ControlBlock, efer) == 0x4d0);
    assert!(offset_of!(ControlBlock, cr4) == 0x548);
    assert!(offset_of!(ControlBlock, cr3) == 0x550);
    assert!(offset_of!(ControlBlock, cr0) == 0x558);
    assert!(offset_of!(ControlBlock, dr7) == 0x560);
    assert!(offset_of!(ControlBlock, dr6) == 0x568);
    assert!(offset_of!(ControlBlock, rflags) == 0x570);
    assert!(offset_of!(ControlBlock, rip) == 0x578);
    assert!(offset_of!(ControlBlock, rsp) == 0x5d8);
    assert!(offset_of!(ControlBlock, rax) == 0x5f8);
    assert!(offset_of!(ControlBlock, star) == 0x600);
    assert!(offset_of!(ControlBlock, kernel_gs_base) == 0x620);
    assert!(offset_of!(ControlBlock, sysenter) == 0x628);
    assert!(offset_of!(ControlBlock, cr2) == 0x640);
    assert!(offset_of!(ControlBlock, pat) == 0x668);
};
