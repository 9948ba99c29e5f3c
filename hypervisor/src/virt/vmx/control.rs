//! Filling and changing the VMCS: the host's half once, the guest's half at launch and at each reset.

use gaol_abi::handover::{HandoverPage, SELECTOR_CS, SELECTOR_LDTR, SELECTOR_TR};
use gaol_abi::outcome::Reason;

use super::capabilities::Controls;
use super::entry::{Frame, HOST_STACK, vm_exit};
use super::fields::{
    ACTIVITY_ACTIVE, ACTIVITY_HLT, BLOCKING_BY_MOV_SS, BLOCKING_BY_NMI, BLOCKING_BY_STI, Entry,
    Field, INTERRUPTION_ERROR_CODE, PinBased, Primary, SEGMENTS,
};
use super::instructions::{read, write};
use crate::cpu::{PerCpu, TABLES_AT};
use crate::error::Failure;
use crate::guest::vectoring::{Event, Kind};
use crate::memory::address::HostPhysical;
use crate::processor::descriptor::{Segment, segment};
use crate::processor::tables::{CODE_SELECTOR, DescriptorTables, TASK_SELECTOR};
use crate::processor::{cpuid, cr0, cr4, efer, read_cr0, read_cr4};

/// Value of IA32_PAT after reset (SDM, "PAT MSR").
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Bits of CR0 that the guest sees only in the shadow: a real CD would make its EPT accesses uncached, NE must be 1.
const CR0_HOST_OWNED: u64 = cr0::NE | cr0::NW | cr0::CD;

/// #DB and #AC exit: a guest whose handler of one raises the same again would never reach an instruction boundary, so
/// that no NMI could stop it (CVE-2015-5307, CVE-2015-8104).
const EXCEPTIONS: u64 = (1 << 1) | (1 << 17);

/// Bits of CR4 that are 1 whatever the guest writes, which it sees in the shadow only: those that VMX demands, and MCE. A
/// machine check that finds MCE clear shuts the whole machine down.
pub const fn forced_cr4(controls: &Controls) -> u64 {
    controls.cr4_fixed_ones | cr4::VMXE | cr4::MCE
}

/// Writes controls and host state, which stay as they are for as long as the CPU is under the hypervisor.
pub fn fill_host(cpu: &mut PerCpu) {
    let controls = &cpu.controls;
    cpu.pin_controls = controls.pin;
    cpu.pin_with_timer = controls.pin | PinBased::PREEMPTION_TIMER.bits();
    let efer = crate::processor::read_msr(crate::processor::msr::EFER);
    for (field, value) in [
        (Field::PinBasedControls, u64::from(controls.pin)),
        (Field::PrimaryControls, u64::from(controls.primary)),
        (Field::SecondaryControls, u64::from(controls.secondary)),
        (Field::ExitControls, u64::from(controls.exit)),
        (Field::EntryControls, u64::from(controls.entry)),
        (Field::ExceptionBitmap, EXCEPTIONS),
        (Field::PageFaultErrorCodeMask, 0),
        (Field::PageFaultErrorCodeMatch, 0),
        (Field::Cr3TargetCount, 0),
        (Field::ExitMsrStoreCount, 0),
        (Field::ExitMsrLoadCount, 0),
        (Field::EntryMsrLoadCount, 0),
        (Field::EntryInterruptionInformation, 0),
        (Field::TscOffset, 0),
        (Field::TprThreshold, 0),
        (Field::VmcsLinkPointer, u64::MAX),
        (Field::Cr0Mask, CR0_HOST_OWNED),
        // Bits that the hypervisor does not know how to carry (CET and newer) stay off: setting one exits, and raises #GP.
        (Field::Cr4Mask, forced_cr4(controls) | !cr4::KNOWN),
        (Field::HostEsSelector, 0),
        (Field::HostCsSelector, u64::from(CODE_SELECTOR)),
        (Field::HostSsSelector, 0),
        (Field::HostDsSelector, 0),
        (Field::HostFsSelector, 0),
        (Field::HostGsSelector, 0),
        (Field::HostTrSelector, u64::from(TASK_SELECTOR)),
        (Field::HostPat, PAT_RESET),
        (Field::HostEfer, efer),
        (Field::HostSysenterCs, 0),
        (Field::HostSysenterEsp, 0),
        (Field::HostSysenterEip, 0),
        (Field::HostCr0, read_cr0()),
        (Field::HostCr3, cpu.private_cr3),
        (Field::HostCr4, read_cr4()),
        (Field::HostFsBase, 0),
        (Field::HostGsBase, 0),
        (
            Field::HostTrBase,
            DescriptorTables::task_state_base(TABLES_AT),
        ),
        (Field::HostGdtrBase, DescriptorTables::gdt_base(TABLES_AT)),
        (Field::HostIdtrBase, DescriptorTables::idt_base(TABLES_AT)),
        (Field::HostRsp, HOST_STACK),
        (Field::HostRip, vm_exit as *const () as u64),
    ] {
        write(field, value);
    }
    let xsaves = 1 << 20;
    if controls.secondary & xsaves != 0 {
        write(Field::XssExitingBitmap, 0);
    }
}

/// CR0, CR4 and EFER that each VM exit loads.
#[must_use]
pub fn host_registers() -> [u64; 3] {
    [
        read(Field::HostCr0),
        read(Field::HostCr4),
        read(Field::HostEfer),
    ]
}

/// What a guest may touch: its EPT and bitmaps.
#[derive(Clone, Copy, Debug)]
pub struct Confinement {
    /// Root of the EPT.
    pub ept_root: HostPhysical,
    /// MSR bitmap.
    pub msr_bitmap: HostPhysical,
    /// The two pages of the port bitmap.
    pub port_bitmaps: [HostPhysical; 2],
    /// Virtual processor identifier, not 0.
    pub vpid: u16,
}

/// EPT pointer of a root: write-back paging structures, 4-level walk, no accessed and dirty flags.
#[must_use]
pub const fn ept_pointer(root: HostPhysical) -> u64 {
    root.as_u64() | 6 | (3 << 3)
}

/// Confines the CPU's guest.
pub fn confine(confinement: &Confinement) {
    write(Field::EptPointer, ept_pointer(confinement.ept_root));
    write(Field::MsrBitmap, confinement.msr_bitmap.as_u64());
    let [first, second] = confinement.port_bitmaps;
    write(Field::IoBitmapA, first.as_u64());
    write(Field::IoBitmapB, second.as_u64());
    write(Field::VirtualProcessorId, u64::from(confinement.vpid));
    super::instructions::invalidate_all();
}

/// Lets RDPMC pass, as the root's, or exit. No event of the CPU may wait for a window.
pub fn set_counter_reads(controls: &Controls, pass: bool) {
    let more = if pass { 0 } else { controls.primary_of_cells };
    write(Field::PrimaryControls, u64::from(controls.primary | more));
}

fn write_segment(index: usize, segment: &Segment) {
    let Some(fields) = SEGMENTS.get(index) else {
        return;
    };
    write(fields.selector, u64::from(segment.selector));
    write(fields.base, segment.base);
    write(fields.limit, u64::from(segment.limit));
    write(fields.access_rights, u64::from(segment.access_rights));
}

/// Writes the guest state: Linux, as the stub and [`crate::launch::saved::Saved`] recorded it, at its first instruction
/// as a guest.
pub fn fill_linux(
    cpu: &PerCpu,
    page: &HandoverPage,
    first_instruction: u64,
) -> Result<(), Failure> {
    let state = &page.state;
    let saved = &cpu.saved;
    let refuse = |what: usize| Failure::hardware(Reason::LinuxState, what as u64);
    for (index, selector) in state.selectors.iter().enumerate() {
        let loaded = match index {
            SELECTOR_TR => {
                let [low, high] = state.task_descriptor;
                let mut table = [0u8; 24];
                if let Some(target) = table.get_mut(8..16) {
                    target.copy_from_slice(&low.to_le_bytes());
                }
                if let Some(target) = table.get_mut(16..24) {
                    target.copy_from_slice(&high.to_le_bytes());
                }
                let busy = 2;
                segment(&table, 8).map(|s| Segment {
                    selector: *selector,
                    access_rights: s.access_rights | busy,
                    ..s
                })
            }
            _ => segment(&page.gdt, *selector),
        };
        let mut loaded = loaded.ok_or(refuse(index))?;
        match index {
            SELECTOR_CS if *selector != CODE_SELECTOR => return Err(refuse(index)),
            4 => loaded.base = saved.fs_base,
            5 => loaded.base = saved.gs_base,
            SELECTOR_LDTR if selector & !3 == 0 => loaded = Segment::unusable(0),
            _ => {}
        }
        write_segment(index, &loaded);
    }
    for (field, value) in [
        (Field::GuestGdtrBase, state.gdtr.base),
        (Field::GuestGdtrLimit, u64::from(state.gdtr.limit)),
        (Field::GuestIdtrBase, state.idtr.base),
        (Field::GuestIdtrLimit, u64::from(state.idtr.limit)),
        (Field::GuestCr0, saved.cr0),
        (Field::Cr0ReadShadow, saved.cr0),
        (Field::GuestCr3, state.cr3),
        (Field::GuestCr4, state.cr4 | forced_cr4(&cpu.controls)),
        (Field::Cr4ReadShadow, state.cr4),
        (Field::GuestDr7, saved.dr7),
        (Field::GuestDebugctl, saved.debugctl),
        (Field::GuestPat, saved.pat),
        (Field::GuestEfer, saved.efer),
        (Field::GuestSysenterCs, saved.sysenter[0]),
        (Field::GuestSysenterEsp, saved.sysenter[1]),
        (Field::GuestSysenterEip, saved.sysenter[2]),
        (Field::GuestRsp, state.registers.rsp),
        (Field::GuestRip, first_instruction),
        (Field::GuestRflags, 2),
        (Field::GuestPendingDebugExceptions, 0),
        (Field::GuestInterruptibility, 0),
        (Field::GuestActivity, ACTIVITY_ACTIVE),
    ] {
        write(field, value);
    }
    set_ia32e(saved.efer & efer::LMA != 0);
    Ok(())
}

/// Says at the next VM entry whether the guest is in IA-32e mode.
pub fn set_ia32e(active: bool) {
    let bit = u64::from(Entry::IA32E_MODE_GUEST.bits());
    let controls = read(Field::EntryControls) & !bit;
    write(
        Field::EntryControls,
        if active { controls | bit } else { controls },
    );
}

/// Where a guest CPU starts after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A startup IPI with this vector.
    Vector(u8),
    /// A guest-physical address below 4 GiB, in real mode.
    Address(u32),
    /// Nowhere: the CPU halts and waits for the hypervisor.
    Parked,
}

/// Access rights of segments after INIT (SDM, "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT").
const RESET_CODE: u32 = 0x9b;
const RESET_DATA: u32 = 0x93;
const RESET_LDT: u32 = 0x82;
const RESET_TASK: u32 = 0x8b;

/// Puts the guest into the state after INIT, starting as `start` says. Returns its general registers.
#[must_use]
pub fn reset(cpu: &PerCpu, start: Start) -> Frame {
    for index in 0..SEGMENTS.len() {
        let access_rights = match index {
            SELECTOR_CS => RESET_CODE,
            SELECTOR_LDTR => RESET_LDT,
            SELECTOR_TR => RESET_TASK,
            _ => RESET_DATA,
        };
        write_segment(index, &Segment::real_mode(0, access_rights));
    }
    let (base, rip) = match start {
        Start::Vector(vector) => (u64::from(vector) << 12, 0),
        Start::Address(address) => (
            u64::from(address & 0xffff_0000),
            u64::from(address & 0xffff),
        ),
        Start::Parked => (0, 0),
    };
    write(Field::GuestCsBase, base);
    write(Field::GuestCsSelector, (base >> 4) & 0xffff);
    let cr0_after_init = cr0::CD | cr0::NW | cr0::ET;
    for (field, value) in [
        (Field::GuestRip, rip),
        (Field::GuestRsp, 0),
        (Field::GuestRflags, 2),
        (
            Field::GuestCr0,
            cr0::ET | cr0::NE | cpu.controls.cr0_fixed_ones,
        ),
        (Field::Cr0ReadShadow, cr0_after_init),
        (Field::GuestCr3, 0),
        (Field::GuestCr4, forced_cr4(&cpu.controls)),
        (Field::Cr4ReadShadow, 0),
        (Field::GuestEfer, 0),
        (Field::GuestPat, PAT_RESET),
        (Field::GuestDr7, 0x400),
        (Field::GuestDebugctl, 0),
        (Field::GuestSysenterCs, 0),
        (Field::GuestSysenterEsp, 0),
        (Field::GuestSysenterEip, 0),
        (Field::GuestGdtrBase, 0),
        (Field::GuestGdtrLimit, 0xffff),
        (Field::GuestIdtrBase, 0),
        (Field::GuestIdtrLimit, 0xffff),
        (Field::GuestPendingDebugExceptions, 0),
        (Field::GuestInterruptibility, 0),
        (Field::EntryInterruptionInformation, 0),
        (
            Field::GuestActivity,
            if start == Start::Parked {
                ACTIVITY_HLT
            } else {
                ACTIVITY_ACTIVE
            },
        ),
    ] {
        write(field, value);
    }
    set_ia32e(false);
    let [signature, ..] = cpuid(1, 0);
    Frame {
        rdx: u64::from(signature),
        ..Frame::default()
    }
}

/// An exception for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, where the exception has one.
    pub error_code: Option<u32>,
}

impl Exception {
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self {
        vector: 13,
        error_code: Some(0),
    };
    /// #UD.
    pub const INVALID_OPCODE: Self = Self {
        vector: 6,
        error_code: None,
    };
    /// #MC.
    pub const MACHINE_CHECK: Self = Self {
        vector: 18,
        error_code: None,
    };
}

/// Delivers an event at the next VM entry. In real mode no error code is pushed.
pub fn inject(event: &Event) {
    let mut information = event.information();
    match event.error_code {
        Some(code) if read(Field::GuestCr0) & cr0::PE != 0 => {
            write(Field::EntryExceptionErrorCode, u64::from(code));
        }
        _ => information &= !INTERRUPTION_ERROR_CODE,
    }
    // Its delivery ends what held interrupts and debug exceptions back: VM entry would refuse some events otherwise, and
    // single steps that are held back without being pending.
    let mut blocking = read(Field::GuestInterruptibility) & !(BLOCKING_BY_STI | BLOCKING_BY_MOV_SS);
    if event.kind == Kind::Nmi {
        blocking &= !BLOCKING_BY_NMI;
    }
    write(Field::GuestInterruptibility, blocking);
    write(Field::GuestPendingDebugExceptions, 0);
    write(Field::EntryInstructionLength, u64::from(event.length));
    write(Field::EntryInterruptionInformation, u64::from(information));
}

/// Switches exits at the NMI window on or off.
pub fn set_nmi_window(on: bool) {
    let bit = u64::from(Primary::NMI_WINDOW_EXITING.bits());
    let controls = read(Field::PrimaryControls) & !bit;
    write(
        Field::PrimaryControls,
        if on { controls | bit } else { controls },
    );
}

/// Where the guest goes on, and with which flags.
pub fn set_instruction(rip: u64, rflags: u64) {
    write(Field::GuestRip, rip);
    write(Field::GuestRflags, rflags);
}
