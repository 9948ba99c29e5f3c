//! Devices that the hypervisor shares out.

pub mod apic;
pub mod interrupt_command;
pub mod interrupt_route;
pub mod io_apic;
pub mod pci;
