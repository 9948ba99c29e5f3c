//! Filling and changing the VMCS: the host's half once, the guest's half at launch and at each reset.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};

use gaol_abi::image::Vendor;
use gaol_abi::outcome::Reason;

use super::Vmx;
use super::capabilities::Controls;
use super::entry::{enter, nmi, vm_exit};
use super::fields::{ACTIVITY_ACTIVE, ACTIVITY_HLT, Field, PinBased};
use super::guest::{Current, write_segment};
use super::instructions::{interrupts_for_a_moment, invalidate_all, read, write};
use super::maps::{MsrBitmap, PortBitmaps};
use crate::cpu::window::Windows;
use crate::cpu::{CpuShared, TABLES_AT};
use crate::error::Failure;
use crate::memory::address::HostPhysical;
use crate::memory::page_table::Ept;
use crate::processor::descriptor::SegmentRegister;
use crate::processor::tables::{CODE_SELECTOR, DescriptorTables, TASK_SELECTOR};
use crate::processor::{self, cr0, cr4, msr, read_cr0, read_cr4, read_msr};
use crate::virt::contract::{Confinement, EXITING_EXCEPTIONS, GuestState, Regions, Virtualization};
use crate::virt::entry::{Frame, HOST_STACK};
use crate::virt::state::{PAT_RESET, State};

/// Bits of CR0 that the guest sees only in the shadow: a real CD would make its EPT accesses uncached, NE must be 1.
const CR0_HOST_OWNED: u64 = cr0::NE | cr0::NW | cr0::CD;

/// Bits of CR4 that are 1 whatever the guest writes, which it sees in the shadow only: those that VMX demands, and MCE. A
/// machine check that finds MCE clear shuts the whole machine down.
const fn forced_cr4(controls: &Controls) -> u64 {
    controls.cr4_fixed_ones | cr4::VMXE | cr4::MCE
}

/// CR0 as the processor has it when the guest wants to see `visible`.
const fn real_cr0(controls: &Controls, visible: u64) -> u64 {
    (visible & !(cr0::CD | cr0::NW)) | cr0::NE | cr0::ET | controls.cr0_fixed_ones
}

/// EPT pointer of a root: write-back paging structures, 4-level walk, no accessed and dirty flags.
const fn ept_pointer(root: HostPhysical) -> u64 {
    root.as_u64() | 6 | (3 << 3)
}

/// Places in [`Vmx`] that the NMI handler knows.
pub(super) const LOADED: usize = offset_of!(Vmx, loaded);
/// As [`LOADED`].
pub(super) const PIN_WITH_TIMER: usize = offset_of!(Vmx, pin_with_timer);

impl Virtualization for Vmx {
    const VENDOR: Vendor = Vendor::Vmx;
    const CONTROL_BLOCK_IS_MEMORY: bool = false;
    const WINDOW_BEHIND_EVENTS: bool = true;
    type Capabilities = Controls;
    type Guest = Current;
    type NestedFormat = Ept;
    type MsrLayout = MsrBitmap;
    type PortLayout = PortBitmaps;

    fn new(controls: Controls, regions: Regions) -> Self {
        Self {
            loaded: 0,
            pin_with_timer: controls.pin | PinBased::PREEMPTION_TIMER.bits(),
            needs_launch: true,
            parked: false,
            controls,
            vmxon: regions.host,
            control_block: regions.control_block,
        }
    }

    fn guest() -> Current {
        Current::new()
    }

    fn capabilities(&self) -> &Controls {
        &self.controls
    }

    fn check_unused(&self, linux_cr4: u64, cpu: u32) -> Result<(), Failure> {
        if linux_cr4 & cr4::VMXE != 0 {
            return Err(Failure::hardware(Reason::VmxInUse, u64::from(cpu)));
        }
        Ok(())
    }

    fn enter_operation(&mut self, windows: &Windows, keep: bool, cpu: u32) -> Result<(), Failure> {
        self.on(windows, keep, cpu)
    }

    fn leave_operation(&mut self) {
        self.off();
    }

    fn is_in_operation(&self) -> bool {
        self.loaded != 0
    }

    fn fill_host(&mut self, cr3: u64) {
        let controls = &self.controls;
        for (field, value) in [
            (Field::PinBasedControls, u64::from(controls.pin)),
            (Field::PrimaryControls, u64::from(controls.primary)),
            (Field::SecondaryControls, u64::from(controls.secondary)),
            (Field::ExitControls, u64::from(controls.exit)),
            (Field::EntryControls, u64::from(controls.entry)),
            (Field::ExceptionBitmap, u64::from(EXITING_EXCEPTIONS)),
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
            // Bits that the hypervisor does not know how to carry (CET and newer) stay off: setting one exits, and raises
            // #GP.
            (Field::Cr4Mask, forced_cr4(controls) | !cr4::KNOWN),
            (Field::HostEsSelector, 0),
            (Field::HostCsSelector, u64::from(CODE_SELECTOR)),
            (Field::HostSsSelector, 0),
            (Field::HostDsSelector, 0),
            (Field::HostFsSelector, 0),
            (Field::HostGsSelector, 0),
            (Field::HostTrSelector, u64::from(TASK_SELECTOR)),
            (Field::HostPat, PAT_RESET),
            (Field::HostEfer, read_msr(msr::EFER)),
            (Field::HostSysenterCs, 0),
            (Field::HostSysenterEsp, 0),
            (Field::HostSysenterEip, 0),
            (Field::HostCr0, read_cr0()),
            (Field::HostCr3, cr3),
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

    fn host_registers(&self) -> [u64; 3] {
        [
            read(Field::HostCr0),
            read(Field::HostCr4),
            read(Field::HostEfer),
        ]
    }

    fn confine(&mut self, confinement: &Confinement) {
        let second_page = confinement.ports.as_u64().wrapping_add(4096);
        for (field, value) in [
            (Field::EptPointer, ept_pointer(confinement.nested_root)),
            (Field::MsrBitmap, confinement.msrs.as_u64()),
            (Field::IoBitmapA, confinement.ports.as_u64()),
            (Field::IoBitmapB, second_page),
            (
                Field::VirtualProcessorId,
                u64::from(confinement.address_space),
            ),
        ] {
            write(field, value);
        }
        invalidate_all();
    }

    fn set_counter_reads(&mut self, pass: bool) {
        let more = if pass {
            0
        } else {
            self.controls.primary_of_cells
        };
        write(
            Field::PrimaryControls,
            u64::from(self.controls.primary | more),
        );
    }

    fn load(&mut self, state: &State) {
        for register in SegmentRegister::ALL {
            write_segment(register, &state.segment(register));
        }
        self.parked = state.is_parked;
        let [sysenter_cs, sysenter_esp, sysenter_eip] = state.sysenter;
        for (field, value) in [
            (Field::GuestGdtrBase, state.gdtr.base),
            (Field::GuestGdtrLimit, u64::from(state.gdtr.limit)),
            (Field::GuestIdtrBase, state.idtr.base),
            (Field::GuestIdtrLimit, u64::from(state.idtr.limit)),
            (Field::GuestCr3, state.cr3),
            (Field::GuestDr7, state.dr7),
            (Field::GuestDebugctl, state.debugctl),
            (Field::GuestPat, state.pat),
            (Field::GuestSysenterCs, sysenter_cs),
            (Field::GuestSysenterEsp, sysenter_esp),
            (Field::GuestSysenterEip, sysenter_eip),
            (Field::GuestRsp, state.rsp),
            (Field::GuestRip, state.rip),
            (Field::GuestRflags, state.rflags),
            (Field::GuestPendingDebugExceptions, 0),
            (Field::GuestInterruptibility, 0),
            (Field::EntryInterruptionInformation, 0),
            (
                Field::GuestActivity,
                if state.is_parked {
                    ACTIVITY_HLT
                } else {
                    ACTIVITY_ACTIVE
                },
            ),
        ] {
            write(field, value);
        }
        self.set_cr0(state.cr0);
        self.set_cr4(state.cr4);
        Self::guest().set_efer(state.efer);
    }

    fn save(&self) -> State {
        let guest = Self::guest();
        State {
            segments: SegmentRegister::ALL.map(|register| guest.segment(register)),
            gdtr: guest.gdtr(),
            idtr: guest.idtr(),
            cr0: guest.visible_cr0(),
            cr3: guest.cr3(),
            cr4: guest.visible_cr4(),
            efer: guest.efer(),
            pat: read(Field::GuestPat),
            debugctl: guest.debugctl(),
            dr7: read(Field::GuestDr7),
            sysenter: [
                read(Field::GuestSysenterCs),
                read(Field::GuestSysenterEsp),
                read(Field::GuestSysenterEip),
            ],
            rip: guest.rip(),
            rsp: guest.rsp(),
            rflags: guest.rflags(),
            is_parked: self.parked,
        }
    }

    fn set_cr0(&mut self, visible: u64) {
        write(Field::GuestCr0, real_cr0(&self.controls, visible));
        write(Field::Cr0ReadShadow, visible | cr0::ET);
    }

    fn set_cr4(&mut self, visible: u64) {
        write(Field::GuestCr4, visible | forced_cr4(&self.controls));
        write(Field::Cr4ReadShadow, visible);
    }

    fn set_pdptes(&mut self, entries: [u64; 4]) {
        let fields = [
            Field::GuestPdpte0,
            Field::GuestPdpte1,
            Field::GuestPdpte2,
            Field::GuestPdpte3,
        ];
        for (field, entry) in fields.into_iter().zip(entries) {
            write(field, entry);
        }
    }

    fn take_nmi(&mut self, count: &AtomicU32) {
        processor::unblock_nmis();
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn exit_soon(&mut self, _shared: &CpuShared) {
        // As the NMI handler does it.
        write(Field::PinBasedControls, u64::from(self.pin_with_timer));
        write(Field::PreemptionTimer, 0);
    }

    fn exited_soon(&mut self) {
        write(Field::PinBasedControls, u64::from(self.controls.pin));
    }

    fn nested_levels() -> u32 {
        4
    }

    unsafe fn take_interrupts() {
        // SAFETY: the caller's promise.
        unsafe { interrupts_for_a_moment() }
    }

    fn next_entry(&mut self) -> u32 {
        if self.parked {
            write(Field::GuestActivity, ACTIVITY_HLT);
        }
        u32::from(core::mem::replace(&mut self.needs_launch, false))
    }

    unsafe fn enter(frame: *const Frame, entry: u32) -> ! {
        // SAFETY: the caller's promise.
        unsafe { enter(frame, entry) }
    }

    fn nmi_handler() -> u64 {
        nmi as *const () as u64
    }
}
