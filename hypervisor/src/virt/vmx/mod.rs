//! Intel VMX: definitions ([`fields`], [`maps`]), logic ([`capabilities`]) and hardware (the rest).

pub mod capabilities;
pub mod control;
pub mod entry;
pub mod exit;
pub mod fields;
pub mod guest;
pub mod instructions;
pub mod maps;
pub mod operation;

use crate::memory::address::HostPhysical;

use self::capabilities::Controls;

/// One CPU's use of VMX.
#[repr(C)]
#[derive(Debug)]
pub struct Vmx {
    /// Not 0: a VMCS is current, so the NMI handler may write to it. Known to assembly.
    loaded: u32,
    /// Pin-based controls with the preemption timer on. Known to assembly.
    pin_with_timer: u32,
    /// The next VM entry is the first one with this VMCS since VMCLEAR.
    needs_launch: bool,
    /// The guest halts, and no exit is to end that. (Hardware saves the state that an NMI has found, Bochs the one behind its
    /// delivery: the guest would run from its reset vector.)
    parked: bool,
    /// The controls, the same for all guests.
    controls: Controls,
    /// The VMXON region.
    vmxon: HostPhysical,
    /// The VMCS.
    control_block: HostPhysical,
}
