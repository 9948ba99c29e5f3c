//! Devices that the hypervisor shares out.

pub mod interrupt_command;
