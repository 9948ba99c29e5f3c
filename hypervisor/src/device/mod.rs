//! Devices that the hypervisor shares out.
